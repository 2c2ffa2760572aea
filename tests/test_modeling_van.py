# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""One suite for all VAN models. A new decode head costs an entry in conftest.TINY_HEADS and a class like the last."""

import math
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import PROGRAMS, child_environment, random_pixel_values, tiny_config
from huggingface_hub import HfApi
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from van_hf import VanBackbone, VanForImageClassification, VanForSemanticSegmentation, VanModel
from van_hf.checkpoints import convert_checkpoint, original_key
from van_hf.model.convolutions import use_forms
from van_hf.model.decode_heads import ConvLayers, Hamburger
from van_hf.model.modeling_van import VanLayer, VanLayerScaling
from van_hf.training import enable_gradient_checkpointing

SLOW_FIXTURES = {"remote_code_outputs", "pickled_outputs"}
AXES = {"batch": 0, "height": 2, "width": 3}
ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def build(model_class, config):
    """A model with weights of a size that lets every term show, in evaluation mode."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(*((0.1, 0.3) if "scaling" in name else (0.5, 1.5)))
    return model.eval()


def first_output(outputs):
    """What the tests compare: the logits, or the last feature map."""
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs.feature_maps[-1] if hasattr(outputs, "feature_maps") else outputs.last_hidden_state


def suites():
    models = [TestVanModel, TestVanBackbone, TestVanForImageClassification]
    return [*models, TestUperNet, TestSemanticFpn, TestLightHam, TestHam]


def layers_of(module, layer_class):
    return [layer for layer in module.modules() if isinstance(layer, layer_class)]


@pytest.fixture(scope="session")
def remote_code_outputs(tmp_path_factory):
    """For each suite a model and its output in a process that loads it by its saved code; one process for all."""
    folder = tmp_path_factory.mktemp("remote_code")
    models = {suite.__name__: build(suite.model_class, suite.config()) for suite in suites()}
    for name, model in models.items():
        model.save_pretrained(folder / name)
    (folder / "cases.txt").write_text("".join(f"{suite.__name__} {suite.auto_class.__name__}\n" for suite in suites()))
    torch.save(random_pixel_values(), folder / "pixel_values.pt")
    subprocess.run(
        [sys.executable, PROGRAMS / "load_saved_code.py", folder],
        check=True,
        cwd=folder,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules")},
    )
    return {name: (model, torch.load(folder / f"{name}.pt")) for name, model in models.items()}


@pytest.fixture(scope="session")
def pickled_outputs(tmp_path_factory):
    """For each suite the outputs of a model that was pickled after use, in a new process; one process for all."""
    folder = tmp_path_factory.mktemp("pickled")
    torch.save(random_pixel_values(), folder / "pixel_values.pt")
    expected = {}
    for suite in suites():
        model = build(suite.model_class, suite.config())
        with torch.no_grad():
            expected[suite.__name__] = dict(model(random_pixel_values(), output_hidden_states=True))
        torch.save(model, folder / f"{suite.__name__}.model")
    subprocess.run([sys.executable, PROGRAMS / "run_pickled_models.py", folder], check=True, env=child_environment())
    return {name: (outputs, torch.load(folder / f"{name}.outputs")) for name, outputs in expected.items()}


class OnlyFirstOutput(torch.nn.Module):
    """What exporting wants: one tensor in, one out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return first_output(self.model(pixel_values))


