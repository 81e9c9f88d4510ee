"""Measures how long one image takes on this machine's CPU.

>>> classifier = PlantClassifier.load(bundle, threads=1)
>>> latency = measure_latency(classifier, image.read_bytes(), threads=1)
>>> 0 < latency.median_ms <= latency.p95_ms
True
"""

import os
import time
from collections.abc import Callable
from typing import Final

from plantmodels.export.provenance import describe_cpu
from plantmodels.report.samples import Latency
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.cores import count_cores
from plantmodels.serve.preprocessing import decode_image, preprocess

RUNS: Final = 40
"""Timed runs of each kind: enough for a stable median."""

_DIGITS: Final = 4
"""Decimals of a recorded time in milliseconds: a tenth of a microsecond, less than a clock can tell."""

WARM_UP_RUNS: Final = 5
"""Runs before those that are timed: the first ones are slower, because they allocate memory."""


def measure_latency(classifier: PlantClassifier, encoded: bytes, *, threads: int | None, runs: int = RUNS) -> Latency:
    """Time a loaded bundle on one image, with and without decoding the image.

    Args:
        classifier: the bundle as it is served.
        encoded: content of an image file.
        threads: number of threads that the classifier was loaded with; None stands for all cores.
        runs: number of timed runs of each kind, at least 1.

    Raises:
        ImageError: the image cannot be decoded.
    """
    preprocessing = classifier.metadata.preprocessing
    inputs = preprocess(decode_image(encoded), preprocessing)[None]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    tensor_ms = time_runs(lambda: classifier.run(inputs), runs)
    encoded_ms = time_runs(lambda: classifier.predict([encoded]), runs)
    return Latency.summarize(
        [round(time, _DIGITS) for time in tensor_ms],
        [round(time, _DIGITS) for time in encoded_ms],
        threads=threads or count_cores(),
        cpu=describe_cpu().model,
        load=load,
    )


def time_runs(call: Callable[[], object], runs: int, *, warm_up: int = WARM_UP_RUNS) -> list[float]:
    """Return the wall-clock milliseconds of each of `runs` calls, after `warm_up` calls that are not timed."""
    for _ in range(warm_up):
        call()
    durations = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        durations.append((time.perf_counter() - start) * 1000)
    return durations
