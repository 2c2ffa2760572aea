# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Model cards, made from facts: a configuration, a run's results.json, and what the VAN authors published."""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import validate_repo_id

from .files import read_json
from .model.configuration_van import DECODE_HEAD_NAMES, VanConfig, published_size
from .model.modeling_van import VanForImageClassification, VanForSemanticSegmentation
from .released_checkpoints import (
    ADE20K,
    CLASSIFICATION_URL,
    HUB_CLASSIFIERS,
    IMAGENET,
    PUBLISHED_PROTOCOLS,
    RELEASED_CHECKPOINTS,
    SEGMENTATION_URL,
    DataSet,
    ReleasedCheckpoint,
)
from .training import RECIPES, Recipe

TEMPLATE = Path(__file__).parent / "model_card_template.md"


def create_model_card(
    config: VanConfig,
    *,
    model_id: str,
    results: Mapping[str, Any] | None = None,
    training_results: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    released: str | None = None,
    base_model: str | None = None,
    dataset_id: str | None = None,
    gmacs: tuple[float, int, int] | None = None,
) -> ModelCard:
    """
    Makes the model card of a segmentation model or classifier.

    A figure that was measured and one that the authors published stay apart: each has a section of its own, and in the
    `model-index` published ones carry their source. Where there are both, the `model-index` has the measured ones
    only: huggingface_hub keeps one source for all figures on a dataset, so that it would mix them up.

    Args:
        config: configuration of the model. Its `architectures`, which a saved model has, tell which kind of model it
            is; without them it is a segmentation model, or what `released` says.
        model_id: Hub repository (or folder) that the card is for; the lines that use the model name it.
        results: content of the `results.json` that train_seg.py or eval_seg.py left, about these very weights.
        training_results: the same of train_seg.py, where `results` are of a later evaluation.
        recipe: how the model was trained, if there are no results that say so. By default, for the authors'
            checkpoints, theirs.
        released: name in [`RELEASED_CHECKPOINTS`] if the weights are the authors', unchanged.
        base_model: Hub id of the model that training started from. By default it is known for the authors' weights,
            and where training started from one of [`HUB_CLASSIFIERS`].
        dataset_id: Hub id of the data set that the model was trained on. By default it is known for the authors'
            weights and for ADE20K.
        gmacs: multiply-adds in 10^9, and the height and width in pixels of the picture that they are for.

    Raises:
        ValueError: `model_id` is no name of a repository; `released` is unknown or of another architecture; results
            lack a field, which the message names, or belong to another model.
    """
    validate_repo_id(model_id)
    model_class = _model_class(config, released)
    release = _find_release(config, model_class, released)
    num_parameters = count_parameters(config, model_class)
    for source, content in {"results": results, "training_results": training_results}.items():
        if content is not None:
            _check_results(content, config, num_parameters, source)
    training_results = training_results if training_results is not None else results
    run = _training_run(training_results)
    if release is not None and run is not None:
        raise ValueError(
            f"released is {released!r}, the authors' weights, but the results are of weights trained here"
        )
    start = _public_name(run["model_name_or_path"]) if run is not None else None
    base_model = base_model or _known_base_model(release, start)
    trained_on, evaluated_on = _data_sets(release, training_results if run is not None else None, results, dataset_id)
    segments = model_class is VanForSemanticSegmentation
    data = _metadata(config, model_id, segments, _measured(results, evaluated_on) or _published(release))
    data.base_model = base_model
    data.datasets = [trained_on.hub_id] if trained_on and trained_on.hub_id else None
    size = published_size(config.hidden_sizes, config.depths)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_id=model_id,
        task=data.pipeline_tag,
        auto_class=f"AutoModelFor{'SemanticSegmentation' if segments else 'ImageClassification'}",
        backbone=f"VAN-{size.upper()}" if size else "VAN",
        decode_head=DECODE_HEAD_NAMES[config.decode_head] if segments else None,
        config=config,
        num_parameters=num_parameters,
        has_auxiliary_head=segments and config.decode_head == "upernet" and config.use_auxiliary_head,
        gmacs=gmacs,
        release=release,
        release_name=released,
        release_url=_url(release),
        protocol=PUBLISHED_PROTOCOLS[release.decode_head] if release is not None else None,
        misprinted=release is not None and _is_misprinted(release.parameters, num_parameters),
        on_hub=release is not None and not segments and model_id == HUB_CLASSIFIERS.get(release.size),
        from_authors=release is not None or base_model in HUB_CLASSIFIERS.values(),
        authors_url=_url(release) or CLASSIFICATION_URL,
        results=results,
        training_results=training_results,
        run=run,
        start=start,
        recipe=run if run is not None else _recipe_fields(recipe, release),
        trained_on=trained_on.name if trained_on else None,
        evaluated_on=evaluated_on.name if evaluated_on else None,
    )


