from collections.abc import Callable
from dataclasses import replace

from plantmodels.report.gate_report import GateReport
from plantmodels.report.summary import describe_accuracy, summarize_field
from tests.fixtures.reports import TAXONOMY, make_report
from tests.fixtures.rows import agree, make_leaf_rows, make_other_rows


def test_every_share_is_named_with_what_it_counts(report: Callable[..., GateReport]) -> None:
    assert report().accuracy_sentence == (
        "The INT8 model names the right species for 95.0 % of 100 validation images, and the right species and disease "
        "for 88.0 %. Given the true species, it names the right disease for 87.5 %."
    )


def test_a_model_that_cannot_be_run_has_no_accuracy() -> None:
    assert describe_accuracy(None) == "The models could not be run, so their accuracy is unknown."


def test_field_leaves_are_one_sentence() -> None:
    rows = (*make_leaf_rows(TAXONOMY, 40, threshold=12.5), *make_other_rows(TAXONOMY, 40, threshold=12.5))
    field = make_leaf_rows(TAXONOMY, 50, threshold=12.5, wrong=0.4, alarms=0.5, name="field")
    found = agree(make_report(), (*rows, *field)).field
    right = found.decided.accepted.species
    assert (found.accuracy.int8.species.value, right.images) == (0.6, 25)
    assert summarize_field(found) == (
        "Of 50 field leaves, it names the right species for 60.0 %; the detector accepts 25 of them, and "
        f"{right.count / 25:.1%} of these have the right species.".replace("0%", "0 %")
    )
    nothing = replace(
        found.decided, accepted=replace(found.decided.accepted, species=replace(right, count=0, images=0))
    )
    assert summarize_field(replace(found, decided=nothing)).endswith("the detector accepts 0 of them.")
    assert summarize_field(None) == ""
