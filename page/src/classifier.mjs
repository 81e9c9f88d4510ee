/** The page's side of the worker: one image at a time, in the order in which they came. */

import { BundleError, ImageError } from "./errors.mjs";

/** Longer than any image takes on a slow telephone. A model from elsewhere may never end. */
const TIMEOUT_MS = 120_000;

/** The worker inherits this page's Content-Security-Policy because its own address is a blob. */
function startWorker() {
  const source = `import ${JSON.stringify(new URL("./worker.mjs", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return new Worker(address, { type: "module" });
}

/** A loaded model in its worker. */
export class Classifier {
  /** @param {Worker} worker */
  constructor(worker) {
    this.worker = worker;
    this.next = Promise.resolve();
    /** @type {Error | undefined} why the worker answers no more */
    this.stopped = undefined;
  }

  /**
   * Open a bundle in a worker of its own.
   *
   * @param {import("./bundle/download.mjs").Bundle} bundle
   * @returns {Promise<Classifier>}
   */
  static async open({ model, metadata }) {
    const classifier = new Classifier(startWorker());
    await classifier.ask({ open: { model, metadata } }, [model.buffer]);
    return classifier;
  }

  /**
   * Return what the worker answers for an image: answer, times, size and a small picture of it.
   *
   * @param {Blob} file
   * @returns {Promise<any>}
   */
  classify(file) {
    const answered = this.next.then(() => this.ask({ classify: { file } }));
    this.next = answered.then(() => {}, () => {});
    return answered;
  }

  /** @param {object} message @param {Transferable[]} transfer @returns {Promise<any>} */
  ask(message, transfer = []) {
    if (this.stopped) return Promise.reject(this.stopped);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.worker.terminate();
        this.stopped = new BundleError(`no answer within ${TIMEOUT_MS / 1000} seconds: the model was stopped; reload the page`);
        reject(this.stopped);
      }, TIMEOUT_MS);
      this.worker.onmessage = ({ data }) => {
        clearTimeout(timer);
        if (data.error) reject(rebuildError(data.error));
        else resolve(data);
      };
      this.worker.onerror = (event) => {
        clearTimeout(timer);
        reject(new BundleError(`the model's worker does not start (${event.message ?? "its files cannot be read"})`));
      };
      this.worker.postMessage(message, transfer);
    });
  }
}

/** @param {{name: string, message: string}} error @returns {Error} */
function rebuildError({ name, message }) {
  if (name === "ImageError") return new ImageError(message);
  return name === "BundleError" ? new BundleError(message) : new Error(`${name}: ${message}`);
}
