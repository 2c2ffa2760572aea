// Copyright 2026 The van_hf authors.
// Licensed under the Apache License, Version 2.0; see LICENSE.

// Loads the model, and segments pictures, beside the page, which stays responsive. It is told {kind: "load", model,
// base}, {kind: "segment", id, file, shownSize} and {kind: "mask", name}, one after the other, and tells
// {kind: "progress", loaded, total}, {kind: "ready"}, {kind: "status", id, text}, {kind: "result", id, ...},
// {kind: "mask", name, blob} and {kind: "error", of, id, text}.

import {
  countLabels, encodeMask, labelsOfScores, resizeLabels, resizeSteps, resizeThrough, toPixelValues,
} from "./picture.js";

const MAX_THREADS = 8;
const MAX_MODEL_MEGAPIXELS = 8;
// Above it, browsers have no canvas.
const MAX_SIDE = 32767;
// Of the canvas that a picture is read by: phones have none as large as the picture.
const STRIP_PIXELS = 2 ** 21;

let ort, model, session;
let newestId = null;
let segmented = null; // the newest result: {labels, size}
let work = Promise.resolve();

// An error whose text is for whoever looks at the page.
class Refusal extends Error {}

// Fetch files of {url, bytes}, and tell how far it is; `bytes`, null where unknown, are those of the file unpacked.
async function fetchAll(files) {
  const total = files.reduce((sum, file) => sum + (file.bytes ?? 0), 0);
  let loaded = 0;
  const contents = [];
  for (const { url, bytes } of files) {
    // The server is asked whether it has another one by now: a model's files must be of one model.
    const response = await fetch(url, { cache: "no-cache" }).catch(() => null);
    if (!response?.ok) {
      const answer = response?.status ?? "no answer";
      throw new Refusal(`${url} could not be loaded (${answer}). Reload the page to try again.`);
    }
    const chunks = [];
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      chunks.push(part.value);
      if (bytes === null) continue;
      loaded += part.value.length;
      postMessage({ kind: "progress", loaded, total });
    }
    const content = new Uint8Array(await new Blob(chunks).arrayBuffer());
    if (bytes !== null && content.length !== bytes) {
      throw new Refusal(`${url} has ${content.length} bytes, not ${bytes}: it was not copied whole to this server.`);
    }
    contents.push(content);
  }
  return contents;
}

async function load(message) {
  model = message.model;
  const absolute = (path) => new URL(path, message.base).href;
  const { script, factory, wasm } = model.runtime;
  ort = await import(absolute(script)).catch((error) => {
    throw new Refusal(`${absolute(script)} could not be loaded: ${error.message}`);
  });
  const files = [wasm, model.program, ...model.external_data];
  const contents = await fetchAll(files.map(({ path, bytes }) => ({ url: absolute(path), bytes })));
  const [binary, program, ...external] = contents;
  postMessage({ kind: "status", text: "Preparing the model…" });
  ort.env.wasm.wasmPaths = { mjs: absolute(factory), wasm: absolute(wasm.path) };
  ort.env.wasm.wasmBinary = binary;
  // Threads need memory that is shared, which browsers allow to pages with two headers alone (README).
  const mayShare = globalThis.crossOriginIsolated && model.runtime.threads;
  ort.env.wasm.numThreads = mayShare ? Math.min(navigator.hardwareConcurrency, MAX_THREADS) : 1;
  session = await ort.InferenceSession.create(program, {
    executionProviders: ["wasm"],
    externalData: model.external_data.map(({ name }, index) => ({ path: name, data: external[index] })),
  });
  postMessage({ kind: "ready" });
}

