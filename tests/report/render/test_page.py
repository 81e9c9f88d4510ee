import base64
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from plantmodels.report.calibration.results import SERVED
from plantmodels.report.formatting import spell_class
from plantmodels.report.gate_report import GateReport
from plantmodels.report.gates import GATES
from plantmodels.report.inputs import UnreadableFile
from plantmodels.report.leakage import Leak, Leakage, Twin, TwinSet
from plantmodels.report.policy import GatePolicy
from plantmodels.report.render.environment import make_environment
from plantmodels.report.render.gallery import CaptionLine, Gallery, Thumbnail
from plantmodels.report.render.page import render_report
from plantmodels.report.render.plots import draw_plots
from plantmodels.report.results import Accuracy, ClassRow
from plantmodels.report.statistics import PairedCounts, Proportion

Make = Callable[..., GateReport]
CALIBRATION = "<h2>Calibration of the served probabilities</h2>"
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


def read_text(page: str) -> str:
    """The text of a page, its white space as a browser shows it."""
    return " ".join("".join(parse(page).text).split())


GALLERIES = ("flipped", "let through", "rejected")


def render(report: GateReport) -> str:
    return render_report(report, {})


def test_the_page_is_well_formed_and_needs_nothing_else(report: Make) -> None:
    page = render_report(report(), draw_plots(report()))
    checker = parse(page)
    assert "script" not in {tag for tag, _ in checker.tags}
    links = [value for _, attrs in checker.tags for name, value in attrs.items() if name in ("src", "href")]
    assert len(links) == 9
    for link in links:
        assert link is not None
        assert link.startswith("data:image/png;base64,")
        assert base64.b64decode(link.split(",", 1)[1]).startswith(b"\x89PNG")
    assert not re.search(r"url\(|@import", page)


