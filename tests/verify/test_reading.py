"""Checks what a verification, and an export, refuse before anything is measured."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from plantmodels.bundle.layout import PACKED_HEADS_FILE, is_single_head
from plantmodels.bundle.manifest import list_files
from plantmodels.bundle.metadata import read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.digests import digest_content
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import BundleError, DataError
from plantmodels.export import inputs as export_inputs
from plantmodels.verify import reading


def test_no_gate_measures_a_non_plant_that_the_network_has_learned(tiny_bundle):
    learned = digest_content(read_non_plants(tiny_bundle.non_plants).half("gate").paths[0])
    metadata = read_metadata(tiny_bundle.bundle)
    assert metadata.provenance["seen_non_plants_sha256"] == []
    exposed = replace(metadata, provenance={**metadata.provenance, "seen_non_plants_sha256": [learned]})
    paths = {"non_plants": tiny_bundle.non_plants, "unseen_plants": None}
    reading.read_inputs(metadata, tiny_bundle.data, **paths)
    message = r"the network was trained on 1 of the \d+ non-plants that the gates measure: "
    with pytest.raises(DataError, match=message):
        reading.read_inputs(exposed, tiny_bundle.data, **paths)
    checkpoint = replace(read_checkpoint(tiny_bundle.checkpoint), seen_non_plants=frozenset([learned]))
    with pytest.raises(DataError, match=message):
        export_inputs.read_inputs(checkpoint, tiny_bundle.data, tiny_bundle.non_plants, 0)


def test_a_model_file_that_changes_is_noticed_when_it_is_asked_for_again(tiny_bundle, tmp_path: Path):
    bundle = Path(shutil.copytree(tiny_bundle.bundle, tmp_path / "models"))
    files = reading.OnnxFiles(reading.read_contents(bundle))
    head = next(name for name in files if is_single_head(name))
    for name in (head, PACKED_HEADS_FILE):
        content = (bundle / name).read_bytes()
        assert name in files and files[name] == content
        (bundle / name).write_bytes(content + b"x")
        (tmp_path / Path(name).name).write_bytes(content)
    assert files[head] == (tmp_path / Path(head).name).read_bytes(), "heads are kept"
    with pytest.raises(BundleError, match=rf"the files differ from manifest.json \(changed: {PACKED_HEADS_FILE}\)"):
        files[PACKED_HEADS_FILE]
    assert "absent.onnx" not in files and files.get("absent.onnx") is None
    assert set(files) == {name for name in list_files(bundle) if name.endswith(".onnx")} and len(files) == len({*files})