class ModelSuite:
    """What every model does."""

    model_class = None
    auto_class = None
    decode_head = "upernet"

    @classmethod
    def config(cls, **overrides):
        return tiny_config(cls.decode_head, **overrides)

    def expected_shape(self, batch, height, width):
        """Shape of `first_output` for pictures of (batch, 3, height, width)."""

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        return build(cls.model_class, cls.config())

    @pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 47), (1, 5), (97, 64)])
    def test_shapes_at_any_size(self, model, height, width):
        with torch.no_grad():
            outputs = model(torch.randn(2, 3, height, width), output_hidden_states=True)
        assert first_output(outputs).shape == self.expected_shape(2, height, width)
        for stage, hidden_states in enumerate(outputs.hidden_states):
            stride = math.prod(model.config.strides[: stage + 1])
            expected = (2, model.config.hidden_sizes[stage], -(-height // stride), -(-width // stride))
            assert hidden_states.shape == expected

    def test_hidden_states_only_when_asked(self, model, pixel_values):
        assert model(pixel_values).hidden_states is None
        assert len(model(pixel_values, output_hidden_states=True).hidden_states) == 4
        second = model(pixel_values, output_hidden_states=[1]).hidden_states
        assert [None if maps is None else maps.shape[1] for maps in second] == [None, 16, None, None]

    def test_tuple_output(self, model, pixel_values):
        outputs = model(pixel_values, return_dict=False)
        first = outputs[0][-1] if isinstance(outputs[0], tuple) else outputs[0]
        assert isinstance(outputs, tuple)
        torch.testing.assert_close(first, first_output(model(pixel_values)))

    @pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
    def test_save_and_load(self, model, pixel_values, tmp_path, max_shard_size):
        model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
        assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(first_output(loaded(pixel_values)), first_output(model(pixel_values)))

    def test_auto_round_trip(self, model, pixel_values, tmp_path, monkeypatch):
        monkeypatch.setattr(HfApi, "repo_exists", lambda *_: True)  # AutoBackbone asks the Hub for a folder too
        model.save_pretrained(tmp_path)
        loaded = self.auto_class.from_pretrained(tmp_path)
        assert type(loaded) is self.model_class
        assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
        torch.testing.assert_close(first_output(loaded(pixel_values)), first_output(model(pixel_values)))

    def test_pickled_after_use(self, pickled_outputs):
        outputs, in_new_process = pickled_outputs[self.__class__.__name__]
        torch.testing.assert_close(in_new_process, outputs, rtol=0, atol=0)

    @pytest.mark.skipif(
        torch.__version__ < "2.7", reason="torch 2.6 compiles no model of transformers 5 as one graph, whosever it is"
    )
    @pytest.mark.slow
    def test_compiled_as_one_graph_without_an_eager_call(self, pixel_values):
        model = build(self.model_class, self.config())
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            output = first_output(compiled(pixel_values))
            torch.testing.assert_close(output, first_output(model(pixel_values)), rtol=1e-4, atol=1e-4)

    def check_export(self, model, pixel_values, free=("batch", "height", "width")):
        """Exported with names for what is free, which torch must prove to hold for all sizes, it gives the same."""
        model = OnlyFirstOutput(model)
        dims = {"batch": torch.export.Dim("batch")}
        dims |= {name: torch.export.Dim(name, min=33, max=4096) for name in ("height", "width")}
        shapes = {"pixel_values": {axis: dims[name] for name, axis in AXES.items() if name in free}}
        exported = torch.export.export(model, (pixel_values,), dynamic_shapes=shapes, strict=False)
        names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert not [name for name in names if "van_hf" in name]
        for other in [(2, 3, 64, 96), (1, 3, 64, 96), (3, 3, 97, 33)]:
            size = list(pixel_values.shape)
            for name in free:
                size[AXES[name]] = other[AXES[name]]
            pictures = torch.randn(size)
            torch.testing.assert_close(exported.module()(pictures), model(pictures), rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_exported_for_any_batch_and_size(self, model, pixel_values):
        self.check_export(model, pixel_values)

    def test_plain_tuples_by_the_configuration(self, pixel_values):
        model = build(self.model_class, self.config(return_dict=False))
        outputs = model(pixel_values, output_hidden_states=True)
        assert isinstance(outputs, tuple) and len(outputs[-1]) == 4

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_weights(self, model, pixel_values, tmp_path, dtype):
        model.save_pretrained(tmp_path)
        half = self.model_class.from_pretrained(tmp_path, dtype=dtype)
        with torch.no_grad():
            outputs = first_output(half(pixel_values.to(dtype)))
            expected = first_output(model(pixel_values))
        assert outputs.dtype == dtype
        error = (outputs.float() - expected).norm() / expected.norm()
        assert error < (0.05 if dtype == torch.bfloat16 else 0.01)

    def test_device_map(self, model, pixel_values, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path, device_map={"": "cpu"})
        torch.testing.assert_close(first_output(loaded(pixel_values)), first_output(model(pixel_values)))

    def loss(self, model, pixel_values):
        return first_output(model(pixel_values)).square().mean()

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(self, pixel_values, use_reentrant):
        states = []
        for checkpointing in (False, True):
            model = build(self.model_class, self.config(drop_path_rate=0.5, dropout_rate=0.2)).train()
            if checkpointing:
                enable_gradient_checkpointing(model, use_reentrant=use_reentrant)
            torch.manual_seed(1)
            for _ in range(2):
                self.loss(model, pixel_values).backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            states.append({**gradients, **dict(model.named_buffers())})
        torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)

    @pytest.mark.slow
    def test_code_saved_with_the_model_needs_no_van_hf(self, remote_code_outputs, pixel_values):
        model, outputs = remote_code_outputs[self.__class__.__name__]
        torch.testing.assert_close(outputs, first_output(model(pixel_values)))

    def test_fused_for_inference(self, pixel_values, tmp_path):
        torch.manual_seed(0)
        model = build(self.model_class, self.config())
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 2)
                torch.nn.init.normal_(module.bias)
                torch.nn.init.normal_(module.running_mean)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
            elif isinstance(module, VanLayerScaling):
                torch.nn.init.normal_(module.weight)
        model.save_pretrained(tmp_path)
        model = self.model_class.from_pretrained(tmp_path)
        expected = first_output(model(pixel_values))
        assert model.fuse() is model and model.fuse() is model and not model.training
        assert not [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm2d, VanLayerScaling))]
        output = first_output(model(pixel_values))
        assert (output - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
        with pytest.raises(ValueError, match="cannot be trained"):
            model.train()
        with pytest.raises(ValueError, match="cannot be saved"):
            model.save_pretrained(tmp_path)
        again = self.model_class.from_pretrained(tmp_path)
        torch.testing.assert_close(first_output(again(pixel_values)), expected, rtol=0, atol=0)

    def test_missing_backbone_weights_are_an_error(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="does not hold .* of the backbone's weights.*encoder.stages.2.layers.1"):
            self.model_class.from_pretrained(tmp_path, depths=[1, 2, 3, 1])
        with pytest.raises(ValueError, match="other sizes.*encoder.stages.2"):
            self.model_class.from_pretrained(
                tmp_path, hidden_sizes=[8, 16, 28, 32], ignore_mismatched_sizes=True, out_features=None
            )


class SegmentationSuite(ModelSuite):
    """What every decode head does."""

    model_class = VanForSemanticSegmentation
    auto_class = AutoModelForSemanticSegmentation

    def expected_shape(self, batch, height, width):
        stride = self.config().logits_stride
        return (batch, 7, -(-height // stride), -(-width // stride))

    def loss(self, model, pixel_values):
        return model(pixel_values, labels=torch.arange(7).repeat(2, 64, 14)[..., :96]).loss

    def test_gradient_checkpointing_spares_only_the_large_convolutions(self, pixel_values):
        model = build(self.model_class, self.config()).train()
        enable_gradient_checkpointing(model)
        calls = Counter()
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, _: calls.update([module]))
        self.loss(model, pixel_values).backward()
        convolutions = [m for layer in layers_of(model, VanLayer) for m in layers_of(layer, torch.nn.Conv2d)]
        convolutions += [layer.conv for layer in layers_of(model, ConvLayers)]
        for convolution in convolutions:
            is_large_one_of_a_head = convolution.groups == 1 and convolution.kernel_size != (1, 1)
            assert calls[convolution] == (1 if is_large_one_of_a_head else 2)
        assert {calls[layer.norm] for layer in layers_of(model, ConvLayers)} == {2}

    @pytest.fixture
    def labels(self):
        labels = torch.randint(0, 7, (2, 64, 96), generator=torch.Generator().manual_seed(1))
        labels[:, :, :20] = 255
        return labels

    def test_loss_is_the_mean_over_valid_pixels_at_label_size(self, model, pixel_values, labels):
        outputs = model(pixel_values, labels=labels)
        scores = torch.nn.functional.interpolate(outputs.logits, size=(64, 96), mode="bilinear")
        expected = torch.nn.functional.cross_entropy(scores, labels, ignore_index=255)
        torch.testing.assert_close(outputs.loss, expected)

    def test_labels_may_have_another_size_than_the_pictures(self, model, pixel_values):
        loss = model(pixel_values, labels=torch.zeros(2, 31, 50, dtype=torch.long)).loss
        assert loss.ndim == 0 and loss.isfinite()

    def test_ignored_pixels_do_not_count(self, model, pixel_values, labels):
        ignored = labels == 255
        outputs = model(pixel_values, labels=labels)
        scores = torch.nn.functional.interpolate(outputs.logits, size=(64, 96), mode="bilinear")
        valid_only = torch.nn.functional.cross_entropy(scores.permute(0, 2, 3, 1)[~ignored], labels[~ignored])
        torch.testing.assert_close(outputs.loss, valid_only)

    def test_a_batch_without_valid_pixels_has_no_loss(self, model, pixel_values):
        assert model(pixel_values, labels=torch.full((2, 64, 96), 255)).loss == 0

    def test_every_parameter_gets_a_gradient(self, pixel_values, labels):
        model = build(self.model_class, self.config()).train()
        model(pixel_values, labels=labels).loss.backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert without == []

    def test_initial_weights(self):
        """The classifiers of mmsegmentation start at 0.01, so that the first loss is that of equal scores."""
        torch.manual_seed(0)
        model = self.model_class(self.config())
        named = dict(model.named_parameters())
        classifiers = torch.cat([p.flatten() for name, p in named.items() if name.endswith("classifier.weight")])
        assert classifiers.std().item() == pytest.approx(0.01, rel=0.2)
        assert model.van.encoder.stages[1].layers[0].mlp_scaling.weight.unique().item() == pytest.approx(0.01)
        kernel = named["van.encoder.stages.3.embeddings.convolution.weight"]
        assert kernel.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)

    def test_labels_out_of_range_are_refused(self, model, pixel_values, labels):
        labels[0, 0, 50] = 7
        with pytest.raises(ValueError, match=r"labels must lie in 0..6 or be 255, got ids from 0 to 7"):
            model(pixel_values, labels=labels)
        with pytest.raises(ValueError, match=r"got ids from 3 to 7"):
            model(pixel_values, labels=labels.clamp(min=3))

    def test_labels_may_all_be_ignored(self, model, pixel_values, labels):
        assert model(pixel_values, labels=torch.full_like(labels, 255)).loss == 0

    def test_labels_of_another_shape_are_refused(self, model, pixel_values, labels):
        with pytest.raises(ValueError, match=r"labels must have the shape \(2, height, width\), got \(2, 1, 64, 96\)"):
            model(pixel_values, labels=labels[:, None])

    def test_two_labels_work_and_one_is_refused(self, pixel_values):
        model = build(self.model_class, self.config(num_labels=2))
        assert model(pixel_values, labels=torch.ones(2, 64, 96, dtype=torch.long)).loss.isfinite()
        with pytest.raises(ValueError, match="num_labels must be 2 or more"):
            self.model_class(self.config(num_labels=1))

    def test_the_classifier_is_swapped_for_another_number_of_labels(self, model, pixel_values, tmp_path):
        model.save_pretrained(tmp_path)
        swapped, info = self.model_class.from_pretrained(
            tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
        )
        assert {key.split(".")[-2] for key, *_ in info["mismatched_keys"]} == {"classifier"}
        assert not info["missing_keys"] and not info["unexpected_keys"]
        stride = model.config.logits_stride
        assert swapped(pixel_values).logits.shape == (2, 3, 64 // stride, 96 // stride)

    @pytest.mark.parametrize("forms", ["measured", "plain", "fast"])
    @pytest.mark.parametrize("fused", [False, True])
    def test_golden_outputs(self, fixtures_dir, forms, fused):
        """The seed's own outputs on its own checkpoint, measured under mmsegmentation 0.26."""
        golden = np.load(fixtures_dir / f"{self.golden_name}.npz")
        model, _ = convert_checkpoint(fixtures_dir / f"{self.golden_name}.pth")
        model = model.fuse() if fused else model
        labels = torch.from_numpy(golden["labels"]).long()
        with use_forms(forms):
            outputs = model(torch.from_numpy(golden["pixel_values"]), labels=labels, output_hidden_states=True)
        for stage, hidden_states in enumerate(outputs.hidden_states, start=1):
            np.testing.assert_allclose(hidden_states.detach(), golden[f"stage{stage}"], atol=2e-5)
        # Winograd's transforms round more.
        np.testing.assert_allclose(outputs.logits.detach(), golden["logits"], atol=1e-4 if forms == "fast" else 5e-5)
        # The original divides by the number of all pixels, ignored ones too.
        valid_share = (labels != 255).double().mean()
        np.testing.assert_allclose(outputs.loss.item() * valid_share, golden["loss_decode"], rtol=1e-6)

    def test_all_forms_give_the_same_gradients(self, pixel_values, labels):
        gradients = {}
        for forms in ("plain", "fast"):
            torch.manual_seed(0)
            model = self.model_class(self.config(classifier_dropout_prob=0.0)).double().train()
            with use_forms(forms):
                model(pixel_values.double(), labels=labels).loss.backward()
            gradients[forms] = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.testing.assert_close(gradients["fast"], gradients["plain"], rtol=1e-9, atol=1e-12)

    @pytest.mark.slow
    def test_exported_with_one_free_side(self, model, pixel_values):
        self.check_export(model, pixel_values, free=["height"])

    def test_mapped_over_pictures(self, model, pixel_values, labels):
        """With torch.func: outputs, and gradients of each picture by itself."""
        logits = torch.func.vmap(lambda picture: model(picture[None]).logits[0])(pixel_values)
        torch.testing.assert_close(logits, model(pixel_values).logits, rtol=1e-4, atol=1e-4)

        def loss(bias, picture, picture_labels):
            arguments = {"pixel_values": picture[None], "labels": picture_labels[None]}
            return torch.func.functional_call(model, {"decode_head.classifier.bias": bias}, (), arguments).loss

        bias = model.decode_head.classifier.bias.detach()
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(bias, pixel_values, labels)
        for gradient, picture, picture_labels in zip(gradients, pixel_values, labels, strict=True):
            expected = torch.autograd.functional.jacobian(lambda b: loss(b, picture, picture_labels), bias)  # noqa: B023
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_exported_when_fused(self, pixel_values):
        self.check_export(build(self.model_class, self.config()).fuse(), pixel_values)

    def test_labels_of_any_integer_dtype(self, model, pixel_values, labels):
        expected = model(pixel_values, labels=labels).loss
        for dtype in (torch.uint8, torch.int16, torch.int32):
            assert model(pixel_values, labels=labels.to(dtype)).loss == expected
        with pytest.raises(ValueError, match="labels must be integers.*float32"):
            model(pixel_values, labels=labels.float())

    def test_a_palette_does_not_hinder_new_labels(self, pixel_values, tmp_path):
        build(self.model_class, self.config(palette=[[0, 0, idx] for idx in range(7)])).save_pretrained(tmp_path)
        names = dict(enumerate("abcde"))
        for labels in ({"num_labels": 5}, {"id2label": names, "label2id": {name: idx for idx, name in names.items()}}):
            for auto_class in (self.model_class, self.auto_class):
                model = auto_class.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **labels)
                assert model.config.palette is None
                assert model(pixel_values).logits.shape[1] == 5

    def test_adapters(self, model, pixel_values, labels, tmp_path):
        peft = pytest.importorskip("peft")
        convolutions = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Conv2d) and module.groups == 1
        ]
        config = peft.LoraConfig(r=2, target_modules=convolutions, init_lora_weights=False)
        adapted = peft.get_peft_model(build(self.model_class, self.config()), config)
        adapted.train()(pixel_values=pixel_values, labels=labels).loss.backward()
        assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)
        adapted.eval()
        logits = adapted(pixel_values).logits
        assert not torch.allclose(logits, model(pixel_values).logits, atol=1e-2)
        with pytest.raises(ValueError, match="merge_and_unload"):
            adapted.base_model.model.fuse()
        adapted.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(build(self.model_class, self.config()), tmp_path)
        loaded.load_state_dict(adapted.state_dict())  # BatchNorm's statistics moved, and are no part of an adapter
        torch.testing.assert_close(loaded.eval()(pixel_values).logits, logits)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(pixel_values).logits, logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(merged.fuse()(pixel_values).logits, logits, rtol=1e-3, atol=1e-3)

    def test_parametrized_weights_are_not_folded(self):
        model = build(self.model_class, self.config())
        torch.nn.utils.parametrizations.weight_norm(model.van.encoder.stages[0].embeddings.convolution)
        with pytest.raises(ValueError, match="embeddings.convolution.*remove parametrizations"):
            model.fuse()


