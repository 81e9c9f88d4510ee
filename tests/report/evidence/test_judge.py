import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from plantmodels.bundle.layout import SPECIES_FILES, head_file
from plantmodels.bundle.manifest import FileDigest
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.judge import Measured, judge_gates
from plantmodels.report.gates import GATES, GateResult
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Accuracy, Baseline, ClassRow
from plantmodels.report.samples import Parity
from plantmodels.report.statistics import PairedCounts, Proportion
from tests.fixtures.reports import SMALL_SETS

Make = Callable[..., Measured]


def judged(measured: Measured, policy: GatePolicy | None = None) -> dict[str, GateResult]:
    results = judge_gates(measured, replace(policy or GatePolicy(), **SMALL_SETS))
    assert [gate.name for gate in results] == list(GATES)
    return {gate.name: gate for gate in results}


def not_passed(measured: Measured, policy: GatePolicy | None = None) -> set[str]:
    return {name for name, gate in judged(measured, policy).items() if not gate.passed}


def test_a_good_bundle_passes_all_gates(measured: Make) -> None:
    results = judged(measured())
    assert not_passed(measured()) == set()
    assert {name: gate.measured for name, gate in results.items()} == {
        "parity": 8e-4,
        "int8_accuracy": 0.0,
        "ood_precision": 0.98 / 0.985,
        "ood_recall": 0.98,
        "false_alarms": 0.005,
        "loads": 0,
        "heads_complete": 0,
        "species_size": 4_200_000,
        "head_size": 4_100,
        "latency": 27.4,
        "accuracy": 0.95,
        "coverage": 0,
        "leakage": 0.0,
    }
    assert {name: gate.samples for name, gate in results.items()} == {
        "parity": 64,
        "int8_accuracy": 100,
        "ood_precision": 50,
        "ood_recall": 50,
        "false_alarms": 200,
        "loads": 5,
        "heads_complete": 2,
        "species_size": 1,
        "head_size": 2,
        "latency": 40,
        "accuracy": 100,
        "coverage": 100,
        "leakage": 100,
    }


def with_parity(measured: Measured, **changes: Any) -> dict[str, Any]:
    assert isinstance(measured.parity, Parity)
    return {"parity": replace(measured.parity, **changes)}


@pytest.mark.parametrize("field", ["logits", "embedding", "head_logits"])
@pytest.mark.parametrize("value", [0.01, 0.5, None])
def test_parity_fails_by_any_of_its_parts(measured: Make, field: str, value: float | None) -> None:
    assert not_passed(measured(**with_parity(measured(), **{field: value}))) == {"parity"}


def test_int8_differences_do_not_change_the_parity_gate(measured: Make) -> None:
    assert not_passed(measured(**with_parity(measured(), int8_logits=3.0, int8_embedding=None))) == set()


@pytest.mark.parametrize(("species", "disease"), [(93, 70), (95, 69), (80, 20)])
def test_int8_accuracy_fails_by_either_drop(
    measured: Make, accuracy: Callable[..., Accuracy], species: int, disease: int
) -> None:
    changed = accuracy(
        species=PairedCounts(species, 95 - species, 0, 5), disease=PairedCounts(disease, 70 - disease, 0, 10)
    )
    assert not_passed(measured(accuracy=changed)) == {"int8_accuracy"}


def test_a_drop_of_exactly_the_limit_passes(measured: Make, accuracy: Callable[..., Accuracy]) -> None:
    gate = judged(measured(accuracy=accuracy(species=PairedCounts(94, 1, 0, 5))))["int8_accuracy"]
    assert gate.passed
    assert gate.detail.startswith("FP16 minus INT8: species +0.0100, disease +0.0000, end to end +0.0000")


def test_int8_accuracy_fails_by_the_loss_end_to_end(measured: Make, accuracy: Callable[..., Accuracy]) -> None:
    assert not_passed(measured(accuracy=accuracy(end_to_end=PairedCounts(85, 2, 0, 13)))) == {"int8_accuracy"}


def judge_losses(measured: Make, accuracy: Callable[..., Accuracy], counts: PairedCounts) -> GateResult:
    """Judge by the default limits; species, disease and end to end lose the same images."""
    changed = accuracy(species=counts, disease=counts, end_to_end=counts)
    return {gate.name: gate for gate in judge_gates(measured(accuracy=changed), GatePolicy())}["int8_accuracy"]


def test_int8_accuracy_is_uncertain_with_few_leaves_and_says_how_many_would_do(
    measured: Make, accuracy: Callable[..., Accuracy]
) -> None:
    gate = judge_losses(measured, accuracy, PairedCounts(348, 1, 1, 0))
    assert (gate.status, gate.passed) == ("uncertain", False)
    assert gate.limit_text == "≤ 1 point, with 95 % confidence"
    assert gate.detail.endswith("; at this rate of changes about 505 leaves would make it certain")
    assert judge_losses(measured, accuracy, PairedCounts(535, 2, 2, 0)).status == "uncertain"
    assert judge_losses(measured, accuracy, PairedCounts(380, 0, 0, 0)).status == "uncertain"
    assert judge_losses(measured, accuracy, PairedCounts(381, 0, 0, 0)).status == "passed"
    assert judge_losses(measured, accuracy, PairedCounts(365, 10, 0, 0)).status == "failed"


