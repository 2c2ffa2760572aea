# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Conversion of the authors' checkpoints."""

import argparse
import gzip
import json
import os
import re

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from conftest import TINY_BACKBONE, TINY_HEADS
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from van_hf import (
    VanConfig,
    VanForImageClassification,
    VanForSemanticSegmentation,
    VanImageProcessor,
    VanModel,
)
from van_hf.checkpoints import (
    convert_checkpoint,
    convert_state_dict,
    infer_config,
    infer_model_class,
    load_original_checkpoint,
    original_key,
    save_converted,
)
from van_hf.data.ade20k import CLASS_NAMES, PALETTE

UPERNET, FPN = "seed_upernet_van_tiny.pth", "seed_fpn_van_tiny.pth"
HAMS = TINY_LIGHT_HAM, TINY_HAM = "seed_light_ham_van_tiny.pth", "seed_ham_van_tiny.pth"
CLASSIFIER = "seed_classification_van_tiny.pth.tar"
SEGMENTATION_MANIFESTS = [
    *(f"upernet_van_b{size}_512x512_160k_ade20k" for size in range(5)),
    *(f"upernet_van_b{size}_512x512_160k_ade20k_22k" for size in (4, 5, 6)),
    *(f"fpn_van_b{size}_ade20k_40k" for size in range(5)),
]
# The authors' names: the decode head, the size, the fields that are not theirs, and the number of parameters.
LIGHT_HAM = "hamnet_light_van_{}_512x512_160k_ade20k"
HAM = "hamnet_van_{}_512x512_160k_ade20k"
D256 = {"decoder_hidden_size": 256, "ham_hidden_size": 256, "ham_rank": 16}
HAM_MANIFESTS = {
    LIGHT_HAM.format("tiny_d256"): ("light_ham", "b0", D256, 4_208_630),
    LIGHT_HAM.format("tiny"): ("light_ham", "b0", {"ham_hidden_size": 480}, 4_866_134),
    LIGHT_HAM.format("small"): ("light_ham", "b1", {}, 14_707_286),
    LIGHT_HAM.format("base"): ("light_ham", "b2", {}, 27_423_958),
    LIGHT_HAM.format("large"): ("light_ham", "b3", {}, 45_611_094),
    LIGHT_HAM.format("huge"): ("light_ham", "b4", {}, 61_128_662),
    HAM.format("tiny"): ("ham", "b0", {}, 11_940_236),
    HAM.format("small"): ("ham", "b1", {}, 24_168_172),
    HAM.format("base"): ("ham", "b2", {}, 36_884_844),
    HAM.format("large"): ("ham", "b3", {}, 55_071_980),
}
# Millions of parameters as the authors publish them, to the digits given there.
UPERNET_PARAMETERS = {"b0": 32.1, "b1": 43.8, "b2": 56.6, "b3": 74.7, "b4": 90.3, "b5": 121.9, "b6": 231.5}
FPN_PARAMETERS = {"b0": 7.98, "b1": 17.6, "b2": 30.3, "b3": 48.5, "b4": 64.0}
CLASSIFIER_PARAMETERS = {"b0": 4.11, "b1": 13.86, "b2": 26.58, "b3": 44.77, "b4": 60.28, "b5": 89.97, "b6": 199.83}


