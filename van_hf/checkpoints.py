# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Convert the authors' own checkpoints.

Two formats are known: VAN-Segmentation's, which mmsegmentation wrote (`backbone.*`, `neck.*`, `decode_head.*`,
`auxiliary_head.*`), and VAN-Classification's (`patch_embed1.*` to `head.*`). Checkpoints that transformers 4.57 saved
need no conversion: `from_pretrained` loads them directly.

Every tensor is accounted for: a converted model has each tensor of the file, and no others.
"""

import logging
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torchvision.models import ResNet18_Weights
from transformers import ConvNextImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .model.configuration_van import DECODE_HEADS, VAN_SIZES, VanConfig, published_size
from .model.decode_heads import Hamburger
from .model.image_processing_van import VanImageProcessor
from .model.modeling_van import VanForImageClassification, VanForSemanticSegmentation, VanModel, VanPreTrainedModel

logger = logging.getLogger(__name__)

# Our names and the authors', as regular expressions and replacements that are applied in this order. <n> stands for
# n + 1, because we count the stages from 0 and they from 1; transformers' `key_mapping` cannot express that.
BACKBONE_KEYS = (
    (r"^(?:van\.)?encoder\.stages\.(\d+)\.embeddings\.convolution\.", r"backbone.patch_embed<\1>.proj."),
    (r"^(?:van\.)?encoder\.stages\.(\d+)\.embeddings\.normalization\.", r"backbone.patch_embed<\1>.norm."),
    (r"^(?:van\.)?encoder\.stages\.(\d+)\.normalization\.", r"backbone.norm<\1>."),
    (r"^(?:van\.)?encoder\.stages\.(\d+)\.layers\.", r"backbone.block<\1>."),
    (r"\.pre_normomalization\.", r".norm1."),
    (r"\.attention\.pre_projection\.conv\.", r".attn.proj_1."),
    (r"\.attention\.attention_layer\.attention\.depth_wise\.", r".attn.spatial_gating_unit.conv0."),
    (r"\.attention\.attention_layer\.attention\.depth_wise_dilated\.", r".attn.spatial_gating_unit.conv_spatial."),
    (r"\.attention\.attention_layer\.attention\.point_wise\.", r".attn.spatial_gating_unit.conv1."),
    (r"\.attention\.post_projection\.", r".attn.proj_2."),
    (r"\.attention_scaling\.weight$", r".layer_scale_1"),
    (r"\.post_normalization\.", r".norm2."),
    (r"\.mlp\.in_dense\.", r".mlp.fc1."),
    (r"\.mlp\.depth_wise\.", r".mlp.dwconv.dwconv."),
    (r"\.mlp\.out_dense\.", r".mlp.fc2."),
    (r"\.mlp_scaling\.weight$", r".layer_scale_2"),
)
SEGMENTATION_KEYS = (
    *BACKBONE_KEYS,
    (r"^(decode_head|auxiliary_head)\.classifier\.", r"\1.conv_seg."),
    # Semantic FPN's pyramid was a module of its own. UperNet's convolutions go by the same names, but have a `.conv.`.
    (r"^decode_head\.(lateral_convs|fpn_convs)\.(\d+)\.(weight|bias)$", r"neck.\1.\2.conv.\3"),
    (r"^decode_head\.hamburger\.ham_in\.", r"decode_head.hamburger.ham_in.conv."),
)
HAM_KEYS = (
    *SEGMENTATION_KEYS,
    (r"^decode_head\.hamburger\.", r"decode_head."),
)
CLASSIFICATION_KEYS = (
    *BACKBONE_KEYS,
    (r"^backbone\.", r""),
    (r"^classifier\.", r"head."),
)
# What only the tensors of one decode head begin with.
HEAD_PREFIXES = {
    "upernet": "decode_head.psp_modules.",
    "semantic_fpn": "neck.",
    "light_ham": "decode_head.hamburger.",
    "ham": "decode_head.ham_in.",
}
SEGMENTATION_PREFIXES = ("backbone.", "neck.", "decode_head.", "auxiliary_head.")
# mmsegmentation's default, which the authors always used. Checkpoints tell only how many scales there are.
POOL_SCALES = (1, 2, 3, 6)
# The buffer of Hamburger's bases, which the authors draw anew at every call, is the only one of ours that no file has.
NOT_IN_FILES = (".num_batches_tracked", ".bases")
MAX_HAM_RANK = 4096  # far above what would be a low rank; more would take memory for nothing
INCOMPLETE = "a truncated or incomplete checkpoint of a VAN"


def original_key(key: str, model_class: type[VanPreTrainedModel], decode_head: str | None = None) -> str:
    """Return the authors' name of the parameter or buffer that `model_class`, with a decode head, calls `key`."""
    if model_class is VanForSemanticSegmentation:
        table = HAM_KEYS if decode_head == "ham" else SEGMENTATION_KEYS
    else:
        table = CLASSIFICATION_KEYS
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"<(\d+)>", lambda match: str(int(match[1]) + 1), key)


