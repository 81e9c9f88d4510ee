"""What follows the network is cut out of the one file whole, so that its time can be measured alone."""

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.bars import judge_bars
from benchmarks.one_file import WAYS, cut_tail, time_in_turns
from benchmarks.report import render
from plantmodels.bundle.layout import EMBEDDING, ONE_FILES, SPECIES_OUTPUT, Precision
from plantmodels.bundle.metadata import read_metadata
from plantmodels.export.one_file.build import write_one_files


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_tail_answers_as_the_whole_file(bundle_copy, precision: Precision) -> None:
    metadata = read_metadata(bundle_copy)
    write_one_files(bundle_copy, metadata, [precision])
    path = bundle_copy / ONE_FILES[precision]
    side = metadata.preprocessing.image_size
    inputs = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    session = ort.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, {"input": inputs}), strict=True))
    tail = ort.InferenceSession(cut_tail(onnx.load(path)))
    network = {name: expected[name] for name in (SPECIES_OUTPUT, EMBEDDING)}
    found = {output.name for output in tail.get_outputs()}

    assert {name.removeprefix("image.").removesuffix(".row") for name in found} == set(names) - set(network)
    for name, values in zip(found, tail.run(list(found), network), strict=True):
        whole = expected[name.removeprefix("image.").removesuffix(".row")]
        np.testing.assert_array_equal(values.ravel(), whole.ravel(), err_msg=name)


def test_both_ways_have_a_turn_in_each_round() -> None:
    calls: list[str] = []
    times = time_in_turns({way: lambda way=way: calls.append(way) for way in WAYS}, rounds=2, repeats=3)

    assert [(way, len(list(group))) for way, group in itertools.groupby(calls[2:])] == [
        ("one file", 3),
        ("three steps", 6),
        ("one file", 3),
    ]
    assert {way: len(rounds) for way, rounds in times.items()} == dict.fromkeys(WAYS, 2)


def test_bars_and_table_of_the_one_file() -> None:
    def times(seconds: float) -> list[dict[str, float]]:
        return [{"clock_s": 2 * seconds, "processor_s": seconds}] * 3

    cold = [{**times(0.15)[0], "load_clock_s": 0.2, "load_processor_s": 0.1, "peak_mb": 95.0}]
    int8 = {
        "image": {"three steps": times(0.020), "one file": times(0.0196)},
        "batch": {"three steps": times(0.640), "one file": times(0.627)},
        "tail": {"three steps": times(0.00025), "one file": times(0.00012)},
        "cold": {"three steps": cold, "one file": cold},
        "foreign": 0.0,
    }
    part = {"int8": int8, "fp16": int8}
    bars = {bar.what.split(",")[0].split(" of a")[0]: bar for bar in judge_bars({"one-file": part}) if bar.measured}

    assert [(round(bar.measured or 0, 3), bar.verdict) for bar in bars.values()] == [
        (0.98, "met"),
        (0.12, "met"),
        (0.3, "moonshot"),
    ]
    machine = dict.fromkeys(("cpu", "family", "cores", "memory_gb", "kernel", "python", "commit", "date"), "")
    shown = render({"machine": {**machine, "versions": {}, "features": [], "hypervisor": False}, "one-file": part})
    assert "| of it disease, probabilities and OOD, processor time | 0.250 (0.250) | 0.120 (0.120) |" in shown
    assert "| FP16, 1 thread; median of the rounds (quickest), ms | three steps | one file |" in shown
    assert "| 32 images in one call, processor time | 640.0 (640.0) | 627.0 (627.0) |" in shown
    assert "| peak of its memory, MB | 95.0 (95.0) | 95.0 (95.0) |" in shown
