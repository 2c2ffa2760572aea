# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""examples/demo.py: its functions, and the page in a headless Chromium, from the files that go to a Space."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.inference import RATIOS, Protocol, predict

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = {0: "sky", 1: "tree", 2: "road", 3: "house"}
PALETTE = [[120, 180, 240], [30, 140, 40], [90, 90, 90], [200, 60, 50]]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Without the last ones it looks for its maker's servers.
CHROMIUM_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("gradio")
    return importlib.import_module("demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, with a picture to try, whose random weights tell classes apart."""
    torch.manual_seed(7)
    model = VanForSemanticSegmentation(tiny_config("semantic_fpn", id2label=NAMES, palette=PALETTE)).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    folder = tmp_path_factory.mktemp("models") / "van-tiny"
    model.save_pretrained(folder)
    VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    quarters = np.array([[[255, 0, 0], [255, 255, 255]], [[0, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    Image.fromarray(quarters).resize((72, 96)).save(folder / "example.png")
    return folder


@pytest.fixture(scope="module")
def model(demo, folder):
    return demo.load_models([str(folder)], "cpu")[str(folder)]


class Progress(list):
    """Keeps what it is told."""

    def __call__(self, value, desc=None, unit=None):
        self.append((value, desc))


def test_without_gradio_it_says_what_to_install():
    code = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, EXAMPLES / "demo.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == 'error: the page needs gradio, which is not installed: pip install -e ".[demo]"\n'


def test_models_that_cannot_be_shown(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 2
    assert "outputs/van-scenes is not there yet: `accelerate launch examples/train_seg.py`" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    assert demo.main(["--model_name_or_path", str(tmp_path)]) == 2
    assert "type 'segformer'; it must be 'van'" in capsys.readouterr().err


def test_models_are_loaded_with_their_pictures(model, folder):
    assert model.example == str(folder / "example.png")
    assert not model.model.training


def test_protocols_fit_the_model(model):
    assert model.protocol("whole picture") == Protocol()
    assert model.protocol("sliding window") == Protocol("slide", 64, 42)
    assert model.protocol("multi-scale + flip") == Protocol(ratios=RATIOS, flip=True)


@pytest.mark.parametrize("name", ["whole picture", "sliding window", "multi-scale + flip"])
def test_segmentation_is_that_of_the_evaluation(demo, model, folder, tmp_path, name):
    (tmp_path / "earlier_mask.png").touch()
    progress = Progress()
    overlay, line, mask_path = demo.segment(model, name, str(folder / "example.png"), tmp_path, progress)
    picture = demo.read_picture(str(folder / "example.png"), model.image_processor)
    labels = predict(model.model, model.image_processor, picture, model.protocol(name)).numpy()

    assert list(tmp_path.iterdir()) == [mask_path] and mask_path.name == "example_mask.png"
    mask = Image.open(mask_path)
    assert mask.mode == "P" and mask.getpalette()[:12] == [channel for color in PALETTE for channel in color]
    assert (np.asarray(mask) == labels).all() and len(np.unique(labels)) > 1
    assert (overlay.labels == labels).all()
    assert (np.asarray(overlay.picture) == picture.permute(1, 2, 0).numpy()).all()
    assert line.startswith(f"72 × 96 pixels, {name}: **") and "on the CPU" in line

    passes = [value for value, desc in progress if desc == "Segmenting"]
    num_passes = {"whole picture": 1, "sliding window": None, "multi-scale + flip": 12}[name]
    assert passes == [(done, num_passes) for done in range(num_passes or len(passes))] and passes


def test_legend_has_shares_and_classes_can_be_shown_alone(demo):
    labels = np.zeros((40, 60), dtype=np.int64)
    labels[:30] = 3
    labels[0, 0] = 1
    picture = torch.zeros(3, 40, 60, dtype=torch.uint8)
    overlay = demo.create_overlay(picture, labels, NAMES, PALETTE)
    texts = ["house 75.0%", "sky 25.0%", "tree <0.1%"]
    assert list(overlay.legend.values()) == list(zip(texts, ["#c83c32", "#78b4f0", "#1e8c28"], strict=True))

    for only, sums in {None: (0.6 * 1799, 0.6 * 600, 0.6), "sky 25.0%": (0, 0.6 * 600, 0)}.items():
        sections = overlay.sections(only)
        assert [text for _, text in sections] == texts
        assert [mask.sum() for mask, _ in sections] == pytest.approx(sums)


def test_what_is_shown_is_small(demo):
    labels = np.zeros((3000, 100), dtype=np.int64)
    labels[1500:] = 1
    overlay = demo.create_overlay(torch.zeros(3, 3000, 100, dtype=torch.uint8), labels, NAMES, PALETTE)
    assert overlay.picture.size == (43, 1280) and overlay.labels.shape == (1280, 43)
    assert (overlay.labels[:640] == 0).all() and (overlay.labels[640:] == 1).all()
    assert labels.shape == (3000, 100)


def test_pictures_are_turned_and_laid_over_white(demo, model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "turned.png", exif=exif)
    picture = demo.read_picture(str(tmp_path / "turned.png"), model.image_processor)
    assert picture.shape == (3, 30, 20) and (picture == 255).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_cannot_be_segmented(demo, model, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    Image.new("1", (20_000, 9_000)).save(tmp_path / "bomb.png")
    for name, message in {
        "text.png": "text.png cannot be read as a picture",
        "large.png": "large.png has 90 megapixels; at most 80",
        "bomb.png": "bomb.png has far too many megapixels",
    }.items():
        with pytest.raises(demo.gr.Error, match=message):
            demo.read_picture(str(tmp_path / name), model.image_processor)


class Page:
    """The page in a browser."""

    def __init__(self, browser, url: str, **options):
        self.page = browser.new_page(**options)
        self.page.goto(url)
        self.button = self.page.get_by_role("button", name="Segment")
        self.button.wait_for()
        self.classes = self.page.locator(".legend-item")

    def upload(self, path: Path) -> None:
        self.page.locator("input[type=file]").first.set_input_files(path)

    def segment(self) -> None:
        self.page.get_by_label("Remove Image").wait_for()
        self.button.click()

    def wait_for_message(self, text: str) -> None:
        self.page.locator(".toast-body").filter(has_text=text).wait_for()

    def strengths(self) -> list[int]:
        """Opacity from 0 to 255 of each class's colours where they are strongest."""
        return self.page.evaluate(STRENGTHS)


# What is seen: the masks as they were drawn, without those that the page hides.
STRENGTHS = """async () => Promise.all([...document.querySelectorAll("img.mask")].map(async (mask) => {
    await mask.decode();
    const canvas = new OffscreenCanvas(mask.naturalWidth, mask.naturalHeight).getContext("2d");
    canvas.drawImage(mask, 0, 0);
    const pixels = canvas.getImageData(0, 0, mask.naturalWidth, mask.naturalHeight).data;
    const hidden = mask.classList.contains("inactive");
    return hidden ? 0 : pixels.reduce((most, value, index) => index % 4 == 3 ? Math.max(most, value) : most, 0);
}))"""


@pytest.fixture(scope="module")
def browser(demo):
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(browser, folder, tmp_path_factory):
    """Address of the page, served from a Space's files, with the model from a folder."""
    space = tmp_path_factory.mktemp("space")
    made = tmp_path_factory.mktemp("made")
    files, card = importlib.import_module("push_to_hub").prepare_space(str(folder), made)
    for name, path in files.items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, space / name)
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": str(space / "uploads")}
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=space, env=environment, stdout=subprocess.PIPE, text=True
    )
    address = next((found for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line))), None)
    assert address is not None, "the page did not start"
    yield address[0]
    process.terminate()
    process.communicate()


def test_upload_segment_choose_a_class_and_download(demo, browser, url, model, folder, tmp_path):
    page = Page(browser, url)
    page.upload(folder / "example.png")
    page.segment()
    page.classes.first.wait_for()
    picture = demo.read_picture(str(folder / "example.png"), model.image_processor)
    labels = predict(model.model, model.image_processor, picture).numpy()
    shares = demo.class_shares(labels)
    assert page.classes.all_inner_texts() == [f"{NAMES[label]} {share:.1%}" for label, share in shares.items()]
    page.page.get_by_text("72 × 96 pixels, whole picture:").wait_for()

    full = round(255 * demo.ALPHA)
    assert page.strengths() == [full] * len(shares)
    page.classes.nth(1).hover()
    alone = [full if idx == 1 else 0 for idx in range(len(shares))]
    assert page.strengths() == alone
    page.button.hover()
    assert page.strengths() == [full] * len(shares)
    with page.page.expect_response(re.compile("queue/data")):
        page.classes.nth(1).click()
    page.button.hover()
    page.page.wait_for_function(f"async () => String(await ({STRENGTHS})()) == '{','.join(map(str, alone))}'")

    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Download the mask").click()
    assert download.value.suggested_filename == "example_mask.png"
    download.value.save_as(tmp_path / "mask.png")
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == labels).all()

    page.page.get_by_label("Remove Image").click()
    page.classes.first.wait_for(state="detached")


def test_what_is_no_picture_gets_a_message(browser, url, tmp_path):
    page = Page(browser, url)
    page.button.click()
    page.wait_for_message("There is no picture yet")
    (tmp_path / "notes.txt").write_text("no picture")
    page.upload(tmp_path / "notes.txt")
    page.wait_for_message("Invalid file type: notes.txt")
    (tmp_path / "text.png").write_text("no picture")
    page.upload(tmp_path / "text.png")
    page.segment()
    page.wait_for_message("text.png cannot be read as a picture")
    assert page.classes.count() == 0


def test_large_pictures(browser, url, tmp_path):
    page = Page(browser, url)
    Image.linear_gradient("L").resize((4500, 3000)).save(tmp_path / "large.png", compress_level=1)
    page.upload(tmp_path / "large.png")
    page.segment()
    page.page.get_by_text("4500 × 3000 pixels").wait_for()
    shown = page.page.locator("img.base-image").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert shown == [1280, 853]
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Download the mask").click()
    download.value.save_as(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").size == (4500, 3000)

    Image.new("1", (10_000, 9_000)).save(tmp_path / "too_large.png")
    page.page.get_by_label("Remove Image").click()
    page.upload(tmp_path / "too_large.png")
    page.segment()
    page.wait_for_message("too_large.png has 90 megapixels; at most 80")


def test_an_example_on_a_narrow_screen(browser, url):
    page = Page(browser, url, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.page.locator(".gallery button, button.gallery-item").first.click()
    page.page.get_by_text("sliding window").click()
    page.segment()
    page.page.get_by_text("72 × 96 pixels, sliding window:").wait_for()
    assert page.page.evaluate("document.documentElement.scrollWidth") == 390
