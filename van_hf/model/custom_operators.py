# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What has to be minded with operators that a package registers: their names, and where they cannot be used."""

import itertools
import re

import torch
from torch.autograd import forward_ad


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


def is_exporting() -> bool:
    """Return whether the program is being exported: custom operators exist in no other runtime."""
    # Before torch 2.7 exporting could not be told from compiling.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return exporting() or torch.jit.is_tracing()


def is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Return whether a transform of `torch.func` is at work, or forward-mode differentiation of one of `tensors`.

    Custom operators have the gradients that were registered, for the reverse mode alone; in the other modes torch
    takes them for constants or fails. Where this is true, the plain form must run, which torch can differentiate.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    return any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