def convert_checkpoint(
    path: str | os.PathLike,
    id2label: dict[int, str] | None = None,
    trust_pickle: bool = False,
    ham_rank: int | None = None,
) -> tuple[VanPreTrainedModel, BaseImageProcessor]:
    """Turn a checkpoint of the authors into a model and the image processor that belongs to it, in memory.

    Args:
        path: the file; see [`load_original_checkpoint`].
        id2label: class names by label id, 0 to num_labels - 1. By default those in the file, or those of the benchmark
            that fits the number of labels: ADE20K for a segmentation model of 150, ImageNet for a classifier of 1000.
        trust_pickle: whether to run the code that a pickle may carry.
        ham_rank: rank of the factorization in Light-Ham and HamNet, 1 or more; by default the authors', see
            [`infer_config`].

    Returns:
        The model, float32, in evaluation mode, with its labels (and palette) in its configuration: a
        [`VanForSemanticSegmentation`], a [`VanForImageClassification`] or, for a classifier's file without a `head`,
        a [`VanModel`]; and the image processor of the authors' own evaluation.

    Raises:
        ValueError: the file cannot be read, is no checkpoint of a VAN, lacks tensors, or has some that do not belong;
            or `ham_rank` is not positive, or given for a model without such a head.
    """
    state_dict, meta = load_original_checkpoint(path, trust_pickle=trust_pickle)
    try:
        model_class = infer_model_class(state_dict)
        config = infer_config(state_dict, ham_rank)
        if model_class is not VanModel:
            set_labels(config, model_class, meta, id2label)
        elif id2label is not None:
            raise ValueError("the checkpoint is a backbone without a head, so that it has no labels for id2label")
        with torch.device("meta"):
            model = model_class(config)
        converted = convert_state_dict(state_dict, model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    converted |= {
        name: Hamburger.fixed_bases(*buffer.shape) for name, buffer in model.named_buffers() if name.endswith(".bases")
    }
    # Assigns the file's tensors themselves; batch counters that files of old torch versions lack are made.
    model.load_state_dict(converted, assign=True)
    return model.eval(), default_image_processor(model_class)


def load_original_checkpoint(
    path: str | os.PathLike, trust_pickle: bool = False
) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Read a checkpoint file: the tensors by the authors' names, and `meta`, where mmsegmentation keeps class names.

    Args:
        path: a file that `torch.save` or safetensors wrote. The tensors are at its top level, under `state_dict` or,
            if there is none, under `state_dict_ema`; their names may all start with `module.`.
        trust_pickle: whether to unpickle whatever the file holds. That runs any code that the file's author put there.

    Raises:
        ValueError: there is no such file, it is no checkpoint, or it holds more than tensors and plain containers.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the checkpoint file itself, such as a .pth or .pth.tar")
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty; download it again")
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror}") from error
    checkpoint = _read_file(path, trust_pickle)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}; a checkpoint holds tensors by their names")
    state_dict = checkpoint.get("state_dict", checkpoint.get("state_dict_ema", checkpoint))
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"{path} has no tensors under 'state_dict', but {state_dict!r:.80}")
    others = [
        name for name, value in state_dict.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise ValueError(
            f"{path} is no checkpoint of a model; among its tensors are entries of another kind: {_listed(others)}"
        )
    if unusable := [name for name, tensor in state_dict.items() if not _is_plain(tensor)]:
        raise ValueError(
            f"{path} holds tensors without plain numbers (empty, sparse, quantized, complex, or integers as weights):"
            f" {_listed(unusable)}"
        )
    if all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    meta = checkpoint.get("meta")
    return dict(state_dict), meta if isinstance(meta, Mapping) else {}


def _is_plain(tensor: torch.Tensor) -> bool:
    # BatchNorm's counters are the only integers.
    is_number = tensor.is_floating_point() or (tensor.dtype == torch.int64 and tensor.ndim == 0)
    return is_number and tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.numel() > 0


def _read_file(path: Path, trust_pickle: bool) -> Any:
    # A memory map spares a copy of the weights; files from before torch 1.6 are no zip archives and cannot have one.
    is_archive = zipfile.is_zipfile(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=is_archive)
    except PermissionError as error:
        raise ValueError(f"{path} cannot be opened: {error}") from error
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path} holds objects of code that is not installed here: {error}") from error
    except Exception as error:  # damaged files raise errors of any kind, KeyError and OSError among them
        if foreign := _foreign_objects(path, error):
            raise ValueError(
                f"{path} holds more than tensors and plain containers: {_listed(foreign)}. Loading these can run any "
                "code. If you trust the file's source, allow it with --trust_pickle (in Python, trust_pickle=True)"
            ) from error
        raise ValueError(f"{path} is truncated, damaged or no checkpoint at all; download it again") from error


