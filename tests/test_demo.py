# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""examples/demo.py: its functions, and the page from the files that go to a Space: in a headless Chromium, and as
clients of all kinds see it."""

import importlib
import io
import json
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
from van_hf.visualization import class_shares

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
    """Keep what it is told."""

    def __call__(self, value, desc=None, unit=None):
        self.append((value, desc))


def test_without_gradio_it_says_what_to_install():
    program = Path(__file__).with_name("programs") / "import_without.py"
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    done = subprocess.run([sys.executable, program, "demo", "gradio"], capture_output=True, text=True, env=environment)
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
def test_segmentation_is_that_of_the_evaluation(demo, model, folder, name):
    progress = Progress()
    overlay, line, mask = demo.segment(model, name, str(folder / "example.png"), progress)
    picture = demo.read_picture(str(folder / "example.png"), model.image_processor)
    labels = predict(model.model, model.image_processor, picture, model.protocol(name)).numpy()

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


def test_classes_of_one_name_are_told_apart(demo):
    labels = np.array([[0, 1], [2, 2]])
    names = {0: "wall", 1: "wall", 2: "floor\n"}
    overlay = demo.create_overlay(torch.zeros(3, 2, 2, dtype=torch.uint8), labels, names, PALETTE)
    assert [text for text, _ in overlay.legend.values()] == ["floor 50.0%", "wall 25.0%", "wall 25.0% (1)"]
    assert [mask.sum() > 0 for mask, _ in overlay.sections("wall 25.0% (1)")] == [False, False, True]


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
    Image.new("RGB", (8, 8)).save(tmp_path / "program.png", format="EPS")
    for name, message in {
        "text.png": "text.png cannot be read as a picture",
        "large.png": "large.png has 90 megapixels; at most 80",
        "bomb.png": "bomb.png has far too many megapixels",
        "program.png": "program.png cannot be read as a picture",
    }.items():
        with pytest.raises(demo.gr.Error, match=message):
            demo.read_picture(str(tmp_path / name), model.image_processor)


@pytest.mark.parametrize("parameters", [{"do_resize": False}, {"size": {"shortest_edge": 64}}])
def test_what_the_model_sees_is_bounded_too(demo, tmp_path, parameters):
    image_processor = VanImageProcessor(**parameters)
    Image.new("1", (9_000_000, 1)).save(tmp_path / "row.png")
    with pytest.raises(demo.gr.Error, match="row.png would be segmented at .* at most 8 megapixels"):
        demo.read_picture(str(tmp_path / "row.png"), image_processor)
    assert demo.read_picture(str(tmp_path / "row.png"), VanImageProcessor()).shape == (3, 1, 9_000_000)


@pytest.mark.parametrize("name", ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF"])
def test_common_formats_are_read(demo, model, tmp_path, name):
    picture = Image.new("RGB", (16, 16), "white")
    options = {"save_all": True, "append_images": [picture]} if name == "MPO" else {}
    picture.save(tmp_path / "file", format=name, **options)
    assert (demo.read_picture(str(tmp_path / "file"), model.image_processor) == 255).all()


class Client:
    """What any program can send to the page."""

    def __init__(self, url: str):
        httpx = pytest.importorskip("httpx")  # Gradio brings it
        self.http = httpx.Client(base_url=url, timeout=60)
        functions = self.http.get("/config").json()["dependencies"]
        self.functions = {function["api_name"]: function["id"] for function in functions}

    def upload(self, name: str, content: bytes) -> str:
        """Return the path that an uploaded file has on the server."""
        return self.http.post("/gradio_api/upload", files={"files": (name, content)}).json()[0]

    def call(
        self, function: str, data: list, session: str = "session", event: dict | None = None
    ) -> tuple[bool, dict]:
        """Return whether a function of the page succeeded, and what came of it."""
        body = {"data": data, "fn_index": self.functions[function], "session_hash": session, "event_data": event}
        assert self.http.post("/gradio_api/queue/join", json=body).is_success
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            messages = (json.loads(line.removeprefix("data:")) for line in stream.iter_lines() if line)
            completed = next(message for message in messages if message["msg"] == "process_completed")
        return completed["success"], completed["output"]

    def error(self, *args, **kwargs) -> str | None:
        """Return what the page says of a call that must fail; None where it says that there was an error."""
        succeeded, output = self.call(*args, **kwargs)
        assert not succeeded and "data" not in output
        return output["error"]


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
def url(demo, folder, tmp_path_factory):
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


FILE = {"meta": {"_type": "gradio.FileData"}}


SLOW_FIXTURES = {"url"}


@pytest.fixture(scope="module")
def client(url, folder) -> Client:
    return Client(url)


@pytest.fixture(scope="module")
def choices(client) -> list[str]:
    """The page's own model and protocol."""
    components = client.http.get("/config").json()["components"]
    return [part["props"]["value"] for part in components if part["type"] in ("dropdown", "radio")]


@pytest.fixture
def secret(tmp_path) -> Path:
    """A picture of the server's that nobody has uploaded."""
    Image.new("RGB", (60, 50), "red").save(tmp_path / "secret.png")
    return tmp_path / "secret.png"


