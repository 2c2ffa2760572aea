# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Model cards, made from facts: a configuration, a run's results.json, and what the VAN authors published."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import validate_repo_id

from .exports import INFO, MAX_SIDE, MIN_SIDE, ExportInfo
from .files import read_json
from .model.configuration_van import DECODE_HEADS, VanConfig, published_size
from .model.modeling_van import VanForImageClassification, VanForSemanticSegmentation
from .privacy import public_json
from .released_checkpoints import (
    ADE20K,
    CLASSIFICATION_URL,
    HUB_CLASSIFIERS,
    RELEASED_CHECKPOINTS,
    DataSet,
    PerClass,
    ReleasedCheckpoint,
    read_per_class,
)
from .training import ADDED_FIELDS, RECIPES, Recipe

TEMPLATE = Path(__file__).parent / "model_card_template.md"


@dataclass(frozen=True)
class CardExport:
    """What a model card tells of an export.

    Args:
        folder: its folder in the model's repository.
        content: of its export_info.json.
        num_bytes: size of the program's files.

    Raises:
        ValueError: export_info.json lacks a field, which the message names.
    """

    folder: str
    content: Mapping[str, Any]
    num_bytes: int

    def __post_init__(self):
        def field(name: str, kinds: type | tuple[type, ...]) -> Any:
            return _field(self.content, name, kinds, f"{self.folder}/{INFO}", "export.py writes it")

        for name in ("format", "dtype", "digest", "model"):
            field(f"source.{name}", str)
        field("source.int8", (Mapping, type(None)))
        field("source.size", (list, tuple, type(None)))
        field("source.label_maps", bool)
        shares = ["check.agreement"]
        if "mean_iou" in field("check", Mapping):
            field("check.mean_iou.num_pictures", int)
            shares += ["check.mean_iou.model", "check.mean_iou.export"]
        for name in shares:
            if not 0 <= (share := field(name, (int, float))) <= 1:
                raise ValueError(f"{self.folder}/{INFO}: {name} must be a fraction, 0 to 1, got {share!r}")

    @property
    def info(self) -> ExportInfo:
        """What it was made of."""
        return ExportInfo(**self.content["source"])

    @property
    def row(self) -> str:
        """Its row in the card's table of exports."""
        check, info = self.content["check"], self.info
        if "mean_iou" in check:
            before, after = 100 * check["mean_iou"]["model"], 100 * check["mean_iou"]["export"]
            equality = f"mean IoU on {check['mean_iou']['num_pictures']} pictures {before:.2f} % -> {after:.2f} %"
        else:
            equality = f"the same label for {100 * check['agreement']:.4f} % of the pixels"
        size = "free" if info.size is None else "x".join(map(str, info.size))
        output = "label maps" if info.label_maps else "scores"
        cells = [f"`{self.folder}`", f"`{info.format}`", info.precision, size, output, equality]
        return f"| {' | '.join(cells)} | {self.num_bytes / 1e6:.1f} MB |"