def _foreign_objects(path: Path, error: Exception) -> list[str]:
    """Return the classes and functions that made `torch.load(weights_only=True)` stop with `error`, if any did."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    foreign = re.findall(r"GLOBAL (\S+) (?:was not an allowed global|whose module \S+ is blocked)", str(error))
    if foreign and zipfile.is_zipfile(path):
        # The error names the first one only; torch can list them all, in archives.
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return foreign


def infer_model_class(state_dict: Mapping[str, torch.Tensor]) -> type[VanPreTrainedModel]:
    """Return the class that an original checkpoint's tensors make; raise a `ValueError` if they are no VAN's."""
    if any(".pre_normomalization." in key for key in state_dict):
        raise ValueError(
            "this is transformers' own format and needs no conversion: give the folder of the file and its "
            f"config.json to from_pretrained. It has {_listed(state_dict)}"
        )
    if not any(re.match(r"(backbone\.)?(patch_embed|block)\d\.", key) for key in state_dict):
        raise ValueError(f"this looks like a foreign model, not a VAN. It has {_listed(state_dict)}")
    if any(key.startswith(SEGMENTATION_PREFIXES) for key in state_dict):
        return VanForSemanticSegmentation
    return VanForImageClassification if any(key.startswith("head.") for key in state_dict) else VanModel


def infer_config(state_dict: Mapping[str, torch.Tensor], ham_rank: int | None = None) -> VanConfig:
    """Infer the architecture from the tensors of an original checkpoint.

    Strides, the pooling module's scales, the epsilons and the rank of the factorization in Light-Ham and HamNet leave
    no trace in tensors and are the authors'; the rate of stochastic depth is the published one of the size and decode
    head, 0 for other sizes and classifiers.

    Args:
        state_dict: all tensors by the authors' names. Only their shapes are read: the meta device will do.
        ham_rank: the rank, 1 or more; by default 64, or 16 with 256 channels.

    Raises:
        ValueError: tensors that tell the architecture are missing, or are of another kind; or `ham_rank` is not
            positive, or given for a model without such a head.
    """
    model_class = infer_model_class(state_dict)
    is_segmentation = model_class is VanForSemanticSegmentation
    prefix = "backbone." if is_segmentation else ""
    stems = [f"{prefix}patch_embed{stage}.proj.weight" for stage in (1, 2, 3, 4)]
    expansions = [f"{prefix}block{stage}.0.mlp.fc1.weight" for stage in (1, 2, 3, 4)]
    _require(state_dict, stems + expansions, ndim=4)
    hidden_sizes = [state_dict[key].shape[0] for key in stems]
    fields = {
        "num_channels": state_dict[stems[0]].shape[1],
        "patch_sizes": [state_dict[key].shape[-1] for key in stems],
        "hidden_sizes": hidden_sizes,
        "depths": _count_blocks(state_dict, prefix),
        "mlp_ratios": [state_dict[key].shape[0] // size for key, size in zip(expansions, hidden_sizes, strict=True)],
    }
    if is_segmentation:
        fields |= _infer_heads(state_dict)
        head = DECODE_HEADS[fields["decode_head"]]
        fields |= {"strides": list(head.strides), "layer_norm_eps": head.layer_norm_eps}
        if head.has_hamburger:
            default_rank = 16 if fields["ham_hidden_size"] == 256 else 64
            fields["ham_rank"] = default_rank if ham_rank is None else ham_rank
        size = published_size(fields["hidden_sizes"], fields["depths"])
        fields["drop_path_rate"] = VAN_SIZES[size][2][fields["decode_head"]] if size else 0.0
    elif model_class is VanForImageClassification:
        _require(state_dict, ["head.weight"], ndim=2)
        fields["num_labels"] = state_dict["head.weight"].shape[0]
    if ham_rank is not None and not (type(ham_rank) is int and 1 <= ham_rank <= MAX_HAM_RANK):
        raise ValueError(f"ham_rank must be an integer from 1 to {MAX_HAM_RANK}, got {ham_rank!r}")
    if ham_rank is not None and "ham_rank" not in fields:
        found = DECODE_HEADS[fields["decode_head"]].name if is_segmentation else "no decode head"
        raise ValueError(f"ham_rank is {ham_rank}, but only Light-Ham and HamNet have a rank; this has {found}")
    return VanConfig(**fields)


def _count_blocks(state_dict: Mapping[str, torch.Tensor], prefix: str) -> list[int]:
    """Count the blocks of each stage, up to the last that has a tensor; gaps before it are missing keys later.

    Raises:
        ValueError: a block has a number that so few tensors cannot reach.
    """
    last_blocks = [0, 0, 0, 0]
    for key in state_dict:
        if match := re.match(re.escape(prefix) + r"block([1-4])\.(\d+)\.", key):
            stage, block = int(match[1]) - 1, int(match[2])
            if block >= len(state_dict):
                raise ValueError(f"this looks like a damaged checkpoint: of {len(state_dict)} tensors one is {key}")
            last_blocks[stage] = max(last_blocks[stage], block)
    return [last + 1 for last in last_blocks]


def _infer_heads(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the fields of the decode and auxiliary heads."""
    decode_head = _infer_decode_head(state_dict)
    _require(state_dict, ["decode_head.conv_seg.weight"], ndim=4)
    num_labels, decoder_hidden_size = state_dict["decode_head.conv_seg.weight"].shape[:2]
    fields = {"decode_head": decode_head, "num_labels": num_labels, "decoder_hidden_size": decoder_hidden_size}
    if decode_head == "semantic_fpn":
        _require(state_dict, ["neck.lateral_convs.0.conv.weight"], ndim=4)
        fields["fpn_hidden_size"] = state_dict["neck.lateral_convs.0.conv.weight"].shape[0]
    elif decode_head == "upernet":
        pools = {key.split(".")[2] for key in state_dict if key.startswith("decode_head.psp_modules.")}
        if len(pools) != len(POOL_SCALES):
            raise ValueError(
                f"decode_head.psp_modules has {len(pools)} scales ({', '.join(sorted(pools))}); only the authors' "
                f"{len(POOL_SCALES)} are known ({', '.join(map(str, POOL_SCALES))})"
            )
        fields["pool_scales"] = list(POOL_SCALES)
    else:
        _require(state_dict, ["decode_head.squeeze.conv.weight"], ndim=4)
        fields["ham_hidden_size"] = state_dict["decode_head.squeeze.conv.weight"].shape[0]
    if DECODE_HEADS[decode_head].has_auxiliary_head:
        fields["use_auxiliary_head"] = any(key.startswith("auxiliary_head.") for key in state_dict)
        if fields["use_auxiliary_head"]:
            _require(state_dict, ["auxiliary_head.conv_seg.weight"], ndim=4)
            fields["auxiliary_hidden_size"] = state_dict["auxiliary_head.conv_seg.weight"].shape[1]
    return fields


