# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""examples/web_demo.py: its functions and bad input, the page's arithmetic in node, the page in a headless Chromium.

For the last, the environment variable ONNXRUNTIME_WEB names the folder `dist` of the npm package onnxruntime-web.
"""

import functools
import http.server
import json
import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import web_demo
from conftest import tiny_config
from PIL import Image

from van_hf import VanForSemanticSegmentation, VanImageProcessor
from van_hf.data.scenes import paint_scene
from van_hf.exports import INFO, ExportInfo, export_model, save_info
from van_hf.files import read_json, write_json
from van_hf.inference import LogitScores, ResizedScores, digest_of_weights, predict
from van_hf.model.image_processing_van import resize_steps
from van_hf.visualization import class_shares, mask_image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NODE = shutil.which("node")
RUNTIME = os.environ.get("ONNXRUNTIME_WEB")
TIMEOUT = 60  # seconds that the browser may take for any one thing
NAMES = {0: "sky", 1: "tree", 2: "road", 3: "house & <garden>"}
PALETTE = [[120, 180, 240], [30, 140, 40], [90, 90, 90], [200, 60, 50]]
SLOW_FIXTURES = {"trained"}


def run(*arguments) -> int:
    return web_demo.main([str(argument) for argument in arguments])


@pytest.fixture
def runtime(tmp_path) -> Path:
    """A folder with files of onnxruntime-web's names."""
    folder = tmp_path / "package" / "dist"
    folder.mkdir(parents=True)
    for name, _ in web_demo.RUNTIME_FILES.values():
        (folder / name).write_text(name)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An ONNX export, and the model that it was made of with its image processor."""
    for package in ("transformers.exporters", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="exports need the extra `export`")
    torch.manual_seed(7)
    model = VanForSemanticSegmentation(tiny_config("semantic_fpn", id2label=NAMES, palette=PALETTE)).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    image_processor = VanImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    folder = tmp_path_factory.mktemp("exports") / "van-tiny"
    export_model(model, "onnx").save_pretrained(folder)
    image_processor.save_pretrained(folder)
    save_info(folder, ExportInfo("/home/me/van-tiny", digest_of_weights(model), "onnx", packages={}), {})
    return folder, model, image_processor


def test_onnxruntime_is_asked_for(runtime, tmp_path, capsys):
    (runtime / "ort-wasm-simd-threaded.wasm").unlink()
    for options, message in (
        ((), "--runtime is missing"),
        (("--runtime", tmp_path / "none"), "none holds no ort.wasm.min.mjs"),
        (("--runtime", runtime), "dist holds no ort-wasm-simd-threaded.wasm"),
        (("--runtime", "http://cdn.example/dist"), "http://cdn.example/dist is not a plain https:// address"),
        (("--runtime", "https://cdn.example/dist?v=1"), "not a plain https:// address"),
        (("--runtime", "https://a; script-src *"), "not a plain https:// address"),
    ):
        assert run(tmp_path, tmp_path / "page", *options) == 2
        error = capsys.readouterr().err
        assert message in error and "npm pack onnxruntime-web" in error and error.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_what_is_no_onnx_export(runtime, tmp_path, capsys):
    folder = tmp_path / "export"
    folder.mkdir()
    for content, message in (
        (None, f"{folder} holds no {INFO}"),
        ("{", f"{folder / INFO} cannot be read as JSON"),
        ("{}", "tells of the format None"),
        (
            '{"source": {"format": "openvino"}}',
            "'openvino'; the page needs export.py --format onnx",
        ),
        ('{"source": {"format": "onnx"}}', "holds no model.onnx: export the model again"),
    ):
        if content is not None:
            (folder / INFO).write_text(content)
        assert run(folder, tmp_path / "page", "--runtime", runtime) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"export", "package"}


def test_what_is_there_stays(runtime, tmp_path, capsys):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "mine.txt").write_text("mine")
    assert run(tmp_path, tmp_path / "page", "--runtime", runtime) == 2
    assert "page is there already; name another OUTPUT_DIR" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["mine.txt"]


def test_addresses_of_the_runtime():
    for address in ("https://cdn.example/npm/onnxruntime-web@1.30.0/dist", "https://cdn.example:8443/", "https://a.b"):
        assert web_demo.find_runtime(address) == address.rstrip("/") + "/"


def test_the_page_holds_what_it_needs(trained, runtime, tmp_path, capsys):
    folder, output_dir = trained[0], tmp_path / "new" / "page"
    assert run(folder, output_dir, "--runtime", runtime) == 0
    assert f"python -m http.server --directory {output_dir}" in capsys.readouterr().out
    assert list(output_dir.parent.iterdir()) == [output_dir]
    description = read_json(output_dir / "model.json")
    assert description["name"] == "van-tiny"  # not where it lay
    assert description["labels"] == list(NAMES.values()) and description["palette"] == PALETTE
    assert description["size"] == {"shortest_edge": 64, "longest_edge": 256}
    for file in (description["program"], *description["external_data"], description["runtime"]["wasm"]):
        assert (output_dir / file["path"]).stat().st_size == file["bytes"]
    for name in ("script", "factory"):
        assert (output_dir / description["runtime"][name]).read_text() == web_demo.RUNTIME_FILES[name][0]
    page = (output_dir / "index.html").read_text()
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self';" in page
    # What a page names, it has; and it names no other site.
    for name in re.findall(r'(?:src|href)="([^":,]+)"', page):
        assert (output_dir / name).is_file()
    assert not any("https://" in path.read_text() for path in output_dir.glob("*.*"))


def test_the_runtime_can_stay_elsewhere(trained, tmp_path):
    address = "https://cdn.example/npm/onnxruntime-web@1.30.0/dist"
    assert run(trained[0], tmp_path / "page", "--runtime", address) == 0
    assert not (tmp_path / "page" / "onnxruntime").exists()
    runtime = read_json(tmp_path / "page" / "model.json")["runtime"]
    assert runtime["script"] == f"{address}/ort.wasm.min.mjs" and runtime["threads"] is False
    assert runtime["wasm"] == {"path": f"{address}/ort-wasm-simd-threaded.wasm", "bytes": None}
    page = (tmp_path / "page" / "index.html").read_text()
    assert "script-src 'self' 'wasm-unsafe-eval' https://cdn.example; connect-src 'self' https://cdn.example;" in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx.data", None, "model.onnx.data"),
        ("model.onnx", "no program", "cannot be used"),
        ("config.json", "{", "config.json"),
        ("preprocessor_config.json", "{", "preprocessor_config.json"),
        ("preprocessor_config.json", {"resample": 3}, "resample is 3; the page resizes bilinearly (2) alone"),
    ],
)
def test_damaged_exports(trained, runtime, tmp_path, capsys, name, content, message):
    folder = shutil.copytree(trained[0], tmp_path / "export")
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, str):
        (folder / name).write_text(content)
    else:
        write_json(folder / name, read_json(folder / name) | content)
    assert run(folder, tmp_path / "page", "--runtime", runtime) == 2
    error = capsys.readouterr().err
    assert message in error and str(folder) in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"export", "package"}


# Calls a function of picture.js with what JSON can say; arrays of numbers and rows of pixels are made of it.
CALL_PICTURE = """
import { readFileSync } from "node:fs";
const [name, ...values] = JSON.parse(readFileSync(0));
const picture = await import(process.argv[1]);
if (name === "resizeThrough") {
  const [height, width] = values[2];
  const pixels = Uint8Array.from(values[1]);
  values[1] = (y) => ({ data: pixels, start: y * width * 4 });
}
const result = await picture[name](...values);
process.stdout.write(JSON.stringify(result, (_, value) => ArrayBuffer.isView(value) ? [...value] : value));
"""


@pytest.fixture(scope="module")
def in_node(tmp_path_factory):
    """A function that calls one of picture.js."""
    if NODE is None:
        pytest.skip("there is no node")
    # Older ones take .mjs alone for a module.
    module = shutil.copyfile(web_demo.PAGES / "picture.js", tmp_path_factory.mktemp("node") / "picture.mjs")

    def call(*arguments):
        command = [NODE, "--input-type=module", "--eval", CALL_PICTURE, str(module)]
        done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (50, 75, {"shortest_edge": 40, "longest_edge": 50}),
        (31, 17, {"shortest_edge": 64}),
        (1, 90, {"shortest_edge": 32, "longest_edge": 100}),
        (60, 40, {"height": 45, "width": 33}),
        (20, 30, None),
    ],
)
def test_pictures_are_prepared_as_by_the_image_processor(in_node, height, width, size):
    pixels = torch.randint(256, (4, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    options = {"size": size} if size else {"do_resize": False}
    image_processor = VanImageProcessor(**options)
    model = {"size": size, "size_divisor": 32, "scale": 1 / 255}
    model |= {"mean": image_processor.image_mean, "std": image_processor.image_std}
    steps = in_node("resizeSteps", height, width, model)
    expected_steps = resize_steps(height, width, image_processor.size, 32) if size else []
    assert steps == [list(step) for step in expected_steps]

    prepared = in_node("resizeThrough", steps, pixels.permute(1, 2, 0).flatten().tolist(), [height, width])
    resized = image_processor(pixels[:3], return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert prepared["size"] == list(resized.shape[1:])
    assert prepared["pixels"] == resized.permute(1, 2, 0).flatten().tolist()
    expected = image_processor(pixels[:3], return_tensors="pt")["pixel_values"].flatten()
    torch.testing.assert_close(torch.tensor(in_node("toPixelValues", prepared["pixels"], model)), expected)


def test_pixel_values_in_half_precision(in_node):
    image_processor = VanImageProcessor()
    model = {"scale": 1 / 255, "mean": image_processor.image_mean, "std": image_processor.image_std}
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    bits = in_node("toPixelValues", pixels.movedim(0, -1).flatten().tolist(), model, True)
    expected = image_processor(pixels, return_tensors="pt", do_resize=False)["pixel_values"].half().flatten()
    torch.testing.assert_close(torch.tensor(np.array(bits, dtype=np.uint16).view(np.float16)), expected)


@pytest.mark.parametrize(
    ("input_size", "size"), [((24, 40), (61, 83)), ((24, 40), (24, 40)), ((24, 40), (10, 7)), ((21, 37), (1, 200))]
)
@pytest.mark.parametrize("num_labels", [5, 300])
def test_labels_are_those_of_inference(in_node, input_size, size, num_labels):
    logits = torch.randn(num_labels, 6, 10, generator=torch.Generator().manual_seed(0))
    expected = ResizedScores(ResizedScores(LogitScores(logits), input_size), size).argmax()
    labels = in_node("labelsOfScores", logits.flatten().tolist(), num_labels, [6, 10], input_size, size)
    equal = torch.tensor(labels).reshape(size) == expected
    assert equal.double().mean() >= 0.999


def test_label_maps_are_resized_as_by_inference(in_node):
    labels = torch.arange(24).reshape(4, 6)
    for size in ((9, 5), (2, 13), (4, 6)):
        expected = torch.nn.functional.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")
        resized = in_node("resizeLabels", labels.flatten().tolist(), 24, [4, 6], size)
        assert resized == expected.flatten().int().tolist()


@pytest.mark.parametrize("num_labels", [3, 256, 257])
def test_masks_are_those_of_predict(in_node, tmp_path, num_labels):
    labels = np.arange(35).reshape(5, 7) * 17 % num_labels
    palette = [[label % 256, 255 - label % 256, 7] for label in range(num_labels)]
    parts = in_node("encodeMask", labels.ravel().tolist(), [5, 7], palette)
    (tmp_path / "mask.png").write_bytes(b"".join(map(bytes, parts)))
    with Image.open(tmp_path / "mask.png") as mask:
        expected = mask_image(labels, palette)
        assert mask.mode == expected.mode and (np.asarray(mask) == np.asarray(expected)).all()
        assert mask.getpalette() == expected.getpalette()


class Chromium:
    """A headless browser with one page, driven through the pipe of its DevTools protocol."""

    # Without the last ones it looks for its maker's servers.
    OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")

    def __init__(self, folder: Path):
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()

        def connect():  # it reads commands from file 3, and answers to file 4
            pair = os.dup(commands), os.dup(answers)
            os.dup2(pair[0], 3)
            os.dup2(pair[1], 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *self.OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={folder}"],
            preexec_fn=connect,
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.received, self.events, self.number, self.session = b"", [], 0, None
        self.downloads = folder / "downloads"
        self.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), eventsEnabled=True
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "DOM", "Runtime"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait(TIMEOUT)
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for_event(self, method: str, **params) -> dict:
        """Return the parameters of the first event of a name that has these, of those that came before too."""
        while True:
            for event in self.events:
                if event.get("method") == method and event["params"].items() >= params.items():
                    self.events.remove(event)
                    return event["params"]
            self.events.append(self._receive())

    def _receive(self) -> dict:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.received:
            readable, _, _ = select.select([self.answers], [], [], deadline - time.monotonic())
            assert readable, "the browser does not answer"
            part = os.read(self.answers, 2**16)
            assert part, "the browser has ended"
            self.received += part
        message, self.received = self.received.split(b"\0", 1)
        return json.loads(message)

    def go_to(self, url: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for_event("Page.loadEventFired")

    def evaluate(self, expression: str):
        """Return what an expression of JavaScript is, or what it promises."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true, looking whenever the page changes."""
        self.evaluate(f"""new Promise((resolve) => {{
            const look = () => ({condition}) && resolve(true);
            const changes = {{ subtree: true, childList: true, attributes: true, characterData: true }};
            new MutationObserver(look).observe(document, changes);
            look();
        }})""")

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({selector!r}).innerText")

    def choose(self, path: Path) -> None:
        """Choose a file as its user does in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        chooser = self.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=chooser)

    def drop(self, path: Path) -> None:
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=100, y=200, data=data)

    def move_to(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView()")
        box = self.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def download(self, selector: str) -> Path:
        self.evaluate(f"document.querySelector({selector!r}).click()")
        name = self.wait_for_event("Browser.downloadWillBegin")["suggestedFilename"]
        self.wait_for_event("Browser.downloadProgress", state="completed")
        return self.downloads / name

    def requests(self) -> set[str]:
        """Return the addresses that were asked for since the last page."""
        events = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return {event["params"]["request"]["url"] for event in events}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    if not RUNTIME:
        pytest.skip("ONNXRUNTIME_WEB does not name the folder `dist` of the npm package onnxruntime-web")
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; the headers let the page have threads."""

    isolated = False

    def end_headers(self):
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_):
        pass