@pytest.fixture(scope="module")
def manifests(fixtures_dir):
    """{name: {key: shape}} of the published checkpoints."""
    return json.loads(gzip.decompress((fixtures_dir / "manifests.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def seeds(fixtures_dir):
    return {name: load_original_checkpoint(fixtures_dir / name) for name in (UPERNET, FPN, *HAMS, CLASSIFIER)}


@pytest.fixture
def upernet(seeds):
    """Tensors and meta of the UperNet checkpoint, to be changed."""
    state_dict, meta = seeds[UPERNET]
    return {"state_dict": dict(state_dict), "meta": dict(meta)}


@pytest.fixture
def write(tmp_path):
    """Writes a checkpoint and returns its path."""

    def save(checkpoint, name="checkpoint.pth", **kwargs):
        torch.save(checkpoint, tmp_path / name, **kwargs)
        return tmp_path / name

    return save


def on_meta(manifest):
    return {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}


def build_on_meta(config, model_class):
    with torch.device("meta"):
        return model_class(config)


def check_conversion(state_dict, model):
    """The converted tensors are exactly the model's but for the bases, and each is the one of the original name."""
    converted = convert_state_dict(state_dict, model)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items() if not key.endswith(".bases")}
    assert {key: tensor.shape for key, tensor in converted.items()} == expected
    assert len(converted) == len(state_dict)


def parameters_in_millions(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def assert_refused(checkpoint, *patterns, **kwargs):
    with pytest.raises(ValueError) as caught:
        convert_checkpoint(checkpoint, **kwargs)
    for pattern in (re.escape(str(checkpoint)), *patterns):
        assert re.search(pattern, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("name", SEGMENTATION_MANIFESTS)
def test_published_segmentation_checkpoints(manifests, name):
    state_dict = on_meta(manifests[f"segmentation/{name}"])
    size = re.search(r"b\d", name)[0]
    decode_head, channels, published = "upernet", 512, UPERNET_PARAMETERS
    if name.startswith("fpn"):
        decode_head, channels, published = "semantic_fpn", 128, FPN_PARAMETERS
    config = infer_config(state_dict)
    expected = VanConfig.from_size(size, decode_head, decoder_hidden_size=channels)
    assert config.to_dict() == expected.to_dict()
    assert infer_model_class(state_dict) is VanForSemanticSegmentation
    model = build_on_meta(config, VanForSemanticSegmentation)
    check_conversion(state_dict, model)
    digits = 2 if (decode_head, size) == ("semantic_fpn", "b0") else 1
    assert parameters_in_millions(model) == pytest.approx(published[size], abs=0.51 * 10**-digits)


@pytest.mark.parametrize("name", HAM_MANIFESTS)
def test_published_ham_checkpoints(manifests, name):
    state_dict = on_meta(manifests[f"segmentation/{name}"])
    decode_head, size, fields, num_parameters = HAM_MANIFESTS[name]
    fields = {"decoder_hidden_size": 512, "ham_hidden_size": 512, "ham_rank": 64, **fields}
    config = infer_config(state_dict)
    assert config.to_dict() == VanConfig.from_size(size, decode_head, **fields).to_dict()
    assert config.layer_norm_eps == 1e-6
    assert config.strides == ([4, 2, 1, 1] if decode_head == "ham" else [4, 2, 2, 2])
    assert infer_model_class(state_dict) is VanForSemanticSegmentation
    model = build_on_meta(config, VanForSemanticSegmentation)
    check_conversion(state_dict, model)
    assert [key for key in model.state_dict() if key.endswith(".bases")] == ["decode_head.hamburger.bases"]
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("size", CLASSIFIER_PARAMETERS)
def test_published_classifiers(manifests, size):
    state_dict = on_meta(manifests[f"classification/van_{size}"])
    sizes = VanConfig.from_size(size)
    config = infer_config(state_dict)
    expected = VanConfig(hidden_sizes=sizes.hidden_sizes, depths=sizes.depths, num_labels=1000)
    assert config.to_dict() == expected.to_dict()
    assert config.layer_norm_eps == 1e-6
    assert infer_model_class(state_dict) is VanForImageClassification
    model = build_on_meta(config, VanForImageClassification)
    check_conversion(state_dict, model)
    assert parameters_in_millions(model) == pytest.approx(CLASSIFIER_PARAMETERS[size], abs=0.0051)


def test_every_manifest_is_tested(manifests):
    tested = [f"segmentation/{name}" for name in (*SEGMENTATION_MANIFESTS, *HAM_MANIFESTS)]
    tested += [f"classification/van_{size}" for size in CLASSIFIER_PARAMETERS]
    assert sorted(tested) == sorted(name for name in manifests if not name.startswith("hub/"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (UPERNET, {"num_labels": 7, "layer_norm_eps": 1e-5, **TINY_HEADS["upernet"]}),
        (FPN, {"num_labels": 7, "layer_norm_eps": 1e-5, **TINY_HEADS["semantic_fpn"]}),
        (CLASSIFIER, {"num_labels": 5, "layer_norm_eps": 1e-6}),
    ],
)
def test_architecture_of_an_unpublished_size(seeds, name, expected):
    assert infer_config(seeds[name][0]).to_dict() == VanConfig(**TINY_BACKBONE, **expected).to_dict()


@pytest.mark.parametrize(("name", "head"), [(TINY_LIGHT_HAM, "light_ham"), (TINY_HAM, "ham")])
def test_ham_rank(seeds, fixtures_dir, name, head):
    state_dict = seeds[name][0]
    expected = {"num_labels": 7, "layer_norm_eps": 1e-6, **TINY_BACKBONE, **TINY_HEADS[head]}
    assert infer_config(state_dict).to_dict() == VanConfig(**{**expected, "ham_rank": 64}).to_dict()
    assert infer_config(state_dict, ham_rank=8).to_dict() == VanConfig(**expected).to_dict()
    model, _ = convert_checkpoint(fixtures_dir / name, ham_rank=8)
    bases = model.decode_head.hamburger.bases
    assert bases.shape == (64, 8) and torch.equal(bases, type(model.decode_head.hamburger).fixed_bases(64, 8))
    for rank in (0, -1):
        assert_refused(fixtures_dir / name, f"ham_rank must be an integer from 1 to 4096, got {rank}", ham_rank=rank)


@pytest.mark.parametrize(
    ("name", "found"), [(UPERNET, "this has UperNet"), (FPN, "Semantic FPN"), (CLASSIFIER, "no decode head")]
)
def test_a_rank_of_heads_that_have_none_is_refused(fixtures_dir, name, found):
    assert_refused(fixtures_dir / name, f"ham_rank is 64, but only Light-Ham and HamNet .*{found}", ham_rank=64)


def test_ham_without_auxiliary_head(seeds, write):
    state_dict = {key: value for key, value in seeds[TINY_HAM][0].items() if not key.startswith("auxiliary_head.")}
    model, _ = convert_checkpoint(write(state_dict), dict(enumerate("abcdefg")))
    assert (model.config.decode_head, model.auxiliary_head) == ("ham", None)


def test_upernet_without_auxiliary_head(upernet, write):
    state_dict = {key: value for key, value in upernet["state_dict"].items() if not key.startswith("auxiliary_head.")}
    model, _ = convert_checkpoint(write({"state_dict": state_dict}), dict(enumerate("abcdefg")))
    assert model.config.use_auxiliary_head is False
    assert model.auxiliary_head is None


def test_original_keys():
    assert [
        original_key(key, VanForSemanticSegmentation)
        for key in (
            "van.encoder.stages.0.embeddings.normalization.running_var",
            "van.encoder.stages.3.layers.12.attention.attention_layer.attention.depth_wise_dilated.bias",
            "van.encoder.stages.2.layers.0.mlp_scaling.weight",
            "decode_head.lateral_convs.2.weight",
            "decode_head.lateral_convs.2.conv.weight",
            "auxiliary_head.classifier.bias",
        )
    ] == [
        "backbone.patch_embed1.norm.running_var",
        "backbone.block4.12.attn.spatial_gating_unit.conv_spatial.bias",
        "backbone.block3.0.layer_scale_2",
        "neck.lateral_convs.2.conv.weight",
        "decode_head.lateral_convs.2.conv.weight",
        "auxiliary_head.conv_seg.bias",
    ]
    assert original_key("classifier.weight", VanForImageClassification) == "head.weight"
    assert original_key("van.encoder.stages.1.normalization.bias", VanForImageClassification) == "norm2.bias"
    assert original_key("encoder.stages.1.normalization.bias", VanModel) == "norm2.bias"


def convert_and_reload(path, folder, auto_class):
    save_converted(*convert_checkpoint(path), folder)
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model


@pytest.mark.parametrize("name", [UPERNET, FPN])
def test_converted_segmentation_model(fixtures_dir, tmp_path, name):
    model = convert_and_reload(fixtures_dir / name, tmp_path / "model", AutoModelForSemanticSegmentation)
    golden = np.load(fixtures_dir / f"{name.removesuffix('.pth')}.npz")
    labels = torch.from_numpy(golden["labels"]).long()
    with torch.no_grad():
        outputs = model(torch.from_numpy(golden["pixel_values"]), labels=labels, output_hidden_states=True)
    np.testing.assert_allclose(outputs.logits, golden["logits"], rtol=0, atol=2e-5)
    for stage, hidden_states in enumerate(outputs.hidden_states, start=1):
        np.testing.assert_allclose(hidden_states, golden[f"stage{stage}"], rtol=0, atol=2e-5)
    # The original divides the loss by the number of all pixels, ignored ones too.
    valid_share = (labels != 255).double().mean()
    np.testing.assert_allclose(outputs.loss * valid_share, golden["loss_decode"], rtol=1e-5)
    if name == UPERNET:
        with torch.no_grad():
            auxiliary_logits = model.auxiliary_head(outputs.hidden_states)
        np.testing.assert_allclose(auxiliary_logits, golden["auxiliary_logits"], rtol=0, atol=2e-5)


def test_converted_classifier(fixtures_dir, tmp_path):
    model = convert_and_reload(fixtures_dir / CLASSIFIER, tmp_path / "model", AutoModelForImageClassification)
    golden = np.load(fixtures_dir / "seed_classification_van_tiny.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(golden["pixel_values"])).logits
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5)


def test_segmentation_folder_in_the_pipeline(fixtures_dir, tmp_path):
    save_converted(*convert_checkpoint(fixtures_dir / UPERNET), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {str(idx): f"class_{idx}" for idx in range(7)}
    assert config["label2id"] == {f"class_{idx}": idx for idx in range(7)}
    assert config["palette"][:2] == [[0, 255, 0], [30, 225, 1]]
    assert config["dtype"] == "float32"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert type(processor) is VanImageProcessor
    assert processor.size == VanImageProcessor().size
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    segments = pipeline("image-segmentation", model=str(tmp_path / "model"))(PIL.Image.fromarray(pixels))
    assert segments and all(re.fullmatch(r"class_[0-6]", segment["label"]) for segment in segments)
    assert all(segment["mask"].size == (60, 40) for segment in segments)


def test_classifier_is_evaluated_as_by_the_authors(fixtures_dir, tmp_path):
    save_converted(*convert_checkpoint(fixtures_dir / CLASSIFIER), tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    # 400x200 pixels become 496x248, of which columns 136 to 359 remain: from 109.7 to 290.3 of the original's.
    picture = np.full((200, 400, 3), 255, dtype=np.uint8)
    picture[:, 105:295] = 0
    pixel_values = processor(picture, return_tensors="pt").pixel_values
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixel_values, (-mean / std).view(1, 3, 1, 1).expand(1, 3, 224, 224))
    picture[:, 105:115] = 255
    assert processor(picture, return_tensors="pt").pixel_values[0, 0, :, 0].min() > 2
    assert pipeline("image-classification", model=str(tmp_path / "model")).image_processor.crop_pct == 0.9


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict_ema": tensors, "epoch": 300},
        lambda tensors: {"state_dict": {f"module.{key}": value for key, value in tensors.items()}},
        lambda tensors: {"state_dict": tensors, "state_dict_ema": {"head.bias": tensors["head.bias"]}},
        lambda tensors: {"state_dict": {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}},
        lambda tensors: {"state_dict": {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}},
        lambda tensors: {"state_dict": {k: torch.nn.Parameter(v, v.is_floating_point()) for k, v in tensors.items()}},
    ],
    ids=["bare", "ema", "module", "state_dict_first", "no_counters", "half", "parameters"],
)
def test_wrappings(seeds, write, tmp_path, wrap):
    tensors = seeds[CLASSIFIER][0]
    model = convert_and_reload(write(wrap(tensors)), tmp_path / "model", VanForImageClassification)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for key, tensor in model.state_dict().items():
        original = tensors[original_key(key, VanForImageClassification)]
        assert tensor.dtype == original.dtype
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, original, rtol=1e-3, atol=1e-4)


def test_files_of_old_torch_versions_and_safetensors(seeds, write, tmp_path):
    tensors = seeds[CLASSIFIER][0]
    safetensors.torch.save_file(tensors, tmp_path / "checkpoint.safetensors")
    legacy = write({"state_dict": tensors}, _use_new_zipfile_serialization=False)
    for path in (legacy, tmp_path / "checkpoint.safetensors"):
        loaded, meta = load_original_checkpoint(path)
        assert meta == {}
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_transposed_tensors_can_be_saved(seeds, write, tmp_path):
    tensors = {
        key: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for key, value in seeds[CLASSIFIER][0].items()
    }
    model = convert_and_reload(write(tensors), tmp_path / "model", VanForImageClassification)
    key = "van.encoder.stages.0.embeddings.convolution.weight"
    assert torch.equal(model.state_dict()[key], seeds[CLASSIFIER][0]["patch_embed1.proj.weight"])


def test_classifier_without_head_is_a_backbone(seeds, write, tmp_path):
    tensors = {key: value for key, value in seeds[CLASSIFIER][0].items() if not key.startswith("head.")}
    path = write({"state_dict": tensors})
    converted, _ = convert_checkpoint(path)
    assert type(converted) is VanModel
    model = convert_and_reload(path, tmp_path / "model", AutoModel)
    assert torch.equal(model.encoder.stages[3].normalization.bias, tensors["norm4.bias"])
    segmenter, info = VanForSemanticSegmentation.from_pretrained(
        tmp_path / "model", num_labels=150, output_loading_info=True
    )
    assert torch.equal(segmenter.van.encoder.stages[3].normalization.bias, tensors["norm4.bias"])
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"decode_head", "auxiliary_head"}
    assert_refused(path, "without a head, so that it has no labels for id2label", id2label={0: "a"})


def with_labels(state_dict, num_labels):
    """The tiny UperNet with classifiers of another number of labels."""
    return {
        key: torch.zeros(num_labels, *value.shape[1:]) if ".conv_seg." in key else value
        for key, value in state_dict.items()
    }


def test_names_and_palette_of_the_checkpoint(upernet, write):
    upernet["meta"]["CLASSES"] = ("bed ", *upernet["meta"]["CLASSES"][1:])
    config = convert_checkpoint(write(upernet))[0].config
    assert config.id2label[0] == "bed"
    assert config.label2id["bed"] == 0
    assert config.palette == upernet["meta"]["PALETTE"]


@pytest.mark.parametrize("meta", [{}, {"CLASSES": None, "PALETTE": None}, {"CLASSES": CLASS_NAMES}])
def test_ade20k_names_for_150_classes(upernet, write, meta):
    checkpoint = {"state_dict": with_labels(upernet["state_dict"], 150), "meta": meta}
    config = convert_checkpoint(write(checkpoint))[0].config
    assert list(config.id2label.values()) == list(CLASS_NAMES)
    assert config.palette == PALETTE


def test_other_names_for_150_classes_have_no_ade20k_palette(upernet, write):
    names = [f"kind {idx}" for idx in range(150)]
    checkpoint = {"state_dict": with_labels(upernet["state_dict"], 150), "meta": {"CLASSES": names}}
    config = convert_checkpoint(write(checkpoint))[0].config
    assert list(config.id2label.values()) == names
    assert config.palette is None


def test_imagenet_names_for_1000_classes(seeds, write):
    tensors = {**seeds[CLASSIFIER][0], "head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    config = convert_checkpoint(write(tensors))[0].config
    assert (config.id2label[0], config.id2label[999]) == ("tench", "toilet tissue")
    assert len(config.label2id) == 1000


def test_unknown_names_are_reported(seeds, write, caplog):
    palette = [[idx, 0, 0] for idx in range(7)]
    config = convert_checkpoint(write({"state_dict": seeds[FPN][0], "meta": {"PALETTE": palette}}))[0].config
    assert (config.id2label[6], config.label2id["LABEL_6"], config.palette) == ("LABEL_6", 6, palette)
    assert "no class names and 7 labels, so that they are called LABEL_0 to LABEL_6" in caplog.text


def test_given_names(upernet, write):
    path = write(upernet)
    config = convert_checkpoint(path, id2label=dict(enumerate("abcdefg")))[0].config
    assert config.label2id == {name: idx for idx, name in enumerate("abcdefg")}
    assert_refused(path, "id2label has 2 names, but the model has 7 labels", id2label={0: "a", 1: "b"})
    assert_refused(path, "id2label must number the labels 0 to 6, got 1, 2", id2label={1: "a", 2: "b"})


def test_equal_names_in_meta_are_told_apart(upernet, write):
    upernet["meta"]["CLASSES"] = ("bed", "crane", "crane", *"defg")
    config = convert_checkpoint(write(upernet))[0].config
    assert list(config.id2label.values()) == ["bed", "crane (1)", "crane (2)", *"defg"]
    assert config.label2id == {name: idx for idx, name in config.id2label.items()}


def test_a_label_without_name_is_refused(upernet, write):
    upernet["meta"]["CLASSES"] = ("bed", None, *"cdefg")
    assert_refused(write(upernet), r"meta\['CLASSES'\]: label 1 is called null; expected a name")


def test_wrong_numbers_in_meta_are_refused(upernet, write):
    upernet["meta"]["CLASSES"] = ("a", "b")
    assert_refused(write(upernet), r"meta\['CLASSES'\] has 2 names, but the model has 7 labels")
    upernet["meta"].update(CLASSES=tuple("abcdefg"), PALETTE=[[0, 0, 0]])
    assert_refused(write(upernet), "palette must have one colour for each of the 7 labels, got 1")


def test_missing_tensors_are_listed(upernet, write):
    gone = [key for key in upernet["state_dict"] if key.startswith("backbone.block2.0.attn.")]
    for key in gone:
        del upernet["state_dict"][key]
    assert_refused(
        write(upernet),
        "truncated or incomplete checkpoint of a VAN",
        re.escape(f"missing: {', '.join(gone[:5])}, ... (10 in all)"),
    )


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("backbone.block4", "missing: backbone.block4.0.mlp.fc1.weight"),
        ("backbone.patch_embed1.proj.weight", "missing: backbone.patch_embed1.proj.weight"),
        ("backbone.block2.0.", r"missing: backbone.block2.0.mlp.fc1.weight"),
        ("backbone.norm3.bias", "missing: backbone.norm3.bias"),
        ("decode_head.conv_seg.weight", "missing: decode_head.conv_seg.weight"),
        ("auxiliary_head.conv_seg", "missing: auxiliary_head.conv_seg.weight"),
        ("decode_head.psp_modules.3.", r"psp_modules has 3 scales \(0, 1, 2\).*authors' 4 are known \(1, 2, 3, 6\)"),
        ("decode_head.psp_modules", r"none of UperNet .*, HamNet .* besides the backbone there are decode_h"),
        (("decode_head", "auxiliary_head"), "none of UperNet .*, HamNet .* there is nothing"),
        ("backbone.", "this looks like a foreign model, not a VAN. It has decode_head.conv_seg.weight"),
    ],
)
def test_incomplete_segmentation_checkpoints(upernet, write, prefix, named):
    upernet["state_dict"] = {k: v for k, v in upernet["state_dict"].items() if not k.startswith(prefix)}
    assert_refused(write(upernet), named)


