/**
 * Copies the page into a folder: `node build.mjs ../public`. Nothing is bundled or transformed.
 *
 * Whatever else lies in the folder, such as `models/`, stays.
 */

import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));

/** The only files of onnxruntime-web that the page loads: the API, and the runtime with its loader. */
const RUNTIME = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];

/** @param {string} folder @returns {string[]} all files below it, relative to it */
function listFiles(folder) {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => relative(folder, join(entry.parentPath ?? entry.path, entry.name)));
}

/** @param {string} target */
function build(target) {
  const assets = join(target, "page");
  rmSync(assets, { recursive: true, force: true });
  mkdirSync(join(assets, "ort"), { recursive: true });
  cpSync(join(HERE, "src"), join(assets, "src"), { recursive: true });
  cpSync(join(HERE, "static"), assets, { recursive: true });
  for (const name of RUNTIME) cpSync(join(HERE, "node_modules/onnxruntime-web/dist", name), join(assets, "ort", name));
  cpSync(join(HERE, "index.html"), join(target, "index.html"));
  const files = ["index.html", ...listFiles(assets).map((name) => `page/${name.replaceAll("\\", "/")}`)].sort();
  const digest = createHash("sha256");
  for (const name of files) digest.update(name).update(readFileSync(join(target, name)));
  const record = { digest: digest.digest("hex"), files };
  const worker = readFileSync(join(HERE, "sw.js"), "utf-8");
  writeFileSync(join(target, "sw.js"), `const BUILD = ${JSON.stringify(record)};\n${worker}`);
  console.log(`${files.length + 1} files in ${target}`);
}

build(resolve(process.argv[2] ?? join(HERE, "../public")));