@pytest.mark.parametrize(
    ("only_fp16", "only_int8", "least", "most"),
    [(0.005, 0.005, 0.92, 0.97), (0.012, 0.002, 0.0, 0.03)],
    ids=["1 % of answers change and nothing is lost", "a point is lost"],
)
def test_int8_accuracy_has_power_and_lets_no_loss_through(
    measured: Make, accuracy: Callable[..., Accuracy], only_fp16: float, only_int8: float, least: float, most: float
) -> None:
    """On 1,539 leaves; by the value alone, a true loss of a point would pass every second time."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(1539, [only_fp16, only_int8, 1 - only_fp16 - only_int8], size=2000).tolist()

    @cache
    def passes(first: int, second: int) -> bool:
        return judge_losses(measured, accuracy, PairedCounts(1539 - first - second, first, second, 0)).passed

    assert least <= np.mean([passes(first, second) for first, second, _ in draws]) <= most


def test_false_alarms_are_judged_without_non_plants(measured: Make) -> None:
    gate = judged(measured(**with_rejection(measured(), Proportion(3, 200), Proportion(0, 0))))["false_alarms"]
    assert (gate.status, gate.measured_text, gate.samples_text) == ("failed", "1.50 %", "200 images")
    sure = judged(measured(**with_rejection(measured(), Proportion(3, 1539), Proportion(49, 50))))["false_alarms"]
    assert (sure.status, sure.detail) == ("passed", "3 of 1,539 plants rejected")


def with_rejection(measured: Measured, plants: Proportion, non_plants: Proportion) -> dict[str, Any]:
    assert measured.rejection is not None
    return {"rejection": replace(measured.rejection, plants=plants, non_plants=non_plants)}


def test_a_detector_that_rejects_nothing_fails_both_rejection_gates(measured: Make) -> None:
    results = judged(measured(**with_rejection(measured(), Proportion(0, 100), Proportion(0, 50))))
    assert (results["ood_recall"].status, results["ood_recall"].measured) == ("failed", 0.0)
    assert (results["ood_precision"].status, results["ood_precision"].measured) == ("failed", None)
    assert "nothing is rejected, so precision is not defined" in results["ood_precision"].detail


@pytest.mark.parametrize(
    ("plants", "non_plants", "expected"),
    [
        (Proportion(2, 100), Proportion(50, 50), {"ood_precision", "false_alarms"}),
        (Proportion(0, 100), Proportion(47, 50), {"ood_recall"}),
        (Proportion(5, 100), Proportion(40, 50), {"ood_precision", "ood_recall", "false_alarms"}),
        (Proportion(100, 100), Proportion(50, 50), {"ood_precision", "false_alarms"}),
    ],
)
def test_the_rejection_gates_fail_separately(
    measured: Make, plants: Proportion, non_plants: Proportion, expected: set[str]
) -> None:
    assert not_passed(measured(**with_rejection(measured(), plants, non_plants))) == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [(False, "no non-plants were given"), (True, "the half of the non-plants that gates may measure is empty")],
)
def test_without_non_plants_the_rejection_gates_are_not_measured(measured: Make, given: bool, reason: str) -> None:
    changes = with_rejection(measured(), Proportion(0, 100), Proportion(0, 0))
    results = judged(measured(**changes, non_plants_given=given))
    for name in ("ood_precision", "ood_recall"):
        assert (results[name].status, results[name].detail) == ("not measured", reason)


def test_without_a_checkpoint_parity_and_heads_are_not_measured(measured: Make) -> None:
    results = judged(measured(parity=None, heads_compared=False))
    assert results["parity"].status == "not measured"
    assert results["parity"].detail == "no checkpoint was given to compare with"
    assert results["heads_complete"].status == "not measured"
    assert "class order and weights cannot be compared" in results["heads_complete"].detail


def test_a_bundle_that_cannot_be_run_is_still_judged(measured: Make) -> None:
    failed = {"loads": ("swin-species-int8.onnx: Unable to parse proto",)}
    broken = measured(
        accuracy=None, rejection=None, latency=None, parity=None, problems=failed, not_run="INT8 does not open"
    )
    results = judged(broken)
    for name in ("parity", "int8_accuracy", "ood_precision", "ood_recall", "latency", "accuracy"):
        assert (results[name].status, results[name].detail) == ("not measured", "INT8 does not open")
    assert (results["loads"].status, results["loads"].measured) == ("failed", 1)
    assert results["loads"].detail == "swin-species-int8.onnx: Unable to parse proto"
    assert results["species_size"].passed


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({"accuracy_min_species": 0.95, "accuracy_min_end_to_end": 0.88, "accuracy_min_worst_species": 0.9}, set()),
        ({"accuracy_min_species": 0.96}, {"species"}),
        ({"accuracy_min_end_to_end": 0.89}, {"end to end"}),
        ({"accuracy_min_worst_species": 0.95}, {"worst species"}),
        ({"accuracy_min_worst_class": 0.1}, {"worst class"}),
        ({"accuracy_species": {"Mint": 0.96, "Apple": 0.9}}, {"species Mint"}),
        ({"accuracy_species": {"Fig": 0.0}}, {"species Fig"}),
        ({"accuracy_confidence": 0.95, "accuracy_min_species": 0.9, "accuracy_min_end_to_end": 0.5}, {"species"}),
    ],
)
def test_accuracy_fails_by_any_of_its_values(measured: Make, limits: dict[str, Any], missed: set[str]) -> None:
    gate = judged(measured(), GatePolicy(**limits))["accuracy"]
    assert {value.name for value in gate.values if not gate.is_met(value)} == missed
    assert gate.passed == (not missed)


def test_a_species_without_images_is_not_the_worst(measured: Make, accuracy: Callable[..., Accuracy]) -> None:
    rows = {"Apple": ClassRow(80, 77, 76), "Fig": ClassRow(0, 0, 0)}
    policy = GatePolicy(accuracy_min_worst_species=0.96)
    gate = judged(measured(accuracy=accuracy(by_species=rows)), policy)["accuracy"]
    assert "the worst species, Apple, has 76 of 80 right" in gate.detail


@pytest.mark.parametrize(
    ("baseline", "missed"),
    [("species_baseline", "species above the commonest"), ("class_baseline", "end to end above the commonest")],
)
def test_accuracy_must_be_above_the_commonest_answer_beyond_noise(
    measured: Make, accuracy: Callable[..., Accuracy], baseline: str, missed: str
) -> None:
    changed = accuracy(**{baseline: Baseline("Apple", PairedCounts(80, 8, 12, 0))})
    gate = judged(measured(accuracy=changed))["accuracy"]
    assert [value.name for value in gate.values if not gate.is_met(value)] == [missed]
    assert gate.detail.startswith("the commonest species, Apple, is ")


def test_the_worst_species_and_class_are_named_where_they_miss_a_limit(measured: Make) -> None:
    limits = GatePolicy(accuracy_min_worst_species=0.9, accuracy_min_worst_class=0.1)
    assert judged(measured(), limits)["accuracy"].detail.startswith("the worst class, Rose · spot, has 0 of 1 right; ")
    with_confidence = replace(limits, accuracy_confidence=0.9)
    assert judged(measured(), with_confidence)["accuracy"].detail.startswith(
        "the worst species, Mint, has 18 of 19 right; the worst class, "
    )


def test_many_problems_are_counted_and_some_are_named(measured: Make) -> None:
    gate = judged(measured(problems={"heads_complete": tuple(f"head {i}: missing" for i in range(320))}))[
        "heads_complete"
    ]
    assert (gate.status, gate.measured) == ("failed", 320)
    assert gate.detail == "head 0: missing; head 1: missing; head 2: missing; and 317 more"


def resize(measured: Measured, name: str, size_bytes: int) -> dict[str, Any]:
    return {"files": {**measured.files, name: FileDigest(size_bytes, "a" * 64)}}


def test_sizes_fail_at_their_limits(measured: Make) -> None:
    name = SPECIES_FILES["int8"]
    assert not_passed(measured(**resize(measured(), name, 4_999_999))) == set()
    assert not_passed(measured(**resize(measured(), name, 5_000_000))) == {"species_size"}
    assert not_passed(measured(**resize(measured(), head_file("rose"), 200_000))) == {"head_size"}
    gate = judged(measured(**resize(measured(), head_file("rose"), 200_000)))["head_size"]
    assert gate.detail == head_file("rose")


def test_a_missing_species_file_fails_its_size(measured: Make) -> None:
    files = {name: entry for name, entry in measured().files.items() if name != SPECIES_FILES["int8"]}
    gate = judged(measured(files=files))["species_size"]
    assert (gate.status, gate.detail) == ("failed", "swin-species-int8.onnx is missing")


def test_without_heads_there_is_no_large_head(measured: Make) -> None:
    gate = judged(measured(taxonomy=Taxonomy(("Apple", "Rose"), {})))["head_size"]
    assert (gate.status, gate.samples, gate.detail) == ("passed", 0, "no species has a head")


def test_slow_answers_fail(measured: Make) -> None:
    latency = measured().latency
    assert latency is not None
    assert not_passed(measured(latency=replace(latency, median_ms=200.0))) == {"latency"}
    assert not_passed(measured(latency=replace(latency, p95_ms=math.pi * 1e3))) == set(), "the median is gated"


def test_gates_are_judged_by_the_limits_of_the_policy(measured: Make) -> None:
    strict = GatePolicy(latency_max_median_ms=20, ood_recall_min=0.99)
    assert not_passed(measured(), strict) == {"latency", "ood_recall"}