@dataclass
class CardFacts:
    """All that a model card tells, as model_card_template.md reads it.

    Args:
        config: configuration of the model. The `architectures` of a saved model tell which kind it is; without them it
            is a segmentation model, or what `released` says.
        model_id: Hub repository (or folder) that the card is for; the lines that use the model name it.
        results: content of the `results.json` that train_seg.py or eval_seg.py wrote about these very weights. Cards
            tell nothing of its paths but their last parts.
        training_results: the same of train_seg.py, where `results` are of a later evaluation.
        recipe: how the model was trained, if no results say so. By default, for the authors' checkpoints, theirs.
        released: name in [`RELEASED_CHECKPOINTS`] if the weights are the authors', unchanged.
        base_model: Hub id of the model that training started from. By default it is known for the authors' weights,
            and where training started from one of [`HUB_CLASSIFIERS`].
        dataset_id: Hub id of the data set that the model was trained on. By default it is known for the authors'
            weights and for ADE20K.
        gmacs: multiply-adds in 10^9, and the height and width in pixels of the picture that they are for.
        exports: those that lie in the model's repository.
        bands: those of files that the image processor takes, if it does.

    Raises:
        ValueError: `model_id` is no name of a repository; `released` is unknown or of another architecture; results
            lack a field, which the message names, belong to another model, or are of no training although
            train_seg.py wrote them.
    """

    config: VanConfig
    _: KW_ONLY
    model_id: str
    results: Mapping[str, Any] | None = None
    training_results: Mapping[str, Any] | None = None
    recipe: Recipe | None = None
    released: str | None = None
    base_model: str | None = None
    dataset_id: str | None = None
    gmacs: tuple[float, int, int] | None = None
    exports: Sequence[CardExport] = ()
    bands: Sequence[int] | None = None

    def __post_init__(self):
        validate_repo_id(self.model_id)
        if self.release is not None:
            self._check_release()
        for source in ("results", "training_results"):
            content = getattr(self, source)
            if content is not None:
                check_results(content, self.config, self.num_parameters, source)
                setattr(self, source, public_json(content, self.config.id2label.values()))
        if self.training_results is None:
            self.training_results = self.results
        if self.release is not None and self.run is not None:
            raise ValueError(
                f"released is {self.released!r}, the authors' weights, but the results are of weights trained here"
            )

    def _check_release(self) -> None:
        found = _architecture(self.config, self.segments)
        if found != _architecture(self.release.config(), self.release.decode_head is not None):
            described = ", ".join(f"{name} {value!r}" for name, value in found.items())
            raise ValueError(f"released is {self.released!r}, but the model has {described}, which are not its")

    @cached_property
    def release(self) -> ReleasedCheckpoint | None:
        """The authors' checkpoint that `released` names."""
        if self.released is not None and self.released not in RELEASED_CHECKPOINTS:
            raise ValueError(f"released must be one of {', '.join(RELEASED_CHECKPOINTS)}, got {self.released!r}")
        return RELEASED_CHECKPOINTS.get(self.released)

    @cached_property
    def model_class(self) -> type:
        """The class of the model, of van_hf."""
        classes = {cls.__name__: cls for cls in (VanForSemanticSegmentation, VanForImageClassification)}
        if self.config.architectures:
            name = self.config.architectures[0]
            if name not in classes:
                raise ValueError(f"architectures must hold one of {', '.join(classes)} for a model card, got {name!r}")
            return classes[name]
        is_classifier = self.release is not None and self.release.decode_head is None
        return VanForImageClassification if is_classifier else VanForSemanticSegmentation

    @property
    def segments(self) -> bool:
        """Whether it is a segmentation model, else a classifier."""
        return self.model_class is VanForSemanticSegmentation

    @property
    def task(self) -> str:
        """The pipeline that runs the model."""
        return "image-segmentation" if self.segments else "image-classification"

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the model."""
        return f"AutoModelFor{'SemanticSegmentation' if self.segments else 'ImageClassification'}"

    @property
    def backbone(self) -> str:
        """Such as "VAN-B0", or "VAN" for a size that was not published."""
        size = published_size(self.config.hidden_sizes, self.config.depths)
        return f"VAN-{size.upper()}" if size else "VAN"

    @property
    def decode_head(self) -> str | None:
        """Name of the decode head; None for a classifier."""
        return DECODE_HEADS[self.config.decode_head].name if self.segments else None

    @property
    def has_hamburger(self) -> bool:
        """Whether the decode head factorizes a map from bases, which the authors draw at random at every call."""
        return self.segments and DECODE_HEADS[self.config.decode_head].has_hamburger

    @property
    def label_size(self) -> str | None:
        """The side of the map of labels, as a share of the picture's; None where it is the whole."""
        shares = {1: None, 2: "half", 4: "a quarter of", 8: "an eighth of"}
        stride = self.config.logits_stride
        return shares.get(stride, f"1/{stride} of")

    @cached_property
    def published_per_class(self) -> PerClass | None:
        """The authors' evaluation by classes; None if they published none."""
        return read_per_class(self.released) if self.released is not None else None

    @property
    def title(self) -> str:
        """The card's heading."""
        parts = [f"{self.backbone} with {self.decode_head}" if self.segments else self.backbone]
        if self.release is not None:
            channels = self.release.overrides.get("decoder_hidden_size")
            parts[0] += f" of {channels} channels" if channels else ""
            parts += ["from ImageNet-22K"] if self.release.pretraining == "ImageNet-22K" else []
            parts.append("for ADE20K" if self.segments else "ImageNet classifier")
        elif self.evaluated_on is not None:
            parts.append(f"for {self.evaluated_on.name}")
        return ", ".join(parts)

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return count_parameters(self.config, self.model_class)

    @property
    def has_auxiliary_head(self) -> bool:
        """Whether `num_parameters` includes a head that works in training only."""
        head = DECODE_HEADS[self.config.decode_head]
        return self.segments and head.has_auxiliary_head and self.config.use_auxiliary_head

    @property
    def is_misprinted(self) -> bool:
        """Whether the authors print another number of millions, rounded or cut off, than `num_parameters`."""
        printed = self.release.parameters if self.release is not None else None
        return printed is not None and abs(printed - self.num_parameters / 1e6) >= (1 if printed % 1 == 0 else 0.1)

    @property
    def multiply_adds(self) -> str | None:
        """Multiply-adds in 10^9, to a sensible number of digits."""
        return f"{self.gmacs[0]:,.{1 if self.gmacs[0] >= 100 else 2}f}" if self.gmacs is not None else None

    @property
    def is_on_hub(self) -> bool:
        """Whether the authors themselves have put this model on the Hub."""
        return (
            self.release is not None and not self.segments and self.model_id == HUB_CLASSIFIERS.get(self.release.size)
        )

    @property
    def run(self) -> Mapping[str, Any] | None:
        """What train_seg.py trained the weights with; None if something else trained them."""
        return self.training_results.get("run") if self.training_results is not None else None

    @property
    def start(self) -> str | None:
        """Name of the model that the training of `run` started from."""
        return self.run["model_name_or_path"] if self.run is not None else None

    @property
    def start_on_hub(self) -> str | None:
        """Hub id of the model that training started from, as far as it is known."""
        if self.base_model is not None:
            return self.base_model
        if self.start in HUB_CLASSIFIERS.values():
            return self.start
        is_on_hub = self.release is not None and self.release.pretraining == "ImageNet-1K"
        return HUB_CLASSIFIERS.get(self.release.size) if is_on_hub else None

    @property
    def authors_url(self) -> str | None:
        """Address of the authors' repository whose terms hold for the weights, or for those they started from."""
        if self.release is not None:
            return self.release.url
        return CLASSIFICATION_URL if self.start_on_hub in HUB_CLASSIFIERS.values() else None

    @property
    def hyperparameters(self) -> Mapping[str, Any] | None:
        """The fields of the [`Recipe`] that the model was trained with."""
        if self.run is not None:
            return self.run
        recipe = self.recipe
        if recipe is None and self.release is not None and self.release.recipe is not None:
            recipe = RECIPES[self.release.recipe]
        return asdict(recipe) if recipe is not None else None

    @property
    def trained_on(self) -> DataSet | None:
        """The data set that the model was trained on; None if it is not known."""
        if self.dataset_id is not None:
            return DataSet(self.dataset_id, self.dataset_id)
        return self._trained_on

    @property
    def _trained_on(self) -> DataSet | None:
        if self.release is not None:
            return self.release.data_set
        return _data_set(self.training_results) if self.run is not None else None

    @property
    def evaluated_on(self) -> DataSet | None:
        """The data set that `results` are of; None without results."""
        if self.results is None:
            return None
        evaluated_on = _data_set(self.results)
        return self.trained_on if evaluated_on == self._trained_on else evaluated_on

    def is_about(self, data_set: str) -> bool:
        """Return whether the model was trained or evaluated on the data set of this name."""
        return data_set in (known.name for known in (self.trained_on, self.evaluated_on) if known is not None)

    @property
    def figures(self) -> list[EvalResult]:
        """The figures of the `model-index`.

        Measured ones if there are any, else the authors': huggingface_hub keeps one source for all figures on a data
        set, so that it would mix them up.
        """
        if self.results is not None:
            return [_measured_figure(self.results, self.evaluated_on)]
        return [_published_figure(self.release)] if self.release is not None and self.release.figure else []