class IsolatedHandler(Handler):
    isolated = True


@contextmanager
def serve(folder: Path, handler: type[Handler]) -> Iterator[str]:
    """Yield the address of a folder that is served."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def page(browser, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "page"
    assert run(trained[0], folder, "--runtime", RUNTIME) == 0
    return folder


@pytest.fixture(scope="module")
def url(page):
    with serve(page, Handler) as url:
        yield url


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """A scene of 300 x 200 pixels that its EXIF tag turns upright, with a transparent corner."""
    scene = Image.fromarray(paint_scene(np.random.default_rng(3))[0]).resize((200, 300)).convert("RGBA")
    scene.paste((0, 0, 0, 0), (0, 0, 60, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("pictures") / "my scene.png"
    scene.save(path, exif=exif)
    return path


def check_result(browser, trained, picture: Path) -> np.ndarray:
    """Wait for a picture's result, and compare it with PyTorch's; return the page's labels (height, width)."""
    browser.wait_for("document.body.dataset.state === 'done' || !document.querySelector('#error').hidden")
    assert browser.text("#error") == ""
    _, model, image_processor = trained
    with Image.open(picture) as image:
        pixels = image_processor.process_image(image, do_convert_rgb=True)
    expected = predict(model, image_processor, pixels).numpy()
    downloaded = browser.download("#download")
    assert downloaded.name == f"{picture.stem}_mask.png"
    with Image.open(downloaded) as mask:
        assert mask.mode == "P" and mask.getpalette()[:12] == [channel for color in PALETTE for channel in color]
        labels = np.asarray(mask)
    downloaded.unlink()
    assert labels.shape == expected.shape and len(np.unique(expected)) > 1
    assert (labels == expected).mean() >= 0.995
    return labels


