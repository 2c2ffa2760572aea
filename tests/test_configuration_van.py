# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import pytest
import torch
from transformers import AutoConfig

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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id2label", ["wall", "sky"]),
        ("id2label", 3),
        ("id2label", {"wall": "0"}),
        ("id2label", {"0": "wall", "2": "sky"}),
        ("id2label", {"0": None, "1": "sky"}),
        ("label2id", ["wall"]),
        ("num_labels", "x"),
        ("num_labels", None),
        ("dtype", 3),
        ("dtype", "foat32"),
        ("dtype", [1]),
        ("torch_dtype", "foat32"),
        ("architectures", "VanModel"),
        ("depths", [1, 2]),
        ("depths", []),
        ("depths", 3),
        ("depths", [1.5, 1, 1, 1]),
        ("hidden_sizes", None),
        ("strides", [4]),
        ("palette", 3),
        ("palette", [[0, 0, "a"]] * 2),
        ("decode_head", None),
        ("hidden_act", "banana"),
        ("out_features", ["stage9"]),
        ("out_indices", ["a"]),
        ("image_size", [1, 2, 3]),
        ("drop_path_rate", "a"),
        ("layer_norm_eps", float("nan")),
        ("initializer_range", float("nan")),
        ("auxiliary_loss_weight", float("nan")),
        ("use_auxiliary_head", "yes"),
        ("semantic_loss_ignore_index", None),
    ],
)
def test_damaged_files_are_refused_by_the_field(tmp_path, field, value):
    content = {"model_type": "van", "id2label": {"0": "wall", "1": "sky"}, field: value}
    (tmp_path / "config.json").write_text(json.dumps(content))
    for config_class in (VanConfig, AutoConfig):
        with pytest.raises(ValueError, match=field):
            config_class.from_pretrained(tmp_path)


# Two labels of the default names are not in the file.
@pytest.mark.parametrize("names", [{0: "wall", 1: "sky", 2: "tree"}, {0: "LABEL_0", 1: "LABEL_1"}])
@pytest.mark.parametrize(
    "labels",
    [
        {"num_labels": 5},
        {"id2label": dict(enumerate("abcde")), "label2id": {name: idx for idx, name in enumerate("abcde")}},
        {"num_labels": 5, "id2label": dict(enumerate("abcde"))},
    ],
)
def test_a_palette_that_no_longer_fits_is_dropped(tmp_path, names, labels):
    palette = [[idx, 0, 0] for idx in names]
    VanConfig(id2label=names, palette=palette).save_pretrained(tmp_path)
    for config_class in (VanConfig, AutoConfig):
        config = config_class.from_pretrained(tmp_path, **labels)
        assert config.num_labels == 5 and config.palette is None
        assert list(config.id2label.values()) == list(labels.get("id2label", config.id2label).values())
    kept = VanConfig.from_pretrained(tmp_path, id2label=dict(enumerate("abc"[: len(names)])))
    assert kept.palette == palette
    changed = VanConfig.from_pretrained(tmp_path)
    changed.num_labels = 5
    assert changed.palette is None
    colours = [[0, 0, idx] for idx in range(5)]
    assert VanConfig.from_pretrained(tmp_path, palette=colours, **labels).palette == colours


def test_numbers_of_labels_that_cannot_be_are_refused(tmp_path):
    VanConfig().save_pretrained(tmp_path)
    for num_labels in ("5", 0, 2.0):
        with pytest.raises(ValueError, match="num_labels must be a positive integer"):
            VanConfig.from_pretrained(tmp_path, num_labels=num_labels)
    with pytest.raises(ValueError, match="num_labels is 6, but id2label has 2 names"):
        VanConfig.from_pretrained(tmp_path, num_labels=6, id2label={0: "a", 1: "b"})


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