def test_the_gate_table_comes_first_with_every_gate_in_words(report: Make) -> None:
    strict = GatePolicy(latency_max_median_ms=20)
    page = render(report(strict, parity=None))
    assert page.index("<h2>Gates</h2>") < page.index("<table") < page.index("<h2>Accuracy</h2>")
    gate_table = page[page.index("<table") : page.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", gate_table)[1:]
    assert [re.search(r"<b>(\w+)</b>", row).group(1) for row in rows] == list(GATES)  # type: ignore[union-attr]
    statuses = [re.search(r'status ([\w-]+)"><i>(.)</i> ([\w, ]+)<', row).groups() for row in rows]  # type: ignore[union-attr]
    assert statuses[0] == ("not-measured", "–", "not measured")
    assert statuses[1] == ("passed-uncertain", "≈", "passed, uncertain")
    assert statuses[5] == ("passed", "✓", "passed")
    assert statuses[9] == ("failed", "✕", "failed")
    assert "no checkpoint was given to compare with" in rows[0]
    assert f"{len(GATES) - 2} of {len(GATES)} gates passed, 5 uncertain" in page
    assert "Passed, uncertain: <strong>int8_accuracy, ood_precision, ood_recall, false_alarms, leakage</strong>" in page
    assert "Uncertain: the value meets its limit, but the worse end of its interval (the bound) does not" in page
    assert f"All {len(GATES)} gates passed, 5 uncertain" in render(report())


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
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", page) if "<b>ood_recall</b>" in row)
    assert ("looser than default" in row) is expected
    assert bool(re.search(r"Limits looser than the defaults: [^.]*\bood_recall_min\b", page)) is expected


def test_names_from_data_are_escaped_everywhere(report: Make) -> None:
    nasty = "<script>alert('x')</script> & \"co\""
    base = report()
    assert base.accuracy is not None
    assert base.rejection is not None
    rows = {nasty: ClassRow(1, 1, 1)}
    changed = replace(
        base,
        accuracy=replace(base.accuracy, by_species=rows, by_disease=rows, confusions={nasty: {nasty + "2": 1}}),
        rejection=replace(
            base.rejection,
            by_source={nasty: Proportion(1, 2)},
            by_unseen_source={nasty: Proportion(0, 2)},
            by_species={nasty: Proportion(0, 1)},
        ),
        unreadable=(UnreadableFile("val", nasty, nasty),),
        problems={"loads": (nasty,)},
        files={nasty: next(iter(base.files.values()))},
        versions={nasty: nasty},
        machine=replace(base.machine, cpu=nasty),
    )
    thumbnail = Thumbnail(b"jpeg", nasty, (CaptionLine(nasty, True), CaptionLine(nasty)))
    page = render_report(changed, {}, galleries=dict.fromkeys(GALLERIES, Gallery((thumbnail,), 1)))
    checker = parse(page)
    assert "script" not in {tag for tag, _ in checker.tags}
    assert "".join(checker.text).count(nasty) >= 22


def test_a_bundle_that_could_not_be_run_still_has_a_page(report: Make) -> None:
    page = render(
        report(
            accuracy=None,
            rejection=None,
            latency=None,
            parity=None,
            not_run="INT8 does not open",
            problems={"loads": ("swin-species-int8.onnx: truncated",)},
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
    none = Proportion(0, 0)
    headless = replace(base.accuracy, disease=PairedCounts(0, 0, 0, 0), by_disease={})
    alone = replace(base.rejection, non_plants=none, by_source={})
    text = read_text(render(report(accuracy=headless, rejection=alone)))
    assert "No non-plants were measured." in text
    assert "Disease, given the true species–––" in text.replace(" –", "–")


def test_intervals_stand_below_their_values(report: Make) -> None:
    page = render(report())
    gate_table = page[page.index("<table") : page.index("</table>")]
    assert (
        '98.00\N{NO-BREAK SPACE}%<br>(bound 89.50\N{NO-BREAK SPACE}%)<span class="what">89.50 to 99.65 %' in gate_table
    )
    assert '0.00 points lost<br>(bound 4.58 points lost)<span class="what">−4.56 to 4.56 points</span>' in gate_table
    assert "Every limit holds for the value alone." in page
    text = "".join(parse(page).text)
    assert "−4.56 to 4.56 points" in text
    low, high = Proportion(95, 100).interval or (0, 0)
    assert f"{100 * low:.2f} to {100 * high:.2f} %" in text


def test_the_page_says_which_limits_hold_for_the_bound(report: Make) -> None:
    text = read_text(render(report(GatePolicy(ood_recall_confidence=0.9))))
    assert "with 90 % confidence" in text and "98.00 %(bound 91" in text
    assert "the bound beside the value must meet it. All other limits hold for the value alone." in text
    assert "Every limit holds for the value alone." not in text


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (PairedCounts(94, 0, 0, 6), "Species: both are right on the same images."),
        (
            PairedCounts(90, 4, 2, 4),
            "Species: FP16 alone is right on 4, INT8 alone on 2 (p = 0.69, no more than chance).",
        ),
        (
            PairedCounts(70, 20, 2, 8),
            "Species: FP16 alone is right on 20, INT8 alone on 2 (p = 0.00012, more than chance).",
        ),
        (
            PairedCounts(0, 90, 0, 10),
            "Species: FP16 alone is right on 90, INT8 alone on 0 (p under 0.0001, more than chance).",
        ),
    ],
)
def test_mcnemar_in_words(report: Make, accuracy: Callable[..., Accuracy], pair: PairedCounts, expected: str) -> None:
    assert expected in read_text(render(report(accuracy=accuracy(species=pair))))


def test_small_classes_are_named(report: Make, accuracy: Callable[..., Accuracy]) -> None:
    page = render(report())
    small = "Mint (19), Rose (1), Apple · scab (1)."
    assert f"Classes with fewer than 20 images are small and say little: {small}" in read_text(page)
    assert page.count('<span class="small"> small</span>') == 3
    large = {"Apple": ClassRow(100, 95, 95)}
    assert "say little" not in render(report(accuracy=accuracy(by_species=large, by_disease=large, confusions={})))


def test_routing_says_which_is_better_and_by_how_much(report: Make, accuracy: Callable[..., Accuracy]) -> None:
    text = read_text(render(report(accuracy=accuracy(routing=PairedCounts(1130, 23, 6, 380)))))
    assert "−1.10 points" in text
    assert (
        "disease right: hard routing alone is right on 23 images, soft routing alone on 6 "
        "(exact McNemar p = 0.0023, more than chance)." in text
    )
    assert "End to end, species and disease right: both are right on the same images." in read_text(
        render(report(accuracy=accuracy(routing=PairedCounts(9, 0, 0, 1))))
    )


def test_calibration_stands_beside_what_chance_does(report: Make, accuracy: Callable[..., Accuracy]) -> None:
    page = render(report())
    text = read_text(page)
    for text_of in SERVED.values():
        assert text_of in text
    assert "92.8 %" in text and "95.0 %" in text and "0.1000" in text  # mean probability, right, Brier score
    assert "2.1 %at most 4.3 %" in text and "no more than chance" in text
    assert "−0.0600−0.0700 to +0.0100" in text and "temperature 0.8 (species), 0.8 (disease)" in text
    assert CALIBRATION in page
    assert CALIBRATION not in render(
        report(accuracy=accuracy(probabilities=replace(accuracy().probabilities, served={})))
    )


def test_many_species_have_a_table_of_the_worst_confusions(report: Make, accuracy: Callable[..., Accuracy]) -> None:
    names = [f"Species {i}" for i in range(330)]
    rows = {name: ClassRow(300, 100, 100) for name in names}
    confusions = {name: {names[i - 1]: i + 1} for i, name in enumerate(names[:200])}
    page = render(report(accuracy=accuracy(by_species=rows, confusions=confusions)))
    part = page[page.index("<h2>Confusion matrix</h2>") : page.index(CALIBRATION)]
    found = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td class=\"number\">(.*?)</td>", part)
    assert found[0] == ("Species 199", "Species 198", "200")
    assert len(found) == 100
    first = part[: part.index("<details>")]
    assert first.count("<tr><td>") == 10 and "The next 90" in part
    assert "These are the 10 most frequent of 200 confusions." in part
    assert "INT8 confuses no species." in render(report(accuracy=accuracy(confusions={})))


