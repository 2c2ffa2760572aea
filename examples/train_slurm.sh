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
# environment that van_hf is installed in must be active, and this folder and the data be seen by all machines.
#
# Five minutes before the time limit SLURM sends a signal, on which the run saves a checkpoint and ends with status 85;
# the job is then put back into the queue, and goes on from there. So does the same command after any other end.
#
#SBATCH --job-name=van
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=48
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

gpus_per_node=${SLURM_GPUS_ON_NODE:?"the job has no GPUs; ask for them with --gpus-per-node"}
read -r first_machine < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# The first machine, of rank 0, is where the others report, and its first process writes the results.
export MASTER_ADDR=$first_machine
# Two jobs that meet on a machine need different ports.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
cpus=$((SLURM_CPUS_PER_TASK / gpus_per_node))

# A process per GPU, without a launcher: it would hide their status, and end at the signal. One that fails ends the
# others a minute later; at once, they could be ended between their checkpoint and their own status.
status=0
srun --ntasks=$((SLURM_JOB_NUM_NODES * gpus_per_node)) --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task=$((cpus > 0 ? cpus : 1)) --kill-on-bad-exit=0 --wait=60 \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python "$@"' bash \
    examples/train_seg.py --resume_from_checkpoint latest "$@" || status=$?
if ((status == 85)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
