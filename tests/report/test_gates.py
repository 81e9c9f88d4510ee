import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.report.gates import GATES, GateResult, judge_gate, not_measured


@pytest.mark.parametrize(
    ("name", "limit", "passing", "failing"),
    [
        ("parity", 0.01, 0.009_999, 0.01),
        ("int8_accuracy", 0.01, 0.01, 0.010_001),
        ("int8_accuracy", 0.01, -0.5, 0.02),
        ("ood_precision", 0.99, 0.99, 0.989_999),
        ("ood_recall", 0.95, 0.95, 0.949_999),
        ("loads", 0, 0, 1),
        ("heads_complete", 0, 0, 1),
        ("species_size", 5_000_000, 4_999_999, 5_000_000),
        ("head_size", 200_000, 199_999, 200_000),
        ("latency", 200, 199.999, 200),
    ],
)
def test_each_gate_passes_and_fails_at_its_border(name: str, limit: float, passing: float, failing: float) -> None:
    assert judge_gate(name, passing, limit=limit, samples=3).status == "passed"
    assert judge_gate(name, failing, limit=limit, samples=3).status == "failed"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", GATES)
def test_what_is_not_finite_fails_and_is_recorded_as_none(name: str, value: float | None) -> None:
    gate = judge_gate(name, value, limit=0.5, samples=1, detail="why")
    assert (gate.status, gate.measured, gate.passed) == ("failed", None, False)
    assert gate.measured_text == "–"
    assert gate.detail == ("why" if value is None else f"why; measured {value}")


def test_not_measured_does_not_pass() -> None:
    gate = not_measured("ood_recall", limit=0.95, reason="no non-plants were given")
    assert (gate.status, gate.passed, gate.samples, gate.detail) == (
        "not measured",
        False,
        0,
        "no non-plants were given",
    )


@pytest.mark.parametrize(
    ("name", "measured", "limit", "limit_text", "measured_text"),
    [
        ("parity", 0.000_31, 0.01, "< 0.01", "0.000310"),
        ("parity", 0.009_999_9, 0.01, "< 0.01", "0.0099999"),
        ("int8_accuracy", 0.001_949, 0.01, "≤ 1 point", "0.19 points lost"),
        ("int8_accuracy", -0.000_65, 0.005, "≤ 0.5 points", "0.07 points gained"),
        ("int8_accuracy", -0.000_01, 0.01, "≤ 1 point", "0.00 points lost"),
        ("int8_accuracy", 0.010_001, 0.01, "≤ 1 point", "1.0001 points lost"),
        ("ood_recall", 0.949_96, 0.95, "≥ 95 %", "94.996 %"),
        ("ood_precision", 0.99, 0.99, "≥ 99 %", "99.00 %"),
        ("species_size", 28_200_000, 5_000_000, "< 5 MB", "28.20 MB"),
        ("species_size", 4_999_999, 5_000_000, "< 5 MB", "4.999999 MB"),
        ("head_size", 34_612, 200_000, "< 200 KB", "34.6 KB"),
        ("latency", 199.98, 200, "< 200 ms", "199.98 ms"),
        ("loads", 2, 0, "0 failures", "2"),
        ("heads_complete", 0, 0, "0 problems", "0"),
    ],
)
def test_numbers_are_written_for_people(
    name: str, measured: float, limit: float, limit_text: str, measured_text: str
) -> None:
    gate = judge_gate(name, measured, limit=limit, samples=1)
    assert (gate.limit_text, gate.measured_text) == (limit_text, measured_text)


@given(
    st.sampled_from(["ood_precision", "ood_recall"]),
    st.floats(0.9, 1, allow_subnormal=False),
    st.sampled_from([0.95, 0.99]),
)
def test_what_is_written_never_contradicts_the_verdict(name: str, measured: float, limit: float) -> None:
    gate = judge_gate(name, measured, limit=limit, samples=1)
    written = float(gate.measured_text.removesuffix(" %"))
    if abs(measured - limit) > 1e-9:
        assert (written >= 100 * limit) == gate.passed


def test_samples_are_counted_in_their_own_noun() -> None:
    assert judge_gate("loads", 0, limit=0, samples=1).samples_text == "1 file"
    assert judge_gate("parity", 0, limit=1, samples=1539).samples_text == "1,539 images"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "speed"}, "unknown gate 'speed'; gates are parity, int8_accuracy"),
        ({"status": "passed"}, r"gate ood_recall is 'passed', but 0.5 ≥ 0.95 makes it 'failed'"),
        ({"status": "not measured"}, r"gate ood_recall is 'not measured', but 0.5 ≥ 0.95 makes it 'failed'"),
        ({"measured": None, "status": "passed"}, "but None ≥ 0.95 makes it 'failed' or 'not measured'"),
        ({"measured": 0.97}, "gate ood_recall is 'failed', but 0.97 ≥ 0.95 makes it 'passed'"),
        ({"comparison": "<"}, "gate ood_recall compares ≥ in share, got < in share"),
        ({"unit": "ms"}, "gate ood_recall compares ≥ in share, got ≥ in ms"),
        ({"samples": -1}, "gate ood_recall has -1 samples"),
    ],
)
def test_a_verdict_that_its_numbers_contradict_is_refused(changes: dict[str, object], message: str) -> None:
    values = {
        "name": "ood_recall",
        "limit": 0.95,
        "comparison": "≥",
        "measured": 0.5,
        "unit": "share",
        "samples": 10,
        "status": "failed",
    }
    with pytest.raises(ValueError, match=message):
        GateResult(**{**values, **changes})  # type: ignore[arg-type]
