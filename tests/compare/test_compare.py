"""Comparisons of two verified bundles, whose reports and answers to every image are made by hand."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy import stats

from plantmodels.bundle.files import write_json
from plantmodels.bundle.layout import GATE_REPORT_FILE, IMAGES_FILE, MANIFEST_FILE, SPECIES_FILES, is_report
from plantmodels.bundle.manifest import FileDigest, Manifest, digest_file, read_manifest
from plantmodels.bundle.metadata import Metadata, Preprocessing, write_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.cli import main
from plantmodels.compare.compare import compare_bundles
from plantmodels.compare.model import Comparison, MeasurePair, Section
from plantmodels.compare.render import render_page, render_text
from plantmodels.errors import BundleError
from plantmodels.report.evidence.accuracy import name_class
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.gate_report import GateReport
from plantmodels.report.per_image import ImageRow, write_image_rows
from plantmodels.report.policy import GatePolicy
from plantmodels.report.statistics import Proportion
from tests.fixtures.rows import agree, complete

Make = Callable[..., GateReport]
Rows = tuple[ImageRow, ...]

TAXONOMY = Taxonomy(("Apple", "Mint", "Rose"), {"Apple": ("rust", "scab", "healthy"), "Rose": ("spot", "healthy")})
METADATA = Metadata(
    taxonomy=TAXONOMY,
    preprocessing=Preprocessing(16, (0, 0, 0), (1, 1, 1)),
    embedding_dim=4,
    session_options={},
    models={SPECIES_FILES["int8"]: {"recipe": {"method": "dynamic", "kept_float": []}}},
    provenance={"checkpoint_sha256": "c" * 64, "seed": 0},
    versions={"torch": "2.12.1"},
    cpu={},
)
CLASSES = (
    ("Apple", "rust", 120),
    ("Apple", "scab", 60),
    ("Rose", "spot", 60),
    ("Rose", "healthy", 19),
    ("Mint", "", 12),
)
"""Species, disease and how many validation leaves."""


def make_rows(wrong: Callable[[str, str, int], tuple[bool, bool]] = lambda *_: (False, False)) -> Rows:
    """Leaves of `CLASSES`; `wrong(species, disease, number)` says whether species and disease are answered wrong."""
    rows = []
    for species, disease, images in CLASSES:
        for number in range(images):
            bad_species, bad_disease = wrong(species, disease, number)
            answer = "Mint" if species != "Mint" else "Rose"
            other = next((name for name in TAXONOMY.diseases.get(species, ()) if name != disease), "")
            named = (answer if bad_species else species, other if bad_disease else disease)
            routed = (TAXONOMY.diseases.get(answer) or ("",))[0] if bad_species else named[1]
            answers = (*named, *named, routed, routed)
            row = ImageRow(
                "val", name_class(species, disease), f"{number}.jpg", species, disease, *answers, 0.9, 5.0, False
            )
            rows.append(complete(row, TAXONOMY))
    return tuple(rows)


ANSWERS = ("", "", "Mint", "", "Mint", "", "", "", 0.2)
"""Both precisions take an image without plants for Mint."""


def make_others(rejected: Iterable[bool], source: str = "bricks") -> Rows:
    return tuple(
        complete(ImageRow("non-plants", source, f"{number}.png", *ANSWERS, 13.0 if yes else 1.0, yes), TAXONOMY)
        for number, yes in enumerate(rejected)
    )


def write_bundle(
    folder: Path, report: GateReport, rows: Rows | None = None, *, is_old: bool = False, **metadata: Any
) -> Path:
    """A bundle without its models: what a comparison reads. Without image rows, or if `is_old`, of format 2."""
    folder.mkdir()
    write_metadata(folder, replace(METADATA, **metadata))
    described = {path.name: digest_file(path) for path in folder.iterdir()}
    report = replace(report, files={**report.files, **described})
    if rows is not None:
        agreed = agree(report, rows)
        report = replace(report, accuracy=agreed.accuracy) if is_old else agreed
    if rows is None or is_old:
        report = replace(report, format_version=2, taxonomy=None)
    write_json(folder / GATE_REPORT_FILE, report.to_dict())
    if rows is not None:
        write_image_rows(folder / IMAGES_FILE, rows)
    reports = {path.name: digest_file(path) for path in folder.iterdir() if is_report(path.name)}
    write_json(folder / MANIFEST_FILE, Manifest({**report.files, **reports}).to_dict())
    return folder


@pytest.fixture
def compare(report: Make, tmp_path: Path) -> Callable[..., Comparison]:
    """`compare(rows_a, rows_b, report_b=…, **metadata_b)`: two bundles with these answers to each image."""

    def build(a: Rows | None, b: Rows | None, *, reports: Any = (None, None), **metadata: Any) -> Comparison:
        first, second = (report() if given is None else given for rows, given in zip((a, b), reports, strict=True))
        return compare_bundles(
            write_bundle(tmp_path / "a", first, a), write_bundle(tmp_path / "b", second, b, **metadata)
        )

    return build


def section(comparison: Comparison, title: str) -> Section:
    (found,) = (part for part in comparison.sections if part.title == title)
    return found


def measure(comparison: Comparison, title: str, name: str) -> MeasurePair:
    (found,) = (entry for entry in section(comparison, title).measures if entry.name == name)
    return found


def noisy(seed: int, share: float) -> Callable[[str, str, int], tuple[bool, bool]]:
    """Every image is answered wrong with a chance of `share`, the same for the same seed."""
    return lambda *image: (random.Random(f"{seed}{image}").random() < share, False)


def test_a_bundle_is_no_better_than_itself(compare: Callable[..., Comparison]) -> None:
    rows = (*make_rows(noisy(1, 0.2)), *make_others([True, False] * 20))
    comparison = compare(rows, rows)
    verdicts = {entry.verdict for part in comparison.sections for entry in part.measures}
    assert verdicts == {"no difference beyond noise", "not comparable"}
    assert comparison.differences == () and comparison.classes == ()
    assert comparison.summary.startswith("Better in B: nothing. Worse in B: nothing. ")
    assert comparison.summary.endswith("Gates: no verdict changed.")


def test_the_same_images_are_compared_one_by_one(compare: Callable[..., Comparison]) -> None:
    a, b = make_rows(noisy(1, 0.3)), make_rows(noisy(2, 0.2))
    found = measure(compare(a, b[::-1]), "Accuracy", "species, INT8")
    right = [[row.int8_species == row.species for row in rows] for rows in (a, b)]
    gained, lost = (sum(y > x for x, y in zip(*order, strict=True)) for order in (right, right[::-1]))
    assert found.p_value == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert (found.a, found.b) == (sum(right[0]) / len(a), sum(right[1]) / len(b))
    assert found.why == f"{gained} newly right, {lost} no longer"
    assert found.verdict == ("better" if found.p_value < 0.05 else "no difference beyond noise")
    assert found.low is not None and found.high is not None and found.low < found.b - found.a < found.high


def test_pairing_sees_what_two_counts_do_not(compare: Callable[..., Comparison], report: Make, tmp_path: Path) -> None:
    base = noisy(1, 0.3)
    a, b = make_rows(base), make_rows(lambda *i: (base(*i)[0] or i[2] in range(10, 14), False))
    paired = measure(compare(a, b), "Accuracy", "species, INT8")
    assert paired.verdict == "worse"
    reports = [agree(report(), rows) for rows in (a, b)]
    counted = compare_bundles(write_bundle(tmp_path / "c", reports[0], a), write_bundle(tmp_path / "d", reports[1]))
    unpaired = measure(counted, "Accuracy", "species, INT8")
    assert unpaired.verdict == "no difference beyond noise" and unpaired.p_value is None
    assert (unpaired.a, unpaired.b) == (paired.a, paired.b)
    assert "the same images, but B without gate-images.csv; unpaired" in section(counted, "Accuracy").note


def test_other_images_are_not_paired_even_if_their_names_agree(
    compare: Callable[..., Comparison], report: Make
) -> None:
    a, b = make_rows(noisy(1, 0.5)), make_rows(noisy(2, 0.1))
    b = tuple(replace(row, sha256=row.sha256[::-1]) for row in b)
    comparison = compare(a, b)
    found = measure(comparison, "Accuracy", "species, INT8")
    assert found.verdict == "better" and found.p_value is None and found.low is not None and found.low > 0
    digests = ", ".join(ImageTable.from_rows(rows).digest()[:12] for rows in (a, b))
    assert f"different images or labels ({digests}); unpaired" in section(comparison, "Accuracy").note
    species = measure(comparison, "Each species", "Apple")
    shares = [agree(report(), rows).accuracy.by_species["Apple"] for rows in (a, b)]  # type: ignore[union-attr]
    table = [[row.int8, row.images - row.int8] for row in shares]
    assert species.p_value == pytest.approx(3 * stats.fisher_exact(table).pvalue, rel=1e-6)
    assert len(section(comparison, "Each disease").measures) == 4


def test_classes_are_corrected_for_how_many_they_are(compare: Callable[..., Comparison]) -> None:
    """Seven leaves lost of one class: chance in 1 of 64 for it alone, but there are three species."""
    seven = make_rows(lambda species, disease, n: (species == "Apple" and disease == "scab" and n < 7, False))
    found = measure(compare(make_rows(), seven), "Each species", "Apple")
    alone = stats.binomtest(7, 7).pvalue
    assert alone < 0.05 and found.p_value == pytest.approx(3 * alone) and found.verdict == "worse"


def test_a_class_that_chance_explains_is_no_finding(compare: Callable[..., Comparison]) -> None:
    six = make_rows(lambda species, disease, n: (species == "Rose" and disease == "spot" and n < 6, False))
    comparison = compare(make_rows(), six)
    assert measure(comparison, "Accuracy", "species, INT8").verdict == "worse"
    assert measure(comparison, "Each species", "Rose").verdict == "no difference beyond noise"


def test_a_disease_that_got_worse_is_named_and_small_classes_too(compare: Callable[..., Comparison]) -> None:
    b = make_rows(lambda species, disease, n: (False, disease == "scab" and n < 20))
    comparison = compare(make_rows(), b)
    part = section(comparison, "Each disease")
    assert part.names_with("worse") == ("Apple___scab",)
    assert [entry.name for entry in part.measures] == ["Apple___rust", "Apple___scab", "Rose___spot", "Rose___healthy"]
    assert measure(comparison, "Accuracy", "species, INT8").verdict == "no difference beyond noise"
    assert measure(comparison, "Accuracy", "end to end, INT8").verdict == "worse"
    assert "Apple___scab (each disease)" in comparison.summary
    text = render_text(comparison)
    assert "Worse: 1. No difference beyond noise: 3. Too few images to tell much: Rose___healthy (19)." in text
    assert "Too few images to tell much: Mint (12)." in text


def test_rejection_is_compared_on_the_same_non_plants(compare: Callable[..., Comparison], report: Make) -> None:
    others_a = (*make_others([False] * 30 + [True] * 10), *make_others([True] * 20, "rocks"))
    others_b = (*make_others([True] * 25 + [False] * 15), *make_others([True] * 20, "rocks"))
    reports = [report(GatePolicy(ood_recall_min=0.7))] * 2
    leaves = make_rows()
    alarming = tuple(replace(r, rejected=n < 9, ood_score=13.0 if n < 9 else 5.0) for n, r in enumerate(leaves))
    comparison = compare((*leaves, *others_a), (*alarming, *others_b), reports=reports)
    title = "Out-of-distribution rejection"
    recall = measure(comparison, title, "OOD recall")
    assert recall.p_value == pytest.approx(stats.binomtest(25, 35).pvalue) and recall.verdict == "better"
    assert recall.why == "25 newly rejected, 10 no longer"
    alarms = measure(comparison, title, "false alarms")
    assert alarms.p_value == pytest.approx(stats.binomtest(9, 9).pvalue) and alarms.verdict == "worse"
    assert measure(comparison, title, "threshold").verdict == "not comparable"
    assert section(comparison, "Each source of non-plants").names_with("better") == ("bricks",)
    changes = {pair.a.name: pair.change for pair in comparison.gates if pair.change}
    assert changes == {
        "ood_precision": "no longer passes",
        "ood_recall": "passes now",
        "false_alarms": "no longer passes",
    }
    assert (
        "Gates: ood_precision no longer passes; ood_recall passes now; false_alarms no longer passes."
        in comparison.summary
    )


def test_precision_that_is_not_defined_is_not_comparable(compare: Callable[..., Comparison], report: Make) -> None:
    base = report().rejection
    assert base is not None
    nothing = replace(base, plants=Proportion(0, 200), non_plants=Proportion(0, 50))
    comparison = compare(None, None, reports=(report(), report(rejection=nothing)))
    found = measure(comparison, "Out-of-distribution rejection", "OOD precision")
    assert (found.verdict, found.why) == ("not comparable", "not defined where nothing is rejected")
    assert measure(comparison, "Out-of-distribution rejection", "OOD recall").verdict == "worse"


@pytest.mark.parametrize(
    ("median", "p95", "expected"),
    [
        (20.0, 27.3, "better"),
        (20.0, 27.5, "no difference beyond noise"),
        (31.1, 40.0, "worse"),
        (30.9, 40.0, "no difference beyond noise"),
    ],
)
def test_latency_is_told_apart_where_the_spreads_are(
    compare: Callable[..., Comparison], report: Make, median: float, p95: float, expected: str
) -> None:
    base = report().latency
    assert base is not None
    other = report(latency=replace(base, median_ms=median, p95_ms=p95))
    comparison = compare(None, None, reports=(report(), other))
    assert measure(comparison, "Latency", "latency of a tensor").verdict == expected


@pytest.mark.parametrize("change", [{"cpu": "Another"}, {"threads": 8}])
def test_latency_of_another_machine_is_not_comparable(
    compare: Callable[..., Comparison], report: Make, change: dict[str, Any]
) -> None:
    base = report().latency
    assert base is not None
    other = report(latency=replace(base, median_ms=1.0, p95_ms=1.0, **change))
    found = measure(compare(None, None, reports=(report(), other)), "Latency", "latency of a tensor")
    assert (
        found.verdict == "not comparable"
        and "different machines: A processor, avx2, avx512_vnni, 2 threads and " in found.why
    )


@pytest.mark.parametrize(("load", "expected"), [(4.1, "not comparable"), (3.9, "better"), (None, "better")])
def test_latency_of_a_busy_machine_is_not_comparable(
    compare: Callable[..., Comparison], report: Make, load: float | None, expected: str
) -> None:
    base = report().latency
    assert base is not None
    other = report(latency=replace(base, median_ms=1.0, p95_ms=1.0, load=load))
    found = measure(compare(None, None, reports=(report(), other)), "Latency", "latency of a tensor")
    assert found.verdict == expected
    assert expected == "better" or found.why == "the machine was busy: load average 0.4 and 4.1 before"


def test_sizes_are_told_apart_by_more_than_a_hundredth(compare: Callable[..., Comparison], report: Make) -> None:
    files = dict(report().files)
    files[SPECIES_FILES["int8"]] = FileDigest(5_200_000, "1" * 64)
    files[SPECIES_FILES["fp16"]] = FileDigest(7_950_000, "2" * 64)
    comparison = compare(None, None, reports=(report(), report(files=files)))
    assert section(comparison, "Files").names_with("worse") == ("species, INT8", "whole bundle")
    assert measure(comparison, "Files", "species, FP16").verdict == "no difference beyond noise"
    assert "species_size no longer passes" in comparison.summary


def test_classes_and_settings_that_differ_are_listed(compare: Callable[..., Comparison], report: Make) -> None:
    other = Taxonomy(("Rose", "Apple", "Fig"), {"Apple": ("scab", "rust", "mould"), "Rose": ("spot", "healthy")})
    comparison = compare(
        None,
        None,
        taxonomy=other,
        preprocessing=replace(METADATA.preprocessing, image_size=32),
        provenance={"checkpoint_sha256": "b" * 64, "seed": 0, "git_commit": "a" * 40},
        reports=(report(), report(GatePolicy(latency_max_median_ms=100))),
    )
    assert comparison.classes == (
        "species added: Fig",
        "species removed: Mint",
        "species reordered: Apple, Rose became Rose, Apple",
        "diseases of Apple added: mould",
        "diseases of Apple removed: healthy",
        "diseases of Apple reordered: rust, scab became scab, rust",
    )
    differences = {entry.name: (entry.a, entry.b) for entry in comparison.differences}
    assert differences == {
        "preprocessing: image_size": ("16", "32"),
        "class_order_digest": (TAXONOMY.digest, other.digest),
        "provenance: checkpoint_sha256": ("c" * 64, "b" * 64),
        "provenance: git_commit": (None, "a" * 40),
        "verified: limits: latency_max_median_ms": ("200.0", "100.0"),
    }
    text = render_text(comparison)
    assert "< 200 ms → < 100 ms" in text and "species removed: Mint" in text and "bbbbbbbbbbbb" in text


def test_what_was_not_measured_is_left_out(compare: Callable[..., Comparison], report: Make) -> None:
    bare = report(accuracy=None, rejection=None, latency=None, parity=None, not_run="INT8 does not open")
    comparison = compare(None, None, reports=(report(), bare))
    assert [part.title for part in comparison.sections] == ["Files"]
    assert "parity no longer passes" in comparison.summary
    assert "not measured" in render_text(comparison)


class _Checker(HTMLParser):
    void = frozenset({"meta", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_needs_nothing_and_escapes_names(compare: Callable[..., Comparison]) -> None:
    nasty = "<script>x</script>"
    b = make_rows(lambda species, disease, n: (species == "Apple" and n < 30, False))
    comparison = replace(compare(make_rows(), b, provenance={"note": nasty}), b=nasty, classes=(nasty,))
    checker = _Checker()
    checker.feed(render_page(comparison))
    assert checker.open == [] and not checker.seen & {"script", "link"}
    text = " ".join("".join(checker.text).split())
    assert text.count(nasty) >= 4 and comparison.summary in text
    assert "8 worse" in text and "newly right" in text and "of 271" in text


def test_json_holds_every_number(compare: Callable[..., Comparison]) -> None:
    comparison = compare(make_rows(noisy(1, 0.2)), make_rows(noisy(2, 0.2)))
    document = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert document["format_version"] == 1 and document["summary"] == comparison.summary
    assert all(gate["change"] == "" for gate in document["gates"])
    first = document["sections"][0]["measures"][0]
    assert first == dataclasses.asdict(section(comparison, "Accuracy").measures[0])


def test_a_bundle_without_report_is_refused_by_name(report: Make, tmp_path: Path) -> None:
    good, bad = write_bundle(tmp_path / "good", report()), write_bundle(tmp_path / "bad", report())
    listed = {name: entry for name, entry in report().files.items() if not is_report(name)}
    write_json(bad / MANIFEST_FILE, Manifest(listed).to_dict())
    message = r"bad: has no gate-report\.json, so there is nothing to compare; verify it first"
    with pytest.raises(BundleError, match=message):
        compare_bundles(good, bad)
    with pytest.raises(BundleError, match=r"^version 7: has no"):
        compare_bundles(good, bad, names=("version 6", "version 7"))


@pytest.mark.parametrize("name", [GATE_REPORT_FILE, IMAGES_FILE, "onnx-metadata.json"])
def test_a_report_that_was_edited_is_refused(report: Make, tmp_path: Path, name: str) -> None:
    rows = make_rows()
    bundle = write_bundle(tmp_path / "a", report(), rows)
    (bundle / name).write_text((bundle / name).read_text() + " ")
    with pytest.raises(BundleError, match=f"changed: {name}"):
        compare_bundles(bundle, bundle)


def test_the_command_informs_and_does_not_judge(report: Make, tmp_path: Path) -> None:
    good = write_bundle(tmp_path / "good", report())
    bad = write_bundle(tmp_path / "bad", report(GatePolicy(latency_max_median_ms=1)))
    page = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["compare", str(good), str(bad), "--html", str(page)])
    assert result.exit_code == 0, result.output
    comparison = compare_bundles(good, bad)
    assert result.stdout == render_text(comparison) + "\n"
    assert result.stdout.splitlines()[-1] == comparison.summary
    assert page.read_text() == render_page(comparison)
    result = CliRunner().invoke(main, ["compare", str(good), str(bad), "--format", "json"])
    assert result.exit_code == 0 and json.loads(result.stdout) == comparison.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "{good}"], "absent: no such bundle folder"),
        (["{good}", "{good}", "--html", "{good}/no/page.html"], "page.html: cannot be written (No such file or"),
    ],
)
def test_the_command_fails_in_one_line(report: Make, tmp_path: Path, arguments: list[str], message: str) -> None:
    good = write_bundle(tmp_path / "good", report())
    result = CliRunner().invoke(main, ["compare", *(text.format(good=good) for text in arguments)])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and message in result.stderr


def test_a_set_without_answers_is_compared_by_its_counts(report: Make, tmp_path: Path) -> None:
    folders = [write_bundle(tmp_path / name, report(), make_rows(), is_old=True) for name in ("a", "b")]
    comparison = compare_bundles(*folders)
    note = section(comparison, "Out-of-distribution rejection").note
    assert "Non-plants: the same images, but no image is in both gate-images.csv; unpaired" in note
    assert measure(comparison, "Out-of-distribution rejection", "OOD recall").p_value is None


@pytest.mark.parametrize(
    ("is_old", "message"),
    [
        (
            True,
            r"A: gate-images\.csv has the right species for 270 of 270 leaves, but gate-report\.json says 271 of 271",
        ),
        (False, r"inputs\.val\.measured is 271, but gate-images\.csv has 270 such rows"),
    ],
)
def test_answers_that_the_report_does_not_bear_out_are_refused(
    report: Make, tmp_path: Path, is_old: bool, message: str
) -> None:
    rows = make_rows()
    bundle = write_bundle(tmp_path / "a", report(), rows, is_old=is_old)
    write_image_rows(bundle / IMAGES_FILE, rows[1:])
    listed = read_manifest(bundle).files | {IMAGES_FILE: digest_file(bundle / IMAGES_FILE)}
    write_json(bundle / MANIFEST_FILE, Manifest(listed).to_dict())
    with pytest.raises(BundleError, match=message):
        compare_bundles(bundle, bundle, names=("A", "B"))
