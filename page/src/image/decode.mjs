/**
 * Decodes an image with the browser's own decoder: upright, and without converting its colours, as Pillow does.
 */

import { ImageError } from "../errors.mjs";
import { checkHeader, checkSize, isJpeg } from "./header.mjs";
import { findFirstCorner } from "./orientation.mjs";

/** Longer side of the small image that the page shows, in pixels. */
const THUMBNAIL_SIDE = 320;

/**
 * @typedef {import("./resize.mjs").PixelSource & {thumbnail: () => Promise<ImageBitmap>, close: () => void}} DecodedImage
 *   `close` frees the pixels
 */

/**
 * Return the pixels of an encoded image.
 *
 * @param {Blob} file
 * @returns {Promise<DecodedImage>}
 */
export async function decodeImage(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  checkHeader(bytes);
  const bitmap = await openBitmap(file);
  try {
    checkSize(bitmap.width, bitmap.height);
    return readBitmap(bitmap, isJpeg(bytes) ? findFirstCorner(bytes) : undefined);
  } catch (error) {
    bitmap.close();
    throw error;
  }
}

/** @param {Blob} file @returns {Promise<ImageBitmap>} */
async function openBitmap(file) {
  try {
    return await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch (error) {
    throw new ImageError(`this browser cannot decode it (${/** @type {Error} */ (error).message})`);
  }
}

/** @type {(bitmap: ImageBitmap, jpegCorner?: import("./orientation.mjs").Corner) => DecodedImage} */
function readBitmap(bitmap, jpegCorner) {
  const { width, height } = bitmap;
  /** @type {OffscreenCanvas | undefined} */
  let canvas;
  return {
    width,
    height,
    jpegCorner,
    readRows(first, count) {
      if (canvas === undefined || canvas.height < count) canvas = new OffscreenCanvas(width, count);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      if (context === null) throw new ImageError(`this browser cannot draw ${width} pixels side by side`);
      context.globalCompositeOperation = "copy";
      context.imageSmoothingEnabled = false;
      context.drawImage(bitmap, 0, first, width, count, 0, 0, width, count);
      return context.getImageData(0, 0, width, count).data;
    },
    thumbnail() {
      const scale = Math.min(1, THUMBNAIL_SIDE / Math.max(width, height));
      const size = { resizeWidth: Math.max(1, Math.round(width * scale)), resizeHeight: Math.max(1, Math.round(height * scale)) };
      return createImageBitmap(bitmap, { ...size, resizeQuality: "medium" });
    },
    close: () => bitmap.close(),
  };
}
