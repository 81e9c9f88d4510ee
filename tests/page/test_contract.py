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