def test_incomplete_semantic_fpn(seeds, write):
    state_dict = dict(seeds[FPN][0])
    del state_dict["neck.fpn_convs.1.conv.bias"], state_dict["decode_head.scale_heads.3.4.bn.running_var"]
    assert_refused(
        write(state_dict), "missing: neck.fpn_convs.1.conv.bias, decode_head.scale_heads.3.4.bn.running_var"
    )


@pytest.mark.parametrize(
    ("name", "prefix", "named"),
    [
        (TINY_LIGHT_HAM, "decode_head.hamburger.ham_out.gn", "missing: decode_head.hamburger.ham_out.gn.weight, "),
        (TINY_LIGHT_HAM, "decode_head.hamburger.ham_in", "missing: decode_head.hamburger.ham_in.conv.weight, "),
        (
            TINY_LIGHT_HAM,
            "decode_head.hamburger",
            r"none of .*Light-Ham \(decode_head.hamburger.\*\).* there are deco",
        ),
        (TINY_LIGHT_HAM, "decode_head.squeeze", "missing: decode_head.squeeze.conv.weight"),
        (TINY_LIGHT_HAM, "decode_head.conv_seg", "missing: decode_head.conv_seg.weight"),
        (TINY_HAM, "decode_head.ham_in", r"none of .*HamNet \(decode_head.ham_in.\*\); besides .* there are decode_"),
        (TINY_HAM, "decode_head.ham_out", "missing: decode_head.ham_out.conv.weight, decode_head.ham_out.gn.weight"),
        (TINY_HAM, "decode_head.conv_cat", "missing: decode_head.conv_cat.conv.weight"),
        (TINY_HAM, "auxiliary_head.convs", "missing: auxiliary_head.convs.0.conv.weight"),
    ],
)
def test_incomplete_ham_checkpoints(seeds, write, name, prefix, named):
    assert_refused(write({k: v for k, v in seeds[name][0].items() if not k.startswith(prefix)}), named)


