from collections.abc import Callable

from plantmodels.report.gate_report import GateReport
from plantmodels.report.summary import describe_accuracy


def test_every_share_is_named_with_what_it_counts(report: Callable[..., GateReport]) -> None:
    assert report().accuracy_sentence == (
        "The INT8 model names the right species for 95.0 % of 100 validation images, and the right species and disease "
        "for 88.0 %. Given the true species, it names the right disease for 87.5 %."
    )


def test_a_model_that_cannot_be_run_has_no_accuracy() -> None:
    assert describe_accuracy(None) == "The models could not be run, so their accuracy is unknown."
