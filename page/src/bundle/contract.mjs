/**
 * Reads the manifest and the metadata of a bundle, and refuses what contract 3 does not allow.
 *
 * A bundle may come from anywhere, so nothing in it is trusted before it was checked here.
 */

import { BundleError, withCommas } from "../errors.mjs";

/** The file that answers on its own: network, heads, temperatures and detector. */
export const MODEL_FILE = "plant-classifier-int8.onnx";
export const METADATA_FILE = "onnx-metadata.json";
export const MANIFEST_FILE = "manifest.json";

/** Versions of the two documents that this code reads. */
export const MANIFEST_VERSION = 1;
export const METADATA_VERSION = 3;

/** A Swin-Tiny takes 30 MB; a telephone has little memory for more than this. */
export const MAX_MODEL_BYTES = 256 * 2 ** 20;
export const MAX_JSON_BYTES = 32 * 2 ** 20;

export const MAX_IMAGE_SIZE = 2048;
export const RECIPES = [1, 2];
export const INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos"];

/**
 * @typedef {{size_bytes: number, sha256: string}} FileDigest
 * @typedef {import("../image/resize.mjs").Preprocessing} Preprocessing
 * @typedef {{preprocessing: Preprocessing, species: string[], diseases: string[][]}} Metadata
 *   `diseases` of each species, in the order of its logits
 */

/**
 * Return size and digest of the two files that the page needs.
 *
 * @param {Uint8Array} content of `manifest.json`
 * @returns {Record<string, FileDigest>}
 */
export function parseManifest(content) {
  const document = parseObject(MANIFEST_FILE, content);
  checkVersion(MANIFEST_FILE, document, MANIFEST_VERSION);
  const files = document.files;
  require(MANIFEST_FILE, isObject(files), "files must be an object", files);
  if (!(MODEL_FILE in files)) {
    throw new BundleError(`the bundle has no ${MODEL_FILE}: export it again with the newest plantmodels`);
  }
  const limits = { [MODEL_FILE]: MAX_MODEL_BYTES, [METADATA_FILE]: MAX_JSON_BYTES };
  return Object.fromEntries(Object.entries(limits).map(([name, limit]) => [name, readEntry(name, files[name], limit)]));
}

/** @param {string} name @param {any} entry @param {number} limit @returns {FileDigest} */
function readEntry(name, entry, limit) {
  const whole = isObject(entry) && Number.isInteger(entry.size_bytes) && entry.size_bytes >= 0;
  const digest = whole && typeof entry.sha256 === "string" && /^[0-9a-f]{64}$/.test(entry.sha256);
  require(MANIFEST_FILE, digest, `${name} needs a size and 64 lower-case hex digits`, entry);
  if (entry.size_bytes > limit) {
    throw new BundleError(`${name}: ${withCommas(entry.size_bytes)} bytes, at most ${withCommas(limit)} are read`);
  }
  return { size_bytes: entry.size_bytes, sha256: entry.sha256 };
}

/**
 * Return what the page needs of the metadata.
 *
 * @param {Uint8Array} content of `onnx-metadata.json`
 * @returns {Metadata}
 */
export function parseMetadata(content) {
  const document = parseObject(METADATA_FILE, content);
  checkVersion(METADATA_FILE, document, METADATA_VERSION);
  const { taxonomy } = document;
  require(METADATA_FILE, isObject(taxonomy), "taxonomy must be an object", taxonomy);
  const species = readNames("species", taxonomy.species);
  require(METADATA_FILE, species.length > 0, "species must have a name", species);
  require(METADATA_FILE, isObject(taxonomy.diseases), "diseases must be an object", taxonomy.diseases);
  const diseases = species.map((name) => readNames(name, Object.hasOwn(taxonomy.diseases, name) ? taxonomy.diseases[name] : []));
  return { species, diseases, preprocessing: readPreprocessing(document.preprocessing) };
}

/** @param {string} of @param {any} names @returns {string[]} */
function readNames(of, names) {
  const plain = Array.isArray(names) && names.every((name) => typeof name === "string" && name !== "" && !/\p{C}/u.test(name));
  require(METADATA_FILE, plain, `names of ${of} must be a list of plain text`, names);
  return names;
}

/** @param {any} found @returns {Preprocessing} */
function readPreprocessing(found) {
  require(METADATA_FILE, isObject(found), "preprocessing must be an object", found);
  const { image_size: size, mean, std, interpolation, crop_pct: crop, recipe = 1 } = found;
  const isTriple = (/** @type {any} */ values) => Array.isArray(values) && values.length === 3 && values.every(Number.isFinite);
  const sized = Number.isInteger(size) && size >= 1 && size <= MAX_IMAGE_SIZE;
  require(METADATA_FILE, sized, `image_size must be an integer from 1 to ${MAX_IMAGE_SIZE}`, size);
  require(METADATA_FILE, isTriple(mean), "mean must be three finite numbers", mean);
  require(METADATA_FILE, isTriple(std) && Math.min(...std) > 0, "std must be three positive numbers", std);
  const known = INTERPOLATIONS.includes(interpolation);
  require(METADATA_FILE, known, `interpolation must be one of ${INTERPOLATIONS.join(", ")}`, interpolation);
  require(METADATA_FILE, Number.isFinite(crop) && crop >= 0.1 && crop <= 1, "crop_pct must be from 0.1 to 1", crop);
  require(METADATA_FILE, RECIPES.includes(recipe), `recipe must be one of ${RECIPES.join(", ")}`, recipe);
  return { image_size: size, mean, std, interpolation, crop_pct: crop, recipe };
}

/** @param {string} file @param {Uint8Array} content @returns {Record<string, any>} */
function parseObject(file, content) {
  let document;
  try {
    document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
  } catch (error) {
    throw new BundleError(`${file}: not JSON in UTF-8 (${/** @type {Error} */ (error).message})`);
  }
  require(file, isObject(document), "expected one JSON object", document);
  return document;
}

/** @param {string} file @param {Record<string, any>} document @param {number} newest */
function checkVersion(file, document, newest) {
  const version = document.format_version;
  const readable = Number.isInteger(version) && version >= 1 && version <= newest;
  require(file, readable, `this page reads format_version 1 to ${newest}`, version);
}

/** @param {string} file @param {boolean} holds @param {string} rule @param {unknown} found */
function require(file, holds, rule, found) {
  if (!holds) throw new BundleError(`${file}: ${rule}, got ${String(JSON.stringify(found)).slice(0, 80)}`);
}

/** @param {unknown} value @returns {boolean} */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
