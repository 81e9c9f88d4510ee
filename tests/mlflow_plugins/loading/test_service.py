"""`plantmodels serve` on an address of MLflow: it waits for the first promotion and follows the alias."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from plantmodels.service.settings import Limits, Settings
from tests.fixtures.registry import promote, register_bundle
from tests.service.conftest import Running, start

NAME = "plants"
URI = f"models:/{NAME}@production"


@pytest.fixture
def service() -> Iterator[Running]:
    running, stop = start(Settings(URI, interval_s=0.05, threads=1, limits=Limits()))
    yield running
    stop()


@pytest.mark.slow
def test_it_waits_for_the_first_promotion_and_follows_the_alias(
    service: Running, tiny_bundle, lenient_bundle: Path, leaf: bytes, wait_for: Callable[..., None]
) -> None:
    wait_for(lambda: service.service.model.failure is not None)
    assert service.ask("/health").status == 200
    assert service.ask("/ready").error.startswith(f"waiting for {URI}: ")
    first, second = register_bundle(tiny_bundle.bundle, NAME), register_bundle(lenient_bundle, NAME)
    promote(first, NAME)
    wait_for(lambda: service.ask("/ready").status == 200)
    answer = service.ask("/predict", leaf).document
    assert answer["version"] == first and answer["rejected"] is False
    assert service.ask("/version").document["model"] == {"name": "plants", "version": first}
    promote(second, NAME)
    wait_for(lambda: service.ask("/predict", leaf).document["version"] == second)
    assert service.ask("/predict", leaf).document["rejected"] is True

    MlflowClient().delete_registered_model_alias(NAME, "production")
    wait_for(lambda: service.ask("/ready").document["failure"] is not None)
    broken = service.ask("/ready")
    assert broken.status == 200 and "alias production not found" in broken.document["failure"]
    assert service.ask("/predict", leaf).document["version"] == second, "the version stays"
