# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The progress bar of what is read before the work that was asked for."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def reading_progress(iterable=None, **arguments) -> tqdm:
    """Return a bar that shows up where reading takes seconds, and goes at its end; a log file has it now and then.

    Args:
        iterable: what to go through; without one the bar is updated by hand.
        arguments: of tqdm, such as `desc`, `unit` and `total`.
    """
    mininterval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(iterable, delay=2, mininterval=mininterval, leave=False, **arguments)
