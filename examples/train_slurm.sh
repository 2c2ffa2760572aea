#!/bin/bash
# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
#
# Trains on several machines as a SLURM job; from the repository's folder:
#
#     sbatch --nodes 2 --gpus-per-node 8 examples/train_slurm.sh --dataset ade20k --recipe upernet_160k \
#         --model_size b0 --model_name_or_path Visual-Attention-Network/van-tiny --output_dir outputs/upernet-van-b0
#
# What follows the file's name are train_seg.py's arguments; what stands before it replaces the values below. The
# environment that van_hf is installed in must be active, and this folder and the data be seen by all machines. To go
# on after the time limit, submit the same command with --resume_from_checkpoint latest.
#
#SBATCH --job-name=van
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

gpus_per_node=${SLURM_GPUS_ON_NODE:?"the job has no GPUs; ask for them with --gpus-per-node"}
read -r first_machine < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
num_processes=$((SLURM_JOB_NUM_NODES * gpus_per_node))
options=(
    --num_machines "$SLURM_JOB_NUM_NODES"
    --num_processes "$num_processes"
    --main_process_ip "$first_machine"
    # Two jobs that meet on a machine need different ports.
    --main_process_port $((20000 + SLURM_JOB_ID % 10000))
    # The first machine, of rank 0, is where the others report, and its first process writes the results.
    --rdzv_backend static
)
# accelerate refuses it for a single process.
if ((num_processes > 1)); then
    options+=(--multi_gpu)
fi

# One launcher per machine, which starts a process per GPU. SLURM_NODEID is known where srun starts it only. srun does
# not take --cpus-per-task over from sbatch.
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' bash \
    "${options[@]}" examples/train_seg.py "$@"
