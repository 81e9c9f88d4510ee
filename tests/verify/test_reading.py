"""Checks what a verification, and an export, refuse before anything is measured."""

from dataclasses import replace

import pytest

from plantmodels.bundle.metadata import read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.digests import digest_content
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import DataError
from plantmodels.export import inputs as export_inputs
from plantmodels.verify import reading


def test_no_gate_measures_a_non_plant_that_the_network_has_learned(tiny_bundle):
    learned = digest_content(read_non_plants(tiny_bundle.non_plants).half("gate").paths[0])
    metadata = read_metadata(tiny_bundle.bundle)
    assert metadata.provenance["seen_non_plants_sha256"] == []
    exposed = replace(metadata, provenance={**metadata.provenance, "seen_non_plants_sha256": [learned]})
    paths = {"checkpoint": None, "non_plants": tiny_bundle.non_plants, "unseen_plants": None}
    reading.read_inputs(metadata, tiny_bundle.data, **paths)
    message = r"the network was trained on 1 of the \d+ non-plants that the gates measure: "
    with pytest.raises(DataError, match=message):
        reading.read_inputs(exposed, tiny_bundle.data, **paths)
    checkpoint = replace(read_checkpoint(tiny_bundle.checkpoint), seen_non_plants=frozenset([learned]))
    with pytest.raises(DataError, match=message):
        export_inputs.read_inputs(checkpoint, tiny_bundle.data, tiny_bundle.non_plants, 0)
