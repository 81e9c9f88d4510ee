/**
 * Resizes and crops an image as `plantmodels.serve.preprocessing.resize_and_crop` does, equal to the last bit.
 *
 * Pillow resizes rows first and rounds to 8 bits, then columns. Only what the crop shows is computed here. Rows are asked
 * for in strips, so that a large image is never held as a whole a second time.
 */

import { computeCoefficients, nearestPixels, PRECISION_BITS } from "./filters.mjs";

/** Rows that are read at once: 8 MB of a 108-megapixel image. */
const STRIP_ROWS = 128;

const HALF = 1 << (PRECISION_BITS - 1);

/**
 * An upright image whose pixels are read in strips of rows.
 *
 * @typedef {{width: number, height: number, readRows: (first: number, count: number) => Uint8ClampedArray | Uint8Array}}
 *   PixelSource `readRows` returns RGBA, 4 bytes a pixel
 *
 * @typedef {{image_size: number, mean: number[], std: number[], interpolation: string, crop_pct: number}} Preprocessing
 */

/**
 * Return the size after the resize, and where the central square lies in it.
 *
 * @param {number} width
 * @param {number} height
 * @param {Preprocessing} preprocessing
 */
export function planResize(width, height, preprocessing) {
  const size = preprocessing.image_size;
  const shorter = Math.floor(size / preprocessing.crop_pct);
  const resized =
    width <= height
      ? { width: shorter, height: Math.trunc((shorter * height) / width) }
      : { width: Math.trunc((shorter * width) / height), height: shorter };
  return { ...resized, left: roundHalfToEven((resized.width - size) / 2), top: roundHalfToEven((resized.height - size) / 2) };
}

/** Python's `round`. @param {number} value @returns {number} */
function roundHalfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

/**
 * Return the central square of the resized image.
 *
 * @param {PixelSource} source
 * @param {Preprocessing} preprocessing
 * @returns {Uint8Array} RGB, `image_size` × `image_size` × 3
 */
export function resizeAndCrop(source, preprocessing) {
  const plan = planResize(source.width, source.height, preprocessing);
  const size = preprocessing.image_size;
  const resize = preprocessing.interpolation === "nearest" ? copyNearest : resample;
  return resize(source, plan, size, preprocessing.interpolation);
}

/** @typedef {{width: number, height: number, left: number, top: number}} Plan */

/** @type {(source: PixelSource, plan: Plan, size: number, interpolation: string) => Uint8Array} */
function copyNearest(source, plan, size) {
  const columns = nearestPixels(source.width, plan.width);
  const rows = nearestPixels(source.height, plan.height);
  const square = new Uint8Array(size * size * 3);
  for (let y = 0, target = 0; y < size; y++) {
    const row = source.readRows(rows[plan.top + y], 1);
    for (let x = 0; x < size; x++) {
      const pixel = columns[plan.left + x] * 4;
      for (let channel = 0; channel < 3; channel++) square[target++] = row[pixel + channel];
    }
  }
  return square;
}

/** @type {(source: PixelSource, plan: Plan, size: number, interpolation: string) => Uint8Array} */
function resample(source, plan, size, interpolation) {
  const vertical = computeCoefficients(source.height, plan.height, interpolation);
  const bottom = plan.top + size - 1;
  const firstRow = vertical.first[plan.top];
  const lastRow = vertical.first[bottom] + vertical.count[bottom];
  const horizontal = computeCoefficients(source.width, plan.width, interpolation);
  const narrow = new Uint8ClampedArray((lastRow - firstRow) * size * 3);
  for (let row = firstRow; row < lastRow; row += STRIP_ROWS) {
    const count = Math.min(STRIP_ROWS, lastRow - row);
    const target = narrow.subarray((row - firstRow) * size * 3, (row - firstRow + count) * size * 3);
    shrinkRows(source.readRows(row, count), source.width, target, size, plan.left, horizontal);
  }
  return shrinkColumns(narrow, firstRow, size, plan.top, vertical);
}

/**
 * Resize rows. Sums stay below 2^53 and are therefore exact; the shift takes the same 32 bits as C does.
 *
 * @param {Uint8ClampedArray | Uint8Array} rows RGBA
 * @param {number} width pixels of a row
 * @param {Uint8ClampedArray} target RGB; a clamped array rounds nothing here, as the sums are integers
 * @param {number} size columns to compute
 * @param {number} left the first of them
 * @param {import("./filters.mjs").Coefficients} coefficients
 */
function shrinkRows(rows, width, target, size, left, { first, count, weights, stride }) {
  const height = target.length / (size * 3);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = left; x < left + size; x++) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      let pixel = (y * width + first[x]) * 4;
      const end = x * stride + count[x];
      for (let tap = x * stride; tap < end; tap++, pixel += 4) {
        const weight = weights[tap];
        red += rows[pixel] * weight;
        green += rows[pixel + 1] * weight;
        blue += rows[pixel + 2] * weight;
      }
      target[out++] = red >> PRECISION_BITS;
      target[out++] = green >> PRECISION_BITS;
      target[out++] = blue >> PRECISION_BITS;
    }
  }
}

/**
 * Resize columns.
 *
 * @param {Uint8ClampedArray} narrow RGB rows of `size` pixels, from `firstRow` on
 * @param {number} firstRow
 * @param {number} size rows to compute
 * @param {number} top the first of them
 * @param {import("./filters.mjs").Coefficients} coefficients
 * @returns {Uint8Array}
 */
function shrinkColumns(narrow, firstRow, size, top, { first, count, weights, stride }) {
  const square = new Uint8ClampedArray(size * size * 3);
  const rowLength = size * 3;
  for (let y = 0; y < size; y++) {
    const start = (first[top + y] - firstRow) * rowLength;
    const taps = (top + y) * stride;
    for (let column = 0; column < rowLength; column++) {
      let sum = HALF;
      for (let tap = 0; tap < count[top + y]; tap++) sum += narrow[start + tap * rowLength + column] * weights[taps + tap];
      square[y * rowLength + column] = sum >> PRECISION_BITS;
    }
  }
  return new Uint8Array(square.buffer);
}