def model_card_for_folder(
    folder: str | os.PathLike, model_id: str, *, released: str | None = None, **facts: Any
) -> ModelCard:
    """
    Makes the model card of a folder that `save_pretrained` wrote, with the figures of its `results.json`, and the
    training that its `train_results.json` tells of, where these are there.

    Args:
        folder: a folder with a config.json.
        model_id, released, facts: see [`create_model_card`].

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
    contents: dict[str, dict] = {}
    for argument, name in {"results": "results.json", "training_results": "train_results.json"}.items():
        file = Path(folder) / name
        if file.is_file():
            contents[argument] = read_json(file)
            parameters = count_parameters(config, _model_class(config, released))
            _check_results(contents[argument], config, parameters, str(file))
    return create_model_card(config, model_id=model_id, released=released, **contents, **facts)


def count_parameters(config: VanConfig, model_class: type) -> int:
    """Returns the number of parameters of a model, which is built without memory for them."""
    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _model_class(config: VanConfig, released: str | None) -> type:
    classes = {cls.__name__: cls for cls in (VanForSemanticSegmentation, VanForImageClassification)}
    if config.architectures:
        name = config.architectures[0]
        if name not in classes:
            raise ValueError(f"architectures must hold one of {', '.join(classes)} for a model card, got {name!r}")
        return classes[name]
    is_classifier = released in RELEASED_CHECKPOINTS and RELEASED_CHECKPOINTS[released].decode_head is None
    return VanForImageClassification if is_classifier else VanForSemanticSegmentation


def _find_release(config: VanConfig, model_class: type, released: str | None) -> ReleasedCheckpoint | None:
    if released is None:
        return None
    if released not in RELEASED_CHECKPOINTS:
        raise ValueError(f"released must be one of {', '.join(RELEASED_CHECKPOINTS)}, got {released!r}")
    release = RELEASED_CHECKPOINTS[released]
    decode_head = config.decode_head if model_class is VanForSemanticSegmentation else None
    found = published_size(config.hidden_sizes, config.depths), decode_head, config.num_labels
    if found != (release.size, release.decode_head, release.config().num_labels):
        raise ValueError(
            f"released is {released!r}, but the model has hidden_sizes {list(config.hidden_sizes)}, depths "
            f"{list(config.depths)}, decode_head {decode_head!r} and {config.num_labels} labels, which are not its"
        )
    return release


def _check_results(results: Mapping[str, Any], config: VanConfig, num_parameters: int, source: str) -> None:
    """Raises a `ValueError` unless all that a card takes from `results` is there, and belongs to this model."""

    def field(name: str, kinds: type | tuple[type, ...]) -> Any:
        value: Any = results
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ValueError(f"{source}: {name} is missing; train_seg.py and eval_seg.py write it")
            value = value[part]
        # True is an int to Python.
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise ValueError(f"{source}: {name} has a value of a wrong type, {value!r}")
        return value

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
    if "run" in results and field("run.max_train_steps", int) > 0:
        field("run.model_name_or_path", (str, type(None)))
        field("dataset.train", int)
        field("run.seed", int)
        kinds = {int: int, float: (int, float), str: str, bool: bool}
        for recipe_field in fields(Recipe):
            if recipe_field.name != "eval_steps":
                field(f"run.{recipe_field.name}", kinds.get(recipe_field.type, (list, tuple)))


def _training_run(results: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What train_seg.py trained the weights with; None if it only evaluated, or another script did."""
    run = results.get("run") if results is not None else None
    return run if run is not None and run["max_train_steps"] > 0 else None