def test_mixed_up_ham_checkpoints(seeds, write):
    light, ham = seeds[TINY_LIGHT_HAM][0], seeds[TINY_HAM][0]
    heads_of_ham = {key: value for key, value in ham.items() if not key.startswith("backbone.")}
    mixed = [{**light, **heads_of_ham}, {**ham, **light}, {**ham, "decode_head.hamburger.x": torch.zeros(1)}]
    for state_dict in mixed:
        assert_refused(
            write(state_dict), r"more than one of .*Light-Ham .*HamNet .*besides the backbone there are deco"
        )
    assert_refused(write({**light, **seeds[UPERNET][0]}), "more than one of UperNet .*Light-Ham")
    # HamNet's 3x3 convolutions under Light-Ham's names.
    renamed = {re.sub(r"^decode_head\.ham_", "decode_head.hamburger.ham_", key): value for key, value in ham.items()}
    assert_refused(
        write(renamed),
        "foreign or changed model. Tensors unexpected: decode_head.conv_cat.conv.weight",
        r"decode_head.squeeze.conv.weight \[64, 32, 3, 3\] instead of \[64, 72, 1, 1\]",
    )


def test_incomplete_classifier(seeds, write):
    for key in ("head.bias", "head.weight", "norm1.weight"):
        state_dict = {name: tensor for name, tensor in seeds[CLASSIFIER][0].items() if name != key}
        assert_refused(write(state_dict), f"missing: {key}$")


