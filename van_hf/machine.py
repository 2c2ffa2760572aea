# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""How a process uses the machine's cores and memory, and how it is asked to end."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


# What batch systems and launchers send before they kill; Windows has no SIGUSR1.
END_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class EndSignals:
    """Takes SIGTERM and SIGUSR1 for a request to end, which `received` tells, instead of ending at once.

    A context manager, for the main thread to enter. After a signal further ones are ignored even when it has ended:
    as the interpreter shuts down, they would put their own status in the place of the script's.
    """

    def __init__(self):
        self.received = False
        self._previous = {}

    def __enter__(self) -> "EndSignals":
        self._previous = {number: signal.signal(number, self._receive) for number in END_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self.received else handler)

    def _receive(self, *_: object) -> None:
        self.received = True


def leave_end_signals_to_parent(*_: object) -> None:
    """Heed SIGTERM and SIGUSR1 only where they come from the process that has started this one.

    For a data loader's `worker_init_fn`: a group of processes may get a signal at once, and the one that heeds it
    still needs its workers until it ends.
    """
    # The handlers of the parent are this process's, too.
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which macOS has not
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(128 + signal.SIGTERM)


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
