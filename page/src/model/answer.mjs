/** Turns the model's outputs into one answer. */

import { BundleError } from "../errors.mjs";

/** The outputs that the page reads; the model may have others. */
export const OUTPUTS = [
  "species_index",
  "species_probability",
  "disease_logits",
  "disease_probability",
  "ood_score",
  "rejected",
];

/**
 * @typedef {{species: string, speciesProbability: number, disease: string | null, diseaseProbability: number | null,
 *   oodScore: number, rejected: boolean}} Answer
 */

/**
 * Return the answer for one image.
 *
 * @param {Record<string, {data: any}>} outputs the model's outputs for a batch of one
 * @param {import("../bundle/contract.mjs").Metadata} metadata
 * @returns {Answer}
 */
export function readAnswer(outputs, metadata) {
  const first = (/** @type {string} */ name) => Number(outputs[name].data[0]);
  const index = first("species_index");
  const species = metadata.species[index];
  const speciesProbability = first("species_probability");
  const oodScore = first("ood_score");
  if (species === undefined) throw new BundleError(`the model names species ${index} of ${metadata.species.length}`);
  if (!(speciesProbability >= 0 && speciesProbability <= 1) || Number.isNaN(oodScore)) {
    throw new BundleError(`the model answers probability ${speciesProbability} and score ${oodScore}`);
  }
  const disease = nameDisease(outputs, metadata.diseases[index]);
  return {
    species,
    speciesProbability,
    disease,
    diseaseProbability: disease === null ? null : first("disease_probability"),
    oodScore,
    rejected: Boolean(first("rejected")),
  };
}

/** @param {Record<string, {data: any}>} outputs @param {string[]} diseases of the species @returns {string | null} */
function nameDisease(outputs, diseases) {
  const logits = Array.from(outputs.disease_logits.data).slice(0, diseases.length).map(Number);
  if (logits.length === 0) return null;
  return diseases[logits.indexOf(Math.max(...logits))] ?? null;
}
