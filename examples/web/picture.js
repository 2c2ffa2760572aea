// Copyright 2026 The van_hf authors.
// Licensed under the Apache License, Version 2.0; see LICENSE.

// What is done with a picture's pixels before and after the model, as VanImageProcessor and whole_inference do it:
// functions of numbers, which know nothing of the browser. Pixels are rows of bytes, sizes [height, width].

// A model's input as the image processor resizes to it: the sizes that a picture goes through.
export function resizeSteps(height, width, model) {
  const size = model.size;
  if (size === null) return [];
  if (size.height) return [[size.height, size.width]];
  let scale = size.shortest_edge / Math.min(height, width);
  if (size.longest_edge) scale = Math.min(scale, size.longest_edge / Math.max(height, width));
  const ratioKept = [height, width].map((side) => Math.max(1, Math.floor(side * scale + 0.5)));
  return [ratioKept, ratioKept.map((side) => Math.ceil(side / model.size_divisor) * model.size_divisor)];
}

function roundHalfToEven(value) {
  const below = Math.floor(value);
  const isBelow = value - below < 0.5 || (value - below === 0.5 && below % 2 === 0);
  return isBelow ? below : below + 1;
}

// Both neighbours of each new pixel along one side, and the second one's weight of 2048: OpenCV's.
function fixedPointTaps(length, newLength) {
  const [first, second, weight] = [0, 0, 0].map(() => new Int32Array(newLength));
  for (let index = 0; index < newLength; index++) {
    const position = Math.fround((index + 0.5) * (length / newLength) - 0.5);
    const floor = Math.floor(position);
    weight[index] = roundHalfToEven(Math.fround(position - floor) * 2048);
    first[index] = Math.min(Math.max(floor, 0), length - 1);
    second[index] = Math.min(Math.max(floor + 1, 0), length - 1);
  }
  return { first, second, weight };
}

// Resize as OpenCV does bilinearly, bit for bit, without antialiasing.
//
// rowOf(y): {data, start}, where row y begins in bytes of `channels` (3, or 4 of which the last is left out) each;
//     rows are asked for in ascending order, and only those that are used.
// Returns bytes of 3 channels.
export function resizeBilinear(rowOf, [height, width], channels, [newHeight, newWidth]) {
  const vertical = fixedPointTaps(height, newHeight);
  const horizontal = fixedPointTaps(width, newWidth);
  const pixels = new Uint8ClampedArray(newHeight * newWidth * 3);
  const rows = [0, 1].map(() => ({ y: -1, values: new Int32Array(newWidth * 3) }));

  function resizedRow(y, other) {
    const kept = rows.find((row) => row.y === y);
    if (kept) return kept;
    const row = rows.find((candidate) => candidate.y !== other);
    const { data, start } = rowOf(y);
    for (let x = 0, place = 0; x < newWidth; x++) {
      const left = start + horizontal.first[x] * channels;
      const right = start + horizontal.second[x] * channels;
      const weight = horizontal.weight[x];
      for (let channel = 0; channel < 3; channel++) {
        row.values[place++] = (data[left + channel] * (2048 - weight) + data[right + channel] * weight) >> 4;
      }
    }
    row.y = y;
    return row;
  }

  for (let y = 0, place = 0; y < newHeight; y++) {
    const [first, second, weight] = [vertical.first[y], vertical.second[y], vertical.weight[y]];
    const upper = resizedRow(first, second).values;
    const lower = resizedRow(second, first).values;
    for (let index = 0; index < upper.length; index++) {
      const sum = ((upper[index] * (2048 - weight)) >> 16) + ((lower[index] * weight) >> 16);
      pixels[place++] = (sum + 2) >> 2;
    }
  }
  return pixels;
}

function rowsOf(pixels, width) {
  return (y) => ({ data: pixels, start: y * width * 3 });
}

// Resize a picture of bytes of 4 channels, whose rows rowOf(y) gives, through `steps`.
// Returns {pixels: bytes of 3 channels, size}.
export function resizeThrough(steps, rowOf, size) {
  // Without a step this drops the fourth channel: to its own size, a picture is resized to itself.
  const [first, ...others] = steps.length ? steps : [size];
  let resized = { pixels: resizeBilinear(rowOf, size, 4, first), size: first };
  for (const step of others) {
    if (step[0] === resized.size[0] && step[1] === resized.size[1]) continue;
    const pixels = resizeBilinear(rowsOf(resized.pixels, resized.size[1]), resized.size, 3, step);
    resized = { pixels, size: step };
  }
  return resized;
}