def create_model_card(config: VanConfig, **facts: Any) -> ModelCard:
    """Make the model card of a segmentation model or classifier.

    A figure that was measured and one that the authors published stay apart: each has a section of its own, and in the
    `model-index` published ones carry their source.

    Args:
        config, facts: see [`CardFacts`].

    Raises:
        ValueError: see [`CardFacts`].
    """
    card = CardFacts(config, **facts)
    tags = ["van", "visual-attention-network"]
    if card.segments:
        tags += ["semantic-segmentation", config.decode_head.replace("_", "-")]
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=card.task,
        tags=tags,
        metrics=["mean_iou" if card.segments else "accuracy"],
        base_model=card.start_on_hub,
        datasets=[card.trained_on.hub_id] if card.trained_on and card.trained_on.hub_id else None,
        # Both become the model-index, which there is none of without figures.
        model_name=card.model_id if card.figures else None,
        eval_results=card.figures or None,
    )
    made = ModelCard.from_template(metadata, template_path=str(TEMPLATE), card=card)
    if card.exports:
        made.text = made.text.replace("\n## Evaluation\n", f"\n{_other_runtimes(card)}\n## Evaluation\n", 1)
    return made


def _other_runtimes(card: CardFacts) -> str:
    """Return the section about the exports of a model."""
    runs_code = [export.info.format == "torch_export" for export in card.exports]
    example = card.exports[runs_code.index(False) if not all(runs_code) else 0]
    name = f'"{card.model_id}/{example.folder}"' + (", trust_pickle=True" if all(runs_code) else "")
    lines = [
        *("## Other runtimes", ""),
        "Exports of this model by van_hf, each in a folder of this repository. A free input has any number of"
        f" pictures, with any height and width of {MIN_SIDE} to {MAX_SIDE} pixels; others are height x width.",
        "",
        "| folder | format | precision | input | output | compared with PyTorch | size |",
        "|---|---|---|---|---|---|---|",
        *(export.row for export in card.exports),
        *("", "With van_hf installed, and its extra `export`:", "", "```python"),
        "from torchvision.io import decode_image",
        "from van_hf.inference import load_model, predict",
        f'labels = predict(*load_model({name}), decode_image("picture.jpg", "RGB"))',
        "```",
    ]
    if any(runs_code):
        lines += [
            "",
            "Loading `torch_export` runs any code that its file holds, and so needs `trust_pickle=True`: only where"
            " you trust whoever released it.",
        ]
    return "\n".join([*lines, ""])


