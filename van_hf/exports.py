# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Models for other runtimes: export by transformers' exporters, the check of what came out, and its use.

This is the one place that knows `transformers.exporters`, which are experimental, and need transformers 5.23, torch
2.11 and the packages of setup.cfg's extra `export`. An export is a folder with

- the program, and `export.json`, by which transformers loads it,
- `config.json` with the labels and their colours, and the image processor's `preprocessor_config.json`,
- `export_info.json`: what it was made of, and what the check measured.
"""

import copy
import hashlib
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import ModelOutput, cached_file

from .files import read_json, write_json
from .machine import cores_per_process
from .model.configuration_van import VanConfig
from .model.interpolation import resize_to
from .model.modeling_van import VanForSemanticSegmentation
from .openvino_process import openvino_kept_in_place

if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

# Sides in pixels that a program of free size takes; below, a stage's map would have a single row.
MIN_SIDE, MAX_SIDE = 33, 4096
MANIFEST, INFO = "export.json", "export_info.json"
INFO_VERSION = 1
# Of the files that runtimes run, with their weights.
PROGRAM_SUFFIXES = (".onnx", ".data", ".xml", ".bin", ".pt2", ".pte", ".ptd")


class ExportFormat(NamedTuple):
    """A runtime's format.

    Attributes:
        exporter, config: names of the classes in `transformers.exporters`.
        dtypes: names of what the program can compute in.
        packages: what must be installed besides torch, by the names to import.
        quantizer: the package that makes it int8, None where that is not to be had.
        extra: of setup.cfg, which has these packages.
        is_fixed: whether programs take pictures of one size alone.
    """

    exporter: str
    config: str
    dtypes: tuple[str, ...]
    packages: tuple[str, ...] = ()
    quantizer: str | None = None
    extra: str = "export"
    is_fixed: bool = False


EXPORT_FORMATS = {
    # onnxruntime's normalizations do not take bfloat16.
    "onnx": ExportFormat(
        "OnnxExporter", "OnnxConfig", ("float32", "float16"), ("onnx", "onnxscript", "onnxruntime"), "onnxruntime"
    ),
    "openvino": ExportFormat(
        "OpenVINOExporter", "OpenVINOConfig", ("float32", "bfloat16", "float16"), ("openvino",), "nncf"
    ),
    "torch_export": ExportFormat("DynamoExporter", "DynamoConfig", ("float32", "bfloat16", "float16")),
    # For XNNPACK on the CPU. A program of free size would set memory aside for the largest.
    "executorch": ExportFormat(
        "ExecutorchExporter", "ExecutorchConfig", ("float32",), ("executorch",), extra="executorch", is_fixed=True
    ),
}


@dataclass(frozen=True)
class ExportInfo:
    """What an export was made of.

    Attributes:
        model: the folder, or the name on the Hub.
        digest: of its weights.
        format: one of `EXPORT_FORMATS`.
        dtype: "float32", "bfloat16" or "float16", what the program computes in.
        int8: how the convolutions were quantized: dataset, num_pictures, seed; None where they are not.
        size: `(height, width)` of the input in pixels; None where it is free.
        label_maps: whether the program returns label maps at the input's size instead of scores.
        packages: versions by name.
    """

    model: str
    digest: str
    format: str
    dtype: str = "float32"
    int8: dict | None = None
    size: tuple[int, int] | None = None
    label_maps: bool = False
    packages: dict[str, str] | None = None

    @property
    def precision(self) -> str:
        """What the program computes in, in words."""
        return self.dtype if self.int8 is None else f"int8, the rest {self.dtype}"


class ExportCheck(NamedTuple):
    """How far an exported program is from its model.

    Attributes:
        num_pictures: number of pictures that both segmented.
        sizes: `(height, width)` of the inputs in pixels, without repeats, in order.
        largest_difference: of the scores; None for label maps.
        largest_score: by its absolute value, to compare it with; None for label maps.
        agreement: share of the scores' pixels, 0 to 1, with the same label.
    """

    num_pictures: int
    sizes: list[tuple[int, int]]
    largest_difference: float | None
    largest_score: float | None
    agreement: float


@dataclass
class LabelMaps(ModelOutput):
    """What a program with label maps returns.

    Attributes:
        labels: integers (batch, height, width), at the input's size.
    """

    labels: torch.Tensor | None = None


class Program(PreTrainedModel):
    """A segmentation model as it is exported: scores are float32, whatever it computes in.

    Args:
        model: in evaluation mode.
        label_maps: return `labels`, (batch, height, width), uint8 or, above 256 labels, int32, at the input's size.
    """

    config_class = VanConfig
    main_input_name = "pixel_values"

    def __init__(self, model: VanForSemanticSegmentation, label_maps: bool = False):
        super().__init__(model.config)
        self.model, self.label_maps = model, label_maps

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values).logits.float()
        if not self.label_maps:
            return {"logits": logits}
        labels = resize_to(logits, tuple(pixel_values.shape[-2:])).argmax(dim=1)
        return {"labels": labels.to(torch.uint8 if self.config.num_labels <= 256 else torch.int32)}


def check_packages(name: str, int8: bool = False) -> None:
    """Raise a ValueError that names what is missing for a format, one of `EXPORT_FORMATS`."""
    packages = [*EXPORT_FORMATS[name].packages, *([EXPORT_FORMATS[name].quantizer] if int8 else [])]
    missing = [package for package in packages if find_spec(package) is None]
    if find_spec("transformers.exporters") is None:
        missing.insert(0, "transformers>=5.23")
    if missing:
        extra = EXPORT_FORMATS[name].extra
        raise ValueError(f'{name} needs {", ".join(missing)}, not installed here: pip install -e ".[{extra}]"')


def package_versions(name: str, int8: bool = False) -> dict[str, str]:
    """Return the versions of what makes an export, by the packages' names."""
    packages = ["transformers", "torch", *EXPORT_FORMATS[name].packages]
    if int8 and EXPORT_FORMATS[name].quantizer not in packages:
        packages.append(EXPORT_FORMATS[name].quantizer)
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # of another name, as the builds of onnxruntime for GPUs have
            versions[package] = import_module(package).__version__
    return versions


