from collections.abc import Callable

from plantmodels.report.gate_report import GateReport
from plantmodels.report.summary import describe_accuracy


def test_every_share_is_named_with_what_it_counts(report: Callable[..., GateReport]) -> None:
    assert report().accuracy_sentence == (
        "INT8 names the species of 95.0 % of 100 validation leaves, species and disease of 88.0 %; given the right "
        "species, the disease of 87.5 %."
    )


def test_a_model_that_cannot_be_run_has_no_accuracy() -> None:
    assert describe_accuracy(None) == "The models could not be run, so their accuracy is unknown."
