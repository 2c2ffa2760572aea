# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""How a process uses the machine's cores and memory."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores_per_process() -> int:
    """Return the cores that this process may keep busy, at least 1.

    They are the cores that the process may run on (as SLURM or taskset say), no more than a container's quota of
    processor time, divided by the number of processes that the launcher has started on this machine
    (LOCAL_WORLD_SIZE). A core with two hardware threads is one: arithmetic gains nothing by the second.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Where the machine does not tell, there is one thread to a core.
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed, _quota() or allowed)
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)


def use_huge_pages() -> None:
    """Let torch ask the system for memory in pages of 2 MB, unless the user's THP_MEM_ALLOC_ENABLE says otherwise.

    Large maps on the CPU are new memory each time, which Linux makes ready page by page; in the usual pages of 4 kB
    that takes a good part of a forward pass. To be called before torch's first large tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _quota() -> int | None:
    """The cores' worth of processor time that a container has, rounded up; None without a limit."""
    # "max 100000", or microseconds of processor time in a period and the period; only cgroup v2 has the file.
    with suppress(OSError, ValueError):
        quota, period = map(int, CPU_QUOTA.read_text(encoding="ascii").split())
        return -(-quota // period)
    return None
