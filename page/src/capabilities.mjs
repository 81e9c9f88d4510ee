/** Says what a browser lacks, before anything is downloaded. */

import { BrowserError } from "./errors.mjs";

/** A module of one function that adds nothing but needs SIMD: `() => i8x16.splat(i32.const 0)`, whose value is dropped. */
const SIMD_MODULE = new Uint8Array([
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00, 0x01, 0x04, 0x01, 0x60, 0x00, 0x00, 0x03, 0x02, 0x01, 0x00, 0x0a, 0x09,
  0x01, 0x07, 0x00, 0x41, 0x00, 0xfd, 0x0f, 0x1a, 0x0b,
]);

const NEWER = "use a browser from 2023 or later";

/**
 * Raise unless the browser has everything that the page needs.
 *
 * @param {any} scope the global object
 */
export function checkBrowser(scope) {
  if (!scope.isSecureContext) throw new BrowserError("this page needs https (or localhost): it checks digests and works offline");
  if (typeof scope.WebAssembly?.validate !== "function") throw new BrowserError(`this browser has no WebAssembly: ${NEWER}`);
  if (!scope.WebAssembly.validate(SIMD_MODULE)) throw new BrowserError(`this browser has no WebAssembly SIMD: ${NEWER}`);
  for (const name of ["OffscreenCanvas", "createImageBitmap", "Worker", "caches"]) {
    if (!(name in scope)) throw new BrowserError(`this browser has no ${name}: ${NEWER}`);
  }
}
