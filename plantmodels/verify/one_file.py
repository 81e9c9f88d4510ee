"""Compares the one file of a bundle with the three parts that it was made from, on real images.

A file that was exchanged, changed or made for other classes answers differently, or names other classes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from plantmodels.arrays import Inputs
from plantmodels.bundle.detector import SPECIES_LEAVES
from plantmodels.bundle.layout import (
    DISEASE_GIVEN_SPECIES_OUTPUT,
    DISEASE_INDEX_OUTPUT,
    DISEASE_OUTPUT,
    DISEASE_PROBABILITY_OUTPUT,
    EMBEDDING,
    IMAGE_INPUT,
    ONE_FILES,
    OOD_P_VALUE_OUTPUT,
    OOD_SCORE_OUTPUT,
    PRECISIONS,
    REJECTED_OUTPUT,
    SPECIES_INDEX_INPUT,
    SPECIES_OUTPUT,
    SPECIES_PROBABILITY_OUTPUT,
    Precision,
)
from plantmodels.foreign_text import quote_error
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.routing import softmax
from plantmodels.serve.session import RUN_ERRORS
from plantmodels.verify.opening import OpenedModels, raise_if_out_of_memory

RTOL: Final = 1e-4
"""Largest difference of an output, relative to the largest value of that output. A graph that is right differs by the
rounding of float32: 1e-6 of logits and probabilities."""

SCORE_RTOL: Final = 1e-3
"""The same for scores. Most products in a score cancel, which leaves 4e-5 of the largest score for a real Swin-Tiny."""

_LEAVES_PASSED: Final = 3
"""Leaves that calibrated the bundle and score as an image does, but for rounding: its p-value may count them or not."""

Answers = Mapping[str, NDArray[Any]]
"""The outputs of N images by their names, with N as first size."""


def find_one_file_problems(
    models: OpenedModels, classifiers: Mapping[Precision, PlantClassifier], images: Inputs
) -> dict[str, str]:
    """Return the one files that are missing or do not answer as the parts of the bundle do, each with the reason.

    Args:
        models: the opened ONNX files. Files that do not open are left to the gate's other check.
        classifiers: the classifier of each precision, made of the parts.
        images: (N, 3, P, P) float32, normalized.
    """
    problems = {}
    for precision in PRECISIONS:
        name, classifier = ONE_FILES[precision], classifiers[precision]
        if name in models.sessions:
            problem = next(_find_problems(models.sessions[name], classifier, images), "")
        else:
            listed = name in classifier.metadata.models and name not in models.errors
            problem = "missing, though the metadata describe it" if listed else ""
        if problem:
            problems[name] = problem
    return problems


def _find_problems(session: ort.InferenceSession, classifier: PlantClassifier, images: Inputs) -> Iterator[str]:
    yield from _compare_properties(session, classifier)
    expected = _answer_by_parts(classifier, images)
    detector, limits = classifier.detector, dict.fromkeys(expected, RTOL)
    limits[OOD_SCORE_OUTPUT] = SCORE_RTOL
    limits[OOD_P_VALUE_OUTPUT] = RTOL + _LEAVES_PASSED / (1 + min(len(detector.plant_scores), SPECIES_LEAVES))
    outputs = [value.name for value in session.get_outputs()]
    if set(outputs) != set(expected):
        yield f"its outputs are {', '.join(sorted(outputs))}, expected {', '.join(sorted(expected))}"
        return
    try:
        found = dict(zip(outputs, session.run(outputs, {IMAGE_INPUT: images}), strict=True))
    except RUN_ERRORS as error:
        raise_if_out_of_memory(error)
        yield f"does not run ({quote_error(error)})"
        return
    expected[REJECTED_OUTPUT] = detector.rejects(
        found[OOD_SCORE_OUTPUT].astype(np.float64)
    )  # at rounding, either is right
    for name, values in expected.items():
        difference = _measure_difference(found[name], values, limits[name])
        if difference:
            yield f"{name} is not what the bundle's parts answer: {difference}"


def _compare_properties(session: ort.InferenceSession, classifier: PlantClassifier) -> Iterator[str]:
    """Yield the first name or number in the model's properties that is not the bundle's."""
    properties, taxonomy = session.get_modelmeta().custom_metadata_map, classifier.taxonomy
    expected = {
        "species": list(taxonomy.species),
        "diseases": [list(taxonomy.diseases_of(i)) for i in range(len(taxonomy.species))],
        "class_order_digest": taxonomy.digest,
        "threshold": classifier.detector.threshold,
        "species_temperature": classifier.metadata.species_temperature,
        "disease_temperature": classifier.metadata.disease_temperature,
    }
    for name, value in expected.items():
        if properties.get(name) != json.dumps(value, ensure_ascii=False):
            yield f"its property {name!r} is {properties.get(name)!r:.80}, expected {json.dumps(value)!r:.80}"


def _answer_by_parts(classifier: PlantClassifier, images: Inputs) -> dict[str, NDArray[Any]]:
    """Return what the parts of the bundle answer, by the names of the one file's outputs."""
    outputs = classifier.run(images)
    species, scores, taxonomy = outputs.species_index, outputs.ood_scores, classifier.taxonomy
    chances = softmax(outputs.species_logits, classifier.metadata.species_temperature)
    named = classifier.name_diseases(outputs, "hard")
    places = [
        -1 if disease.name is None else taxonomy.diseases_of(index).index(disease.name)
        for index, disease in zip(species.tolist(), named, strict=True)
    ]
    p_values = classifier.detector.p_values(scores, species)
    return {
        SPECIES_OUTPUT: outputs.species_logits,
        EMBEDDING: outputs.embedding,
        SPECIES_INDEX_INPUT: species,
        SPECIES_PROBABILITY_OUTPUT: chances[np.arange(len(species)), species],
        DISEASE_OUTPUT: outputs.disease_logits,
        DISEASE_INDEX_OUTPUT: np.array(places, np.int64),
        DISEASE_PROBABILITY_OUTPUT: np.array([disease.probability for disease in named], np.float64),
        DISEASE_GIVEN_SPECIES_OUTPUT: np.array([disease.given_species for disease in named], np.float64),
        OOD_SCORE_OUTPUT: scores,
        OOD_P_VALUE_OUTPUT: np.full(len(species), np.nan) if p_values is None else p_values,
        REJECTED_OUTPUT: classifier.detector.rejects(scores),
    }


def _measure_difference(found: NDArray[Any], expected: NDArray[Any], rtol: float) -> str:
    """Return how far an output is from what is expected; "" if it is close enough."""
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if expected.dtype.kind in "ib":
        changed = int((found != expected).sum())
        return f"{changed} of {len(expected)} images differ" if changed else ""
    numbers, wanted = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(numbers[~finite], wanted[~finite], equal_nan=True):
        return "it has numbers where there are none, or none where there are"
    largest = float(np.abs(numbers[finite] - wanted[finite]).max(initial=0))
    limit = rtol * max(1.0, float(np.abs(wanted[finite]).max(initial=0)))
    return "" if largest <= limit else f"a difference of {largest:.3g}, at most {limit:.3g} is expected"
