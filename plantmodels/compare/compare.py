"""Two verified bundles side by side: what is better or worse in B than in A beyond noise.

Nothing is measured again: both gate reports are read and, where both bundles have them, the answers to each image,
so that the same images are compared one by one. It informs; the gates decide.

>>> comparison = compare_bundles(Path("before"), Path("public/models"))  # doctest: +SKIP
>>> comparison.summary  # doctest: +SKIP
'Better in B: OOD recall. Worse in B: nothing. …'
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.layout import (
    GATE_REPORT_FILE,
    HEADS_LIST_FILE,
    IMAGES_FILE,
    METADATA_FILE,
    PACKED_HEADS_FILE,
    SPECIES_FILES,
)
from plantmodels.bundle.manifest import check_files, read_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.compare.measures import Side, contrast
from plantmodels.compare.model import Comparison, Difference, GatePair
from plantmodels.errors import BundleError
from plantmodels.report.gate_report import read_report
from plantmodels.report.per_image import read_image_rows
from plantmodels.report.serialization import encode
from plantmodels.report.statistics import Proportion

COMPARED_FILES: Final = (GATE_REPORT_FILE, METADATA_FILE, HEADS_LIST_FILE, IMAGES_FILE)
"""All that a comparison reads besides the manifest; the last only where the manifest lists one."""


def compare_bundles(a: Path, b: Path, *, names: tuple[str, str] | None = None) -> Comparison:
    """Compares two verified bundles by their reports; the models are not opened and need not be there.

    Args:
        a: the bundle to compare with.
        b: the bundle in question.
        names: what to call them; None for their paths.

    Raises:
        BundleError: one is no bundle, was not verified, or its reports are not those of its manifest or contradict
            each other.
    """
    called = names or (str(a), str(b))
    first, second = _read(a, called[0]), _read(b, called[1])
    return Comparison(
        *called,
        gates=tuple(GatePair(*pair) for pair in zip(first.report.gates, second.report.gates, strict=True)),
        sections=contrast(first, second),
        classes=tuple(_compare_classes(first.metadata.taxonomy, second.metadata.taxonomy)),
        differences=tuple(_find_differences(_describe(first), _describe(second))),
    )


def _read(bundle: Path, name: str) -> Side:
    manifest = read_manifest(bundle)
    if GATE_REPORT_FILE not in manifest.files:
        raise BundleError(f"{name}: holds no {GATE_REPORT_FILE}, so there is nothing to compare; verify it first")
    found = [file for file in COMPARED_FILES if file in manifest.files]
    check_files(bundle, manifest, found)
    report = read_report(bundle)
    rows = read_image_rows(bundle / IMAGES_FILE) if IMAGES_FILE in found else None
    if rows is not None and report.accuracy is not None:
        right = [row.int8_species == row.species for row in rows if row.set == "val"]
        counted, reported = Proportion(sum(right), len(right)), report.accuracy.int8.species
        if counted != reported:
            raise BundleError(
                f"{name}: {IMAGES_FILE} has the right species on {counted.count:,} of {counted.images:,} leaves, "
                f"{GATE_REPORT_FILE} says {reported.count:,} of {reported.images:,}; verify again"
            )
    return Side(report, read_metadata(bundle), rows)


def _compare_classes(a: Taxonomy, b: Taxonomy) -> Iterator[str]:
    yield from _compare_lists("species", a.species, b.species)
    for name in a.species:
        if name in b.species:
            yield from _compare_lists(f"diseases of {name}", a.diseases.get(name, ()), b.diseases.get(name, ()))


def _compare_lists(what: str, a: Sequence[str], b: Sequence[str]) -> Iterator[str]:
    if added := [name for name in b if name not in a]:
        yield f"{what} added: {', '.join(added)}"
    if removed := [name for name in a if name not in b]:
        yield f"{what} removed: {', '.join(removed)}"
    common = [[name for name in names if name in others] for names, others in ((a, b), (b, a))]
    if common[0] != common[1]:
        yield f"{what} in another order: {', '.join(common[0])} became {', '.join(common[1])}"


def _describe(side: Side) -> dict[str, Any]:
    """Settings and origins of a bundle, nested; classes and measurements are compared elsewhere."""
    document, report = side.metadata.to_dict(), side.report
    models = {name: document["models"].get(name, {}) for name in (*SPECIES_FILES.values(), PACKED_HEADS_FILE)}
    return {
        **{name: value for name, value in document.items() if name not in ("format_version", "models", "taxonomy")},
        "models": models,
        "verified": {
            "inputs": encode(report.inputs),
            "limits": encode(report.policy),
            "versions": encode(report.versions),
            "machine": encode(report.machine),
        },
    }


def _find_differences(a: Mapping[str, Any], b: Mapping[str, Any], within: str = "") -> Iterator[Difference]:
    for key in dict.fromkeys([*a, *b]):
        name, first, second = f"{within}{key}", a.get(key), b.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _find_differences(first, second, f"{name}: ")
        elif first != second:
            yield Difference(name, _write(first), _write(second))


def _write(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
