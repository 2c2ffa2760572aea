# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import held_folders

from van_hf import files
from van_hf.files import claim_folder, read_json, write_json, write_whole


def test_nothing_is_left_of_an_output_that_failed(tmp_path):
    def save(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_text("before")
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.png", save)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_text() == "before"


def test_json_is_read_as_it_was_written(tmp_path):
    # The last is how Python holds a file name that is not UTF-8.
    content = {"größe": [1, None], "name": os.fsdecode(b"caf\xe9")}
    write_json(tmp_path / "new" / "a.json", content)
    assert read_json(tmp_path / "new" / "a.json") == content


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff{}", b'{"a":' + b"[" * 100_000, None])
def test_what_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="a.json"):
        read_json(path)


needs_locks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has neither fork nor POSIX locks")


@needs_locks
def test_folder_is_claimed_by_one_of_many(tmp_path):
    program = Path(__file__).parent / "programs" / "hold_folder.py"
    command = [sys.executable, program, files.__file__, tmp_path / "new" / "folder"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(6)]
    # An empty line is the end of the output of one that was refused; the others wait for their input.
    answers = [process.stdout.readline() for process in processes]
    errors = [process.communicate()[1] for process in processes]
    assert sorted(zip(answers, errors, strict=True)) == [("", "refused\n")] * 5 + [("claimed\n", "")]


@needs_locks
def test_claim_dies_with_its_process_though_a_child_lives(tmp_path):
    with held_folders(tmp_path) as process:
        with pytest.raises(BlockingIOError, match="another process is writing to"), claim_folder(tmp_path):
            pass
        process.kill()
        process.wait()
        with claim_folder(tmp_path) as is_ours:
            assert is_ours
            (tmp_path / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@needs_locks
def test_lock_of_a_claim_that_has_just_ended_is_none(monkeypatch, tmp_path):
    lockf, calls = files.fcntl.lockf, []

    def lockf_after_the_end(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        lockf(*arguments)

    monkeypatch.setattr(files.fcntl, "lockf", lockf_after_the_end)
    with claim_folder(tmp_path) as is_ours:
        assert is_ours and (tmp_path / ".lock").exists()
    assert len(calls) == 2


@pytest.mark.parametrize("cause", ["system", "file system"])
def test_only_a_new_folder_is_sure_without_locks(monkeypatch, tmp_path, cause):
    if cause == "system":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        error = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        monkeypatch.setattr(pytest.importorskip("fcntl"), "lockf", Mock(side_effect=error))
    with claim_folder(tmp_path / "folder") as is_ours, claim_folder(tmp_path / "folder") as is_ours_too:
        assert (is_ours, is_ours_too) == (True, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["file", "file/new", "new/" + 300 * "x"])
def test_folder_that_cannot_be_written_is_not_claimed(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), claim_folder(tmp_path / path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_on_a_full_disk_is_not_claimed(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(OSError, match="No space left"), claim_folder(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == []
