# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""transformers' own common test suites, see programs/transformers_suite.py, from its source package."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers
from conftest import PROGRAMS


@pytest.fixture(scope="module")
def source(request, tmp_path_factory) -> Path:
    """A folder with the `tests` of transformers' source package, of the installed version; kept in pytest's cache."""
    package, downloads = f"transformers-{transformers.__version__}", tmp_path_factory.mktemp("downloads")
    source = request.config.cache.mkdir("transformers") / package
    if not source.exists():
        requirement = package.replace("-", "==", 1)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "0"]
        done = subprocess.run(
            [*command, "--no-deps", "--no-binary", ":all:", "--dest", downloads, requirement],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-1]
            pytest.skip(f"the source package of {requirement} cannot be had: {reason}")
        (archive,) = downloads.iterdir()
        with tarfile.open(archive) as files:
            members = [member for member in files if member.name.startswith(f"{package}/tests/")]
            files.extractall(downloads, members, filter="data")
        (downloads / package / "tests" / "__init__.py").touch()
        shutil.move(downloads / package, source)
    return source


@pytest.mark.slow
def test_common_suites_of_transformers(source):
    pytest.importorskip("parameterized", reason="the suites need parameterized")
    paths = [str(source), str(PROGRAMS.parents[1]), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "transformers_suite.py"]
    # Two halves of about the same length, at the same time.
    halves = [
        subprocess.Popen(
            [*command, "-k", chosen],
            cwd=PROGRAMS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for chosen in ("VanFpnModelTest or VanHamModelTest", "not (VanFpnModelTest or VanHamModelTest)")
    ]
    num_passed = 0
    for half in halves:
        output, _ = half.communicate()
        assert half.returncode == 0, output
        (passed,) = re.findall(r"(\d+) passed", output.splitlines()[-1])
        num_passed += int(passed)
    assert num_passed > 100
