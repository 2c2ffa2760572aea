// Copyright 2026 The van_hf authors.
// Licensed under the Apache License, Version 2.0; see LICENSE.

// What is seen of a segmentation: the picture, the colours of its classes over it, and their legend. The model runs in
// worker.js. `data-state` of the body is loading, ready, busy, done or failed.

"use strict";

const MAX_MEGAPIXELS = 80;
// Side in pixels of the largest overlay that is shown.
const MAX_SHOWN_SIDE = 1280;
const MAX_ENLARGEMENT = 3;

const byId = (id) => document.getElementById(id);
const body = document.body;
const [picture, overlay] = [byId("picture"), byId("overlay")];

let model = null;
let worker = null;
let isReady = false;
let newestChoice = 0; // of files, pictures or not
let newestId = 0; // of pictures that are to be segmented
let waiting = null; // a picture that was chosen before the model was there
let shown = null; // the newest result: {labels, size, counts}
let kept = null; // the label that a click keeps alone
let pictureName = "picture";

function setState(state, text) {
  body.dataset.state = state;
  if (text !== undefined) byId("status").textContent = text;
  byId("progress").hidden = !["loading", "busy"].includes(state);
}

function showError(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

function fail(text) {
  showError(text);
  setState("failed", "");
}

// ---- the picture ----

// Load a file as an image, of which browsers know the size before they unpack it.
async function openImage(file) {
  const image = new Image();
  const url = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => {
      image.addEventListener("load", resolve);
      image.addEventListener("error", reject);
      image.src = url;
    });
  } catch {
    throw new Error(`${file.name || "This file"} cannot be read as a picture.`);
  } finally {
    URL.revokeObjectURL(url);
  }
  const megapixels = (image.naturalWidth * image.naturalHeight) / 1e6;
  if (megapixels > MAX_MEGAPIXELS) {
    throw new Error(
      `${file.name} has ${Math.round(megapixels)} megapixels; at most ${MAX_MEGAPIXELS} can be segmented here.`);
  }
  if (!megapixels) throw new Error(`${file.name} has no size in pixels: choose a photograph, not a drawing.`);
  return image;
}

function showPicture(image) {
  const scale = Math.min(1, MAX_SHOWN_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  for (const canvas of [picture, overlay]) {
    canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
    canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  }
  const context = picture.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, picture.width, picture.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, picture.width, picture.height);
  // Small pictures are shown larger, and none so high that its lower part is out of sight.
  const ratio = picture.width / picture.height;
  byId("frame").style.aspectRatio = ratio;
  byId("frame").style.maxWidth = `min(100%, ${ratio * 75}vh, ${picture.width * MAX_ENLARGEMENT}px)`;
  byId("frame").hidden = false;
  byId("invitation").textContent = "Another picture: drop it, paste it, or choose a file";
  body.dataset.picture = "";
}

async function choose(file) {
  const choice = ++newestChoice;
  showError("");
  let image;
  try {
    image = await openImage(file);
  } catch (error) {
    if (choice === newestChoice) showError(error.message);
    return; // what is there, or is under way, stays
  }
  if (choice !== newestChoice) return;
  shown = null;
  byId("result").hidden = true;
  delete body.dataset.result;
  showPicture(image);
  const id = ++newestId;
  pictureName = (file.name || "picture").replace(/\.[^.]*$/, "");
  waiting = { kind: "segment", id, file, shownSize: [picture.height, picture.width] };
  if (isReady) segmentWaiting();
}

function segmentWaiting() {
  setState("busy", "Preparing the picture…");
  worker.postMessage(waiting);
  waiting = null;
}

// ---- the result ----

// Paint the colours of all classes, or of one alone.
function paint(only) {
  const colors = Uint32Array.from(model.palette, ([red, green, blue], label) => {
    const alpha = only === null || label === only ? 255 : 0;
    return new Uint32Array(Uint8Array.of(red, green, blue, alpha).buffer)[0];
  });
  const image = new ImageData(shown.size[1], shown.size[0]);
  const pixels = new Uint32Array(image.data.buffer);
  for (let index = 0; index < pixels.length; index++) pixels[index] = colors[shown.labels[index]];
  overlay.getContext("2d").putImageData(image, 0, 0);
}

function setOpacity() {
  overlay.style.opacity = byId("opacity").value / 100;
}

function shareText(share) {
  return share >= 0.0005 ? `${(100 * share).toFixed(1)}%` : "<0.1%";
}

function keep(label) {
  kept = kept === label ? null : label;
  for (const button of byId("legend").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.label) === kept));
  }
  paint(kept);
}

