# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Names for torch operators that are registered by code which a process may hold several copies of."""

import itertools
import re

import torch


def operator_namespace(module_name: str, operator: str) -> str:
    """A namespace in which `operator` is not registered yet.

    Code saved with a model is a second copy of this package's modules in the same process, maybe of another version,
    and modules may be loaded again. None may take over another's operators: torch would free those that are in use.

    Args:
        module_name: the module's `__name__`.
        operator: the name of one of its operators, the first one that it registers.
    """
    base = re.sub(r"\W", "_", module_name)
    names = (base if load == 0 else f"{base}_{load}" for load in itertools.count())
    return next(name for name in names if not hasattr(getattr(torch.ops, name), operator))
