/**
 * Fetches a bundle, checks every digest, and keeps it for the next visit without a network.
 *
 * Files are kept under their digest, and the digest is checked again whenever they are read.
 */

import { BundleError, withCommas } from "../errors.mjs";
import { MANIFEST_FILE, MAX_JSON_BYTES, METADATA_FILE, MODEL_FILE, parseManifest, parseMetadata } from "./contract.mjs";

const CACHE = "plantmodels-bundles";

/**
 * @typedef {{metadata: import("./contract.mjs").Metadata, model: Uint8Array<ArrayBuffer>, digest: string, offline: boolean}} Bundle
 *   `digest` is that of the manifest; `offline` says that the network was down and the kept bundle is used
 * @typedef {(received: number, total: number) => void} Progress in bytes of the model
 */

/**
 * Return the address of the bundle's folder: `?bundle=URL`, or `models/` beside the page.
 *
 * @param {Location | URL} page
 * @returns {URL}
 */
export function findBundle(page) {
  const wanted = new URL(page.href).searchParams.get("bundle") || "models/";
  let address;
  try {
    address = new URL(wanted.endsWith("/") ? wanted : `${wanted}/`, page.href);
  } catch {
    throw new BundleError(`bundle must be an address such as https://example.org/models/, got ${wanted.slice(0, 80)}`);
  }
  if (!["http:", "https:"].includes(address.protocol) || address.username || address.password) {
    throw new BundleError(`bundle must be an http or https address without a password, got ${wanted.slice(0, 80)}`);
  }
  address.search = address.hash = "";
  return address;
}

/**
 * Return a bundle whose digests were checked.
 *
 * @param {URL} address
 * @param {Progress} onProgress
 * @returns {Promise<Bundle>}
 */
export async function readBundle(address, onProgress) {
  const cache = await caches.open(CACHE);
  const { content, offline } = await readManifest(cache, address);
  const entries = parseManifest(content);
  const model = await readFile(cache, address, MODEL_FILE, entries[MODEL_FILE], onProgress);
  const metadata = parseMetadata(await readFile(cache, address, METADATA_FILE, entries[METADATA_FILE], () => {}));
  if (!offline) await keep(cache, new URL(MANIFEST_FILE, address), content); // last, so that what it lists is kept too
  await forgetOthers(cache, address, Object.values(entries));
  return { metadata, model, digest: await digestOf(content), offline };
}

/** @param {Cache} cache @param {URL} address */
async function readManifest(cache, address) {
  const url = new URL(MANIFEST_FILE, address);
  try {
    return { content: await download(url, MAX_JSON_BYTES, () => {}), offline: false };
  } catch (error) {
    const kept = error instanceof BundleError ? undefined : await cache.match(url);
    if (kept) return { content: new Uint8Array(await kept.arrayBuffer()), offline: true };
    throw error instanceof BundleError ? error : unreachable(url);
  }
}

/** The browser does not say which of the causes it was. @param {URL} url @returns {BundleError} */
function unreachable(url) {
  return new BundleError(`${url.href} cannot be reached: there is no network, or that server does not allow this page (CORS)`);
}

/**
 * @param {Cache} cache
 * @param {URL} address
 * @param {string} name
 * @param {import("./contract.mjs").FileDigest} entry
 * @param {Progress} onProgress
 */
async function readFile(cache, address, name, entry, onProgress) {
  const place = keptAt(address, entry);
  const kept = await cache.match(place);
  if (kept) {
    const content = new Uint8Array(await kept.arrayBuffer());
    if ((await digestOf(content)) === entry.sha256) return content;
  }
  const url = new URL(name, address);
  const content = await download(url, entry.size_bytes, onProgress).catch((error) => {
    throw error instanceof BundleError ? error : unreachable(url);
  });
  if (content.length !== entry.size_bytes || (await digestOf(content)) !== entry.sha256) {
    throw new BundleError(`${name} differs from ${MANIFEST_FILE}: it was changed, or the bundle was replaced just now`);
  }
  await keep(cache, place, content);
  return content;
}

/** @param {URL} address @param {import("./contract.mjs").FileDigest} entry */
function keptAt(address, entry) {
  return new URL(`sha256-${entry.sha256}`, address);
}

/**
 * Return the content of an address; a TypeError means that the network is down.
 *
 * @param {URL} url
 * @param {number} limit bytes; a longer answer is cut off and refused
 * @param {Progress} onProgress
 */
async function download(url, limit, onProgress) {
  const response = await fetch(url, { cache: "no-cache", referrerPolicy: "no-referrer" });
  if (!response.ok || response.body === null) throw new BundleError(`${url.href}: the server answers ${response.status}`);
  /** @type {Uint8Array[]} */
  const parts = [];
  let received = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    received += part.value.length;
    if (received > limit) {
      await reader.cancel();
      throw new BundleError(`${url.href}: over ${withCommas(limit)} bytes, more than expected`);
    }
    parts.push(part.value);
    onProgress(received, limit);
  }
  return join(parts, received);
}

/** @param {Uint8Array[]} parts @param {number} length */
function join(parts, length) {
  const whole = new Uint8Array(length);
  let position = 0;
  for (const part of parts) {
    whole.set(part, position);
    position += part.length;
  }
  return whole;
}

/** @param {Uint8Array<ArrayBuffer>} content @returns {Promise<string>} SHA-256 as lower-case hex digits */
async function digestOf(content) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A full disk only costs the next visit its offline copy. @type {(cache: Cache, url: URL, content: Uint8Array<ArrayBuffer>) => Promise<void>} */
async function keep(cache, url, content) {
  await cache.put(url, new Response(content)).catch((error) => console.warn(`${url.href} is not kept: ${error}`));
}

/** Delete the files of older bundles at this address. @type {(cache: Cache, address: URL, entries: import("./contract.mjs").FileDigest[]) => Promise<void>} */
async function forgetOthers(cache, address, entries) {
  const wanted = [new URL(MANIFEST_FILE, address), ...entries.map((entry) => keptAt(address, entry))].map((url) => url.href);
  for (const { url } of await cache.keys()) {
    if (new URL("./", url).href === address.href && !wanted.includes(url)) await cache.delete(url);
  }
}
