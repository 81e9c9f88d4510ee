import random
import shutil
from pathlib import Path

import pytest

from plantmodels.bundle.manifest import read_manifest, write_manifest
from reliability.kills import Event, Series, check_bundle, draw_moments, run_series

EVENTS = [Event("start", 0.0), Event("read", 2.0), Event("swapped", 9.9)]


def test_a_third_of_the_moments_hits_steps_from_the_last_backwards_and_the_others_are_spread():
    moments = draw_moments(EVENTS, 10.0, 9, random.Random(0))
    assert moments == draw_moments(EVENTS, 10.0, 9, random.Random(0))
    for i, moment in enumerate(moments[3:]):
        assert moment.after == "start" and i * 10 / 6 <= moment.delay_s <= (i + 1) * 10 / 6
    assert [moment.after for moment in moments[:3]] == ["swapped", "read", "start"]
    assert [moment.delay_s < length for moment, length in zip(moments[:3], (0.1, 7.9, 2.0), strict=True)] == [True] * 3


def test_a_loss_would_be_noticed(tiny_bundle, tmp_path):
    older = Path(shutil.copytree(tiny_bundle.bundle, tmp_path / "older"))
    (older / "gate-report.json").write_text("{}")
    write_manifest(older)
    old = read_manifest(older)
    assert check_bundle(tiny_bundle.bundle, old) == ([], "new")
    assert check_bundle(older, old) == (["the bundle has seed 0"], "other"), "older bundles have another seed"
    (older / "ood-detector.pkl").write_bytes(b"torn")
    (problem,), which = check_bundle(older, old)
    assert "changed: ood-detector.pkl" in problem and which == "broken"
    assert check_bundle(tmp_path / "none", old)[1] == "broken"


@pytest.mark.slow
def test_a_short_series_of_an_export_loses_nothing(tiny_bundle, tmp_path):
    series = Series("export", tmp_path / "series", tiny_bundle.checkpoint, tiny_bundle.data, None)
    result = run_series(series, 2, seed=0)
    assert result["losses"] == 0 and result["killed"] >= 1, result
    ended = [moment for moment in result["moments"] if not moment["killed"]]  # the last event is just before the end
    assert all(moment["bundle"] == "new" for moment in ended), ended
    assert {moment["bundle"] for moment in result["moments"]} <= {"old", "new"}
    assert set(result["left after the next run"]) <= {"other temporary files"}, "PyTorch's and ONNX Runtime's own"
    steps = {"read finished", "export species finished", "quantize INT8 finished", "swapped"}
    assert steps <= {event["name"] for event in result["events"]}
