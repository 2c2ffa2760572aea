# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import signal
import subprocess
import sys

import psutil
import pytest

from van_hf import machine as machine_module
from van_hf.machine import END_SIGNALS, EndSignals, cores_per_process, use_huge_pages


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends to be a machine, of 16 cores with two hardware threads each unless told otherwise."""
    quota_file = tmp_path / "cpu.max"
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("van_hf.machine.CPU_QUOTA", quota_file)

    def pretend(allowed: int = 32, physical: int | None = 16, quota: str | None = None, processes: int = 1) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        if quota is not None:
            quota_file.write_text(quota)

    return pretend


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, 16),
        ({"physical": None}, 32),
        ({"allowed": 6}, 6),
        ({"quota": "max 100000\n"}, 16),
        ({"quota": "350000 100000\n"}, 4),
        ({"quota": "350000 100000\n", "processes": 2}, 2),
        ({"processes": 3}, 5),
        ({"allowed": 2, "processes": 4}, 1),
    ],
)
def test_cores_of_a_process(machine, facts, expected):
    machine(**facts)
    assert cores_per_process() == expected


def test_cores_of_this_machine():
    assert 1 <= cores_per_process() <= os.cpu_count()


def test_the_user_decides_on_huge_pages(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_a_signal_is_a_request_to_end_within_a_block_alone(end_signals):
    before = list(map(signal.getsignal, END_SIGNALS))
    with EndSignals() as signals:
        assert not signals.received
    assert list(map(signal.getsignal, END_SIGNALS)) == before
    with EndSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received
    assert all(signal.getsignal(number) == signal.SIG_IGN for number in END_SIGNALS)


def test_signals_after_the_first_leave_the_status_alone():
    """Also while the interpreter shuts down, when Python's own handlers are gone."""
    program = "import atexit, os, runpy, signal, sys\n"
    program += "class Last:\n    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 15)\n"
    program += "with runpy.run_path(sys.argv[1])['EndSignals']():\n"
    program += "    os.kill(os.getpid(), signal.SIGTERM)\n"
    program += "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\nlast = Last()\nsys.exit(85)"
    assert subprocess.run([sys.executable, "-c", program, machine_module.__file__]).returncode == 85


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="a process cannot tell who sent a signal")
def test_a_worker_ends_by_its_parent_alone():
    program = "import runpy, sys; runpy.run_path(sys.argv[1])['leave_end_signals_to_parent']()\n"
    program += "for line in sys.stdin: print(line, end='', flush=True)"
    command = [sys.executable, "-c", program, machine_module.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as worker:
        for name in ("", "USR1", "TERM", "TERM"):
            if name:
                subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
            worker.stdin.write(f"after {name}\n")
            assert worker.stdout.readline() == f"after {name}\n"
        assert worker.poll() is None
        worker.terminate()
        assert worker.wait(timeout=60) == 128 + signal.SIGTERM