// The bits of the float16 nearest to a number of up to 65504 in size.
export function float16Bits(value) {
  const sign = value < 0 ? 0x8000 : 0;
  const size = Math.abs(value);
  if (size < 2 ** -14) return sign; // smaller ones are as good as 0 for pixels
  const exponent = Math.floor(Math.log2(size));
  // A fraction that is rounded up to 1024 goes on into the exponent.
  return sign + ((exponent + 15) << 10) + roundHalfToEven((size / 2 ** exponent - 1) * 1024);
}

// Rescale and normalize bytes of 3 channels. Returns (3, height, width), float32 or the bits of float16.
export function toPixelValues(pixels, model, isHalf = false) {
  const numPixels = pixels.length / 3;
  const values = new (isHalf ? Uint16Array : Float32Array)(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    const table = values.constructor.from({ length: 256 }, (_, byte) => {
      const value = (byte * model.scale - model.mean[channel]) / model.std[channel];
      return isHalf ? float16Bits(value) : value;
    });
    const start = channel * numPixels;
    for (let index = 0; index < numPixels; index++) values[start + index] = table[pixels[index * 3 + channel]];
  }
  return values;
}

// Both neighbours of each new pixel along one side, and the second one's weight: torch's.
function bilinearTaps(length, newLength) {
  const [before, after] = [0, 0].map(() => new Int32Array(newLength));
  const weight = new Float64Array(newLength);
  for (let index = 0; index < newLength; index++) {
    const position = Math.max((index + 0.5) * (length / newLength) - 0.5, 0);
    before[index] = Math.min(Math.floor(position), length - 1);
    after[index] = Math.min(before[index] + 1, length - 1);
    weight[index] = position - before[index];
  }
  return { before, after, weight };
}

function lerp(first, firstStart, second, secondStart, weight, target, targetStart, length) {
  for (let index = 0; index < length; index++) {
    const value = first[firstStart + index];
    target[targetStart + index] = value + (second[secondStart + index] - value) * weight;
  }
}

function bestClass(scores, start, numLabels) {
  let best = 0;
  let highest = scores[start];
  for (let label = 1; label < numLabels; label++) {
    if (scores[start + label] <= highest) continue;
    best = label;
    highest = scores[start + label];
  }
  return best;
}

// The best class at a place between two rows, and between two columns that begin at `left` and `right` in both.
function bestClassBetween(upper, lower, down, left, right, across, numLabels) {
  let best = 0;
  let highest = -Infinity;
  for (let label = 0; label < numLabels; label++) {
    const before = upper[left + label] + (lower[left + label] - upper[left + label]) * down;
    const after = upper[right + label] + (lower[right + label] - upper[right + label]) * down;
    const score = before + (after - before) * across;
    if (score <= highest) continue;
    best = label;
    highest = score;
  }
  return best;
}

// (numLabels, rows, columns) to (rows, columns, numLabels), so that the scores of a pixel lie together.
function classesLast(scores, numLabels) {
  const numPixels = scores.length / numLabels;
  const moved = new Float32Array(scores.length);
  for (let label = 0; label < numLabels; label++) {
    const start = label * numPixels;
    for (let pixel = 0; pixel < numPixels; pixel++) moved[pixel * numLabels + label] = scores[start + pixel];
  }
  return moved;
}

// Gives the rows of scores that are interpolated to `newSize`, one by one in ascending order, as {scores, best: the
// class of each column}; two are kept.
function interpolatedRows(scores, numLabels, [height, width], [newHeight, newWidth]) {
  const [vertical, horizontal] = [bilinearTaps(height, newHeight), bilinearTaps(width, newWidth)];
  const between = new Float32Array(width * numLabels);
  const rows = [0, 1].map(() => ({
    y: -1, scores: new Float32Array(newWidth * numLabels), best: new Int32Array(newWidth),
  }));
  return (y, other) => {
    const kept = rows.find((row) => row.y === y);
    if (kept) return kept;
    const row = rows.find((candidate) => candidate.y !== other);
    const starts = [vertical.before[y], vertical.after[y]].map((line) => line * width * numLabels);
    lerp(scores, starts[0], scores, starts[1], vertical.weight[y], between, 0, between.length);
    for (let x = 0; x < newWidth; x++) {
      const [before, after] = [horizontal.before[x] * numLabels, horizontal.after[x] * numLabels];
      lerp(between, before, between, after, horizontal.weight[x], row.scores, x * numLabels, numLabels);
      row.best[x] = bestClass(row.scores, x * numLabels, numLabels);
    }
    row.y = y;
    return row;
  };
}