def test_foreign_tensors_are_listed(upernet, write):
    state_dict = upernet["state_dict"]
    state_dict["backbone.block1.0.attn.qkv.weight"] = torch.zeros(3)
    state_dict["ema_decay"] = torch.zeros(())
    state_dict["backbone.norm1.bias"] = torch.zeros(9)
    assert_refused(
        write(upernet),
        "foreign or changed model",
        "unexpected: backbone.block1.0.attn.qkv.weight, ema_decay",
        r"of another shape: backbone.norm1.bias \[9\] instead of \[8\]",
    )


def test_foreign_models(write):
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}
    assert_refused(write({"state_dict": resnet}), "foreign model, not a VAN. It has conv1.weight, fc.bias")
    # SegFormer's backbone goes by some of the same names.
    mit = {f"backbone.patch_embed{stage}.proj.weight": torch.zeros(8, 3, 3, 3) for stage in (1, 2, 3, 4)}
    mit |= {f"backbone.block{stage}.0.mlp.fc1.weight": torch.zeros(32, 8) for stage in (1, 2, 3, 4)}
    assert_refused(write(mit), "foreign model. Tensors without 4 dimensions: backbone.block1.0.mlp.fc1.weight")


def test_the_hub_format_needs_no_conversion(fixtures_dir):
    assert_refused(fixtures_dir / "hub_van_tiny" / "model.safetensors", "needs no conversion: .* from_pretrained")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "truncated, damaged or no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "truncated, damaged or no checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, message)
    assert_refused(tmp_path / name, message, trust_pickle=True)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_files(upernet, write, tmp_path, form, share):
    path = write(upernet, _use_new_zipfile_serialization=form == "zip")
    if form == "safetensors":
        path = tmp_path / "checkpoint.safetensors"
        safetensors.torch.save_file(upernet["state_dict"], path)
    os.truncate(path, int(path.stat().st_size * share))
    assert_refused(path, "truncated, damaged or no checkpoint at all; download it again")


