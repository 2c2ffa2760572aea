# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A page in the browser on which pictures are segmented: overlay with a legend, shares of the classes, mask.

    python examples/demo.py --model_name_or_path outputs/van-scenes

Gradio's environment variables work: GRADIO_SERVER_NAME=0.0.0.0 lets other machines in, GRADIO_SERVER_PORT is the port.
push_to_hub.py --space puts the same page on the Hub.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    import gradio as gr
except ModuleNotFoundError:
    sys.exit('error: the page needs gradio, which is not installed: pip install -e ".[demo]"')

import numpy as np
import torch
from gradio import processing_utils
from gradio.utils import is_in_or_equal
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from transformers.utils import cached_file

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.exports import ExportedSegmentationModel
from van_hf.inference import PICTURE_FORMATS, RATIOS, Protocol, load_model, predict, split_subfolder
from van_hf.machine import use_huge_pages
from van_hf.visualization import class_shares, legend_text, mask_image, palette_of

DEFAULT_MODEL = "outputs/van-scenes"
PROTOCOLS = ("whole picture", "sliding window", "multi-scale + flip")
# Such a picture takes up to 2.4 GB of memory besides the model's; above 89 megapixels Pillow would warn.
MAX_MEGAPIXELS = 80
# Of what the model sees, which the image processor may leave as large as the picture, or make larger.
MAX_MODEL_MEGAPIXELS = 8
MAX_FILE_SIZE = "100mb"
# Side in pixels of the largest overlay that is shown.
MAX_SHOWN_SIDE = 1280
ALPHA = 0.6  # strength of the classes' colours
SECONDS_KEPT = 3600  # of uploads and masks