function emptyLabels(numLabels, size) {
  return new (numLabels <= 256 ? Uint8Array : Uint16Array)(size[0] * size[1]);
}

// The labels of scores that are interpolated to the input's size, and then to the picture's, of which a row at a time
// is there. What is best at two places is best anywhere between them, so that only borders are worked out.
//
// scores: float32 of (numLabels, ...scoresSize).
// Returns unsigned integers of pictureSize.
export function labelsOfScores(scores, numLabels, scoresSize, inputSize, pictureSize) {
  const inputRow = interpolatedRows(classesLast(scores, numLabels), numLabels, scoresSize, inputSize);
  const [vertical, horizontal] = [0, 1].map((side) => bilinearTaps(inputSize[side], pictureSize[side]));
  const best = new Int32Array(inputSize[1]);
  const labels = emptyLabels(numLabels, pictureSize);
  for (let y = 0, place = 0; y < pictureSize[0]; y++) {
    const upper = inputRow(vertical.before[y], vertical.after[y]);
    const lower = inputRow(vertical.after[y], vertical.before[y]);
    const down = vertical.weight[y];
    for (let x = 0; x < best.length; x++) {
      const start = x * numLabels;
      best[x] = upper.best[x] === lower.best[x]
        ? upper.best[x]
        : bestClassBetween(upper.scores, lower.scores, down, start, start, 0, numLabels);
    }
    for (let x = 0; x < pictureSize[1]; x++) {
      const [left, right] = [horizontal.before[x], horizontal.after[x]];
      labels[place++] = best[left] === best[right]
        ? best[left]
        : bestClassBetween(upper.scores, lower.scores, down, left * numLabels, right * numLabels, horizontal.weight[x],
          numLabels);
    }
  }
  return labels;
}

// A map of labels at another size: to each new pixel its nearest one, as torch's "nearest-exact".
export function resizeLabels(labels, numLabels, size, newSize) {
  const [rows, columns] = [0, 1].map((side) => Int32Array.from({ length: newSize[side] }, (_, index) =>
    Math.min(Math.floor((index + 0.5) * (size[side] / newSize[side])), size[side] - 1)));
  const resized = emptyLabels(numLabels, newSize);
  let place = 0;
  for (const row of rows) for (const column of columns) resized[place++] = labels[row * size[1] + column];
  return resized;
}

// Number of pixels of each label.
export function countLabels(labels, numLabels) {
  const counts = new Array(numLabels).fill(0);
  for (const label of labels) counts[label]++;
  return counts;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function pngChunk(type, data) {
  const chunk = new Uint8Array(data.length + 12);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  chunk.set(new TextEncoder().encode(type), 4);
  chunk.set(data, 8);
  let crc = 0xffffffff;
  for (let index = 4; index < data.length + 8; index++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ chunk[index]) & 255];
  view.setUint32(data.length + 8, ~crc >>> 0);
  return chunk;
}

async function deflateRows(labels, [height, width], bytesPerLabel) {
  const stream = new CompressionStream("deflate");
  const compressed = new Response(stream.readable).arrayBuffer();
  const writer = stream.writable.getWriter();
  const rowsAtOnce = Math.max(1, Math.floor(2 ** 20 / width));
  for (let top = 0; top < height; top += rowsAtOnce) {
    const bottom = Math.min(top + rowsAtOnce, height);
    const bytes = new Uint8Array((bottom - top) * (1 + width * bytesPerLabel));
    let place = 0;
    for (let y = top; y < bottom; y++) {
      bytes[place++] = 0; // the row is not filtered
      for (let x = y * width; x < (y + 1) * width; x++) {
        if (bytesPerLabel === 2) bytes[place++] = labels[x] >> 8;
        bytes[place++] = labels[x] & 255;
      }
    }
    await writer.write(bytes);
  }
  await writer.close();
  return new Uint8Array(await compressed);
}

// A PNG of class numbers with the classes' colours as its palette, as predict.py writes; of more than 256 classes, 16
// bits of grey. Returns parts of a file, to be joined.
export async function encodeMask(labels, size, palette) {
  const isIndexed = palette.length <= 256;
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, size[1]);
  view.setUint32(4, size[0]);
  header.set(isIndexed ? [8, 3] : [16, 0], 8);
  const parts = [Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a), pngChunk("IHDR", header)];
  if (isIndexed) parts.push(pngChunk("PLTE", Uint8Array.from(palette.flat())));
  parts.push(pngChunk("IDAT", await deflateRows(labels, size, isIndexed ? 1 : 2)));
  parts.push(pngChunk("IEND", new Uint8Array(0)));
  return parts;
}