def export_model(
    model: VanForSemanticSegmentation,
    name: str,
    size: tuple[int, int] | None = None,
    dtype: str = "float32",
    label_maps: bool = False,
) -> "ExportedModel":
    """Export a model, fused, as a program that takes `pixel_values` and returns `logits`, float32.

    Pixel values are float32 too, but those of half precision for ONNX and torch_export, which are of `dtype`.

    Args:
        model: a segmentation model in float32; it is left as it is.
        name: one of `EXPORT_FORMATS`.
        size: `(height, width)` in pixels of the one picture that the program takes. By default it takes
            (batch, channels, height, width) of any batch, and sides of 33 to 4096 pixels.
        dtype: what the program computes in, one of its format's.
        label_maps: return `labels` instead, integers (batch, height, width) at the input's size.

    Raises:
        ValueError: packages are missing, a side is not of 33 to 4096 pixels, the format has no such dtype, or the
            exporter fails.
    """
    if name not in EXPORT_FORMATS:
        raise ValueError(f"the format must be one of {', '.join(EXPORT_FORMATS)}, got {name!r}")
    check_packages(name)
    is_size = size is None or (len(size) == 2 and all(isinstance(side, int) for side in size))
    if not is_size or (size is not None and not all(MIN_SIDE <= side <= MAX_SIDE for side in size)):
        raise ValueError(f"an export's height and width must be {MIN_SIDE} to {MAX_SIDE} pixels, got {size}")
    exporters, format = import_module("transformers.exporters"), EXPORT_FORMATS[name]
    if format.is_fixed and size is None:
        raise ValueError(f"{name} programs are for pictures of one size: name it with --size")
    if dtype not in format.dtypes:
        raise ValueError(f"{name} computes in {', '.join(format.dtypes)}, not in {dtype}")
    model = copy.deepcopy(model).cpu().fuse()
    program = Program(model.to(getattr(torch, dtype)), label_maps).eval()
    # Sides that differ, and none that divides the other, so that the program does not depend on such a thing.
    batch, height, width = (2, 96, 160) if size is None else (1, *size)
    inputs = {"pixel_values": torch.zeros(batch, model.config.num_channels, height, width)}
    config = getattr(exporters, format.config)()
    if size is None:
        sides = {2: torch.export.Dim("height", min=MIN_SIDE, max=MAX_SIDE)}
        sides[3] = torch.export.Dim("width", min=MIN_SIDE, max=MAX_SIDE)
        config.dynamic_shapes = {"pixel_values": {0: torch.export.Dim("batch"), **sides}}
    try:
        # Autocast would become part of the program.
        with openvino_kept_in_place(), torch.autocast("cpu", enabled=False):
            exported = getattr(exporters, format.exporter)().export(program, inputs, config)
    except Exception as error:  # of many kinds, most of them thousands of lines long
        raise ValueError(f"the model cannot be exported to {name}: {in_a_line(error)}") from error
    for component in exported.components.values():
        _remove_stack_traces(component.program)
    return exported


