/**
 * Resizes and crops an image as `plantmodels.serve.preprocessing` does, equal to the last bit.
 *
 * Only what the crop shows is computed. Rows are asked for in strips, so that a large image is never held as a whole a
 * second time.
 *
 * One thing differs: by recipe 2, Python lets the decoder of a large JPEG leave out fine detail, which no browser does. The
 * page averages the same blocks of pixels instead.
 */

import { computeCoefficients, nearestPixels } from "./filters.mjs";
import { reduce } from "./reduce.mjs";
import { resampleColumnsFirst, resampleRowsFirst } from "./resample.mjs";

/** By recipe 2, how many times larger than the resized image a reduced one is at least. */
const GAP = 2;

/**
 * An upright image whose pixels are read in strips of rows.
 *
 * @typedef {{width: number, height: number, readRows: (first: number, count: number) => Uint8ClampedArray | Uint8Array,
 *   jpegCorner?: import("./orientation.mjs").Corner}} PixelSource `readRows` returns RGBA, 4 bytes a pixel; `jpegCorner`
 *   is where a JPEG file begins, and missing for other files
 *
 * @typedef {{image_size: number, mean: number[], std: number[], interpolation: string, crop_pct: number,
 *   recipe: number}} Preprocessing
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
  const size = preprocessing.image_size;
  const byRecipe2 = preprocessing.recipe === 2;
  const scale = byRecipe2 && source.jpegCorner ? draftScale(source, preprocessing) : 1;
  const decoded = reduce(source, scale, scale, source.jpegCorner);
  const plan = planResize(decoded.width, decoded.height, preprocessing);
  if (preprocessing.interpolation === "nearest") return copyNearest(decoded, plan, size);
  const columns = byRecipe2 ? reducingFactor(decoded.width, plan.width) : 1;
  const rows = byRecipe2 ? reducingFactor(decoded.height, plan.height) : 1;
  const small = reduce(decoded, columns, rows);
  const { interpolation } = preprocessing;
  const horizontal = computeCoefficients(small.width, decoded.width / columns, plan.width, interpolation);
  const vertical = computeCoefficients(small.height, decoded.height / rows, plan.height, interpolation);
  const resample = shrinksColumnsFirst(small, plan) ? resampleColumnsFirst : resampleRowsFirst;
  return resample(small, { horizontal, vertical, left: plan.left, top: plan.top, size });
}

/** As Pillow 13 chooses it; older versions always begin with the rows. @type {(image: PixelSource, plan: Plan) => boolean} */
function shrinksColumnsFirst(image, plan) {
  const lost = image.height - plan.height;
  return lost > 0 && lost > (image.width - plan.width) * 2;
}

/** As `JpegImageFile.draft` of Pillow chooses it. @type {(source: PixelSource, preprocessing: Preprocessing) => number} */
function draftScale({ width, height }, preprocessing) {
  const wanted = GAP * Math.floor(preprocessing.image_size / preprocessing.crop_pct);
  const scale = Math.floor(Math.min(width, height) / wanted);
  return [8, 4, 2].find((power) => scale >= power) ?? 1;
}

/** As `Image.resize` of Pillow chooses it with `reducing_gap`. @type {(before: number, after: number) => number} */
function reducingFactor(before, after) {
  return Math.max(1, Math.trunc(before / after / GAP));
}

/** @typedef {{width: number, height: number, left: number, top: number}} Plan */

/** @type {(source: PixelSource, plan: Plan, size: number) => Uint8Array} */
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
