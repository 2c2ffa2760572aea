# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""transformers' own common test suites on VAN: configuration, models, backbone and image processor.

    PYTHONPATH=FOLDER python -m pytest transformers_suite.py

FOLDER/tests is that of transformers' source package, of the version that is installed, with an empty __init__.py.
"""

import sys
import types
import unittest

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

from van_hf import (
    VanBackbone,
    VanConfig,
    VanForImageClassification,
    VanForSemanticSegmentation,
    VanImageProcessor,
    VanModel,
)


def supply(name: str, **attributes: object) -> None:
    """Stand in for a part of the suites that the source package lacks."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)


supply("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
supply("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
supply("fetch_hub_objects_for_ci", url_to_local_path=lambda url, *args, **kwargs: url)
supply(
    "tests.utils.test_configuration_utils",
    config_common_kwargs={
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["BertModel"],
        "id2label": {0: "label"},
        "label2id": {"label": "0"},
        "problem_type": "regression",
    },
)

from tests.test_backbone_common import BackboneTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_image_processing_common import (  # noqa: E402
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor  # noqa: E402

# The suites know base models and backbones by transformers' own tables.
MODEL_MAPPING_NAMES["van"], MODEL_FOR_BACKBONE_MAPPING_NAMES["van"] = "VanModel", "VanBackbone"


class VanModelTester:
    """Makes the configurations and inputs that the suites ask for."""

    def __init__(self, parent, decode_head="upernet", is_training=True):
        self.parent = parent
        self.batch_size, self.num_channels, self.image_size = 3, 3, 64
        self.hidden_sizes, self.depths = [8, 8, 16, 16], [1, 1, 2, 1]
        self.num_hidden_layers = 2
        self.is_training, self.use_labels, self.num_labels = is_training, True, 3
        self.decode_head = decode_head
        self.hidden_size = 16

    def get_config(self):
        return VanConfig(
            hidden_sizes=self.hidden_sizes,
            depths=self.depths,
            mlp_ratios=[2, 2, 2, 2],
            decoder_hidden_size=32,
            fpn_hidden_size=16,
            auxiliary_hidden_size=32,
            ham_hidden_size=32,
            ham_rank=8,
            num_labels=self.num_labels,
            decode_head=self.decode_head,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )

    def prepare_config_and_inputs(self):
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        labels = ids_tensor([self.batch_size], self.num_labels)
        return self.get_config(), pixel_values, labels

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class VanConfigTester(ConfigTester):
    def create_and_test_config_common_properties(self):
        config = self.config_class(**self.inputs_dict)
        self.parent.assertTrue(hasattr(config, "hidden_sizes"))
        self.parent.assertTrue(hasattr(config, "depths"))


class VanModelTest(ModelTesterMixin, unittest.TestCase):
    decode_head = "upernet"
    all_model_classes = (VanModel, VanForImageClassification, VanForSemanticSegmentation, VanBackbone)
    pipeline_model_mapping = {}
    test_resize_embeddings = False
    has_attentions = False
    test_torch_exportable = True

    def setUp(self):
        self.model_tester = VanModelTester(self, self.decode_head)
        self.config_tester = VanConfigTester(
            self, config_class=VanConfig, has_text_modality=False, common_properties=["hidden_sizes", "depths"]
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = dict(inputs_dict)
        if return_labels:
            size = self.model_tester.batch_size, self.model_tester.image_size, self.model_tester.image_size
            if model_class is VanForSemanticSegmentation:
                inputs_dict["labels"] = torch.zeros(size, dtype=torch.long, device=torch_device)
            elif model_class is VanForImageClassification:
                inputs_dict["labels"] = torch.zeros(size[0], dtype=torch.long, device=torch_device)
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("VAN has no token embeddings")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip("a backbone without weights is an error")
    def test_can_init_all_missing_weights(self):
        pass

    @unittest.skip("a backbone without weights is an error")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    def test_hidden_states_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for ask in ("argument", "config"):
                config.output_hidden_states = ask == "config"
                model = model_class(config).to(torch_device).eval()
                kwargs = {"output_hidden_states": True} if ask == "argument" else {}
                with torch.no_grad():
                    states = model(**inputs, **kwargs).hidden_states
                self.assertEqual(len(states), 4)
                self.assertEqual(list(states[0].shape[-3:]), [8, 16, 16])


class VanFpnModelTest(VanModelTest):
    decode_head = "semantic_fpn"


class VanLightHamModelTest(VanModelTest):
    decode_head = "light_ham"


class VanHamModelTest(VanModelTest):
    decode_head = "ham"


class VanBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (VanBackbone,)
    config_class = VanConfig
    has_attentions = False

    def setUp(self):
        self.model_tester = VanModelTester(self)

    @unittest.skip("VAN's stages have no stem before them, as PVTv2's")
    def test_config(self):
        pass


class VanImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 32, "width": 32})
        super().__init__(parent, batch_size=4, max_resolution=90, num_labels=3, **kwargs)

    def _get_image_processing_classes(self):
        return {"torchvision": VanImageProcessor}


@unittest.skipIf(
    not hasattr(ImageProcessingTestMixin, "_get_image_processing_classes"),
    "the suite of transformers 5.17 tests transformers' own image processors alone",
)
class VanImageProcessingTest(PostProcessSemanticSegmentationTestMixin, ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = VanImageProcessingTester
