/** Turns pixels into the network's input, in float32 step by step as NumPy does. */

/**
 * Return `(pixel / 255 - mean) / std` of each channel.
 *
 * @param {Uint8Array} square RGB, side × side × 3
 * @param {import("./resize.mjs").Preprocessing} preprocessing
 * @returns {Float32Array} 3 × side × side
 */
export function normalize(square, preprocessing) {
  const pixels = square.length / 3;
  const input = new Float32Array(square.length);
  for (let channel = 0; channel < 3; channel++) {
    const table = tabulate(preprocessing.mean[channel], preprocessing.std[channel]);
    for (let pixel = 0; pixel < pixels; pixel++) input[channel * pixels + pixel] = table[square[pixel * 3 + channel]];
  }
  return input;
}

/** @param {number} mean @param {number} std @returns {Float32Array} the input for each of the 256 values */
function tabulate(mean, std) {
  const { fround } = Math;
  return Float32Array.from({ length: 256 }, (_, value) =>
    fround(fround(fround(value / 255) - fround(mean)) / fround(std)),
  );
}
