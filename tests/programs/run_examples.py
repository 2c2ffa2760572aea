# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Runs examples one after the other in one process, as each by itself would import torch and transformers anew.

Reads lines of JSON, [path of a script, its arguments, the Hub's token or null], and answers each with one line,
[exit status, what went to stdout, what went to stderr]. A traceback gives status 70.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import time
import traceback
import types

from huggingface_hub.utils import _http

# The client waits longer and longer between its attempts.
_http.time = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
answers = sys.stdout
for line in sys.stdin:
    script, arguments, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            status = stop.code
            if isinstance(status, str):
                status = print(stop.code, file=err) or 1
        except BaseException:
            status = traceback.print_exc() or 70
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)
