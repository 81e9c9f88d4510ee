/** Errors whose message is written for the person who uses the page; every other error is a bug. */

/** An image that cannot be classified. */
export class ImageError extends Error {
  name = "ImageError";
}

/** A bundle that cannot be used. */
export class BundleError extends Error {
  name = "BundleError";
}

/** A browser that lacks something that the page needs. */
export class BrowserError extends Error {
  name = "BrowserError";
}

/** @param {number} value @returns {string} with commas between thousands, as Python prints it */
export function withCommas(value) {
  return value.toLocaleString("en-US");
}