def _remove_stack_traces(program: object) -> None:
    """Remove from a program what code each operation comes from, with the paths that it has on this machine."""
    if isinstance(program, torch.export.ExportedProgram):
        graphs = [
            module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)
        ]
        for node in (node for graph in graphs for node in graph.nodes):
            node.meta.pop("stack_trace", None)
    elif hasattr(program, "graphs"):  # of ONNX; OpenVINO keeps none
        for node in (node for graph in (*program.graphs(), *program.functions.values()) for node in graph):
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def save_info(folder: Path, info: ExportInfo, check: dict) -> None:
    """Write `export_info.json` beside a program: what it was made of, its digest, and what the check measured."""
    content = {"version": INFO_VERSION, "program": digest_of_program(folder), "source": asdict(info), "check": check}
    write_json(folder / INFO, content)


def digest_of_program(folder: Path) -> str:
    """Return a digest of the files in an export's folder that are run, in 32 characters."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        # The program's files alone: JSON and cards may be edited.
        if path.suffix in PROGRAM_SUFFIXES:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


class ExportedSegmentationModel(torch.nn.Module):
    """An export, loaded into its runtime: for inference it goes where a [`VanForSemanticSegmentation`] goes.

    It is a module without parameters, so that what is done with modules, hooks for example, can be done with it; `to`
    and `eval` change nothing.

    Attributes:
        config: the model's [`VanConfig`].
        info: what the export was made of.
        digest: of the program's files, 32 characters.
        device: where pixel values and outputs lie.
        dtype: float32, that of pixel values and scores.
    """

    dtype = torch.float32

    def __init__(self, exported: "ExportedModel", info: ExportInfo, digest: str = ""):
        super().__init__()
        self.config, self.info, self.digest = exported.config, info, digest
        with openvino_kept_in_place():
            self.device = exported.device  # which compiles the program, where it was not yet
        self._exported = exported
        # OpenVINO's request is for one thread at a time, and no runtime gains by a second caller.
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        subfolder: str = "",
        device: str | torch.device = "cpu",
        num_threads: int | None = None,
        trust_pickle: bool = False,
    ) -> "ExportedSegmentationModel":
        """Load what examples/export.py wrote. No PyTorch model is made.

        Args:
            name_or_path: a folder, or a repository of the Hub.
            subfolder: where in it the export lies, such as "onnx".
            device: "cpu", or what else the runtime takes, such as "cuda" with onnxruntime-gpu.
            num_threads: of the runtime on the CPU; by default as many as the process has cores. "torch_export" runs
                in PyTorch, with PyTorch's own number.
            trust_pickle: loading "torch_export" runs any code that its file holds, which is refused without this.

        Raises:
            ValueError: it is no export, is damaged, needs packages that are not installed, or its runtime does not
                take it; or `trust_pickle` is missing.
            OSError: it cannot be found.
        """
        place = "/".join(filter(None, (str(name_or_path), subfolder)))
        info, digest = read_info(name_or_path, subfolder, place)
        check_packages(info.format)
        if info.format == "torch_export" and not trust_pickle:
            raise ValueError(
                f"{place} is a torch_export program, which runs any code that its file holds; where you trust it, say"
                " so by trust_pickle (--trust_pickle)"
            )
        _check_manifest(Path(cached_file(name_or_path, MANIFEST, subfolder=subfolder)), place)
        try:
            with openvino_kept_in_place():
                exported = import_module("transformers.exporters").ExportedModel.from_pretrained(
                    name_or_path,
                    subfolder=subfolder,
                    device=device,
                    trust_remote_code=trust_pickle,
                    **_runtime_options(info, num_threads or cores_per_process()),
                )
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"the export {place} cannot be used: {in_a_line(error)}") from error
        folder = Path(cached_file(name_or_path, INFO, subfolder=subfolder)).parent
        if digest_of_program(folder) != digest:
            raise ValueError(
                f"the program in {place} is not the one that its {INFO} tells of: download it, or export it, again"
            )
        if not isinstance(exported.config, VanConfig):
            raise ValueError(f"{place}/config.json is missing, or not that of a VAN: export the model again")
        model = cls(exported, info, digest)
        model.check_outputs(place)
        return model

    def check_outputs(self, place: str) -> None:
        """Run the program on a small picture; raise a ValueError where it does not return what config.json says."""
        size = tuple(self.info.size or (2 * MIN_SIDE, 2 * MIN_SIDE))
        try:
            with torch.inference_mode():
                (values,) = self(torch.zeros(1, self.config.num_channels, *size)).values()
        except Exception as error:
            raise ValueError(f"the export {place} cannot be run: {in_a_line(error)}") from error
        if self.info.label_maps:
            expected, is_right = f"labels of {size[0]}x{size[1]} pixels", values.shape == (1, *size)
        else:
            expected = f"scores of {self.config.num_labels} labels, as its config.json says"
            is_right = values.ndim == 4 and values.shape[1] == self.config.num_labels
        if not is_right:
            raise ValueError(
                f"the program in {place} must return {expected}, got values of shape {tuple(values.shape)}: export the"
                " model again"
            )

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput | LabelMaps:
        """Run the program.

        Args:
            pixel_values: normalized pictures, (batch, channels, height, width) float32; where the size is fixed they
                go through the program one by one.

        Returns:
            `logits`, float32 (batch, num_labels, height / 4, width / 4) or smaller, or `labels`, (batch, height,
            width).

        Raises:
            ValueError: they have another size than the program takes.
        """
        self._check_size(pixel_values)
        parts = pixel_values.split(1) if self.info.size else (pixel_values,)
        # PyTorch's own autocast would reach into a torch_export program.
        with self._lock, torch.autocast(pixel_values.device.type, enabled=False):
            outputs = [self._exported(pixel_values=part.to(self._exported.dtype).contiguous()) for part in parts]
        (name,) = outputs[0].keys()
        values = torch.cat([output[name] for output in outputs])
        return LabelMaps(labels=values) if name == "labels" else SemanticSegmenterOutput(logits=values)

    def _check_size(self, pixel_values: torch.Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be (batch, {self.config.num_channels}, height, width), got"
                f" {tuple(pixel_values.shape)}"
            )
        size = tuple(pixel_values.shape[-2:])
        if self.info.size is not None and size != tuple(self.info.size):
            raise ValueError(
                f"this export takes pictures of {self.info.size[0]}x{self.info.size[1]} pixels alone, got"
                f" {size[0]}x{size[1]}: windows and scales need one that was exported without --size"
            )
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
            raise ValueError(
                f"an export takes sides of {MIN_SIDE} to {MAX_SIDE} pixels, got {size[0]}x{size[1]}: smaller pictures"
                " must be enlarged, larger ones go through it window by window (slide)"
            )


# The segmentation pipeline takes what this table names.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["van_export"] = ExportedSegmentationModel.__name__


def is_export(name_or_path: str | Path, subfolder: str = "") -> bool:
    """Return whether a folder, or a repository of the Hub, holds an export."""
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        return cached_file(name_or_path, MANIFEST, subfolder=subfolder, **options) is not None
    except OSError:
        return False


def read_info(name_or_path: str | Path, subfolder: str, place: str) -> tuple[ExportInfo, str]:
    """Return what an export says that it was made of, and the digest of its program."""
    path = cached_file(name_or_path, INFO, subfolder=subfolder, _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise ValueError(f"{place} has no {INFO}, so it was not written by examples/export.py: export the model again")
    content = read_json(Path(path))
    if content.get("version") != INFO_VERSION:
        raise ValueError(
            f"{place}/{INFO} is of version {content.get('version')!r}, and this package reads {INFO_VERSION}: export"
            " the model again"
        )
    source = content.get("source")
    names = {field.name for field in fields(ExportInfo)}
    if not isinstance(source, dict) or source.keys() != names or not _is_sound(source):
        raise ValueError(f"{place}/{INFO} does not tell what the program was made of: export the model again")
    return ExportInfo(**source), content.get("program")


def _is_sound(source: dict) -> bool:
    """Return whether the fields of an [`ExportInfo`] from a file are of their types, and go together."""
    size, format = source["size"], source["format"]
    return (
        all(isinstance(source[name], str) for name in ("model", "digest", "format", "dtype"))
        and format in EXPORT_FORMATS
        and source["dtype"] in EXPORT_FORMATS[format].dtypes
        and isinstance(source["label_maps"], bool)
        and all(source[name] is None or isinstance(source[name], dict) for name in ("int8", "packages"))
        and (size is None or (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)))
    )


def _check_manifest(path: Path, place: str) -> None:
    """Raise a ValueError where `export.json` does not name one program, in its own folder."""
    components = read_json(path).get("components")
    entries = list(components.values()) if isinstance(components, dict) else []
    name = entries[0].get("file") if len(entries) == 1 and isinstance(entries[0], dict) else None
    # Elsewhere it would be another than the one whose digest is known.
    if not isinstance(name, str) or name != Path(name).name:
        raise ValueError(f"{place}/{MANIFEST} must name one program in its own folder, got {name!r}: export it again")


def _runtime_options(info: ExportInfo, num_threads: int) -> dict:
    """Return what `ExportedModel.from_pretrained` takes for a runtime."""
    if info.format == "onnx":
        options = import_module("onnxruntime").SessionOptions()
        options.intra_op_num_threads = num_threads
        return {"session_options": options}
    if info.format == "openvino":
        # Processors with instructions for bfloat16 would compute in it, unless told not to.
        precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[info.dtype]
        return {"config": {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": num_threads}}
    return {}


def in_a_line(error: Exception) -> str:
    """Return what an error says in a line: those of exporters and runtimes are thousands of lines long."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:500]}"