def _known_base_model(release: ReleasedCheckpoint | None, start: str | None) -> str | None:
    if start in HUB_CLASSIFIERS.values():
        return start
    if release is not None and release.pretraining == "ImageNet-1K":
        return HUB_CLASSIFIERS.get(release.size)
    return None


def _recipe_fields(recipe: Recipe | None, release: ReleasedCheckpoint | None) -> dict[str, Any] | None:
    if recipe is None and release is not None and release.recipe is not None:
        recipe = RECIPES[release.recipe]
    return asdict(recipe) if recipe is not None else None


def _data_sets(
    release: ReleasedCheckpoint | None,
    training_results: Mapping[str, Any] | None,
    results: Mapping[str, Any] | None,
    dataset_id: str | None,
) -> tuple[DataSet | None, DataSet | None]:
    """What the model was trained and evaluated on, None where that is not known; `dataset_id` is of the first."""
    trained_on, evaluated_on = _data_set(training_results), _data_set(results)
    if release is not None:
        trained_on = ADE20K if release.decode_head is not None else IMAGENET
    if dataset_id is not None:
        given = DataSet(dataset_id, dataset_id)
        return given, given if evaluated_on == trained_on else evaluated_on
    return trained_on, evaluated_on


def _data_set(results: Mapping[str, Any] | None) -> DataSet | None:
    if results is None:
        return None
    name = results["dataset"]["name"]
    if name in ("ade20k", ADE20K.hub_id) or Path(name).name == "ADEChallengeData2016":
        return ADE20K
    return DataSet(_public_name(name))


def _public_name(path: str | None) -> str | None:
    """A model's or data set's name; of a path on this machine, which is nobody's business, its last part."""
    is_path = path is not None and (path.startswith(("/", ".", "~")) or Path(path).is_dir())
    return Path(path).name if is_path else path


def _metadata(config: VanConfig, model_id: str, segments: bool, figures: list[EvalResult]) -> ModelCardData:
    tags = ["van", "visual-attention-network"]
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation" if segments else "image-classification",
        tags=[*tags, "semantic-segmentation", config.decode_head.replace("_", "-")] if segments else tags,
        metrics=["mean_iou" if segments else "accuracy"],
        # Both become the model-index, which there is none of without figures.
        model_name=model_id if figures else None,
        eval_results=figures or None,
    )


def _measured(results: Mapping[str, Any] | None, data_set: DataSet | None) -> list[EvalResult]:
    if results is None or data_set is None:
        return []
    inference = results["protocol"]["inference"]
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=data_set.hub_id or data_set.name,
            dataset_name=data_set.name,
            dataset_split="validation",
            metric_type="mean_iou",
            metric_value=round(results["mean_iou"], 4),
            metric_name=f"Mean IoU, measured with van_hf {results['versions']['van_hf']}: {inference}",
        )
    ]


def _published(release: ReleasedCheckpoint | None) -> list[EvalResult]:
    if release is None or release.figure is None:
        return []
    segments = release.decode_head is not None
    data_set = ADE20K if segments else IMAGENET
    protocol = PUBLISHED_PROTOCOLS[release.decode_head]
    return [
        EvalResult(
            task_type="image-segmentation" if segments else "image-classification",
            task_name="Semantic segmentation" if segments else "Image classification",
            dataset_type=data_set.hub_id,
            dataset_name=data_set.name,
            dataset_split="validation",
            metric_type="mean_iou" if segments else "accuracy",
            # The figures are decimal numbers of percent; a plain division would add digits that nobody published.
            metric_value=round(release.figure / 100, 4),
            metric_name=f"{'Mean IoU' if segments else 'Accuracy'}, published: {protocol}",
            source_name="The VAN authors' repository",
            source_url=_url(release),
        )
    ]


def _url(release: ReleasedCheckpoint | None) -> str | None:
    if release is None:
        return None
    return CLASSIFICATION_URL if release.decode_head is None else SEGMENTATION_URL


def _is_misprinted(printed: float | None, num_parameters: int) -> bool:
    """Whether a number of millions is another than `num_parameters`, rounded or cut off to as many digits."""
    return printed is not None and abs(printed - num_parameters / 1e6) >= (1 if printed == int(printed) else 0.1)