def model_card_for_folder(
    folder: str | os.PathLike, model_id: str, *, released: str | None = None, **facts: Any
) -> ModelCard:
    """Make the model card of a folder that `save_pretrained` wrote.

    The figures are those of its `results.json`, the training that of its `train_results.json`, where these are there.

    Args:
        folder: a folder with a config.json.
        model_id, released, facts: see [`CardFacts`].

    Raises:
        ValueError: a file is missing, cannot be read or lacks a field; the message names file and field.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{config_file} is missing; give a folder that a model was saved to")
    model_type = read_json(config_file).get("model_type")
    if model_type != "van":
        raise ValueError(f"{config_file}: model_type must be 'van', got {model_type!r}")
    try:
        config = VanConfig.from_pretrained(folder)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{config_file}: {error}") from error
    card = CardFacts(config, model_id=model_id, released=released)
    contents: dict[str, dict] = {}
    for argument, name in {"results": "results.json", "training_results": "train_results.json"}.items():
        file = Path(folder) / name
        if file.is_file():
            contents[argument] = read_json(file)
            check_results(contents[argument], config, card.num_parameters, str(file))
    processor_file = Path(folder) / "preprocessor_config.json"
    bands = read_json(processor_file).get("bands") if processor_file.is_file() else None
    return create_model_card(config, model_id=model_id, released=released, bands=bands, **contents, **facts)


def _architecture(config: VanConfig, segments: bool) -> dict[str, Any]:
    """Return what tells the authors' models apart."""
    found = {
        "hidden_sizes": list(config.hidden_sizes),
        "depths": list(config.depths),
        "decode_head": config.decode_head if segments else None,
        "num_labels": config.num_labels,
    }
    if segments and DECODE_HEADS[config.decode_head].has_hamburger:
        found |= {"ham_hidden_size": config.ham_hidden_size, "ham_rank": config.ham_rank}
    return found


def count_parameters(config: VanConfig, model_class: type) -> int:
    """Return the number of parameters of a model, which is built without memory for them."""
    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())


