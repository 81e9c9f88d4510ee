"""The page's JavaScript reads the contracts that Python writes: same names, versions, limits and recipes."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from plantmodels.bundle import layout, manifest, metadata
from plantmodels.bundle.files import MAX_JSON_BYTES
from plantmodels.serve import preprocessing
from tests.page.conftest import PAGE

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")


def read_constants(module: str) -> dict[str, Any]:
    script = f"import('./src/{module}').then((found) => console.log(JSON.stringify({{ ...found }})))"
    ran = subprocess.run(["node", "-e", script], cwd=PAGE, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_names_versions_and_recipes_are_pythons() -> None:
    found = read_constants("bundle/contract.mjs")

    assert (found["MODEL_FILE"], found["METADATA_FILE"], found["MANIFEST_FILE"]) == (
        layout.ONE_FILES["int8"],
        layout.METADATA_FILE,
        layout.MANIFEST_FILE,
    )
    assert found["MANIFEST_VERSION"] == layout.FORMAT_VERSION
    assert found["METADATA_VERSION"] == metadata.METADATA_VERSION
    assert found["RECIPES"] == list(metadata.RECIPES)
    assert found["INTERPOLATIONS"] == list(metadata.INTERPOLATIONS)
    assert found["MAX_IMAGE_SIZE"] == metadata.MAX_IMAGE_SIZE
    assert found["MAX_JSON_BYTES"] == MAX_JSON_BYTES
    assert found["MAX_MODEL_BYTES"] < manifest.MAX_ONNX_BYTES


def test_limits_of_images_are_pythons() -> None:
    found = read_constants("image/header.mjs")

    for name in ("MAX_PIXELS", "MAX_ASPECT", "MIN_SIDE", "MAX_SCANS"):
        assert found[name] == getattr(preprocessing, name), name


READ = """
import('./src/model/answer.mjs').then(({ readAnswer }) => {
  const entries = Object.entries(JSON.parse(process.argv[1]));
  const outputs = Object.fromEntries(entries.map(([name, data]) => [name, { data }]));
  const metadata = { species: ["Fern", "Tomato"], diseases: [[], ["blight", "rot"]] };
  try { console.log(JSON.stringify(readAnswer(outputs, metadata))); }
  catch (error) { console.log(JSON.stringify({ error: error.message })); }
});
"""

TOMATO = {
    "species_index": [1],
    "species_probability": [0.75],
    "disease_logits": [-1.5, 2],
    "disease_probability": [0.5],
    "ood_score": [-3],
    "rejected": [0],
}
ANSWER = {
    "species": "Tomato",
    "speciesProbability": 0.75,
    "disease": "rot",
    "diseaseProbability": 0.5,
    "oodScore": -3,
    "rejected": False,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ANSWER),
        ({"rejected": [1]}, ANSWER | {"rejected": True}),
        ({"species_index": [0]}, ANSWER | {"species": "Fern", "disease": None, "diseaseProbability": None}),
        ({"species_index": [2]}, {"error": "the model names species 2 of 2"}),
        ({"species_index": [-1]}, {"error": "the model names species -1 of 2"}),
        ({"species_probability": [1.5]}, {"error": "the model answers probability 1.5 and score -3"}),
        ({"species_probability": ["NaN"]}, {"error": "the model answers probability NaN and score -3"}),
        ({"ood_score": ["NaN"]}, {"error": "the model answers probability 0.75 and score NaN"}),
    ],
)
def test_outputs_become_an_answer_or_an_error(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    command = ["node", "-e", READ, json.dumps(TOMATO | changes)]
    ran = subprocess.run(command, cwd=PAGE, capture_output=True, text=True, check=True)

    assert json.loads(ran.stdout) == expected