def test_thumbnails_say_what_is_right_and_how_many_are_left_out(report: Make) -> None:
    lines = (CaptionLine("FP16: Apple", True), CaptionLine("INT8: Mint", False), CaptionLine("score 3"))
    page = render_report(report(), {}, galleries={"flipped": Gallery((Thumbnail(b"bytes", "Apple", lines),), 3)})
    parse(page)
    assert f'src="data:image/jpeg;base64,{base64.b64encode(b"bytes").decode()}"' in page
    assert '<span class="right">FP16: Apple</span><span class="wrong">INT8: Mint</span><span>score 3</span>' in page
    assert "2 more are not shown." in page
    assert "<h2>Images where INT8 and FP16 differ</h2>" in page
    nothing = render_report(report(), {}, galleries=dict.fromkeys(GALLERIES, Gallery((), 0)))
    for missing in (nothing, render(report())):
        assert 'class="gallery"' not in missing and "Images where INT8" not in missing


def test_classes_are_spelt_for_people() -> None:
    assert spell_class("Corn_(maize)___Common_rust_") == "Corn (maize) · Common rust"


def test_every_value_is_escaped_and_a_name_that_does_not_exist_is_an_error() -> None:
    environment = make_environment()
    page = environment.from_string("<i>{{ value }}</i>").render(value='a<b & "c"')
    assert page == "<i>a&lt;b &amp; &#34;c&#34;</i>"
    with pytest.raises(UndefinedError, match="'valeu' is undefined"):
        environment.from_string("{{ valeu }}").render(value=1)