# Labels whose colours are seen, by the overlay's pixels.
SEEN = """(() => {
    const { data } = overlay.getContext("2d").getImageData(0, 0, overlay.width, overlay.height);
    const colors = new Set();
    for (let index = 0; index < data.length; index += 4) {
        if (data[index + 3]) colors.add(data.slice(index, index + 3).join());
    }
    return model.palette.flatMap((color, label) => colors.has(color.join()) ? [label] : []);
})()"""
# What becomes of a request to another site, in a worker that is made as the page makes its own.
REQUEST_IN_WORKER = """new Promise((resolve, reject) => {
    const program = `addEventListener("securitypolicyviolation", () => postMessage("blocked"));
        fetch("http://127.0.0.1:9/").then(() => postMessage("sent"), () => {});`;
    const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    const worker = new Worker(url, { type: "module" });
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = reject;
})"""


def test_a_picture_is_segmented_as_by_pytorch(browser, trained, url, picture):
    browser.go_to(url)
    browser.choose(picture)  # before the model is there
    labels = check_result(browser, trained, picture)
    shares = class_shares(labels)
    assert browser.text("#status").startswith("300 × 200 pixels, segmented at 96 × 64: ")
    assert browser.text("#about").startswith("van-tiny (float32, 4 classes).")
    entries = browser.evaluate("[...document.querySelectorAll('#legend button')].map(({innerText}) => innerText)")
    assert [entry.split("\n") for entry in entries] == [
        [NAMES[label], f"{share:.1%}" if share >= 0.0005 else "<0.1%"] for label, share in shares.items()
    ]

    assert browser.evaluate(SEEN) == sorted(shares)
    first, second, *_ = shares
    browser.move_to(f"[data-label='{second}']")
    assert browser.evaluate(SEEN) == [second]
    browser.move_to("h1")
    assert browser.evaluate(SEEN) == sorted(shares)
    browser.evaluate(f"document.querySelector(\"[data-label='{first}']\").click()")
    assert browser.evaluate(SEEN) == [first]
    browser.evaluate(f"document.querySelector(\"[data-label='{first}']\").click()")
    assert browser.evaluate(SEEN) == sorted(shares)

    browser.evaluate("opacity.value = 20; opacity.dispatchEvent(new Event('input'))")
    assert browser.evaluate("getComputedStyle(overlay).opacity") == "0.2"