class TestVanModel(ModelSuite):
    model_class = VanModel
    auto_class = AutoModel

    def expected_shape(self, batch, height, width):
        return (batch, 32, -(-height // 32), -(-width // 32))

    def test_pooled_output_is_the_mean(self, model, pixel_values):
        outputs = model(pixel_values)
        torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=(2, 3)))

    def test_stochastic_depth_grows_over_all_blocks(self):
        model = VanModel(self.config(drop_path_rate=0.4))
        rates = [layer.drop_path.drop_prob for stage in model.encoder.stages for layer in stage.layers]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])

    def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean(self):
        drop_path = VanModel(self.config(drop_path_rate=0.5)).encoder.stages[3].layers[0].drop_path.train()
        torch.manual_seed(0)
        dropped = drop_path(torch.ones(4000, 2, 3, 3))
        per_sample = dropped.flatten(1)
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        assert (per_sample == per_sample[:, :1]).all()
        assert dropped.mean() == pytest.approx(1.0, abs=0.05)


class TestVanBackbone(ModelSuite):
    model_class = VanBackbone
    auto_class = AutoBackbone

    @classmethod
    def config(cls, **overrides):
        return tiny_config(**{"out_features": ALL_STAGES, **overrides})

    def expected_shape(self, batch, height, width):
        return (batch, 32, -(-height // 32), -(-width // 32))

    def test_channels_and_stages(self, pixel_values):
        backbone = VanBackbone(self.config(out_features=["stage1", "stage3"]))
        assert backbone.channels == [8, 24]
        assert [tuple(maps.shape) for maps in backbone(pixel_values).feature_maps] == [(2, 8, 16, 24), (2, 24, 4, 6)]

    def test_last_stage_by_default(self, pixel_values):
        backbone = VanBackbone(self.config(out_features=None))
        assert backbone.out_features == ["stage4"] and len(backbone(pixel_values).feature_maps) == 1

    def test_inside_stock_upernet(self, pixel_values, tmp_path):
        config = UperNetConfig(
            backbone_config=self.config(), hidden_size=16, auxiliary_in_channels=24, auxiliary_channels=8, num_labels=7
        )
        model = UperNetForSemanticSegmentation(config)
        labels = torch.randint(0, 7, (2, 64, 96))
        model(pixel_values, labels=labels).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        self.check_saved(model, UperNetForSemanticSegmentation, "logits", pixel_values, tmp_path)

    def test_fused_inside_stock_upernet_cannot_be_saved(self, pixel_values, tmp_path):
        model = UperNetForSemanticSegmentation(
            UperNetConfig(backbone_config=self.config(), hidden_size=16, use_auxiliary_head=False, num_labels=7)
        ).eval()
        expected = model(pixel_values).logits
        model.backbone.fuse()
        torch.testing.assert_close(model(pixel_values).logits, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="fused model cannot be saved"):
            model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="fused model cannot be trained"):
            model.train()

    def test_inside_stock_mask2former(self, pixel_values, tmp_path):
        config = Mask2FormerConfig(
            backbone_config=self.config(),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            encoder_layers=1,
            decoder_layers=2,
            dim_feedforward=16,
            num_attention_heads=2,
            num_queries=5,
            num_labels=7,
        )
        model = Mask2FormerForUniversalSegmentation(config)
        mask_labels = [torch.ones(2, 64, 96), torch.ones(1, 64, 96)]
        class_labels = [torch.tensor([0, 3]), torch.tensor([6])]
        model(pixel_values, mask_labels=mask_labels, class_labels=class_labels).loss.backward()
        backbone = model.model.pixel_level_module.encoder
        assert all(p.grad is not None for p in backbone.parameters())
        self.check_saved(model, Mask2FormerForUniversalSegmentation, "masks_queries_logits", pixel_values, tmp_path)

    @staticmethod
    def check_saved(model, model_class, output, pixel_values, folder):
        model.eval().save_pretrained(folder)
        loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            torch.testing.assert_close(loaded(pixel_values)[output], model(pixel_values)[output])


class TestVanForImageClassification(ModelSuite):
    model_class = VanForImageClassification
    auto_class = AutoModelForImageClassification

    def expected_shape(self, batch, height, width):
        return (batch, 7)

    def test_loss(self, model, pixel_values):
        outputs = model(pixel_values, labels=torch.tensor([1, 6]))
        expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([1, 6]))
        torch.testing.assert_close(outputs.loss, expected)


