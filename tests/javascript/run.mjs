// Runs the one file image by image, and prints every output as JSON: node run.mjs MODULE MODEL INPUTS SIDE
//
// MODULE is the folder of onnxruntime-node or the file of onnxruntime-web; INPUTS holds float32 images of 3 x SIDE x SIDE.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, model, inputs, side] = process.argv.slice(2);
const native = module.endsWith("onnxruntime-node");
const ort = native ? createRequire(import.meta.url)(module) : await import(pathToFileURL(module));
if (!native) ort.env.wasm.numThreads = 1;

const started = performance.now();
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), {
  executionProviders: [native ? "cpu" : "wasm"],
  intraOpNumThreads: 1,
  interOpNumThreads: 1,
  extra: { session: { set_denormal_as_zero: "1" } },
});
const opened = performance.now() - started;

const bytes = readFileSync(inputs);
const pixels = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const size = 3 * side * side;
const write = (data) => `[${Array.from(data, String).join(",")}]`; // JSON of JavaScript has no NaN; Python's has
const rows = [];
const times = [];
const processorTimes = [];
for (let start = 0; start < pixels.length; start += size) {
  const input = new ort.Tensor("float32", pixels.slice(start, start + size), [1, 3, Number(side), Number(side)]);
  const began = performance.now();
  const used = process.cpuUsage();
  const outputs = await session.run({ input });
  times.push(performance.now() - began);
  const { user, system } = process.cpuUsage(used);
  processorTimes.push((user + system) / 1000);
  rows.push(`{${Object.entries(outputs).map(([name, tensor]) => `"${name}":${write(tensor.data)}`).join(",")}}`);
}
console.log(
  `{"opened_ms":${opened},"times_ms":${write(times)},"processor_ms":${write(processorTimes)},"rows":[${rows.join(",\n")}]}`,
);