def test_accuracy_stands_at_the_top(report: Make) -> None:
    page = render(report())
    top = read_text(page[page.index('<section class="glance">') : page.index("<section>")])
    assert "Species right95.00 %95 of 100" in top
    assert "Disease right, given the true species87.50 %70 of 80" in top
    assert "Both right, end to end88.00 %88 of 100" in top
    assert "Non-plants rejected98.00 %49 of 50" in top and "27.4 ms" in top
    assert "At a glance" not in render(report(accuracy=None, not_run="INT8 does not open"))


def test_the_quantization_that_was_tried_is_shown(report: Make) -> None:
    trial = {"changed": 0.04, "embedding_error": 0.2}
    recipe = {
        "products": 75,
        "tried": [{"float_products": 0, "images": 256, **trial}, {"float_products": 5, "images": 1000, **trial}],
        "max_changed": 0.01,
    }
    page = render_report(report(), {}, recipe)

    assert "0 of 75" in page and "5 of 75" in page
    assert ">256<" in page and ">1,000<" in page and "4.00 %" in page and "20.00 %" in page
    assert page.index("changes too many") < page.index(">taken<")
    assert "at most 1 %, was taken" in page
    assert "<h2>Quantization</h2>" in page
    assert "<h2>Quantization</h2>" not in render_report(report(), {})


def test_a_quantization_of_an_older_export_is_shown(report: Make) -> None:
    """Bundles up to 0.2 were judged by their labels on 128 leaves."""
    trial = {"float_products": 0, "species_drop": 0.021, "disease_drop": 0.0, "changed": 0.04, "embedding_error": 0.2}
    recipe = {"products": 75, "tried": [trial], "tried_on": {"images": 128, "max_drop": 0.01}}
    page = render_report(report(), {}, recipe)
    assert ">128<" in page and "changes few enough answers was taken" in page


def test_warnings_of_the_export_stand_at_the_top(report: Make) -> None:
    page = render_report(report(), {}, warnings=("pixels have <b> mean 7",))
    header = page[: page.index("</header>")]
    assert "Warning of the export: pixels have &lt;b&gt; mean 7" in header
    assert "Warning of the export" not in render_report(report(), {})


def test_leaks_are_counted_shown_and_named(report: Make) -> None:
    def leak(number: int, place: TwinSet) -> Leak:
        return Leak(
            f"val/{number} <b>.jpg", "Apple___scab", "a" * 64, Twin(place, f"{number}.jpg", "Rose", "b" * 64, 3)
        )

    compared: dict[TwinSet, int] = {"train": 4000, "val": 1000, "non-plants": 100}
    found = (*(leak(number, "train") for number in range(250)), leak(250, "val"), leak(251, "non-plants"))
    pairs = Gallery((Thumbnail(b"pair", "Apple · scab", (CaptionLine("train: Rose"), CaptionLine("identical"))),), 252)
    page = render_report(report(leakage=Leakage(compared, found)), {}, galleries={"leaks": pairs})
    part = page[page.index("<h2>Leakage</h2>") : page.index("<h2>Out-of-distribution rejection</h2>")]
    text = " ".join(re.sub("<.*?>", " ", part).split())
    assert "252 of 1,000 occur again: 250 in train, 1 in another class, 1 among the non-plants." in text
    assert "were compared with 4,000 training images, with 100 non-plants, and with the" in text
    assert 'class="gallery pairs"' in part and base64.b64encode(b"pair").decode() in part
    assert "251 more are not shown." in text
    assert part.count("<tr><td>val/") == 200 and "gate-report.json names all 252." in text
    assert "val/0 &lt;b&gt;.jpg" in part and "<td>train: 0.jpg</td><td>visually the same</td>" in part


def test_without_leaks_the_page_says_what_was_compared(report: Make) -> None:
    text = read_text(render(report()))
    assert "None of them occurs again. An image that the network has seen in training" in text
    assert "Names of the images" not in text
    assert "Not measured: the data hold no split train to compare with." in read_text(render(report(leakage=None)))
