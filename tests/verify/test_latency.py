import io
import time

import numpy as np
import pytest
from PIL import Image

from plantmodels.errors import ImageError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.verify.latency import RUNS, make_reference, measure_latency, time_in_turns


def test_warm_up_runs_are_not_counted() -> None:
    calls = []

    def call() -> None:
        calls.append(None)
        time.sleep(0.05 if len(calls) <= 2 else 0.002)

    (durations,) = time_in_turns([call], 4, warm_up=2)
    assert len(calls) == 6
    assert len(durations) == 4
    assert all(2 <= duration < 50 for duration in durations)


def test_the_kinds_of_work_take_turns() -> None:
    calls: list[str] = []
    durations = time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert [len(times) for times in durations] == [3, 3]


def test_the_reference_is_the_same_work_each_time() -> None:
    first, second = make_reference(1)(), make_reference(1)()
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()  # type: ignore[call-overload]


def test_enough_runs_for_a_median() -> None:
    assert RUNS >= 30


def encode_image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), (10, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_loaded_bundle_is_timed(tiny_bundle) -> None:  # type: ignore[no-untyped-def]
    classifier = PlantClassifier.load(tiny_bundle.bundle, threads=1)
    latency = measure_latency(classifier, encode_image(), runs=5)
    assert (latency.runs, latency.threads) == (5, 1)
    assert 0 < latency.median_ms <= latency.p95_ms
    assert latency.median_ms == sorted(latency.runs_ms)[2]
    ratios = [run / other for run, other in zip(latency.runs_ms, latency.reference_runs_ms, strict=True)]
    assert latency.relative == sorted(ratios)[2] > 0
    assert latency.reference_median_ms == sorted(latency.reference_runs_ms)[2]
    assert latency.encoded_median_ms == sorted(latency.encoded_runs_ms)[2]
    assert 0 < latency.encoded_median_ms <= latency.encoded_p95_ms


def test_an_image_that_cannot_be_decoded_is_refused(tiny_bundle) -> None:  # type: ignore[no-untyped-def]
    classifier = PlantClassifier.load(tiny_bundle.bundle, threads=1)
    with pytest.raises(ImageError, match="zero bytes"):
        measure_latency(classifier, b"", runs=1)
