/** Where images come from: the file dialog, the camera, a drop and the clipboard. */

import { find } from "./view.mjs";

/**
 * Call `onFiles` whenever somebody brings files.
 *
 * @param {(files: File[]) => void} onFiles
 */
export function listen(onFiles) {
  connect("choose", "files", onFiles);
  connect("camera", "camera-files", onFiles);
  document.addEventListener("paste", (event) => take(event.clipboardData?.files, onFiles));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    find("drop").dataset.over = "true";
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) delete find("drop").dataset.over;
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    delete find("drop").dataset.over;
    take(event.dataTransfer?.files, onFiles);
  });
}

/** @param {string} button @param {string} input @param {(files: File[]) => void} onFiles */
function connect(button, input, onFiles) {
  const field = /** @type {HTMLInputElement} */ (find(input));
  find(button).addEventListener("click", () => field.click());
  field.addEventListener("change", () => {
    take(field.files, onFiles);
    field.value = ""; // so that the same file can be chosen again
  });
}

/** @param {FileList | null | undefined} files @param {(files: File[]) => void} onFiles */
function take(files, onFiles) {
  if (files?.length) onFiles(Array.from(files));
}