def test_missing_file_and_folder(tmp_path):
    assert_refused(tmp_path / "none.pth", "does not exist")
    assert_refused(tmp_path, "is a folder; give the checkpoint file itself")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (torch.zeros(3), "holds a Tensor; a checkpoint holds tensors by their names"),
        ([1, 2], "holds a list"),
        ({}, "has no tensors"),
        ({"state_dict": 3}, "has no tensors under 'state_dict', but 3"),
        ({"state_dict": {0: torch.zeros(3)}}, "entries of another kind: 0"),
        ({"epoch": 3, "weight": torch.zeros(3)}, "entries of another kind: epoch"),
    ],
)
def test_files_without_named_tensors(write, checkpoint, message):
    assert_refused(write(checkpoint), message)


class Callback:
    """Stands for the objects that training code leaves in its checkpoints."""

    unpickled = 0

    def __setstate__(self, state):
        Callback.unpickled += 1


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_refused_unless_trusted(upernet, write, zipped):
    callback = Callback()
    callback.state = 1
    upernet |= {"args": argparse.Namespace(lr=1e-3), "callback": callback, "metric": np.float64(0.5)}
    path = write(upernet, _use_new_zipfile_serialization=zipped)
    Callback.unpickled = 0
    assert_refused(path, "argparse.Namespace", "--trust_pickle", "trust_pickle=True", "If you trust the file's source")
    if zipped:
        assert_refused(path, r"argparse.Namespace, numpy\S*.multiarray.scalar, numpy.dtype, test_checkpoints.Callback")
    assert Callback.unpickled == 0
    model, _ = convert_checkpoint(path, trust_pickle=True)
    assert Callback.unpickled == 1
    assert model.config.id2label[0] == "class_0"


