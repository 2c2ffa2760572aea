# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What OpenVINO and nncf do to the process and its user beside their work, prevented."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ISA = "ONEDNN_MAX_CPU_ISA"


class _Stack(ctypes.Structure):
    """`stack_t` of Linux: a thread's alternate stack, on which signals are handled; see sigaltstack(2)."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def openvino_kept_in_place() -> Iterator[None]:
    """For conversion, quantization and the compilation of programs, on the thread that does it.

    - OpenVINO 2026.4's CPU plugin gives the thread a stack for signals of its own. Where several programs were
      compiled, and are freed in the order of their making, the thread is left with one that is no longer mapped, and
      the next signal that Python handles (Ctrl-C, or a data loader's worker that ends) kills the process without a
      word. The thread gets its stack back at once.
    - Its int8 convolutions for AMX, the matrix unit of newer Xeons, read memory that is not theirs, which kills the
      process. oneDNN, which makes them, reads once how far it may go, and is kept to AVX-512 unless
      ONEDNN_MAX_CPU_ISA says otherwise.
    - OpenVINO's converter and nncf report what they do to their makers, unless it is done in a CI; users of this
      package were not asked.
    """
    stack, libc = _Stack(), ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None:
        libc.sigaltstack(None, ctypes.byref(stack))
    before = {name: os.environ.get(name) for name in ("CI", ISA)}
    os.environ |= {"CI": "true", ISA: before[ISA] or "AVX512_CORE_FP16"}
    try:
        yield
    finally:
        if libc is not None:
            libc.sigaltstack(ctypes.byref(stack), None)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
