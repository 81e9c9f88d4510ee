/** Reads from a JPEG file how the browser will turn it. */

const EXIF = [0x45, 0x78, 0x69, 0x66, 0, 0];
const ORIENTATION_TAG = 0x0112;

/** By EXIF orientation, whether the file's first column or row becomes the last one of the upright image. */
const AT_RIGHT = [2, 3, 6, 7];
const AT_BOTTOM = [3, 4, 7, 8];

/** @typedef {{fromRight: boolean, fromBottom: boolean}} Corner where the file's first pixel is in the upright image */

/**
 * Return in which corner of the upright image a JPEG file begins.
 *
 * @param {Uint8Array} bytes
 * @returns {Corner}
 */
export function findFirstCorner(bytes) {
  const orientation = readOrientation(bytes);
  return { fromRight: AT_RIGHT.includes(orientation), fromBottom: AT_BOTTOM.includes(orientation) };
}

/** @param {Uint8Array} bytes @returns {number} 1, which is upright, if the file does not say */
function readOrientation(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    for (let position = 2; view.getUint8(position) === 0xff; position += 2 + view.getUint16(position + 2)) {
      const marker = view.getUint8(position + 1);
      if (marker === 0xda) return 1;
      if (marker === 0xe1 && EXIF.every((byte, index) => byte === bytes[position + 4 + index])) {
        return readTag(new DataView(view.buffer, view.byteOffset + position + 10));
      }
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/** @param {DataView} tiff @returns {number} */
function readTag(tiff) {
  const little = tiff.getUint16(0) === 0x4949;
  const start = tiff.getUint32(4, little);
  for (let entry = 0; entry < tiff.getUint16(start, little); entry++) {
    const place = start + 2 + entry * 12;
    if (tiff.getUint16(place, little) === ORIENTATION_TAG) return tiff.getUint16(place + 8, little);
  }
  return 1;
}
