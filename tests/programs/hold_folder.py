# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Claim folders, start a child process as a data loader does, and wait with it for the end of the standard input.

The arguments are van_hf/files.py, which is loaded by its path as importing the package takes seconds, and the folders.
"""

import os
import runpy
import sys
from contextlib import ExitStack
from pathlib import Path

claim_folder = runpy.run_path(sys.argv[1])["claim_folder"]

with ExitStack() as claims:
    try:
        for folder in sys.argv[2:]:
            claims.enter_context(claim_folder(Path(folder)))
    except BlockingIOError:
        sys.exit("refused")
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print("claimed", flush=True)
    sys.stdin.read()