def test_only_what_was_uploaded_is_opened(client, choices, secret, url):
    uploaded = client.upload("mine.png", secret.read_bytes())
    uploads = Path(uploaded).parents[1]
    outside = os.path.relpath(secret, uploads)
    for path in (str(secret), f"{uploads}/{outside}", f"file://{secret}", f"{url}/config", os.path.relpath(secret)):
        for mark in ({}, {"meta": {}}, {"meta": {"_type": "other"}}, {"is_stream": True}):
            message = client.error("run", [{"path": path, **mark}, *choices])
            assert message.startswith("This picture was not uploaded here."), (path, mark)
        for mark in (FILE, FILE | {"url": f"file://{secret}"}, FILE | {"is_stream": True}):
            client.error("run", [{"path": path, **mark}, *choices])
    for other in ({}, {"url": f"file://{secret}"}, {"url": f"{url}/config", "path": None}, {"path": "a\0b"}):
        assert client.error("run", [other, *choices]).startswith("This picture was not uploaded here.")
    for other in (str(secret), [str(secret)], 5):
        client.error("run", [other, *choices])
    assert client.error("run", [None, *choices]).startswith("There is no picture yet.")
    assert "cannot be read as a picture" in client.error("run", [{"path": str(uploads)}, *choices])
    for mark in ({}, FILE):
        succeeded, output = client.call("run", [{"path": uploaded, **mark}, *choices])
        assert succeeded and "60 × 50 pixels, whole picture" in output["data"][3]


def test_links_among_the_uploads_lead_nowhere(client, choices, secret):
    uploaded = Path(client.upload("mine.png", secret.read_bytes()))
    (uploaded.parent / "link.png").symlink_to(secret)
    for mark in ({}, FILE):
        client.error("run", [{"path": str(uploaded.parent / "link.png"), **mark}, *choices])


def test_names_of_uploads_stay_among_the_uploads(client, secret):
    uploads = Path(client.upload("mine.png", secret.read_bytes())).parents[1]
    for name in ("../../evil.png", "/etc/evil.png", "..\\evil.png", "%2e%2e/evil.png"):
        path = Path(client.upload(name, secret.read_bytes()))
        assert path.parents[1] == uploads and path.resolve() == path


def test_other_ways_in_are_closed(client, choices, secret, folder):
    data = {"data": [{"path": str(secret)}, *choices]}
    for address in ("run/run", "api/run"):
        response = client.http.post(f"/gradio_api/{address}", json=data)
        assert response.status_code == 404 and "Please join the queue" in response.text
    event = client.http.post("/gradio_api/call/run", json=data).json()["event_id"]
    assert "This picture was not uploaded here." in client.http.get(f"/gradio_api/call/run/{event}").text
    uploaded = client.upload("mine.png", secret.read_bytes())
    for path in (str(secret), f"{uploaded}/../../../secret.png", str(folder / "config.json"), "demo.py", "app.py"):
        assert client.http.get(f"/gradio_api/file={path}").status_code == 403
    for example in (5, "a", {"path": str(secret), **FILE}):
        client.error("load_example", [example])


def test_choices_that_the_page_does_not_offer(client, choices, secret):
    uploaded = {"path": client.upload("mine.png", secret.read_bytes()), **FILE}
    model, protocol = choices
    for other in ("other", None, [model], {"a": 1}):
        for chosen in ([other, protocol], [model, other]):
            assert client.error("run", [uploaded, *chosen]).startswith("Choose one of the models")


def test_classes_are_chosen_from_what_the_session_has_segmented(client, choices, secret):
    uploaded = {"path": client.upload("mine.png", secret.read_bytes()), **FILE}
    succeeded, output = client.call("run", [uploaded, *choices], session="mine")
    assert succeeded
    text = next(iter(output["data"][0]["color_map"]))

    # States are the server's: those that a client sends are not looked at.
    crafted = [{"picture": {"path": str(secret), **FILE}}, text]
    message = client.error("select", crafted, session="other", event={"index": 0, "value": text})
    assert message.startswith("There is nothing to see yet")
    client.error("select", crafted, session="mine", event={"index": 0, "value": {"path": str(secret), **FILE}})
    client.error("select", crafted, session="mine")
    for value in (text, text, "x" * 1000, {"a": 1}, None):
        succeeded, output = client.call("select", crafted, session="mine", event={"index": 0, "value": value})
        assert succeeded and output["data"][1] is None


def test_each_client_gets_its_own_mask(client, choices):
    """Of pictures with one name too, and while an earlier mask has not been fetched."""
    masks = []
    for session, size in {"a": (40, 30), "b": (30, 40)}.items():
        content = io.BytesIO()
        Image.new("RGB", size, "navy").save(content, format="PNG")
        uploaded = {"path": client.upload("photo.png", content.getvalue()), **FILE}
        _, output = client.call("run", [uploaded, *choices], session=session)
        masks.append((size, output["data"][4]["value"]))
    for size, mask in masks:
        assert mask["orig_name"] == "photo_mask.png"
        content = client.http.get(f"/gradio_api/file={mask['path']}").content
        assert Image.open(io.BytesIO(content)).size == size


def test_upload_segment_choose_a_class_and_download(demo, browser, url, model, folder, tmp_path):
    page = Page(browser, url)
    page.upload(folder / "example.png")
    page.segment()
    page.classes.first.wait_for()
    picture = demo.read_picture(str(folder / "example.png"), model.image_processor)
    labels = predict(model.model, model.image_processor, picture).numpy()
    shares = class_shares(labels)
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
