import base64
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from plantmodels.verify.gates import GATES
from plantmodels.verify.html import render_report
from plantmodels.verify.measurements import Share, SpeciesRow
from plantmodels.verify.page import Html, table
from plantmodels.verify.plots import draw_plots
from plantmodels.verify.policy import GatePolicy
from plantmodels.verify.report import GateReport, UnreadableFile

Make = Callable[..., GateReport]
VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Collects text, and refuses tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def render(report: GateReport) -> str:
    return render_report(report, draw_plots(report))


def test_the_page_is_well_formed_and_needs_nothing_else(report: Make) -> None:
    checker = parse(render(report()))
    assert "script" not in {tag for tag, _ in checker.tags}
    links = [value for _, attrs in checker.tags for name, value in attrs.items() if name in ("src", "href")]
    assert len(links) == 2
    for link in links:
        assert link is not None
        assert link.startswith("data:image/png;base64,")
        assert base64.b64decode(link.split(",", 1)[1]).startswith(b"\x89PNG")
    assert not re.search(r"url\(|@import", render(report()))


def test_the_gate_table_comes_first_with_every_gate_in_words(report: Make) -> None:
    strict = GatePolicy(latency_max_median_ms=20)
    page = render(report(strict, parity=None))
    assert page.index("<table") < page.index("<h2>")
    gate_table = page[page.index("<table") : page.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", gate_table)[1:]
    assert [re.search(r"<b>(\w+)</b>", row).group(1) for row in rows] == list(GATES)  # type: ignore[union-attr]
    statuses = [re.search(r'status ([\w-]+)"><i>(.)</i> ([\w ]+)<', row).groups() for row in rows]  # type: ignore[union-attr]
    assert statuses[0] == ("not-measured", "–", "not measured")
    assert statuses[1] == ("passed", "✓", "passed")
    assert statuses[8] == ("failed", "✕", "failed")
    assert "no checkpoint was given to compare with" in rows[0]
    assert "7 of 9 gates passed" in page
    assert "All nine gates passed" in render(report())


def test_counts_stand_beside_shares(report: Make) -> None:
    text = "".join(parse(render(report())).text)
    for expected in ("95.00 %", "95 of 100", "70 of 80", "bricks", "29 of 30", "27.4 ms"):
        assert expected in text


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(GatePolicy(ood_recall_min=0.5), True), (GatePolicy(ood_recall_min=0.97), False)],
)
def test_a_looser_limit_is_marked(report: Make, policy: GatePolicy, expected: bool) -> None:
    page = render(report(policy))
    assert ("looser than default" in page) is expected
    assert ("Limits looser than the defaults: ood_recall_min." in page) is expected


def test_names_from_data_are_escaped_everywhere(report: Make) -> None:
    nasty = "<script>alert('x')</script> & \"co\""
    base = report()
    assert base.accuracy is not None
    assert base.rejection is not None
    changed = replace(
        base,
        accuracy=replace(base.accuracy, by_species={nasty: SpeciesRow(1, 1, 1)}),
        rejection=replace(base.rejection, by_source={nasty: Share(1, 2)}, by_species={nasty: Share(0, 1)}),
        unreadable=(UnreadableFile("val", nasty, nasty),),
        problems={"loads": (nasty,)},
        files={nasty: next(iter(base.files.values()))},
        versions={nasty: nasty},
        machine=replace(base.machine, cpu=nasty),
    )
    page = render(changed)
    checker = parse(page)
    assert "script" not in {tag for tag, _ in checker.tags}
    assert "".join(checker.text).count(nasty) >= 9


def test_a_bundle_that_could_not_be_run_still_has_a_page(report: Make) -> None:
    page = render(
        report(
            accuracy=None,
            rejection=None,
            latency=None,
            parity=None,
            not_run="INT8 does not open",
            load_failures={"swin-species-int8.onnx": "truncated"},
        )
    )
    parse(page)
    assert "INT8 does not open" in page
    assert "<h2>Accuracy</h2>" not in page
    assert "<h2>Problems</h2>" in page


def test_missing_heads_and_non_plants_have_no_shares(report: Make) -> None:
    base = report()
    assert base.accuracy is not None
    assert base.rejection is not None
    none = Share(0, 0)
    headless = replace(base.accuracy, fp16=replace(base.accuracy.fp16, disease=none))
    alone = replace(base.rejection, non_plants=none, by_source={})
    text = "".join(parse(render(report(accuracy=headless, rejection=alone))).text)
    assert "No non-plants were measured." in text


def test_cells_are_escaped_unless_they_are_html() -> None:
    page = table(("a<b",), [("<i>",), (Html("<i>x</i>"),)], numbers=(0,), name="n")
    assert "<th" in page
    assert "a&lt;b" in page
    assert "&lt;i&gt;" in page
    assert '<td class="number"><i>x</i></td>' in page


def test_the_quantization_that_was_tried_is_shown(report: Make) -> None:
    trial = {"species_drop": 0.021, "disease_drop": -0.005, "changed": 0.04, "embedding_error": 0.2}
    recipe = {
        "products": 75,
        "tried": [{"float_products": 0, **trial}, {"float_products": 5, **trial, "species_drop": 0.0}],
        "tried_on": {"images": 128, "max_drop": 0.01},
    }
    page = render_report(report(), {}, recipe)

    assert "0 of 75" in page and "5 of 75" in page
    assert "−2.10 points" in page and "+0.50 points" in page and "4.00 %" in page and "20.00 %" in page
    assert page.index("too many lost") < page.index(">taken<")
    assert "what was tried" not in render_report(report(), {})