TITLE = """# Segmentation with VAN
Drop a picture, press **Segment**, and see which class each of its pixels belongs to."""
HINT = "Point at a class in the legend to see it alone. Click it to keep it alone, and again to see all."


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_name_or_path",
        nargs="+",
        default=[DEFAULT_MODEL],
        help="folders, or models of the Hub, to choose from on the page",
    )
    parser.add_argument(
        "--examples", nargs="+", default=[], metavar="FILE", help="pictures to try, besides the models'"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1; a GPU by default where there is one")
    parser.add_argument("--trust_pickle", action="store_true", help="run any code that a torch_export model holds")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Model:
    """A segmentation model, its image processor, and a picture to try it on if it brings one."""

    model: VanForSemanticSegmentation | ExportedSegmentationModel
    image_processor: VanImageProcessor
    example: str | None

    def protocol(self, name: str) -> Protocol:
        """Return one of `PROTOCOLS`; windows are as wide as the short side of whole pictures for this model."""
        if name == "multi-scale + flip":
            return Protocol(ratios=RATIOS, flip=True)
        if name == "whole picture":
            return Protocol()
        size = self.image_processor.size
        side = size.shortest_edge or min(size.height, size.width)
        return Protocol("slide", crop_size=side, stride=2 * side // 3)


def load_models(names: Sequence[str], device: str | None, trust_pickle: bool = False) -> dict[str, Model]:
    """Load models, or exports, by their names; raise a ValueError or an OSError if one of them cannot be used."""
    models = {}
    for name in names:
        if name == DEFAULT_MODEL and not Path(name).exists():
            raise ValueError(
                f"{DEFAULT_MODEL} is not there yet: `accelerate launch examples/train_seg.py` trains it in minutes;"
                " or name another model with --model_name_or_path"
            )
        model, image_processor = load_model(name, device, trust_pickle)
        if image_processor.bands is not None:
            raise ValueError(f"{name} takes the bands {list(image_processor.bands)}; the page takes RGB pictures")
        if isinstance(model, VanForSemanticSegmentation):
            model = model.fuse()
        repository, subfolder = split_subfolder(name)
        options = {"subfolder": subfolder, "_raise_exceptions_for_missing_entries": False}
        example = cached_file(repository, "example.png", **options)
        models[name] = Model(model, image_processor, example)
    return models


def stop(message: str) -> gr.Error:
    """Return an error that is shown on the page and leaves no traceback in the log."""
    return gr.Error(message, print_exception=False)


def uploaded_file(upload: dict | None, cache: str) -> str:
    """Return the path of a file that a client has uploaded.

    Args:
        upload: what the client has sent as the picture's component. A client of its own can send anything, and Gradio
            checks only paths that come with its mark.
        cache: folder of Gradio's that holds what was uploaded, and the page's examples.

    Raises:
        gr.Error: there is no picture, or it lies elsewhere.
    """
    if upload is None:
        raise stop("There is no picture yet. Drop one, or pick an example.")
    path = upload["path"]
    if not path or "\0" in path or not is_in_or_equal(path, cache):
        raise stop("This picture was not uploaded here. Drop it on the page.")
    return path


def read_picture(path: str, image_processor: VanImageProcessor) -> torch.Tensor:
    """Read a picture, upright and without transparency: uint8 (3, height, width).

    Raises:
        gr.Error: the file is no picture that can be read, or a very large one.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            check_size(name, image.height, image.width, image_processor)
            return image_processor.process_image(image, do_convert_rgb=True)
    except gr.Error:
        raise
    except Image.DecompressionBombError as error:
        raise stop(f"{name} has far too many megapixels; at most {MAX_MEGAPIXELS} can be segmented here.") from error
    except Exception as error:  # damaged files make Pillow's decoders raise errors of many kinds
        raise stop(f"{name} cannot be read as a picture. PNG, JPEG and WebP will do.") from error


def check_size(name: str, height: int, width: int, image_processor: VanImageProcessor) -> None:
    """Raise a gr.Error where a picture of `height` x `width` pixels would take too much memory."""
    megapixels = height * width / 1e6
    if megapixels > MAX_MEGAPIXELS:
        raise stop(f"{name} has {megapixels:.0f} megapixels; at most {MAX_MEGAPIXELS} can be segmented here.")
    rows, columns = image_processor.get_resized_size(height, width)
    if rows * columns > MAX_MODEL_MEGAPIXELS * 1e6:
        raise stop(
            f"{name} would be segmented at {columns} × {rows} pixels; at most {MAX_MODEL_MEGAPIXELS} megapixels can"
            " be segmented here."
        )


@dataclass(frozen=True)
class Overlay:
    """What is shown of a segmented picture.

    Attributes:
        picture: RGB, its sides at most `MAX_SHOWN_SIDE` pixels.
        labels: class of each of its pixels, (height, width).
        legend: text, its own for each class, and colour, such as "#ff0000", by class, the largest class first.
    """

    picture: Image.Image
    labels: np.ndarray
    legend: dict[int, tuple[str, str]]

    @property
    def texts(self) -> list[str]:
        """The texts of the legend."""
        return [text for text, _ in self.legend.values()]

    def sections(self, only: str | None = None) -> list[tuple[np.ndarray, str]]:
        """Return the strength of each class's colour, 0 to 1 (height, width), and its text.

        With the text of a class as `only`, all the others have none: the legend stays whole.
        """
        return [
            (np.where((only is None or only == text) & (self.labels == label), ALPHA, 0.0), text)
            for label, (text, _) in self.legend.items()
        ]

    def show(self, only: str | None = None) -> gr.AnnotatedImage:
        """Return the update that shows all classes or, with the text of one as `only`, that one."""
        return gr.AnnotatedImage(value=(self.picture, self.sections(only)), color_map=dict(self.legend.values()))


def create_overlay(
    picture: torch.Tensor, labels: np.ndarray, id2label: dict[int, str], palette: Sequence[Sequence[int]]
) -> Overlay:
    """Scale a picture, uint8 (3, height, width), and its labels, (height, width), down to be shown."""
    image = to_pil_image(picture)
    image.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown).astype(int)
        for shown, side in zip((image.height, image.width), labels.shape, strict=True)
    )
    legend: dict[int, tuple[str, str]] = {}
    for label, share in class_shares(labels).items():
        text = legend_text(id2label[label], share)
        if any(text == other for other, _ in legend.values()):  # classes of one name, and one share
            text += f" ({label})"
        legend[label] = (text, "#{:02x}{:02x}{:02x}".format(*palette[label]))
    return Overlay(image, labels[np.ix_(rows, columns)], legend)


def segment(chosen: Model, protocol_name: str, path: str, progress: gr.Progress) -> tuple[Overlay, str, Image.Image]:
    """Segment the picture in a file.

    Args:
        chosen: the model.
        protocol_name: one of `PROTOCOLS`.
        path: file of the picture.
        progress: is told how far it has come.

    Returns:
        The overlay, a line about size and time, and the mask: a picture of class numbers.

    Raises:
        gr.Error: the picture cannot be segmented.
    """
    progress(0, desc="Reading the picture")
    picture = read_picture(path, chosen.image_processor)
    protocol = chosen.protocol(protocol_name)
    # How many windows there will be is not known here.
    num_passes = len(protocol.ratios) * (1 + protocol.flip) if protocol.mode == "whole" else None
    passes = 0

    def count(*_) -> None:
        nonlocal passes
        progress((passes, num_passes), desc="Segmenting", unit="passes")
        passes += 1

    started = time.perf_counter()
    hook = chosen.model.register_forward_pre_hook(count)
    try:
        labels = predict(chosen.model, chosen.image_processor, picture, protocol).cpu().numpy()
    finally:
        hook.remove()
    seconds = time.perf_counter() - started

    progress(1, desc="Drawing")
    config = chosen.model.config
    palette = palette_of(config)
    height, width = labels.shape
    device = chosen.model.device.type.replace("cuda", "GPU").replace("cpu", "CPU")
    line = f"{width} × {height} pixels, {protocol_name}: **{seconds:.2f} s** on the {device}.\n\n{HINT}"
    return create_overlay(picture, labels, config.id2label, palette), line, mask_image(labels, palette)


def save_mask(mask: Image.Image, name: str, cache: str) -> str:
    """Save a mask as a PNG of this name in Gradio's cache, under a path that no other client can guess."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        mask.save(path)
        return processing_utils.save_file_to_cache(path, cache)


def create_page(models: dict[str, Model], examples: Sequence[str]) -> gr.Blocks:
    """Return the page."""

    def run(upload: dict | None, model_name: str, protocol_name: str, progress=gr.Progress()):  # noqa: B008
        path = uploaded_file(upload, picture.GRADIO_CACHE)
        if model_name not in names or protocol_name not in PROTOCOLS:
            raise stop("Choose one of the models and one of the protocols of this page.")
        overlay, line, mask = segment(models[model_name], protocol_name, path, progress)
        mask_path = save_mask(mask, f"{Path(path).stem}_mask.png", download.GRADIO_CACHE)
        return overlay.show(), overlay, None, line, gr.DownloadButton(value=mask_path, visible=True)

    def clear():
        return None, None, None, "", gr.DownloadButton(visible=False)

    def select(overlay: Overlay | None, kept: str | None, event: gr.SelectData):
        if overlay is None:
            raise stop("There is nothing to see yet, or no longer. Press Segment.")
        kept = event.value if event.value != kept and event.value in overlay.texts else None
        return overlay.show(kept), kept

    names = list(models)
    with gr.Blocks(
        title="Segmentation with VAN", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)
    ) as page:
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=300,
                )
                if examples:
                    gr.Examples([[path] for path in examples], picture, label="Examples")
                model_name = gr.Dropdown(names, value=names[0], label="Model", interactive=len(names) > 1)
                protocol_name = gr.Radio(PROTOCOLS, value=PROTOCOLS[0], label="Protocol")
                button = gr.Button("Segment", variant="primary")
            with gr.Column(scale=3, min_width=300):
                shown = gr.AnnotatedImage(label="Classes, and their shares of the pixels", height=560)
                line = gr.Markdown()
                download = gr.DownloadButton("Download the mask (PNG)", visible=False)
        overlay = gr.State(time_to_live=SECONDS_KEPT)
        kept = gr.State(time_to_live=SECONDS_KEPT)
        outputs = [shown, overlay, kept, line, download]
        # The picture as the file that it is, and no check of the rest: Gradio would fail before us on what is none.
        inputs = [picture, model_name, protocol_name]
        button.click(run, inputs, outputs, preprocess=False, show_progress_on=[shown])
        picture.change(clear, None, outputs, show_progress="hidden")
        shown.select(select, [overlay, kept], [shown, kept], show_progress="hidden")
    # No requests past the queue, which segments one picture at a time.
    return page.queue(api_open=False)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    use_huge_pages()
    try:
        models = load_models(args.model_name_or_path, args.device, args.trust_pickle)
    except (ValueError, OSError) as error:
        print("error:", *str(error).splitlines(), file=sys.stderr)
        return 2
    examples = [model.example for model in models.values() if model.example] + args.examples
    create_page(models, examples).launch(max_file_size=MAX_FILE_SIZE, footer_links=["gradio", "settings"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
