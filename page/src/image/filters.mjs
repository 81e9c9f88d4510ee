/**
 * The resize filters of Pillow, with the coefficients in fixed point that its Resample.c computes.
 *
 * Every step is done in the same order and in the same precision, so that each coefficient is equal.
 */

/** Fractional bits of a coefficient: 32, minus 8 of the pixel and 2 for filters that exceed 1. */
export const PRECISION_BITS = 32 - 8 - 2;

/** @param {number} x @returns {number} */
function bilinear(x) {
  const distance = Math.abs(x);
  return distance < 1 ? 1 - distance : 0;
}

/** @param {number} x @returns {number} */
function bicubic(x) {
  const a = -0.5;
  const distance = Math.abs(x);
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
  return 0;
}

/** @param {number} x @returns {number} */
function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** @param {number} x @returns {number} */
function lanczos(x) {
  return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}

/** @type {Record<string, {weigh: (x: number) => number, support: number}>} */
const FILTERS = {
  bilinear: { weigh: bilinear, support: 1 },
  bicubic: { weigh: bicubic, support: 2 },
  lanczos: { weigh: lanczos, support: 3 },
};

/**
 * For each output pixel: the first input pixel (`first`), the number of input pixels (`count`), and their weights at
 * `weights[output * stride]`.
 *
 * @typedef {{first: Int32Array, count: Int32Array, weights: Int32Array, stride: number}} Coefficients
 */

/**
 * Return the coefficients that resize one side of an image.
 *
 * @param {number} inputSize pixels before
 * @param {number} inputLength how much of them the image fills; less than `inputSize` if its last pixel is a partial one
 * @param {number} outputSize pixels after
 * @param {string} interpolation "bilinear", "bicubic" or "lanczos"
 * @returns {Coefficients}
 */
export function computeCoefficients(inputSize, inputLength, outputSize, interpolation) {
  const { weigh, support: filterSupport } = FILTERS[interpolation];
  const scale = Math.fround(inputLength) / outputSize; // Pillow passes lengths as float32
  const filterScale = Math.max(scale, 1);
  const support = filterSupport * filterScale;
  const stride = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(outputSize);
  const count = new Int32Array(outputSize);
  const weights = new Int32Array(outputSize * stride);
  const exact = new Float64Array(stride);
  for (let output = 0; output < outputSize; output++) {
    const center = (output + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const length = Math.min(inputSize, Math.trunc(center + support + 0.5)) - start;
    let sum = 0;
    for (let tap = 0; tap < length; tap++) {
      exact[tap] = weigh((tap + start - center + 0.5) * (1 / filterScale));
      sum += exact[tap];
    }
    for (let tap = 0; tap < length; tap++) {
      weights[output * stride + tap] = toFixedPoint(sum === 0 ? exact[tap] : exact[tap] / sum);
    }
    first[output] = start;
    count[output] = length;
  }
  return { first, count, weights, stride };
}

/** @param {number} weight @returns {number} */
function toFixedPoint(weight) {
  return Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * 2 ** PRECISION_BITS);
}

/**
 * Return the input pixel that each output pixel copies with the filter "nearest".
 *
 * @param {number} inputSize pixels before
 * @param {number} outputSize pixels after
 * @returns {Int32Array}
 */
export function nearestPixels(inputSize, outputSize) {
  const scale = inputSize / outputSize;
  const pixels = new Int32Array(outputSize);
  let position = scale * 0.5; // Pillow adds up, so this code does
  for (let output = 0; output < outputSize; output++) {
    pixels[output] = Math.min(inputSize - 1, Math.trunc(position));
    position += scale;
  }
  return pixels;
}