def _infer_decode_head(state_dict: Mapping[str, torch.Tensor]) -> str:
    heads = [head for head, prefix in HEAD_PREFIXES.items() if any(key.startswith(prefix) for key in state_dict)]
    if len(heads) == 1:
        return heads[0]
    known = ", ".join(f"{DECODE_HEADS[head].name} ({prefix}*)" for head, prefix in HEAD_PREFIXES.items())
    others = [key for key in state_dict if not key.startswith("backbone.")]
    raise ValueError(
        f"the decode head is {'none' if not heads else 'more than one'} of {known}; besides the backbone there "
        f"{'is nothing' if not others else 'are ' + _listed(others)}"
    )


def convert_state_dict(state_dict: Mapping[str, torch.Tensor], model: VanPreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of an original checkpoint by their names in `model`, floating-point ones as float32.

    Args:
        state_dict: all tensors by the authors' names.
        model: a model of the same architecture. Only its names and shapes are read: the meta device will do.

    Raises:
        ValueError: tensors are missing, too many or of other shapes; the message lists them by the authors' names.
            BatchNorm's `num_batches_tracked`, which old versions of torch did not save, may be missing.
    """
    expected = model.state_dict()
    our_keys = {original_key(key, type(model), model.config.decode_head): key for key in expected}
    missing = [key for key in our_keys if key not in state_dict and not key.endswith(NOT_IN_FILES)]
    unexpected = [key for key in state_dict if key not in our_keys]
    mismatched = [
        f"{key} {list(tensor.shape)} instead of {list(expected[our_keys[key]].shape)}"
        for key, tensor in state_dict.items()
        if key in our_keys and tensor.shape != expected[our_keys[key]].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    if any(problems.values()):
        looks_like = "a foreign or changed model" if unexpected or mismatched else INCOMPLETE
        faults = "; ".join(f"{name}: {_listed(keys)}" for name, keys in problems.items() if keys)
        raise ValueError(f"this looks like {looks_like}. Tensors {faults}")
    converted, seen = {}, set()
    for key, tensor in state_dict.items():
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        # Parameters that share their memory could not be saved.
        address = None if tensor.is_meta else tensor.data_ptr()
        converted[our_keys[key]] = tensor.clone() if address in seen else tensor
        seen |= {address} - {None}
    return converted


def set_labels(
    config: VanConfig, model_class: type[VanPreTrainedModel], meta: Mapping[str, Any], id2label: dict[int, str] | None
):
    """
    Set `id2label`, `label2id` and `palette` of `config`: from `id2label`, else from the `CLASSES` and `PALETTE` in
    `meta`, else ADE20K's or ImageNet's where their number fits. Without any of these the names stay LABEL_0, LABEL_1
    and so on, and a warning says so. The palette is that in `meta`, else ADE20K's if the names are.

    Names are told apart and stripped, see [`read_id2label`].

    Raises:
        ValueError: the names are not as many as `config.num_labels`, or a label has none.
    """
    from .data.label_names import read_id2label

    if id2label is not None:
        source, names = "id2label", [id2label[idx] for idx in sorted(id2label)]
        if sorted(id2label) != list(range(len(names))):
            raise ValueError(f"id2label must number the labels 0 to {config.num_labels - 1}, got {_listed(id2label)}")
    else:
        source, names = "meta['CLASSES']", meta.get("CLASSES")
        if names is None or names == ():
            names = _benchmark_names(config, model_class)
        if not isinstance(names, (list, tuple)):
            raise ValueError(f"{source} must be a list of names, got {names!r:.80}")
        names = list(names)
    if not names:
        logger.warning(
            "The checkpoint has no class names and %d labels, so that they are called LABEL_0 to LABEL_%d. "
            "Give the names with --id2label (in Python, id2label).",
            config.num_labels,
            config.num_labels - 1,
        )
        names = list(config.id2label.values())
    if len(names) != config.num_labels:
        raise ValueError(f"{source} has {len(names)} names, but the model has {config.num_labels} labels")
    config.id2label = read_id2label(names, source)
    config.label2id = {name: idx for idx, name in config.id2label.items()}
    if model_class is VanForSemanticSegmentation:
        config.palette = _find_palette(meta, list(config.id2label.values()))


def _benchmark_names(config: VanConfig, model_class: type[VanPreTrainedModel]) -> list[str]:
    if model_class is VanForSemanticSegmentation and config.num_labels == 150:
        from .data.ade20k import CLASS_NAMES

        return list(CLASS_NAMES)
    if model_class is VanForImageClassification and config.num_labels == 1000:
        return ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return []


def _find_palette(meta: Mapping[str, Any], names: list[str]) -> list[list[int]] | None:
    from .data.ade20k import CLASS_NAMES, PALETTE

    if (palette := meta.get("PALETTE")) is not None:
        try:
            return [[int(value) for value in colour] for colour in palette]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"meta['PALETTE'] must be a list of [red, green, blue], got {palette!r:.80}") from error
    return PALETTE if names == list(CLASS_NAMES) else None


def default_image_processor(model_class: type[VanPreTrainedModel]) -> BaseImageProcessor:
    """Return the authors' evaluation pipeline.

    For segmentation that is [`VanImageProcessor`]; for classifiers ConvNeXt's: the short side to 248 pixels, bicubic
    with antialiasing, then the middle 224x224.
    """
    if model_class is VanForSemanticSegmentation:
        return VanImageProcessor()
    return ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.9, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD
    )


def check_output_dir(output_dir: str | os.PathLike):
    """Raise a `ValueError` unless `output_dir` is an empty folder, or one that can be made."""
    output_dir = Path(output_dir)
    try:
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(f"{output_dir} is a file; give a new or empty folder to write to")
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise ValueError(f"{output_dir} is not empty and would be overwritten; give a new or empty folder")
        parent = next(parent for parent in output_dir.absolute().parents if parent.exists())
    except OSError as error:
        raise ValueError(f"{output_dir} cannot be made: {error.strerror}; give another folder to write to") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "you may not write to" if parent.is_dir() else "there is a file"
        raise ValueError(f"{output_dir} cannot be made: {reason} {parent}; give another folder to write to")


def save_converted(model: VanPreTrainedModel, image_processor: BaseImageProcessor, output_dir: str | os.PathLike):
    """Save both into `output_dir`, which must be new or empty: wholly or, whatever happens meanwhile, not at all.

    Raises:
        ValueError: `output_dir` is a file, holds something, or cannot be made.
    """
    check_output_dir(output_dir)
    output_dir = Path(output_dir).resolve()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it can be renamed; hidden, so that a killed conversion leaves no folder like a model's.
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".converting-") as temporary:
        # A folder inside, as the temporary one itself is closed to other users.
        complete = Path(temporary) / output_dir.name
        model.save_pretrained(complete)
        image_processor.save_pretrained(complete)
        if output_dir.is_dir():
            output_dir.rmdir()
        complete.rename(output_dir)


def _require(state_dict: Mapping[str, torch.Tensor], keys: list[str], ndim: int):
    """Raise a `ValueError` that lists those of `keys` that are missing or have another number of dimensions."""
    missing = [key for key in keys if key not in state_dict]
    if missing:
        raise ValueError(f"this looks like {INCOMPLETE}. Tensors missing: {_listed(missing)}")
    others = [f"{key} {list(state_dict[key].shape)}" for key in keys if state_dict[key].ndim != ndim]
    if others:
        raise ValueError(f"this looks like a foreign model. Tensors without {ndim} dimensions: {_listed(others)}")


def _listed(keys: Iterable) -> str:
    """Return the first five of `keys`, and how many there are if there are more."""
    keys = [str(key) for key in keys]
    shown = ", ".join(keys[:5])
    return shown if len(keys) <= 5 else f"{shown}, ... ({len(keys)} in all)"