def test_objects_of_code_that_is_not_installed(upernet, write, monkeypatch):
    path = write({**upernet, "callback": Callback()})
    monkeypatch.delattr("test_checkpoints.Callback")
    assert_refused(path, "holds objects of code that is not installed here: .*Callback", trust_pickle=True)


def test_output_folder_is_left_alone(fixtures_dir, tmp_path):
    converted = convert_checkpoint(fixtures_dir / CLASSIFIER)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="mine is not empty and would be overwritten"):
        save_converted(*converted, tmp_path / "mine")
    with pytest.raises(ValueError, match="notes.txt is a file; give a new or empty folder"):
        save_converted(*converted, tmp_path / "mine" / "notes.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_empty_and_nested_output_folders(fixtures_dir, tmp_path):
    converted = convert_checkpoint(fixtures_dir / CLASSIFIER)
    (tmp_path / "empty").mkdir()
    ordinary_mode = (tmp_path / "empty").stat().st_mode
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        save_converted(*converted, folder)
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(os.listdir(folder))
        assert folder.stat().st_mode == ordinary_mode
    assert sorted(os.listdir(tmp_path)) == ["a", "empty"]


def test_nothing_half_written_stays(fixtures_dir, tmp_path, monkeypatch):
    model, processor = convert_checkpoint(fixtures_dir / CLASSIFIER)

    def fail(folder):
        assert (folder / "model.safetensors").exists()
        raise OSError("no space left on device")

    monkeypatch.setattr(processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        save_converted(model, processor, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "size"), [("tiny", "b0"), ("small", "b1"), ("base", "b2"), ("large", "b3")])
def test_hub_manifests(manifests, name, size):
    sizes = VanConfig.from_size(size)
    config = VanConfig(hidden_sizes=sizes.hidden_sizes, depths=sizes.depths, num_labels=1000)
    model = build_on_meta(config, VanForImageClassification)
    expected = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    unused = {f"van.layernorm.{name}": [config.hidden_sizes[-1]] for name in ("weight", "bias")}
    assert manifests[f"hub/van-{name}"] == {**expected, **unused}
