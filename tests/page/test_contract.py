"""The page's JavaScript reads the contracts that Python writes: same names, versions, limits and recipes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from plantmodels.bundle import layout, manifest, metadata
from plantmodels.bundle.files import MAX_JSON_BYTES
from plantmodels.export import staging
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


CHECK = """
import('./src/capabilities.mjs').then(({ checkBrowser }) => {
  const whole = { isSecureContext: true, WebAssembly, OffscreenCanvas: 1, createImageBitmap: 1, Worker: 1, caches: 1 };
  const { hidden, simd } = JSON.parse(process.argv[1]);
  if (!simd) whole.WebAssembly = { validate: (bytes) => !WebAssembly.validate(bytes) };
  for (const name of hidden) delete whole[name];
  try { checkBrowser(whole); console.log("fine"); }
  catch (error) { console.log(`${error.name}: ${error.message}`); }
});
"""


@pytest.mark.parametrize(
    ("hidden", "simd", "said"),
    [
        ([], True, "fine"),
        ([], False, "BrowserError: this browser has no WebAssembly SIMD: use a browser from 2023 or later"),
        (["WebAssembly"], True, "BrowserError: this browser has no WebAssembly: use a browser from 2023 or later"),
        (
            ["OffscreenCanvas"],
            True,
            "BrowserError: this browser has no OffscreenCanvas: use a browser from 2023 or later",
        ),
        (["caches"], True, "BrowserError: this browser has no caches: use a browser from 2023 or later"),
        (
            ["isSecureContext"],
            True,
            "BrowserError: this page needs https (or localhost): it checks digests and works offline",
        ),
    ],
)
def test_a_browser_that_lacks_something_is_told_what(hidden: list[str], simd: bool, said: str) -> None:
    command = ["node", "-e", CHECK, json.dumps({"hidden": hidden, "simd": simd})]
    ran = subprocess.run(command, cwd=PAGE, capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == said


def test_the_page_and_a_bundle_beside_it_leave_each_other_alone(built_page: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built_page, tmp_path / "public"))
    with staging.staged_bundle(folder / "models") as bundle:
        (bundle / "manifest.json").write_text("{}")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    subprocess.run(["node", str(PAGE / "build.mjs"), str(folder)], check=True, capture_output=True)

    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert (folder / "models" / "manifest.json").read_text() == "{}"
    assert {path.relative_to(built_page) for path in built_page.rglob("*")} < {
        p.relative_to(folder) for p in folder.rglob("*")
    }