def test_the_page_asks_for_nothing_elsewhere(browser, trained, url, picture):
    browser.go_to(url)
    browser.drop(picture)
    check_result(browser, trained, picture)
    assert all(address.startswith((url, f"blob:{url}", "data:")) for address in browser.requests())
    assert browser.evaluate(REQUEST_IN_WORKER) == "blocked"


def test_threads_where_the_server_allows_them(browser, trained, page, picture):
    with serve(page, IsolatedHandler) as url:
        browser.go_to(url)
        assert browser.evaluate("crossOriginIsolated")
        browser.choose(picture)
        check_result(browser, trained, picture)
        num_threads = min(browser.evaluate("navigator.hardwareConcurrency"), 8)
        assert f"({num_threads} thread" in browser.text("#status")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_cannot_be_segmented(browser, trained, url, picture, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    Image.new("1", (3000, 2)).save(tmp_path / "thin.png")
    browser.go_to(url)
    browser.wait_for("document.body.dataset.state === 'ready'")
    for name, message in {
        "text.png": "text.png cannot be read as a picture.",
        "large.png": "large.png has 90 megapixels; at most 80 can be segmented here.",
        "thin.png": "would be segmented at 256 × 32 pixels; the model takes sides of 33 to 4096",
    }.items():
        browser.choose(tmp_path / name)
        browser.wait_for(f"document.querySelector('#error').textContent.includes({message!r})")
    browser.choose(picture)  # the page goes on
    check_result(browser, trained, picture)
    browser.choose(tmp_path / "text.png")
    browser.wait_for("!document.querySelector('#error').hidden")
    assert browser.evaluate("document.body.dataset.state") == "done"  # the result stays


def test_a_page_that_was_not_copied_whole(browser, page, tmp_path):
    folder = shutil.copytree(page, tmp_path / "page")
    (folder / "model" / "model.onnx.data").write_bytes(b"half")
    with serve(folder, Handler) as url:
        browser.go_to(url)
        browser.wait_for("document.body.dataset.state === 'failed'")
        assert "model.onnx.data has 4 bytes, not " in browser.text("#error")
    (folder / "worker.js").unlink()
    with serve(folder, Handler) as url:  # of another address, so that the browser has nothing of it
        browser.go_to(url)
        browser.wait_for("document.body.dataset.state === 'failed'")
        assert "worker.js failed" in browser.text("#error")
    browser.go_to((folder / "index.html").as_uri())
    browser.wait_for("document.body.dataset.state === 'failed'")
    assert "python -m http.server" in browser.text("#error")
