"""`/metrics` counts requests, images by outcome, species and versions; several processes add up."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plantmodels.serve.prediction import Prediction
from plantmodels.service.metrics import Metrics
from plantmodels.service.model import LoadedBundle
from tests.service.conftest import Running


def read(running: Running) -> dict[str, float]:
    lines = running.ask("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_requests_and_images_are_counted(run_service: Callable[..., Running], leaves: list[bytes]) -> None:
    running = run_service()
    rows = [running.ask("/predict", leaf).document for leaf in leaves]
    running.ask("/predict", b"no image")
    running.ask("/predict/../etc")
    found = read(running)
    assert found['plantmodels_requests_total{path="/predict",status="200"}'] == len(leaves)
    assert found['plantmodels_requests_total{path="/predict",status="422"}'] == 1
    assert found['plantmodels_requests_total{path="other",status="404"}'] == 1
    assert found['plantmodels_request_seconds_count{path="/predict"}'] == len(leaves) + 1
    rejected = sum(row["rejected"] for row in rows)
    assert found.get('plantmodels_images_total{outcome="rejected"}', 0) == rejected
    assert found.get('plantmodels_images_total{outcome="accepted"}', 0) == len(leaves) - rejected
    assert found['plantmodels_images_total{outcome="bad"}'] == 1
    by_species = {name: count for name, count in found.items() if name.startswith("plantmodels_species_total")}
    assert sum(by_species.values()) == len(leaves) - rejected
    version = running.service.model.wait(0)
    assert found[f'plantmodels_version_processes{{name="{version.name}",version="{version.version}"}}'] == 1


def test_the_species_of_a_rejected_image_is_not_counted() -> None:
    metrics = Metrics()
    metrics.count_images([Prediction(species="Tomato", rejected=True), Prediction(species="Apple", rejected=False)])
    text = metrics.render().decode()
    assert 'species="Apple"} 1.0' in text and "Tomato" not in text


def test_the_version_that_answers_is_one(classifier) -> None:
    metrics = Metrics()
    first = LoadedBundle("plants", "1", classifier)
    for version in (None, first, first, dataclasses.replace(first, version="2")):
        metrics.note_version(version)
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("plantmodels_version")]
    assert sorted(lines) == [
        'plantmodels_version_processes{name="plants",version="1"} 0.0',
        'plantmodels_version_processes{name="plants",version="2"} 1.0',
    ]


COUNT = """
from plantmodels.serve.prediction import Prediction
from plantmodels.service.metrics import Metrics
from plantmodels.service.model import LoadedBundle
metrics = Metrics()
metrics.count_images([Prediction(error="bad")] * 2)
metrics.note_version(LoadedBundle("plants", "1", None))
print(metrics.render().decode())
"""


@pytest.mark.slow
def test_several_processes_add_up_and_an_ended_one_serves_no_version(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    shown = [subprocess.check_output([sys.executable, "-c", COUNT], env=environment, text=True) for _ in range(2)]
    assert 'plantmodels_images_total{outcome="bad"} 4.0' in shown[1]
    assert 'plantmodels_version_processes{name="plants",version="1"} 1.0' in shown[1]