function legendEntry(label, share) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.label = label;
  button.setAttribute("aria-pressed", "false");
  for (const [name, text] of [["swatch", ""], ["name", model.labels[label]], ["share", shareText(share)]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    button.append(part);
  }
  button.firstChild.style.backgroundColor = `rgb(${model.palette[label].join(" ")})`;
  // Fingers do not point: for them there is the click.
  button.addEventListener("pointerenter", ({ pointerType }) => pointerType === "mouse" && paint(label));
  button.addEventListener("pointerleave", () => paint(kept));
  button.addEventListener("focus", () => button.matches(":focus-visible") && paint(label));
  button.addEventListener("blur", () => paint(kept));
  button.addEventListener("click", () => keep(label));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function showResult(message) {
  const started = performance.now();
  shown = { labels: message.shown, size: message.shownSize };
  kept = null;
  const total = message.size[0] * message.size[1];
  const shares = message.counts.map((count, label) => ({ label, share: count / total }));
  const found = shares.filter(({ share }) => share > 0);
  found.sort((one, other) => other.share - one.share);
  byId("legend").replaceChildren(...found.map(({ label, share }) => legendEntry(label, share)));
  paint(null);
  setOpacity();
  byId("result").hidden = false;
  body.dataset.result = "";
  const { preparing, running } = message.times;
  const drawing = message.times.drawing + performance.now() - started;
  const [height, width] = message.size;
  const [inputHeight, inputWidth] = message.inputSize;
  const threads = message.numThreads === 1 ? "1 thread" : `${message.numThreads} threads`;
  setState("done",
    `${width} × ${height} pixels, segmented at ${inputWidth} × ${inputHeight}:` +
    ` ${Math.round(preparing)} ms preparing,` +
    ` ${Math.round(running)} ms running (${threads}), ${Math.round(drawing)} ms drawing.`);
}

function download({ blob, name }) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name}_mask.png`;
  link.click();
  // The browser has the blob as soon as the download has begun, which there is no event for.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  byId("download").disabled = false;
}

// ---- the worker ----

const RECEIVERS = {
  progress({ loaded, total }) {
    const text = [loaded, total].map((bytes) => (bytes / 1e6).toFixed(1));
    byId("progress").firstElementChild.style.width = `${(100 * loaded) / total}%`;
    setState("loading", `Loading the model: ${text[0]} of ${text[1]} MB`);
  },
  status({ text }) {
    byId("status").textContent = text;
  },
  ready() {
    isReady = true;
    byId("progress").firstElementChild.style.width = "";
    if (waiting) segmentWaiting();
    else setState("ready", "Ready.");
  },
  result: showResult,
  mask: download,
  error({ of, text }) {
    byId("download").disabled = false;
    if (of === "load") {
      fail(text);
      return;
    }
    showError(text);
    if (of === "segment") setState("ready", "Ready.");
  },
};

function startWorker() {
  // A worker of a blob is bound by the page's Content-Security-Policy; one of a file would have none.
  const program = `import ${JSON.stringify(new URL("worker.js", document.baseURI).href)};`;
  const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
  worker = new Worker(url, { type: "module" });
  worker.addEventListener("message", ({ data }) => {
    const isOld = data.id !== undefined && data.id !== newestId;
    if (!isOld) RECEIVERS[data.kind](data);
  });
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    const reason = event.message ? `: ${event.message}` : ", or could not be loaded";
    fail(`worker.js failed${reason}. Reload the page to try again.`);
  });
  worker.postMessage({ kind: "load", model, base: document.baseURI });
}

async function start() {
  if (location.protocol === "file:") {
    fail("Browsers do not let a page that was opened as a file load a model. Serve its folder, for example by" +
      " `python -m http.server`, and open http://localhost:8000.");
    return;
  }
  if (!globalThis.WebAssembly || !globalThis.OffscreenCanvas || !globalThis.CompressionStream) {
    fail("This browser is too old for this page: it has no WebAssembly, OffscreenCanvas or CompressionStream.");
    return;
  }
  setState("loading", "Loading the model…");
  try {
    const response = await fetch("model.json", { cache: "no-cache" });
    if (!response.ok) throw new Error(`the server answers ${response.status}`);
    model = await response.json();
  } catch (error) {
    fail(`model.json could not be loaded: ${error.message}. Reload the page to try again.`);
    return;
  }
  byId("about").textContent =
    `${model.name} (${model.precision}, ${model.labels.length} classes). The picture stays in this browser.`;
  startWorker();
}

// ---- what is done to the page ----

byId("file").addEventListener("change", ({ target }) => {
  if (target.files.length) choose(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
byId("opacity").addEventListener("input", setOpacity);
byId("download").addEventListener("click", ({ currentTarget }) => {
  currentTarget.disabled = true;
  worker.postMessage({ kind: "mask", name: pictureName });
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  body.dataset.dragging = "";
});
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) delete body.dataset.dragging;
});
addEventListener("drop", (event) => {
  event.preventDefault();
  delete body.dataset.dragging;
  if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  else showError("That is no file. Save the picture first, and drop its file here.");
});
addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) choose(clipboardData.files[0]);
});

start();