// Gives the rows of a picture, 4 bytes a pixel, over white where it is transparent; ascending rows are fast.
function rowReader(bitmap) {
  const { width, height } = bitmap;
  const stripHeight = Math.max(1, Math.min(height, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, stripHeight);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  let top = -1;
  let data = null;
  return (y) => {
    if (top < 0 || y < top || y >= top + stripHeight) {
      top = Math.min(y, height - stripHeight);
      context.fillStyle = "white";
      context.fillRect(0, 0, width, stripHeight);
      context.drawImage(bitmap, 0, -top);
      data = context.getImageData(0, 0, width, stripHeight).data;
    }
    return { data, start: (y - top) * width * 4 };
  };
}

function checkSizes([height, width], [inputHeight, inputWidth]) {
  if (Math.max(height, width) > MAX_SIDE) {
    throw new Refusal(`This picture is ${width} × ${height} pixels; a side can have at most ${MAX_SIDE}.`);
  }
  const [low, high] = model.side_limits;
  const isWithin = [inputHeight, inputWidth].every((side) => low <= side && side <= high);
  if (!isWithin || inputHeight * inputWidth > MAX_MODEL_MEGAPIXELS * 1e6) {
    throw new Refusal(
      `This picture would be segmented at ${inputWidth} × ${inputHeight} pixels; the model takes sides of ${low} to` +
      ` ${high}, and here at most ${MAX_MODEL_MEGAPIXELS} megapixels. Crop it, or choose one of another shape.`);
  }
}

// Programs of half precision take it too.
function inputType() {
  return session.inputMetadata[0].type;
}

async function prepare(file) {
  // As it is stored: the model was trained on pictures whose colour profiles were not looked at. It is turned upright.
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Refusal("This file cannot be read as a picture.");
  });
  try {
    const size = [bitmap.height, bitmap.width];
    const steps = resizeSteps(...size, model);
    checkSizes(size, steps.at(-1) ?? size);
    const { pixels, size: inputSize } = resizeThrough(steps, rowReader(bitmap), size);
    return { size, inputSize, values: toPixelValues(pixels, model, inputType() === "float16") };
  } finally {
    bitmap.close();
  }
}

// The label of each pixel of the picture.
async function infer({ size, inputSize, values }) {
  const started = performance.now();
  const input = new ort.Tensor(inputType(), values, [1, 3, ...inputSize]);
  const output = (await session.run({ pixel_values: input }))[model.output];
  const ran = performance.now();
  const numLabels = model.labels.length;
  const outputSize = output.dims.slice(-2);
  const labels = model.output === "labels"
    ? resizeLabels(output.data, numLabels, outputSize, size)
    : labelsOfScores(output.data, numLabels, outputSize, inputSize, size);
  output.dispose();
  return { labels, milliseconds: { running: ran - started, drawing: performance.now() - ran } };
}

async function segment({ id, file, shownSize }) {
  if (id !== newestId) return; // another picture was chosen meanwhile
  if (!session) throw new Refusal("The model could not be loaded. Reload the page to try again.");
  const started = performance.now();
  postMessage({ kind: "status", id, text: "Preparing the picture…" });
  const prepared = await prepare(file);
  const preparing = performance.now() - started;
  const { size, inputSize } = prepared;
  postMessage({ kind: "status", id, text: `Segmenting at ${inputSize[1]} × ${inputSize[0]} pixels…` });
  const { labels, milliseconds } = await infer(prepared);
  segmented = { labels, size };
  const numLabels = model.labels.length;
  const shown = resizeLabels(labels, numLabels, size, shownSize);
  const counts = countLabels(labels, numLabels);
  const times = { preparing, ...milliseconds };
  const numThreads = ort.env.wasm.numThreads;
  postMessage({ kind: "result", id, size, inputSize, shown, shownSize, counts, times, numThreads }, [shown.buffer]);
}

async function mask({ name }) {
  const parts = await encodeMask(segmented.labels, segmented.size, model.palette);
  postMessage({ kind: "mask", name, blob: new Blob(parts, { type: "image/png" }) });
}

const HANDLERS = { load, segment, mask };
const FAILURES = {
  load: "The model cannot be used",
  segment: "This picture could not be segmented",
  mask: "The mask could not be made",
};

async function handle(message) {
  try {
    await HANDLERS[message.kind](message);
  } catch (error) {
    console.error(error);
    const isShort = error instanceof RangeError || /memory|bad_alloc/i.test(String(error));
    const reason = isShort ? "there is not enough memory for it in this browser" : (error?.message ?? String(error));
    const text = error instanceof Refusal ? error.message : `${FAILURES[message.kind]}: ${reason.slice(0, 500)}.`;
    postMessage({ kind: "error", of: message.kind, id: message.id, text });
  }
}

addEventListener("message", ({ data }) => {
  if (data.kind === "segment") newestId = data.id;
  work = work.then(() => handle(data));
});