class TestUperNet(SegmentationSuite):
    decode_head = "upernet"
    golden_name = "seed_upernet_van_tiny"

    def test_the_auxiliary_head_adds_its_loss_in_training_only(self, pixel_values):
        labels = torch.randint(0, 7, (2, 64, 96))
        model = build(self.model_class, self.config(classifier_dropout_prob=0.0)).train()
        loss = model(pixel_values, labels=labels).loss
        model.config.auxiliary_loss_weight = 0.0
        loss_without = model(pixel_values, labels=labels).loss
        features = model.van(pixel_values, output_hidden_states=True).hidden_states
        scores = torch.nn.functional.interpolate(model.auxiliary_head(features), size=(64, 96), mode="bilinear")
        expected = 0.4 * torch.nn.functional.cross_entropy(scores, labels)
        torch.testing.assert_close(loss - loss_without, expected, rtol=1e-4, atol=1e-5)

    def test_the_auxiliary_head_costs_nothing_at_inference(self, pixel_values):
        model = build(self.model_class, self.config())
        calls = []
        model.auxiliary_head.register_forward_hook(lambda *_: calls.append(1))
        model(pixel_values, labels=torch.zeros(2, 64, 96, dtype=torch.long))
        model.train()(pixel_values)
        assert calls == []

    @pytest.mark.skipif(
        torch.__version__ < "2.7", reason="torch 2.6 compiles the layers so that statistics move twice"
    )
    @pytest.mark.slow
    def test_gradient_checkpointing_compiled_as_one_graph(self):
        states = []
        for compiled in (False, True):
            model = build(self.model_class, self.config()).train()
            enable_gradient_checkpointing(model)
            head = model.decode_head
            layers = torch.nn.Sequential(
                model.van.encoder.stages[0].layers[0], head.lateral_convs[0], head.fpn_convs[0]
            )
            forward = torch.compile(layers, fullgraph=True, backend="aot_eager") if compiled else layers
            forward(torch.randn(2, 8, 16, 24, generator=torch.Generator().manual_seed(0))).square().mean().backward()
            states.append({name: p.grad for name, p in layers.named_parameters()} | dict(layers.named_buffers()))
        torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)

    def test_pooled_maps_are_convolved_at_their_own_sizes(self, model):
        features = torch.randn(2, 32, 16, 16)
        with torch.no_grad(), use_forms("plain"):
            expected = model.decode_head.pool_pyramid(features)
        with torch.no_grad(), use_forms("fast"), torch.profiler.profile(record_shapes=True) as profiler:
            output = model.decode_head.pool_pyramid(features)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        upsampled = [e.input_shapes[0] for e in profiler.events() if e.name == "aten::upsample_bilinear2d"]
        assert upsampled and all(shape[0] == 1 for shape in upsampled)  # the two pictures' maps are not

    def test_without_auxiliary_head(self, model, pixel_values, tmp_path):
        model.save_pretrained(tmp_path)
        plain = self.model_class.from_pretrained(tmp_path, use_auxiliary_head=False)
        assert plain.auxiliary_head is None
        torch.testing.assert_close(plain(pixel_values).logits, model(pixel_values).logits)


