"""The page's section on field leaves."""

from plantmodels.report.evidence.field import Answers, Decided
from plantmodels.report.render.field import prepare_field
from plantmodels.report.render.page import render_report
from plantmodels.report.render.plots_field import draw_field
from plantmodels.report.statistics import Proportion
from tests.fixtures.reports import TAXONOMY, make_report
from tests.fixtures.rows import agree, make_leaf_rows, make_other_rows
from tests.report.render.test_page import read_text

ROWS = (
    *make_leaf_rows(TAXONOMY, 120, threshold=12.5, alarms=0.01),
    *make_other_rows(TAXONOMY, 50, threshold=12.5, recall=0.9),
)
FIELD = tuple(make_leaf_rows(TAXONOMY, 60, threshold=12.5, wrong=0.5, alarms=0.4, name="field"))


def test_the_page_shows_field_leaves_beside_validation_leaves() -> None:
    report = agree(make_report(), (*ROWS, *FIELD))
    text = read_text(render_report(report, {}))

    assert "60 labelled leaves from another place" in text and "60 field leaves" in text
    assert "That says nothing about whether the answer is right." in text
    assert "rejected0.83 %1 of 120" in text and "40.00 %24 of 60" in text


def test_a_report_without_field_leaves_has_no_such_section() -> None:
    report = agree(make_report(), ROWS)
    assert "Field leaves" not in read_text(render_report(report, {}))


def test_without_non_plants_precision_is_missing() -> None:
    report = agree(make_report(), (*make_leaf_rows(TAXONOMY, 120, threshold=12.5), *FIELD))
    assert "Without non-plants, the share of non-plants among rejected images is not measured." in read_text(
        render_report(report, {})
    )


def test_the_species_with_the_most_accepted_wrong_answers_comes_first() -> None:
    report = agree(make_report(), (*ROWS, *FIELD))
    view = prepare_field(report)
    assert view is not None
    wrong = [
        (decided.accepted.images - decided.accepted.species.count) / decided.rejected_share.images
        for decided in view.by_species.values()
    ]
    assert wrong == sorted(wrong, reverse=True)


def test_the_plot_can_be_drawn_without_accepted_leaves_and_with_many_species() -> None:
    none, some = Answers(Proportion(0, 0), Proportion(0, 0), None), Answers(Proportion(1, 3), Proportion(0, 3), 0.9)
    rejected = Decided(none, some, {})
    names = {f"Species {number}": rejected for number in range(40)}
    (figure,) = draw_field(Decided(some, none, {}), rejected, names).values()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 26 and labels[:2] == ["validation leaves (3)", "field leaves (3)"]
