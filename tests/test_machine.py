# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import psutil
import pytest

from van_hf.machine import cores_per_process, use_huge_pages


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
