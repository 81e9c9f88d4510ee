/** The page: loads the bundle, then answers every image that it is given. Images never leave the device. */

import { findBundle, readBundle } from "./bundle/download.mjs";
import { checkBrowser } from "./capabilities.mjs";
import { Classifier } from "./classifier.mjs";
import { BrowserError, BundleError, ImageError, withCommas } from "./errors.mjs";
import { listen } from "./intake.mjs";
import { addCard, announce, find, showAnswer, showImageError, showModel, showProgress } from "./view.mjs";

/**
 * Allow requests to the page's own server and to the bundle's, and to no other. A policy that is added later can only
 * forbid more.
 *
 * @param {URL} bundle
 */
function forbidOtherServers(bundle) {
  const policy = document.createElement("meta");
  policy.httpEquiv = "Content-Security-Policy";
  policy.content = `connect-src 'self' ${bundle.origin}`;
  document.head.append(policy);
}

/** @returns {Promise<Classifier>} */
async function start() {
  checkBrowser(window);
  const address = findBundle(window.location);
  forbidOtherServers(address);
  const foreign = address.origin !== window.location.origin;
  find("origin").textContent = foreign ? `This model comes from ${address.origin}, not from this page's server.` : "";
  showModel("Loading the model …", "busy");
  const bundle = await readBundle(address, showProgress);
  const { species, diseases } = bundle.metadata;
  const megabytes = (bundle.model.length / 1e6).toFixed(1);
  const classifier = await Classifier.open(bundle);
  const classes = `${withCommas(species.length)} species, ${withCommas(diseases.flat().length)} classes`;
  showModel(`Ready: ${classes}, ${megabytes} MB${bundle.offline ? ", no network: the copy on this device" : ""}.`, "ready");
  return classifier;
}

/** @param {unknown} error @returns {string} the message for people; what is a bug also goes to the console */
function explain(error) {
  const known = [ImageError, BundleError, BrowserError].some((kind) => error instanceof kind);
  if (!known) console.error(error);
  return error instanceof Error ? error.message : String(error);
}

/** @param {Promise<Classifier>} classifier @param {File} file */
async function answer(classifier, file) {
  const name = file.name || "pasted image";
  const card = addCard(name);
  try {
    announce(showAnswer(card, name, await (await classifier).classify(file)));
  } catch (error) {
    announce(showImageError(card, name, explain(error)));
  }
}

const classifier = start();
classifier.catch((error) => showModel(`The model cannot be used: ${explain(error)}`, "failed"));
listen((files) => files.forEach((file) => answer(classifier, file)));
find("clear").addEventListener("click", () => {
  find("results").replaceChildren();
  find("clear").hidden = true;
  find("choose").focus();
});
navigator.serviceWorker?.register("sw.js").catch((error) => console.warn(`the page is not kept for offline use: ${error}`));
