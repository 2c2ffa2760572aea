# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Write a page that segments pictures in the browser by itself: any server of files can serve it, none sees a picture.

    npm pack onnxruntime-web && tar -xf onnxruntime-web-*.tgz
    python examples/export.py outputs/van-scenes outputs/van-scenes-onnx --format onnx
    python examples/web_demo.py outputs/van-scenes-onnx outputs/van-scenes-web --runtime package/dist
    python -m http.server --directory outputs/van-scenes-web

The model runs by onnxruntime-web, whose files are copied, or are used from where --runtime says. The pages of the
folder `web` beside this script are copied as they are; what they are told of the model is in model.json.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from PIL.Image import Resampling
from predict import as_text

from van_hf import VanImageProcessor
from van_hf.exports import INFO, MAX_SIDE, MIN_SIDE, ExportedSegmentationModel
from van_hf.files import read_json, whole_folder, write_json, write_text
from van_hf.inference import load_model
from van_hf.privacy import public_name
from van_hf.visualization import drawable, palette_of

PAGES = Path(__file__).with_name("web")
COPIED_PAGES = ("page.css", "page.js", "picture.js", "worker.js")
PROGRAM = "model.onnx"
# Files of onnxruntime-web by what model.json calls them. Some servers do not know that .mjs is JavaScript.
RUNTIME_FILES = {
    "script": ("ort.wasm.min.mjs", "ort.wasm.min.js"),
    "factory": ("ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.js"),
    "wasm": ("ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.wasm"),
}
GET_RUNTIME = (
    "`npm pack onnxruntime-web && tar -xf onnxruntime-web-*.tgz` gets onnxruntime-web: name its folder,"
    " --runtime package/dist, or the https:// address of such a folder"
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", metavar="EXPORT", type=Path, help="a folder that export.py --format onnx wrote")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="must not be there yet, or be empty")
    parser.add_argument(
        "--runtime",
        metavar="FOLDER_OR_URL",
        help="the folder `dist` of the npm package onnxruntime-web, whose files are copied, or an https:// address of"
        " such a folder, from which each browser gets them",
    )
    return parser.parse_args(argv)


def find_runtime(runtime: str | None) -> Path | str:
    """Return the folder of onnxruntime-web's files, or its https:// address, which ends in a slash.

    Raises:
        ValueError: it is neither, or files are missing.
    """
    if not runtime:
        raise ValueError(f"--runtime is missing. {GET_RUNTIME}")
    if re.match(r"[a-z][a-z0-9+.-]+://", runtime, re.IGNORECASE):
        address = urlsplit(runtime)
        # It goes into the page's policy, in which spaces and semicolons separate.
        is_plain = re.fullmatch(r"[\w.:-]+", address.netloc, re.ASCII) and re.fullmatch(r"[\w./@~+%-]*", address.path)
        if address.scheme.lower() != "https" or not is_plain or address.query or address.fragment:
            raise ValueError(f"--runtime {runtime} is not a plain https:// address of a folder. {GET_RUNTIME}")
        return f"https://{address.netloc}{address.path.rstrip('/')}/"
    folder = Path(runtime)
    for name, _ in RUNTIME_FILES.values():
        if not (folder / name).is_file():
            raise ValueError(f"--runtime {runtime} holds no {name}, so it is not the right folder. {GET_RUNTIME}")
    return folder


def load_export(folder: Path) -> tuple[ExportedSegmentationModel, VanImageProcessor]:
    """Load an export, by which its files are checked, with its image processor.

    Raises:
        ValueError: it is no ONNX export, is damaged, or the page could not prepare pictures as it needs them.
        OSError: a file is missing.
    """
    if not (folder / INFO).is_file():
        raise ValueError(f"{folder} holds no {INFO}, so it is no export: write one by export.py --format onnx")
    source = read_json(folder / INFO).get("source")
    format = source.get("format") if isinstance(source, dict) else None
    if format != "onnx":
        raise ValueError(f"{folder / INFO} tells of the format {format!r}; the page needs export.py --format onnx")
    if not (folder / PROGRAM).is_file():
        raise ValueError(f"{folder} holds no {PROGRAM}: export the model again")
    model, image_processor = load_model(str(folder), "cpu")
    path = folder / "preprocessor_config.json"
    if image_processor.bands is not None:
        raise ValueError(f"{path} has bands; the page takes RGB pictures")
    if image_processor.do_resize and image_processor.resample != Resampling.BILINEAR:
        raise ValueError(f"{path}: resample is {image_processor.resample}; the page resizes bilinearly (2) alone")
    size, prepared = model.info.size, image_processor.get_resized_size(480, 640)
    if size is not None and prepared != tuple(size):
        raise ValueError(f"{path}: size gives pictures of {prepared}, and the program takes {tuple(size)} alone")
    return model, image_processor


def describe_model(
    model: ExportedSegmentationModel, image_processor: VanImageProcessor, folder: Path, runtime: Path | str
) -> dict:
    """Return what the page is told, paths being relative to it.

    Args:
        model, image_processor: of the export.
        folder: the export.
        runtime: where onnxruntime-web is, as `find_runtime` returns it.
    """
    config, is_copied = model.config, isinstance(runtime, Path)
    do_normalize = image_processor.do_normalize
    size = {name: side for name, side in dict(image_processor.size).items() if side}
    paths = {
        name: f"onnxruntime/{copied}" if is_copied else f"{runtime}{original}"
        for name, (original, copied) in RUNTIME_FILES.items()
    }
    wasm_bytes = (runtime / RUNTIME_FILES["wasm"][0]).stat().st_size if is_copied else None
    weights = sorted(folder.glob("*.data"))
    return {
        "name": drawable(public_name(model.info.model)),
        "precision": model.info.precision,
        "labels": [drawable(config.id2label[label]) for label in range(config.num_labels)],
        "palette": palette_of(config),
        "program": {"path": f"model/{PROGRAM}", "bytes": (folder / PROGRAM).stat().st_size},
        "external_data": [
            {"name": path.name, "path": f"model/{path.name}", "bytes": path.stat().st_size} for path in weights
        ],
        "output": "labels" if model.info.label_maps else "logits",
        "size": size if image_processor.do_resize else None,
        "size_divisor": image_processor.size_divisor,
        "side_limits": [MIN_SIDE, MAX_SIDE],
        "scale": image_processor.rescale_factor if image_processor.do_rescale else 1,
        "mean": list(image_processor.image_mean) if do_normalize else [0, 0, 0],
        "std": list(image_processor.image_std) if do_normalize else [1, 1, 1],
        # Threads are made of the factory, which browsers allow from the page's own server alone.
        "runtime": {**paths, "wasm": {"path": paths["wasm"], "bytes": wasm_bytes}, "threads": is_copied},
    }


def write_page(folder: Path, description: dict, export: Path, runtime: Path | str) -> None:
    """Write the page's files to an empty folder.

    Args:
        folder: where they go.
        description: what `describe_model` returned.
        export, runtime: where the model and onnxruntime-web come from.
    """
    address = urlsplit(runtime) if isinstance(runtime, str) else None
    origin = f" {address.scheme}://{address.netloc}" if address else ""
    write_text(folder / "index.html", (PAGES / "index.html").read_text("utf-8").replace("RUNTIME_ORIGIN", origin))
    for name in COPIED_PAGES:
        shutil.copyfile(PAGES / name, folder / name)
    write_json(folder / "model.json", description)
    (folder / "model").mkdir()
    for file in (description["program"], *description["external_data"]):
        shutil.copyfile(export / Path(file["path"]).name, folder / file["path"])
    if isinstance(runtime, Path):
        (folder / "onnxruntime").mkdir()
        for original, copied in RUNTIME_FILES.values():
            shutil.copyfile(runtime / original, folder / "onnxruntime" / copied)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        with whole_folder(args.output_dir) as folder:
            runtime = find_runtime(args.runtime)
            model, image_processor = load_export(args.export)
            description = describe_model(model, image_processor, args.export, runtime)
            write_page(folder, description, args.export, runtime)
    except (ValueError, OSError) as error:
        print("error:", *as_text(error).splitlines(), file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in args.output_dir.rglob("*") if path.is_file())
    print(f"The page, {size / 1e6:.1f} MB, is in {as_text(args.output_dir)}; to try it:")
    print(f"python -m http.server --directory {as_text(args.output_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
