# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import torch

from van_hf.model.custom_operators import operator_namespace


def test_every_load_has_a_namespace_of_its_own():
    for expected in ("my_models_1_van", "my_models_1_van_1", "my_models_1_van_2"):
        namespace = operator_namespace("my.models-1.van", "add")
        assert namespace == expected

        @torch.library.custom_op(f"{namespace}::add", mutates_args=())
        def add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left + right

        assert add(torch.ones(1), torch.ones(1)) == 2
    assert operator_namespace("my.models-1.van", "other") == "my_models_1_van"