@torch.inference_mode()
def check_export(
    exported: ExportedSegmentationModel, model: VanForSemanticSegmentation, inputs: Iterable[torch.Tensor]
) -> ExportCheck:
    """Run an exported program and its model on the same pictures.

    Args:
        exported: in its own runtime.
        model: what was exported, in evaluation mode, float32, on the CPU.
        inputs: pixel values, (batch, channels, height, width) float32 each, at least one.
    """
    sizes, num_pictures, num_pixels, num_equal, difference, largest = {}, 0, 0, 0, 0.0, 0.0
    label_maps = exported.info.label_maps
    for pixel_values in inputs:
        expected, outputs = model(pixel_values).logits, exported(pixel_values)
        if label_maps:
            expected = resize_to(expected, tuple(pixel_values.shape[-2:])).argmax(dim=1)
        values = outputs.labels if label_maps else outputs.logits
        if values.shape != expected.shape:
            raise ValueError(
                f"the exported program returns values of shape {tuple(values.shape)} for an input of "
                f"{tuple(pixel_values.shape)}, the model {tuple(expected.shape)}"
            )
        sizes[tuple(pixel_values.shape[-2:])] = None
        num_pictures += len(pixel_values)
        if not label_maps:
            # NaN is a difference like no other: `max` would lose it.
            difference = max(difference, torch.nan_to_num((values - expected).abs(), nan=torch.inf).max().item())
            largest = max(largest, expected.abs().max().item())
            values, expected = values.argmax(dim=1), expected.argmax(dim=1)
        num_pixels += expected.numel()
        num_equal += (values == expected).sum().item()
    figures = (None, None) if label_maps else (difference, largest)
    return ExportCheck(num_pictures, sorted(sizes), *figures, num_equal / num_pixels)
