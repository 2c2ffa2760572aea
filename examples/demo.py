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
from PIL import Image
from predict import class_shares, draw_mask
from transformers.utils import cached_file

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.inference import RATIOS, Protocol, load_model, predict
from van_hf.visualization import default_palette

DEFAULT_MODEL = "outputs/van-scenes"
PROTOCOLS = ("whole picture", "sliding window", "multi-scale + flip")
# Such a picture takes up to 2 GB of memory while it is segmented; above 89 megapixels Pillow would warn.
MAX_MEGAPIXELS = 80
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
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Model:
    """A segmentation model, its image processor, and a picture to try it on if it brings one."""

    model: VanForSemanticSegmentation
    image_processor: VanImageProcessor
    example: str | None

    def protocol(self, name: str) -> Protocol:
        """Returns one of `PROTOCOLS`; windows are as wide as the short side of whole pictures for this model."""
        if name == "multi-scale + flip":
            return Protocol(ratios=RATIOS, flip=True)
        if name == "whole picture":
            return Protocol()
        size = self.image_processor.size
        side = size.shortest_edge or min(size.height, size.width)
        return Protocol("slide", crop_size=side, stride=2 * side // 3)


def load_models(names: Sequence[str], device: str | None) -> dict[str, Model]:
    """Loads models by their names; raises a ValueError or an OSError if one of them cannot be used."""
    models = {}
    for name in names:
        if name == DEFAULT_MODEL and not Path(name).exists():
            raise ValueError(
                f"{DEFAULT_MODEL} is not there yet: `accelerate launch examples/train_seg.py` trains it in minutes;"
                " or name another model with --model_name_or_path"
            )
        model, image_processor = load_model(name, device)
        example = cached_file(name, "example.png", _raise_exceptions_for_missing_entries=False)
        models[name] = Model(model.fuse(), image_processor, example)
    return models


def read_picture(path: str, image_processor: VanImageProcessor) -> torch.Tensor:
    """Reads a picture, upright and without transparency: uint8 (3, height, width).

    Raises:
        gr.Error: The file is no picture that can be read, or a very large one.
    """
    try:
        with Image.open(path) as image:
            megapixels = image.width * image.height / 1e6
            if megapixels <= MAX_MEGAPIXELS:
                return image_processor.process_image(image, do_convert_rgb=True)
    except Image.DecompressionBombError:
        megapixels = float("inf")
    except Exception as error:  # damaged files make Pillow's decoders raise errors of many kinds
        message = f"{Path(path).name} cannot be read as a picture. PNG, JPEG and WebP will do."
        raise gr.Error(message, print_exception=False) from error
    size = f"{megapixels:.0f}" if megapixels < float("inf") else "far too many"
    message = f"{Path(path).name} has {size} megapixels; at most {MAX_MEGAPIXELS} can be segmented here."
    raise gr.Error(message, print_exception=False)


@dataclass(frozen=True)
class Overlay:
    """What is shown of a segmented picture.

    Attributes:
        picture: RGB, its sides at most `MAX_SHOWN_SIDE` pixels.
        labels: class of each of its pixels, (height, width).
        legend: text and colour, such as "#ff0000", by class, the largest class first.
    """

    picture: Image.Image
    labels: np.ndarray
    legend: dict[int, tuple[str, str]]

    def sections(self, only: str | None = None) -> list[tuple[np.ndarray, str]]:
        """Returns the strength of each class's colour, 0 to 1 (height, width), and its text.

        With the text of a class as `only`, all the others have none: the legend stays whole.
        """
        return [
            (np.where((only is None or only == text) & (self.labels == label), ALPHA, 0.0), text)
            for label, (text, _) in self.legend.items()
        ]

    def show(self, only: str | None = None) -> gr.AnnotatedImage:
        """Returns the update that shows all classes or, with the text of one as `only`, that one."""
        return gr.AnnotatedImage(value=(self.picture, self.sections(only)), color_map=dict(self.legend.values()))


def create_overlay(
    picture: torch.Tensor, labels: np.ndarray, id2label: dict[int, str], palette: Sequence[Sequence[int]]
) -> Overlay:
    """Scales a picture, uint8 (3, height, width), and its labels, (height, width), down to be shown."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown).astype(int)
        for shown, side in zip((image.height, image.width), labels.shape, strict=True)
    )
    legend = {
        label: (
            f"{id2label[label]} {f'{share:.1%}' if share >= 0.0005 else '<0.1%'}",
            "#{:02x}{:02x}{:02x}".format(*palette[label]),
        )
        for label, share in class_shares(labels).items()
    }
    return Overlay(image, labels[np.ix_(rows, columns)], legend)


def segment(
    chosen: Model, protocol_name: str, path: str, folder: Path, progress: gr.Progress
) -> tuple[Overlay, str, Path]:
    """Segments the picture in a file.

    Args:
        chosen: The model.
        protocol_name: One of `PROTOCOLS`.
        path: File of the picture.
        folder: Where the mask is written; whatever is there is removed.
        progress: Is told how far it has come.

    Returns:
        The overlay, a line about size and time, and the file of the mask: a PNG of class numbers.

    Raises:
        gr.Error: The picture cannot be segmented.
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
    palette = config.palette or default_palette(config.num_labels)
    for old_mask in folder.iterdir():
        old_mask.unlink()
    mask_path = folder / f"{Path(path).stem}_mask.png"
    draw_mask(labels, palette).save(mask_path)
    height, width = labels.shape
    device = chosen.model.device.type.replace("cuda", "GPU").replace("cpu", "CPU")
    line = f"{width} × {height} pixels, {protocol_name}: **{seconds:.2f} s** on the {device}.\n\n{HINT}"
    return create_overlay(picture, labels, config.id2label, palette), line, mask_path


def create_page(models: dict[str, Model], examples: Sequence[str], folder: Path) -> gr.Blocks:
    """Returns the page; masks are written to `folder`, from which Gradio copies them."""

    def run(upload: dict | None, model_name: str, protocol_name: str, progress=gr.Progress()):  # noqa: B008
        if upload is None:
            raise gr.Error("There is no picture yet. Drop one, or pick an example.", print_exception=False)
        overlay, line, mask_path = segment(models[model_name], protocol_name, upload["path"], folder, progress)
        return overlay.show(), overlay, None, line, gr.DownloadButton(value=mask_path, visible=True)

    def clear():
        return None, None, None, "", gr.DownloadButton(visible=False)

    def select(overlay: Overlay, kept: str | None, event: gr.SelectData):
        kept = None if event.value == kept else event.value
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
        # The picture as the file that it is: Gradio would fail before us on what is none.
        inputs = [picture, model_name, protocol_name]
        button.click(run, inputs, outputs, preprocess=False, show_progress_on=[shown])
        picture.change(clear, None, outputs, show_progress="hidden")
        shown.select(select, [overlay, kept], [shown, kept], show_progress="hidden")
    return page


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        models = load_models(args.model_name_or_path, args.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    examples = [model.example for model in models.values() if model.example] + args.examples
    with tempfile.TemporaryDirectory() as folder:
        create_page(models, examples, Path(folder)).launch(
            max_file_size=MAX_FILE_SIZE, footer_links=["gradio", "settings"]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