def check_results(results: Mapping[str, Any], config: VanConfig, num_parameters: int, source: str) -> None:
    """Raise a `ValueError` unless all that a card takes from `results` is there, and belongs to this model.

    Args:
        results: content of a results.json.
        config: configuration of the model that the card is about.
        num_parameters: its number of parameters.
        source: what the message calls `results`.
    """

    def field(name: str, kinds: type | tuple[type, ...]) -> Any:
        return _field(results, name, kinds, source)

    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        if not 0 <= field(name, (int, float)) <= 1:
            raise ValueError(f"{source}: {name} must be a fraction, 0 to 1, got {results[name]!r}")
    for name in ("protocol.inference", "protocol.metric", "dataset.name", "versions.van_hf", "device"):
        field(name, str)
    field("protocol.size", Mapping)
    field("dataset.validation", int)
    if field("dataset.num_labels", int) != config.num_labels:
        raise ValueError(
            f"{source}: dataset.num_labels is {results['dataset']['num_labels']}, but the model has "
            f"{config.num_labels} labels: these are not its results"
        )
    model = "model.num_parameters" if "model" in results else "num_parameters"
    if (found := field(model, int)) != num_parameters:
        raise ValueError(
            f"{source}: {model} is {found}, but the model has {num_parameters}: these are not its results"
        )
    if "run" in results:
        _check_run(results, source)


def _check_run(results: Mapping[str, Any], source: str) -> None:
    if (steps := _field(results, "run.max_train_steps", int, source)) < 1:
        raise ValueError(
            f"{source}: run.max_train_steps must be 1 or more, got {steps}: train_seg.py of an earlier version wrote "
            "this without training. Evaluate the model with eval_seg.py"
        )
    _field(results, "run.model_name_or_path", (str, type(None)), source)
    _field(results, "dataset.train", (int, NoneType), source)  # of streamed pictures the number may be unknown
    _field(results, "run.seed", int, source)
    if results["run"].get("save_best"):
        _field(results, "step", int, source)
        _field(results, "evaluations", list, source)
    if results.get("stopped_early"):
        _field(results, "last_step", int, source)
    kinds = {int: int, float: (int, float), str: str, bool: bool}
    for recipe_field in fields(Recipe):
        is_of_before = recipe_field.name in ADDED_FIELDS and recipe_field.name not in results["run"]
        if recipe_field.name != "eval_steps" and not is_of_before:
            _field(results, f"run.{recipe_field.name}", kinds.get(recipe_field.type, (list, tuple)), source)


def _field(
    content: Mapping[str, Any],
    name: str,
    kinds: type | tuple[type, ...],
    source: str,
    origin: str = "train_seg.py and eval_seg.py write it",
) -> Any:
    """Return the field with the dotted name `name`; raise a `ValueError` if it is missing or of another kind."""
    value: Any = content
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"{source}: {name} is missing; {origin}")
        value = value[part]
    # True is an int to Python.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise ValueError(f"{source}: {name} has a value of a wrong type, {value!r}")
    return value


def _data_set(results: Mapping[str, Any]) -> DataSet:
    name = results["dataset"]["name"]
    is_ade20k = name in ("ade20k", ADE20K.hub_id) or name.split("/")[-1] == "ADEChallengeData2016"
    return ADE20K if is_ade20k else DataSet(name)


def _measured_figure(results: Mapping[str, Any], data_set: DataSet) -> EvalResult:
    inference = results["protocol"]["inference"]
    return EvalResult(
        task_type="image-segmentation",
        task_name="Semantic segmentation",
        dataset_type=data_set.hub_id or data_set.name,
        dataset_name=data_set.name,
        dataset_split="validation",
        metric_type="mean_iou",
        metric_value=round(results["mean_iou"], 4),
        metric_name=f"Mean IoU, measured with van_hf {results['versions']['van_hf']}: {inference}",
    )


def _published_figure(release: ReleasedCheckpoint) -> EvalResult:
    segments = release.decode_head is not None
    return EvalResult(
        task_type="image-segmentation" if segments else "image-classification",
        task_name="Semantic segmentation" if segments else "Image classification",
        dataset_type=release.data_set.hub_id,
        dataset_name=release.data_set.name,
        dataset_split="validation",
        metric_type="mean_iou" if segments else "accuracy",
        # The figures are decimal numbers of percent; a plain division would add digits that nobody published.
        metric_value=round(release.figure / 100, 4),
        metric_name=f"{'Mean IoU' if segments else 'Accuracy'}, published: {release.protocol}",
        source_name="The VAN authors' repository",
        source_url=release.url,
    )
