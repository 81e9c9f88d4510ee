/**
 * Reduces an image by whole numbers, as `Image.reduce` of Pillow does: each block of pixels becomes its average.
 */

/** Rows that are read from an image at once: 6 MB of a 108-megapixel image. */
export const STRIP_ROWS = 128;

/** @typedef {import("./resize.mjs").PixelSource} PixelSource */

/**
 * Return the image at 1/`columns` of its width and 1/`rows` of its height, rounded up. It is read when it is asked for.
 *
 * @param {PixelSource} source
 * @param {number} columns pixels of a block, side by side
 * @param {number} rows
 * @param {import("./orientation.mjs").Corner} corner where the first whole block is; the last ones may be partial
 * @returns {PixelSource}
 */
export function reduce(source, columns, rows, corner = { fromRight: false, fromBottom: false }) {
  if (columns === 1 && rows === 1) return source;
  const width = Math.ceil(source.width / columns);
  const height = Math.ceil(source.height / rows);
  const missing = {
    x: corner.fromRight ? width * columns - source.width : 0,
    y: corner.fromBottom ? height * rows - source.height : 0,
  };
  const ends = Int32Array.from({ length: width }, (_, x) => Math.min(source.width, (x + 1) * columns - missing.x));
  const step = Math.max(1, Math.floor(STRIP_ROWS / rows));
  const startOf = (/** @type {number} */ row) => Math.min(source.height, Math.max(0, row * rows - missing.y));
  return {
    width,
    height,
    readRows(first, count) {
      const target = new Uint8Array(count * width * 4);
      for (let strip = first; strip < first + count; strip += step) {
        const end = Math.min(strip + step, first + count);
        const top = startOf(strip);
        const pixels = source.readRows(top, startOf(end) - top);
        for (let row = strip; row < end; row++) {
          const part = pixels.subarray((startOf(row) - top) * source.width * 4, (startOf(row + 1) - top) * source.width * 4);
          averageBlocks(part, source.width, target.subarray((row - first) * width * 4), ends);
        }
      }
      return target;
    },
  };
}

/**
 * Average one row of blocks; alpha is not written.
 *
 * @param {Uint8ClampedArray | Uint8Array} pixels RGBA, all rows of these blocks
 * @param {number} width pixels of a row
 * @param {Uint8Array} target
 * @param {Int32Array} ends the column behind each block
 */
function averageBlocks(pixels, width, target, ends) {
  const height = pixels.length / (width * 4);
  for (let block = 0, left = 0; block < ends.length; left = ends[block], block++) {
    const count = height * (ends[block] - left);
    const multiplier = divisionMultiplier(count);
    let red = count >> 1;
    let green = red;
    let blue = red;
    for (let y = 0; y < height; y++) {
      for (let pixel = (y * width + left) * 4; pixel < (y * width + ends[block]) * 4; pixel += 4) {
        red += pixels[pixel];
        green += pixels[pixel + 1];
        blue += pixels[pixel + 2];
      }
    }
    target[block * 4] = Math.imul(red, multiplier) >>> 24;
    target[block * 4 + 1] = Math.imul(green, multiplier) >>> 24;
    target[block * 4 + 2] = Math.imul(blue, multiplier) >>> 24;
  }
}

/** Pillow divides by multiplication, with a float32 as intermediate. @param {number} count @returns {number} */
function divisionMultiplier(count) {
  return Math.trunc(Math.fround(2 ** 32 / Math.fround(count * 256)));
}
