"""Measures how long one image takes on this machine's CPU.

>>> classifier = PlantClassifier.load(bundle, threads=1)
>>> latency = measure_latency(classifier, image.read_bytes())
>>> 0 < latency.median_ms <= latency.p95_ms
True
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from plantmodels.export.onnx_builder import IR_VERSION
from plantmodels.export.onnx_heads import OPSET
from plantmodels.export.provenance import describe_cpu
from plantmodels.report.samples import Latency
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.session import count_threads, open_session

RUNS: Final = 40
"""Timed runs of each kind: enough for a stable median."""

_DIGITS: Final = 4
"""Decimals of a recorded time in milliseconds: a tenth of a microsecond, less than a clock can tell."""

REFERENCE_SIDE: Final = 384
"""Rows and columns of the reference's matrices: about the width of a small Swin."""

REFERENCE_PRODUCTS: Final = 4
"""Products of the reference: half a billion operations, a few milliseconds on a core."""

WARM_UP_RUNS: Final = 5
"""Runs before those that are timed: the first ones are slower, because they allocate memory."""


def measure_latency(classifier: PlantClassifier, encoded: bytes, *, runs: int = RUNS) -> Latency:
    """Time a loaded bundle on one image, with and without decoding the image, each run beside a fixed reference.

    The reference uses as many threads. The three kinds of work take turns, so that other work on the machine slows all
    of them alike.

    Args:
        classifier: the bundle as it is served.
        encoded: content of an image file.
        runs: number of timed runs of each kind, at least 1.

    Raises:
        ImageError: the image cannot be decoded.
    """
    preprocessing, threads = classifier.metadata.preprocessing, count_threads(classifier.species_model.session)
    inputs = image_to_input(encoded, preprocessing)[None]
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    calls = (lambda: classifier.run(inputs), make_reference(threads), lambda: classifier.predict([encoded]))
    tensor_ms, reference_ms, encoded_ms = (
        [round(time, _DIGITS) for time in times] for times in time_in_turns(calls, runs)
    )
    return Latency.summarize(
        tensor_ms,
        encoded_ms,
        reference_ms,
        threads=threads,
        cpu=describe_cpu().model,
        load=load,
    )


def make_reference(threads: int) -> Callable[[], object]:
    """Return a fixed piece of work for ONNX Runtime: products of matrices, which are most of a network's work.

    Args:
        threads: number of threads inside an operator.
    """
    side = REFERENCE_SIDE
    weight = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32) / side**0.5
    names = ["input", *(f"x{i}" for i in range(1, REFERENCE_PRODUCTS)), "output"]
    nodes = [helper.make_node("MatMul", [a, "weight"], [b]) for a, b in pairwise(names)]
    start, end = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in ("input", "output"))
    graph = helper.make_graph(nodes, "reference", [start], [end], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = open_session(Path("reference.onnx"), model.SerializeToString(), threads=threads)
    return lambda: session.run(None, {"input": weight})


def time_in_turns(
    calls: Sequence[Callable[[], object]], runs: int, *, warm_up: int = WARM_UP_RUNS
) -> tuple[list[float], ...]:
    """Return the wall-clock milliseconds of each of `runs` calls of every kind; the kinds take turns.

    Args:
        calls: the work of each kind.
        runs: number of timed calls of each kind.
        warm_up: number of calls of each kind before those that are timed.
    """
    durations: tuple[list[float], ...] = tuple([] for _ in calls)
    for run in range(-warm_up, runs):
        for call, times in zip(calls, durations, strict=True):
            start = time.perf_counter()
            call()
            if run >= 0:
                times.append((time.perf_counter() - start) * 1000)
    return durations
