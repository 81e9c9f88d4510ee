// Reads cases as JSON lines on standard input, and writes the network's input for each as float32 to standard output.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const root = pathToFileURL(`${process.argv[2]}/`);
const { resizeAndCrop } = await import(new URL("image/resize.mjs", root));
const { normalize } = await import(new URL("image/normalize.mjs", root));

for (const line of readFileSync(0, "utf-8").trim().split("\n")) {
  const { width, height, file, preprocessing } = JSON.parse(line);
  const pixels = readFileSync(file);
  const readRows = (first, count) => pixels.subarray(first * width * 4, (first + count) * width * 4);
  const square = resizeAndCrop({ width, height, readRows }, preprocessing);
  process.stdout.write(Buffer.from(normalize(square, preprocessing).buffer));
}
