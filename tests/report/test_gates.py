import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.report.gates import GATES, GateResult, GateValue, judge_gate, not_measured


def judge(name: str, measured: float | None, *, limit: float, samples: int, detail: str = "") -> GateResult:
    return judge_gate(name, [GateValue("", limit, measured)], samples=samples, detail=detail)


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
        ("accuracy", 0.7, 0.7, 0.699_999),
    ],
)
def test_each_gate_passes_and_fails_at_its_border(name: str, limit: float, passing: float, failing: float) -> None:
    assert judge(name, passing, limit=limit, samples=3).status == "passed"
    assert judge(name, failing, limit=limit, samples=3).status == "failed"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", GATES)
def test_what_is_not_finite_fails_and_is_recorded_as_none(name: str, value: float | None) -> None:
    gate = judge(name, value, limit=0.5, samples=1, detail="why")
    assert (gate.status, gate.measured, gate.passed) == ("failed", None, False)
    assert gate.measured_text == "–"
    assert gate.detail == ("why" if value is None else f"why; measured {value}")


def test_not_measured_does_not_pass() -> None:
    gate = not_measured("ood_recall", {"": 0.95}, reason="no non-plants were given")
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
    gate = judge(name, measured, limit=limit, samples=1)
    assert (gate.limit_text, gate.measured_text) == (limit_text, measured_text)


@given(
    st.sampled_from(["ood_precision", "ood_recall"]),
    st.floats(0.9, 1, allow_subnormal=False),
    st.sampled_from([0.95, 0.99]),
)
def test_what_is_written_never_contradicts_the_verdict(name: str, measured: float, limit: float) -> None:
    gate = judge(name, measured, limit=limit, samples=1)
    written = float(gate.measured_text.removesuffix(" %"))
    if abs(measured - limit) > 1e-9:
        assert (written >= 100 * limit) == gate.passed


def test_samples_are_counted_in_their_own_noun() -> None:
    assert judge("loads", 0, limit=0, samples=1).samples_text == "1 file"
    assert judge("parity", 0, limit=1, samples=1539).samples_text == "1,539 images"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "speed"}, "unknown gate 'speed'; gates are parity, int8_accuracy"),
        ({"status": "passed"}, r"gate ood_recall is 'passed', but 0.5 ≥ 0.95 makes it 'failed'"),
        ({"status": "not measured"}, r"gate ood_recall is 'not measured', but 0.5 ≥ 0.95 makes it 'failed'"),
        (
            {"values": (GateValue("", 0.95, None),), "status": "passed"},
            "but None ≥ 0.95 makes it 'failed' or 'not measured'",
        ),
        ({"values": (GateValue("", 0.95, 0.97),)}, "gate ood_recall is 'failed', but 0.97 ≥ 0.95 makes it 'passed'"),
        ({"comparison": "<"}, "gate ood_recall compares ≥ in share, got < in share"),
        ({"unit": "ms"}, "gate ood_recall compares ≥ in share, got ≥ in ms"),
        ({"samples": -1}, "gate ood_recall has -1 samples"),
        ({"values": ()}, "gate ood_recall has 10 samples and 0 values"),
        ({"min_images": 11}, r"is 'failed', but 10 of at least 11 images makes it 'not measured'"),
        (
            {"values": (GateValue("", 0.95, 0.97, 0.9),), "status": "passed"},
            r"but 0.97 ≥ 0.95, bound 0.9 makes it 'passed, uncertain'",
        ),
        (
            {"values": (GateValue("", 0.95, 0.97, 0.9),), "status": "passed, uncertain", "confidence": 0.95},
            r"but 0.97 ≥ 0.95, bound 0.9 makes it 'uncertain'",
        ),
        (
            {"values": (GateValue("", 0.95, 0.94, 0.9),), "status": "uncertain", "confidence": 0.95},
            r"but 0.94 ≥ 0.95, bound 0.9 makes it 'failed'",
        ),
    ],
)
def test_a_verdict_that_its_numbers_contradict_is_refused(changes: dict[str, object], message: str) -> None:
    values = {
        "name": "ood_recall",
        "comparison": "≥",
        "unit": "share",
        "values": (GateValue("", 0.95, 0.5),),
        "samples": 10,
        "min_images": 0,
        "confidence": None,
        "status": "failed",
    }
    with pytest.raises(ValueError, match=message):
        GateResult(**{**values, **changes})  # type: ignore[arg-type]