class TestSemanticFpn(SegmentationSuite):
    decode_head = "semantic_fpn"
    golden_name = "seed_fpn_van_tiny"

    def test_has_no_auxiliary_head(self, model):
        assert model.auxiliary_head is None


class HamSuite(SegmentationSuite):
    """What the heads with a Hamburger do."""

    def converted(self, fixtures_dir):
        golden = {
            name: torch.from_numpy(array) for name, array in np.load(f"{fixtures_dir}/{self.golden_name}.npz").items()
        }
        model, _ = convert_checkpoint(fixtures_dir / f"{self.golden_name}.pth", ham_rank=8)
        return model, golden

    @pytest.mark.parametrize("forms", ["measured", "plain", "fast"])
    @pytest.mark.parametrize("fused", [False, True])
    def test_golden_outputs(self, fixtures_dir, forms, fused):
        """The original's outputs, from the bases that it had drawn, of its own checkpoint."""
        model, golden = self.converted(fixtures_dir)
        assert model.config.to_diff_dict() == {
            **self.config().to_diff_dict(),
            "id2label": model.config.id2label,
            "label2id": model.config.label2id,
            "palette": model.config.palette,
        }
        model = model.fuse() if fused else model
        hidden_states, logits = [], []
        with use_forms(forms), torch.no_grad():
            for picture, bases in zip(golden["pixel_values"], golden["bases"], strict=True):
                model.decode_head.hamburger.bases.copy_(bases)
                outputs = model(picture[None], output_hidden_states=True)
                hidden_states.append(outputs.hidden_states)
                logits.append(outputs.logits)
        for stage, maps in enumerate(zip(*hidden_states, strict=True), start=1):
            torch.testing.assert_close(torch.cat(maps), golden[f"stage{stage}"], rtol=0, atol=3e-5)
        torch.testing.assert_close(torch.cat(logits), golden["logits"], rtol=0, atol=1e-4 if forms == "fast" else 5e-5)

    @pytest.mark.parametrize("forms", ["measured", "plain", "fast"])
    def test_golden_training_form_and_gradients(self, fixtures_dir, forms, monkeypatch):
        model, golden = self.converted(fixtures_dir)
        labels = golden["labels"].long()
        model.decode_head.hamburger.train()
        monkeypatch.setattr(torch, "rand", lambda *_, **__: golden["bases"])
        with use_forms(forms):
            outputs = model(golden["pixel_values"], labels=labels)
        tolerance = 1e-4 if forms == "fast" else 5e-5
        torch.testing.assert_close(outputs.logits, golden["logits_training_steps"], rtol=0, atol=tolerance)
        outputs.loss.backward()
        originals = {original_key(name, type(model), self.decode_head): p for name, p in model.named_parameters()}
        gradients = {name.removeprefix("gradient_"): array for name, array in golden.items() if "gradient" in name}
        assert len(gradients) == 3
        for name, gradient in gradients.items():
            largest = gradient.abs().max()
            torch.testing.assert_close(originals[name].grad / largest, gradient / largest, rtol=0, atol=2e-5, msg=name)

    def test_all_forms_give_the_same_gradients(self, pixel_values, labels, monkeypatch):
        monkeypatch.setattr(
            Hamburger, "initial_bases", lambda self, batch, dtype: self.bases.to(dtype).expand(batch, -1, -1)
        )
        super().test_all_forms_give_the_same_gradients(pixel_values, labels)

    def check_export(self, model, pixel_values, **kwargs):
        if torch.__version__ < "2.7":
            pytest.skip("torch 2.6 cannot prove that pixels of a free height and width can be counted in one")
        super().check_export(model, pixel_values, **kwargs)

    @pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 maps no group normalization over pictures")
    def test_mapped_over_pictures(self, model, pixel_values, labels):
        super().test_mapped_over_pictures(model, pixel_values, labels)

    def test_evaluation_is_the_same_every_time(self, pixel_values):
        """At every call, in every process, whatever torch's random state is, and whatever else is in the batch."""
        model = build(self.model_class, self.config())
        logits = model(pixel_values).logits
        torch.manual_seed(1)
        assert torch.equal(model(pixel_values).logits, logits)
        again = self.model_class(self.config())
        again.load_state_dict({**model.state_dict(), "decode_head.hamburger.bases": again.decode_head.hamburger.bases})
        assert torch.equal(again.eval()(pixel_values).logits, logits)
        torch.testing.assert_close(model(pixel_values[1:]).logits, logits[1:], rtol=1e-5, atol=1e-5)
        others = torch.cat([pixel_values[1:], 9 * torch.randn(2, 3, 64, 96)])
        torch.testing.assert_close(model(others).logits[:1], logits[1:], rtol=1e-5, atol=1e-5)

    def test_training_draws_the_bases_from_the_random_state(self, pixel_values):
        model = build(self.model_class, self.config(classifier_dropout_prob=0.0, drop_path_rate=0.0)).train()
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first, second = model(pixel_values).logits, model(pixel_values).logits
        assert not torch.allclose(first, second)
        torch.set_rng_state(state)
        torch.testing.assert_close(model(pixel_values).logits, first, rtol=0, atol=0)

    def test_bases_of_another_seed_are_saved_with_the_model(self, pixel_values, tmp_path):
        model = build(self.model_class, self.config())
        logits = model(pixel_values).logits
        hamburger = model.decode_head.hamburger
        hamburger.bases.copy_(hamburger.fixed_bases(*hamburger.bases.shape, seed=3))
        changed = model(pixel_values).logits
        assert not torch.allclose(changed, logits)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(self.model_class.from_pretrained(tmp_path)(pixel_values).logits, changed)

    def test_bases_that_a_checkpoint_lacks_are_those_of_the_seed(self, tmp_path):
        model = build(self.model_class, self.config())
        state_dict = {name: tensor for name, tensor in model.state_dict().items() if "bases" not in name}
        model.save_pretrained(tmp_path, state_dict=state_dict)
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())  # nothing that would have to be trained
        torch.testing.assert_close(loaded.decode_head.hamburger.bases, Hamburger.fixed_bases(64, 8))
        first = Hamburger.fixed_bases(64, 8)[0, :3]
        assert first.tolist() == pytest.approx([0.1157066, 0.168571, 0.0200084], rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_factorization_is_in_full_precision_under_autocast(self, model, pixel_values, dtype):
        with torch.no_grad(), torch.autocast("cpu", dtype):
            half = model(pixel_values).logits
        expected = model(pixel_values).logits
        assert (half.float() - expected).norm() / expected.norm() < (0.05 if dtype == torch.bfloat16 else 0.01)

    def test_half_precision_has_room_for_the_factors(self):
        """Bases of a component that counts little grow beyond float16's range, though their product does not."""
        torch.manual_seed(0)
        hamburger = Hamburger(self.config(ham_hidden_size=512, ham_rank=64)).eval()
        torch.nn.init.normal_(hamburger.ham_in.weight, std=(2 / 512) ** 0.5)
        for scale in (100, 1000):
            maps = scale * torch.randn(2, 512, 12, 12).relu()
            with torch.no_grad():
                _, bases = hamburger.factorize(torch.relu(hamburger.ham_in(maps)))
                expected, half = hamburger(maps), hamburger.half()(maps.half())
            hamburger.float()
            assert half.isfinite().all()
            assert (half.float() - expected).norm() < 0.01 * expected.norm()

    def test_made_on_a_device(self, pixel_values):
        with torch.device("meta"):
            model = self.model_class(self.config())
        assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
        assert model.eval()(pixel_values.to("meta")).logits.shape[1] == 7

    def test_reentrant_checkpoints_above_a_frozen_backbone(self, pixel_values):
        model = build(self.model_class, self.config()).train()
        model.van.requires_grad_(False)
        enable_gradient_checkpointing(model, use_reentrant=True)
        model(pixel_values).logits.square().mean().backward()
        without = [name for name, p in model.decode_head.named_parameters() if p.grad is None]
        assert without == []


class TestLightHam(HamSuite):
    decode_head = "light_ham"
    golden_name = "seed_light_ham_van_tiny"

    def test_has_no_auxiliary_head(self, model):
        assert model.auxiliary_head is None


class TestHam(HamSuite):
    decode_head = "ham"
    golden_name = "seed_ham_van_tiny"

    def test_golden_auxiliary_logits(self, fixtures_dir):
        model, golden = self.converted(fixtures_dir)
        features = model.van(golden["pixel_values"], output_hidden_states=True).hidden_states
        torch.testing.assert_close(model.auxiliary_head(features), golden["auxiliary_logits"], rtol=0, atol=5e-5)


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin"])
def hub_folder(request, fixtures_dir, tmp_path):
    """A checkpoint that transformers 4.57.6 saved, in both of its forms; the Hub's are pytorch_model.bin files."""
    source = fixtures_dir / "hub_van_tiny"
    shutil.copy(source / "config.json", tmp_path)
    if request.param == "model.safetensors":
        shutil.copy(source / request.param, tmp_path)
    else:
        torch.save(safetensors.torch.load_file(source / "model.safetensors"), tmp_path / request.param)
    return tmp_path


@pytest.mark.parametrize("auto_class", [VanForImageClassification, AutoModelForImageClassification])
def test_hub_classifier(hub_folder, fixtures_dir, auto_class):
    model, info = auto_class.from_pretrained(hub_folder, output_loading_info=True)
    assert not any(info.values())
    golden = np.load(fixtures_dir / "hub_van_tiny" / "expected.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(golden["pixel_values"])).logits
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("auto_class", [VanForSemanticSegmentation, AutoModelForSemanticSegmentation])
def test_hub_backbone_of_a_segmentation_model(hub_folder, fixtures_dir, auto_class):
    model, info = auto_class.from_pretrained(hub_folder, num_labels=7, output_loading_info=True)
    missing = info.pop("missing_keys")
    assert "decode_head.classifier.weight" in missing
    assert {key.split(".")[0] for key in missing} == {"decode_head", "auxiliary_head"}
    assert not any(info.values())
    assert_golden_stages(model, fixtures_dir)


@pytest.mark.parametrize("auto_class", [VanModel, AutoModel, VanBackbone])
def test_hub_backbone(hub_folder, fixtures_dir, auto_class):
    model, info = auto_class.from_pretrained(hub_folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert set(info["unexpected_keys"]) <= {"classifier.weight", "classifier.bias"}
    assert_golden_stages(model, fixtures_dir)


def assert_golden_stages(model, fixtures_dir):
    golden = np.load(fixtures_dir / "hub_van_tiny" / "expected.npz")
    with torch.no_grad():
        outputs = model(torch.from_numpy(golden["pixel_values"]), output_hidden_states=True)
    for idx, hidden_states in enumerate(outputs.hidden_states):
        np.testing.assert_allclose(hidden_states, golden[f"hidden_state_{idx}"], rtol=0, atol=1e-5)
