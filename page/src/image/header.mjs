/**
 * Checks an image by its header, before any pixel is decoded, with the limits of `plantmodels.serve.preprocessing`.
 */

import { ImageError, withCommas } from "../errors.mjs";

/** More than the 108 megapixels of telephones. A header with more is treated as a decompression bomb. */
export const MAX_PIXELS = 120_000_000;

/** Long side divided by short side. Bounds the size of the resized image. */
export const MAX_ASPECT = 32;

/** Pixels. A smaller image cannot show a leaf. */
export const MIN_SIDE = 16;

/** Scans of a progressive JPEG. A small file of many scans could keep the browser busy for minutes. */
export const MAX_SCANS = 100;

const HEIC_BRANDS = ["heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"];

/** @typedef {{width: number, height: number, frames: number, scans: number}} Header */

/**
 * Raise unless a file is one still image of a size that is decoded.
 *
 * The size of a HEIC file is only known once it is decoded; `checkSize` is called again then.
 *
 * @param {Uint8Array} bytes the file
 */
export function checkHeader(bytes) {
  if (bytes.length === 0) throw new ImageError("zero bytes: expected an encoded image");
  const header = readHeader(bytes);
  if (header === null) {
    if (HEIC_BRANDS.includes(readText(bytes, 8, 4)) && readText(bytes, 4, 4) === "ftyp") return;
    throw new ImageError(`not an image of format JPEG, PNG, WEBP (${withCommas(bytes.length)} bytes)`);
  }
  if (header.scans > MAX_SCANS) {
    throw new ImageError(`${withCommas(header.scans)} scans, at most ${MAX_SCANS} are decoded`);
  }
  checkSize(header.width, header.height);
  if (header.frames > 1) throw new ImageError(`animated with ${header.frames} frames: expected one still image`);
}

/** @param {number} width @param {number} height */
export function checkSize(width, height) {
  const size = `${width}x${height} pixels`;
  if (width * height > MAX_PIXELS) throw new ImageError(`${size}, at most ${withCommas(MAX_PIXELS)} are decoded`);
  if (Math.min(width, height) < MIN_SIDE) throw new ImageError(`${size}, each side must have at least ${MIN_SIDE}`);
  if (Math.max(width, height) > MAX_ASPECT * Math.min(width, height)) {
    throw new ImageError(`${size}, one side is over ${MAX_ASPECT} times the other`);
  }
}

/**
 * Return the size of a JPEG, PNG or WebP file; null for other files.
 *
 * @param {Uint8Array} bytes
 * @returns {Header | null}
 */
export function readHeader(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (isJpeg(bytes)) return readJpeg(view);
    if (readText(bytes, 1, 3) === "PNG" && bytes[0] === 0x89) return readPng(view, bytes);
    if (readText(bytes, 0, 4) === "RIFF" && readText(bytes, 8, 4) === "WEBP") return readWebp(view, bytes);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new ImageError("cannot be decoded (the file ends within its header)");
  }
  return null;
}

/** @param {Uint8Array} bytes @returns {boolean} whether a file begins as a JPEG does */
export function isJpeg(bytes) {
  return bytes[0] === 0xff && bytes[1] === 0xd8;
}

/** @param {Uint8Array} bytes @param {number} start @param {number} length @returns {string} */
function readText(bytes, start, length) {
  return String.fromCharCode(...bytes.subarray(start, start + length));
}

/** Visits every marker that has a length, as Python's count of scans does. @param {DataView} view @returns {Header} */
function readJpeg(view) {
  const header = { width: 0, height: 0, frames: 1, scans: 0 };
  let position = 2;
  while (position < view.byteLength - 3) {
    const marker = view.getUint8(position + 1);
    const bare = marker <= 0x01 || marker === 0xff || (marker >= 0xd0 && marker <= 0xd7);
    if (view.getUint8(position) !== 0xff || bare) {
      position += 1;
      continue;
    }
    if (marker === 0xd9) break;
    if (marker === 0xda) header.scans += 1;
    if (isFrame(marker) && header.width === 0) {
      header.height = view.getUint16(position + 5);
      header.width = view.getUint16(position + 7);
    }
    position += 2 + view.getUint16(position + 2);
  }
  if (header.width === 0) throw new ImageError("cannot be decoded (a JPEG file without a size)");
  return header;
}

/** @param {number} marker @returns {boolean} whether the marker begins a frame, which holds the size */
function isFrame(marker) {
  return marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
}

/** @param {DataView} view @param {Uint8Array} bytes @returns {Header} */
function readPng(view, bytes) {
  const header = { width: view.getUint32(16), height: view.getUint32(20), frames: 1, scans: 0 };
  for (let position = 8; position + 12 <= bytes.length; position += 12 + view.getUint32(position)) {
    const kind = readText(bytes, position + 4, 4);
    if (kind === "acTL") header.frames = view.getUint32(position + 8);
    if (kind === "IDAT") break;
  }
  return header;
}

/** @param {DataView} view @param {Uint8Array} bytes @returns {Header} */
function readWebp(view, bytes) {
  const kind = readText(bytes, 12, 4);
  if (kind === "VP8 ") {
    return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff, frames: 1, scans: 0 };
  }
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    return { width: (bits & 0x3fff) + 1, height: ((bits >> 14) & 0x3fff) + 1, frames: 1, scans: 0 };
  }
  if (kind !== "VP8X") throw new ImageError("cannot be decoded (a WebP file without an image)");
  const side = (/** @type {number} */ at) => 1 + view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  return { width: side(24), height: side(27), frames: countFrames(view, bytes), scans: 0 };
}

/** @param {DataView} view @param {Uint8Array} bytes @returns {number} */
function countFrames(view, bytes) {
  let frames = 0;
  for (let position = 12; position + 8 <= bytes.length; ) {
    if (readText(bytes, position, 4) === "ANMF") frames += 1;
    const size = view.getUint32(position + 4, true);
    position += 8 + size + (size % 2);
  }
  return Math.max(1, frames);
}
