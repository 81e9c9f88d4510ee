/** What the page shows. Every text from a bundle or a file name is set as text, never as HTML. */

/** @param {string} id @returns {HTMLElement} */
export function find(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element #${id}`);
  return element;
}

/**
 * Make an element with a class and a text.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} kind its class
 * @param {string} text
 * @returns {HTMLElementTagNameMap[K]}
 */
function make(tag, kind, text = "") {
  const element = document.createElement(tag);
  element.className = kind;
  element.textContent = text;
  return element;
}

/** @param {number} probability @returns {string} */
export function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

/** @param {number} ms @returns {string} */
function milliseconds(ms) {
  return `${Math.round(ms)} ms`;
}

/** Say what the model does at the moment. @param {string} text @param {"busy" | "ready" | "failed"} state */
export function showModel(text, state) {
  const line = find("model");
  line.textContent = text;
  line.dataset.state = state;
  find("progress").hidden = state !== "busy";
}

/** @param {number} received @param {number} total */
export function showProgress(received, total) {
  const bar = /** @type {HTMLProgressElement} */ (find("progress"));
  bar.max = total;
  bar.value = received;
}

/** Read out by screen readers; sighted people see the cards. @param {string} text */
export function announce(text) {
  find("announcement").textContent = text;
}

/** Add a card for an image that waits; the newest is first. @param {string} name @returns {HTMLLIElement} */
export function addCard(name) {
  const card = make("li", "card");
  card.dataset.state = "waiting";
  card.append(make("div", "thumbnail"), make("div", "answer"));
  card.lastElementChild?.append(make("p", "file", name), make("p", "waiting", "waiting …"));
  find("results").prepend(card);
  find("clear").hidden = false;
  return card;
}

/**
 * Fill a card with an answer.
 *
 * @param {HTMLLIElement} card
 * @param {string} name
 * @param {{answer: import("./model/answer.mjs").Answer, times: {prepareMs: number, modelMs: number}, width: number,
 *   height: number, thumbnail: ImageBitmap}} answered
 * @returns {string} the answer in one sentence
 */
export function showAnswer(card, name, { answer, times, width, height, thumbnail }) {
  card.dataset.state = answer.rejected ? "rejected" : "answered";
  card.querySelector(".thumbnail")?.replaceChildren(draw(thumbnail));
  /** @type {HTMLElement[]} */
  const parts = [make("p", "file", name)];
  if (answer.rejected) parts.push(make("h3", "verdict", "Rejected: no plant that this model knows"));
  parts.push(describe(answer));
  parts.push(make("p", "facts", `${width}×${height} pixels, OOD score ${answer.oodScore.toFixed(2)}`));
  const steps = `${milliseconds(times.prepareMs)} to decode and resize, ${milliseconds(times.modelMs)} in the model`;
  parts.push(make("p", "facts", `${milliseconds(times.prepareMs + times.modelMs)}: ${steps}`));
  card.querySelector(".answer")?.replaceChildren(...parts);
  return `${name}: ${summarize(answer)}`;
}

/** @param {import("./model/answer.mjs").Answer} answer @returns {string} */
function summarize(answer) {
  if (answer.rejected) return "rejected, no plant that this model knows";
  const species = `${readable(answer.species)}, ${percent(answer.speciesProbability)}`;
  if (answer.disease === null || answer.diseaseProbability === null) return species;
  return `${species}; ${readable(answer.disease)}, ${percent(answer.diseaseProbability)}`;
}

/** Names with their probabilities; without bars for a rejected image, whose probabilities mean little. @param {import("./model/answer.mjs").Answer} answer */
function describe(answer) {
  const list = make("dl", "names");
  const [species, disease] = answer.rejected ? ["Nearest species", "Its disease"] : ["Species", "Disease"];
  addName(list, species, answer.species, answer.speciesProbability, !answer.rejected);
  addName(list, disease, answer.disease, answer.diseaseProbability, !answer.rejected);
  return list;
}

/** @param {string} name as data sets write it, such as Late_blight @returns {string} */
function readable(name) {
  return name.replaceAll("_", " ");
}

/** @type {(list: HTMLElement, term: string, name: string | null, probability: number | null, barred: boolean) => void} */
function addName(list, term, name, probability, barred) {
  const value = make("dd", "name");
  value.append(make("span", "label", name === null ? "none known for this species" : readable(name)));
  if (probability !== null) value.append(make("span", "probability", percent(probability)));
  if (probability !== null && barred) {
    const bar = make("meter", "bar");
    bar.value = probability;
    bar.setAttribute("aria-label", `${term}: probability`);
    value.append(bar);
  }
  list.append(make("dt", "term", term), value);
}

/** @param {HTMLLIElement} card @param {string} name @param {string} message @returns {string} the error in one sentence */
export function showImageError(card, name, message) {
  card.dataset.state = "failed";
  card.replaceChildren(make("div", "answer"));
  card.lastElementChild?.append(make("p", "file", name), make("p", "error", `Not classified: ${message}`));
  return `${name}: not classified, ${message}`;
}

/** @param {ImageBitmap} bitmap @returns {HTMLCanvasElement} */
function draw(bitmap) {
  const canvas = make("canvas", "small");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("bitmaprenderer")?.transferFromImageBitmap(bitmap);
  return canvas;
}
