# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest
import torch

from van_hf import VanConfig, VanForImageClassification, VanForSemanticSegmentation

# Parameters of the published checkpoints: the figures that the authors print (in millions), to the last parameter.
PUBLISHED_PARAMETERS = {
    ("b0", "upernet"): 32_133_004,
    ("b1", "upernet"): 43_836_652,
    ("b2", "upernet"): 56_553_324,
    ("b3", "upernet"): 74_740_460,
    ("b4", "upernet"): 90_258_028,
    ("b5", "upernet"): 121_890_188,
    ("b6", "upernet"): 231_481_580,
    ("b0", "semantic_fpn"): 7_984_374,
    ("b1", "semantic_fpn"): 17_615_446,
    ("b2", "semantic_fpn"): 30_332_118,
    ("b3", "semantic_fpn"): 48_519_254,
    ("b4", "semantic_fpn"): 64_036_822,
}
PUBLISHED_CLASSIFIER_PARAMETERS = {
    "b0": 4_105_800,
    "b1": 13_861_800,
    "b2": 26_578_472,
    "b3": 44_765_608,
    "b4": 60_283_176,
    "b5": 89_967_688,
    "b6": 199_829_416,
}


@pytest.mark.parametrize(("size", "decode_head"), PUBLISHED_PARAMETERS)
def test_published_segmentation_models_have_their_parameter_counts(size, decode_head):
    with torch.device("meta"):
        model = VanForSemanticSegmentation(VanConfig.from_size(size, decode_head=decode_head))
    assert model.num_parameters() == PUBLISHED_PARAMETERS[size, decode_head]


@pytest.mark.parametrize("size", PUBLISHED_CLASSIFIER_PARAMETERS)
def test_published_classifiers_have_their_parameter_counts(size):
    with torch.device("meta"):
        model = VanForImageClassification(VanConfig.from_size(size, num_labels=1000))
    assert model.num_parameters() == PUBLISHED_CLASSIFIER_PARAMETERS[size]


def test_from_size_takes_overrides_and_labels():
    config = VanConfig.from_size("b1", decode_head="semantic_fpn", drop_path_rate=0.0, id2label={0: "cat", 1: "dog"})
    assert (config.num_labels, config.drop_path_rate, config.decode_head) == (2, 0.0, "semantic_fpn")
    assert VanConfig.from_size("b0").num_labels == 150


def test_round_trip_keeps_every_field(tmp_path):
    config = VanConfig.from_size("b0", num_labels=2, palette=[[0, 0, 0], [255, 0, 10]], out_features=["stage2"])
    config.save_pretrained(tmp_path)
    assert VanConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_sizes_do_not_share_their_lists():
    VanConfig.from_size("b0").hidden_sizes[0] = 1
    assert VanConfig.from_size("b0").hidden_sizes[0] == 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decode_head", "deeplab"),
        ("depths", [1, 2, 3]),
        ("depths", [3, 3, 0, 2]),
        ("hidden_sizes", [64]),
        ("mlp_ratios", [8, 8]),
        ("pool_scales", []),
        ("num_channels", 0),
        ("decoder_hidden_size", -4),
        ("drop_path_rate", 1.0),
        ("classifier_dropout_prob", -0.1),
        ("layer_norm_eps", 0.0),
        ("auxiliary_loss_weight", -1),
        ("palette", [[0, 0, 0]]),
        ("palette", [[0, 0, 0], [0, 256, 0]]),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        VanConfig(**{field: value})


def test_wrong_types_are_refused_by_name():
    with pytest.raises(Exception, match="hidden_sizes"):
        VanConfig(hidden_sizes="b0")


def test_unknown_sizes_and_heads_are_refused():
    with pytest.raises(ValueError, match="b6, got 'b7'"):
        VanConfig.from_size("b7")
    with pytest.raises(ValueError, match="decode_head must be one of upernet, semantic_fpn"):
        VanConfig.from_size("b0", decode_head="fcn")


def test_values_set_after_the_checks_are_refused_by_the_model():
    config = VanConfig()
    config.decode_head = "deeplab"
    with pytest.raises(ValueError, match="decode_head"):
        VanForSemanticSegmentation(config)
