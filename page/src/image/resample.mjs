/**
 * The two passes of a resize, as `ImagingResample` of Pillow computes them: each pass rounds to 8 bits.
 *
 * All sums are integers below 2^53 and therefore exact. The shift takes the same 32 bits as C does.
 */

import { PRECISION_BITS } from "./filters.mjs";
import { STRIP_ROWS } from "./reduce.mjs";

const HALF = 1 << (PRECISION_BITS - 1);

/**
 * What is computed: a square of `size` pixels, from column `left` and row `top` of the resized image on.
 *
 * @typedef {import("./filters.mjs").Coefficients} Coefficients
 * @typedef {import("./resize.mjs").PixelSource} PixelSource
 * @typedef {{horizontal: Coefficients, vertical: Coefficients, left: number, top: number, size: number}} Square
 */

/**
 * Resize each row, then each column.
 *
 * @param {PixelSource} source
 * @param {Square} square
 * @returns {Uint8Array} RGB
 */
export function resampleRowsFirst(source, { horizontal, vertical, left, top, size }) {
  const [firstRow, lastRow] = span(vertical, top, size);
  const narrow = new Uint8ClampedArray((lastRow - firstRow) * size * 3);
  for (let row = firstRow; row < lastRow; row += STRIP_ROWS) {
    const count = Math.min(STRIP_ROWS, lastRow - row);
    const target = narrow.subarray((row - firstRow) * size * 3, (row - firstRow + count) * size * 3);
    resizeRows(source.readRows(row, count), source.width, 0, target, left, size, horizontal);
  }
  const sums = new Int32Array(size * size * 3).fill(HALF);
  for (let row = firstRow; row < lastRow; row++) {
    const pixels = narrow.subarray((row - firstRow) * size * 3, (row - firstRow + 1) * size * 3);
    addRow(pixels, row, sums, top, size, vertical);
  }
  return new Uint8Array(roundSums(sums).buffer);
}

/**
 * Resize each column, then each row. Pillow does so for tall images.
 *
 * @param {PixelSource} source
 * @param {Square} square
 * @returns {Uint8Array} RGB
 */
export function resampleColumnsFirst(source, { horizontal, vertical, left, top, size }) {
  const [firstRow, lastRow] = span(vertical, top, size);
  const [firstColumn, lastColumn] = span(horizontal, left, size);
  const width = lastColumn - firstColumn;
  const sums = new Int32Array(size * width * 4).fill(HALF);
  for (let row = firstRow; row < lastRow; row += STRIP_ROWS) {
    const count = Math.min(STRIP_ROWS, lastRow - row);
    const pixels = source.readRows(row, count);
    for (let y = 0; y < count; y++) {
      const start = (y * source.width + firstColumn) * 4;
      addRow(pixels.subarray(start, start + width * 4), row + y, sums, top, size, vertical);
    }
  }
  const square = new Uint8ClampedArray(size * size * 3);
  resizeRows(roundSums(sums), width, firstColumn, square, left, size, horizontal);
  return new Uint8Array(square.buffer);
}

/** The pixels that `size` outputs need. @type {(coefficients: Coefficients, start: number, size: number) => number[]} */
function span({ first, count }, start, size) {
  const last = start + size - 1;
  return [first[start], first[last] + count[last]];
}

/**
 * Resize rows.
 *
 * @param {Uint8ClampedArray | Uint8Array} rows RGBA
 * @param {number} width pixels of a row
 * @param {number} offset the image's column with which each row begins
 * @param {Uint8ClampedArray} target RGB; its clamping is that of Pillow, and rounds nothing as the sums are integers
 * @param {number} left the first column to compute
 * @param {number} size the number of columns to compute
 * @param {Coefficients} coefficients
 */
function resizeRows(rows, width, offset, target, left, size, { first, count, weights, stride }) {
  const height = target.length / (size * 3);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = left; x < left + size; x++) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      let pixel = (y * width + first[x] - offset) * 4;
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
 * Add one row of an image to all rows of the result that need it.
 *
 * @param {Uint8ClampedArray | Uint8Array} pixels
 * @param {number} row its place in the image
 * @param {Int32Array} sums as long as `size` rows of pixels
 * @param {number} top the first row to compute
 * @param {number} size the number of rows to compute
 * @param {Coefficients} coefficients
 */
function addRow(pixels, row, sums, top, size, { first, count, weights, stride }) {
  for (let y = 0; y < size; y++) {
    const tap = row - first[top + y];
    if (tap < 0) break;
    if (tap >= count[top + y]) continue;
    const weight = weights[(top + y) * stride + tap];
    const start = y * pixels.length;
    for (let column = 0; column < pixels.length; column++) sums[start + column] += pixels[column] * weight;
  }
}

/** @param {Int32Array} sums @returns {Uint8ClampedArray} */
function roundSums(sums) {
  return Uint8ClampedArray.from(sums, (sum) => sum >> PRECISION_BITS);
}
