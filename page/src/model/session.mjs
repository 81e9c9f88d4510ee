/** Opens the one ONNX file with onnxruntime-web, and runs it on one image at a time. */

import * as ort from "../../ort/ort.wasm.min.mjs";
import { MODEL_FILE } from "../bundle/contract.mjs";
import { BundleError } from "../errors.mjs";
import { OUTPUTS, readAnswer } from "./answer.mjs";

const INPUT = "input";

ort.env.wasm.numThreads = 1; // more need headers that a plain web server does not send
ort.env.wasm.wasmPaths = {
  mjs: new URL("../../ort/ort-wasm-simd-threaded.mjs", import.meta.url),
  wasm: new URL("../../ort/ort-wasm-simd-threaded.wasm", import.meta.url),
};

/**
 * @typedef {{session: import("onnxruntime-web").InferenceSession, metadata: import("../bundle/contract.mjs").Metadata}} Model
 */

/**
 * Return a session of the model, whose inputs and outputs were checked.
 *
 * @param {Uint8Array} bytes the ONNX file
 * @param {import("../bundle/contract.mjs").Metadata} metadata
 * @returns {Promise<Model>}
 */
export async function openModel(bytes, metadata) {
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new BundleError(`${MODEL_FILE} cannot be opened (${String(/** @type {any} */ (error)?.message ?? error).slice(0, 200)})`);
  }
  const missing = [...[INPUT].filter((name) => !session.inputNames.includes(name)), ...OUTPUTS.filter((name) => !session.outputNames.includes(name))];
  if (missing.length > 0) throw new BundleError(`${MODEL_FILE} lacks ${missing.join(", ")}`);
  return { session, metadata };
}

/**
 * Return the answer for one image.
 *
 * @param {Model} model
 * @param {Float32Array} input 3 × side × side
 */
export async function classify({ session, metadata }, input) {
  const side = metadata.preprocessing.image_size;
  try {
    return readAnswer(await session.run({ [INPUT]: new ort.Tensor("float32", input, [1, 3, side, side]) }, OUTPUTS), metadata);
  } catch (error) {
    if (error instanceof BundleError) throw error;
    throw new BundleError(`${MODEL_FILE} fails (${String(/** @type {any} */ (error)?.message ?? error).slice(0, 200)})`);
  }
}
