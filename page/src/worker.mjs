/**
 * The worker: decodes, resizes and classifies, so that the page itself never stands still.
 *
 * It receives `{open: {model, metadata}}` once and then `{classify: {id, file}}`, and answers each message with one.
 */

import { decodeImage } from "./image/decode.mjs";
import { normalize } from "./image/normalize.mjs";
import { resizeAndCrop } from "./image/resize.mjs";
import { classify, openModel } from "./model/session.mjs";

/** @type {import("./model/session.mjs").Model | undefined} */
let model;

self.addEventListener("message", async ({ data }) => {
  try {
    if (data.open) {
      model = await openModel(data.open.model, data.open.metadata);
      self.postMessage({ opened: true });
    } else if (data.classify && model) {
      const answered = await answer(model, data.classify.file);
      self.postMessage({ id: data.classify.id, ...answered }, { transfer: [answered.thumbnail] });
    }
  } catch (error) {
    const { name, message } = /** @type {Error} */ (error);
    self.postMessage({ id: data.classify?.id, error: { name, message } });
  }
});

/** @param {import("./model/session.mjs").Model} opened @param {Blob} file */
async function answer(opened, file) {
  const start = performance.now();
  const image = await decodeImage(file);
  try {
    const { preprocessing } = opened.metadata;
    const input = normalize(resizeAndCrop(image, preprocessing), preprocessing);
    const prepared = performance.now();
    const found = await classify(opened, input);
    const times = { prepareMs: prepared - start, modelMs: performance.now() - prepared };
    return { answer: found, times, width: image.width, height: image.height, thumbnail: await image.thumbnail() };
  } finally {
    image.close();
  }
}