def test_with_too_few_images_a_gate_is_not_measured() -> None:
    gate = judge_gate("ood_recall", [GateValue("", 0.95, 1.0)], samples=49, min_images=50, detail="49 of 49")
    assert (gate.status, gate.passed) == ("not measured", False)
    assert gate.detail == "needs at least 50 non-plants, got 49; 49 of 49"
    assert judge_gate("ood_recall", [GateValue("", 0.95, 1.0)], samples=50, min_images=50).passed


def test_with_a_confidence_the_bound_must_meet_the_limit() -> None:
    def judge_bound(bound: float) -> GateResult:
        return judge_gate("ood_recall", [GateValue("", 0.95, 0.97, bound)], samples=300, confidence=0.9)

    assert judge_bound(0.95).status == "passed"
    assert (judge_bound(0.9499).status, judge_bound(0.9499).passed) == ("uncertain", False)
    assert judge_bound(0.9499).measured_text == "97.00 % (bound 94.99 %)"
    assert judge_bound(0.9499).limit_text == "≥ 95 %, with 90 % confidence"


def test_without_a_confidence_an_uncertain_value_passes_and_shows_its_bound() -> None:
    def judge_bound(measured: float, bound: float | None) -> GateResult:
        return judge_gate("ood_recall", [GateValue("", 0.95, measured, bound)], samples=300)

    doubtful = judge_bound(0.97, 0.9499)
    assert (doubtful.status, doubtful.passed, doubtful.is_uncertain) == ("passed, uncertain", True, True)
    assert (doubtful.measured_text, doubtful.limit_text) == ("97.00 % (bound 94.99 %)", "≥ 95 %")
    assert (judge_bound(0.97, 0.95).status, judge_bound(0.97, 0.95).measured_text) == ("passed", "97.00 %")
    assert judge_bound(0.97, None).status == "passed"
    assert (judge_bound(0.94, 0.9).status, judge_bound(0.94, 0.9).measured_text) == ("failed", "94.00 %")


def test_every_value_in_doubt_is_shown() -> None:
    values = (*ACCURACY[:2], GateValue("worst class", 0.3, 0.4, 0.2))
    gate = judge_gate("accuracy", values, samples=300)
    assert gate.status == "passed, uncertain"
    assert gate.measured_text.endswith("end to end 74.90 %, worst class 40.00 % (bound 20.00 %)")


ACCURACY = (GateValue("species", 0.7, 0.81), GateValue("end to end", 0.6, 0.749), GateValue("worst class", 0.5, 0.4))


def test_a_line_shows_two_values_and_each_that_misses_its_limit() -> None:
    good = judge_gate("accuracy", (*ACCURACY[:2], GateValue("worst class", 0.3, 0.4)), samples=300)
    assert (good.limit_text, good.measured_text) == (
        "species ≥ 70 %, end to end ≥ 60 %",
        "species 81.00 %, end to end 74.90 %",
    )
    bad = judge_gate("accuracy", ACCURACY, samples=300)
    assert bad.status == "failed"
    assert bad.limit_text == "species ≥ 70 %, end to end ≥ 60 %, worst class ≥ 50 %"
    assert bad.measured_text == "species 81.00 %, end to end 74.90 %, worst class 40.00 %"


def test_a_value_that_is_not_defined_fails_its_gate() -> None:
    gate = judge_gate("accuracy", (*ACCURACY[:2], GateValue("species Rose", 0.5, None)), samples=300)
    assert gate.status == "failed"
    assert gate.measured_text == "species 81.00 %, end to end 74.90 %, species Rose –"
