"""Compares two verified bundles: what is better or worse in B than in A beyond noise.

Nothing is measured again. Both gate reports are read and, where both bundles have them, the answers to every image,
so that the same images are compared one by one. A comparison informs; only the gates decide.

>>> compare_bundles(bundle, bundle).summary[:45]
'Better in B: nothing. Worse in B: nothing. No'
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.files import StrPath
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
from plantmodels.bundle.serialization import encode
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.compare.measures import compare_measures
from plantmodels.compare.model import Comparison, Difference, GatePair
from plantmodels.compare.pairing import VerifiedBundle
from plantmodels.errors import BundleError
from plantmodels.report.gate_report import read_report
from plantmodels.report.per_image import read_image_rows
from plantmodels.report.statistics import Proportion

COMPARED_FILES: Final = (GATE_REPORT_FILE, METADATA_FILE, HEADS_LIST_FILE, IMAGES_FILE)
"""The files that a comparison reads besides the manifest; the last one only when the manifest lists it."""


def compare_bundles(a: StrPath, b: StrPath, *, names: tuple[str, str] | None = None) -> Comparison:
    """Compare two verified bundles by their reports. The models are not opened and need not be there.

    Args:
        a: folder of the bundle to compare with.
        b: folder of the bundle in question.
        names: what to call the two bundles; defaults to their paths.

    Raises:
        BundleError: one of the folders is not a bundle or was not verified, its reports differ from the manifest, or
            its reports contradict each other.
    """
    name_a, name_b = names or (str(a), str(b))
    first, second = _read_bundle(Path(a), name_a), _read_bundle(Path(b), name_b)
    return Comparison(
        name_a,
        name_b,
        gates=tuple(GatePair(*pair) for pair in zip(first.report.gates, second.report.gates, strict=True)),
        sections=compare_measures(first, second),
        classes=tuple(_list_class_changes(first.metadata.taxonomy, second.metadata.taxonomy)),
        differences=tuple(_find_differences(_collect_settings(first), _collect_settings(second))),
    )


def _read_bundle(bundle: Path, name: str) -> VerifiedBundle:
    manifest = read_manifest(bundle)
    if GATE_REPORT_FILE not in manifest.files:
        raise BundleError(f"{name}: has no {GATE_REPORT_FILE}, so there is nothing to compare; verify it first")
    found = [file for file in COMPARED_FILES if file in manifest.files]
    check_files(bundle, manifest, found)
    report = read_report(bundle)
    rows = read_image_rows(bundle / IMAGES_FILE) if IMAGES_FILE in found else None
    if rows is not None and report.accuracy is not None:
        right = [row.int8_species == row.species for row in rows if row.set == "val"]
        counted, reported = Proportion(sum(right), len(right)), report.accuracy.int8.species
        if counted != reported:
            raise BundleError(
                f"{name}: {IMAGES_FILE} has the right species for {counted.count:,} of {counted.images:,} leaves, "
                f"but {GATE_REPORT_FILE} says {reported.count:,} of {reported.images:,}; verify again"
            )
    return VerifiedBundle(report, read_metadata(bundle), rows)


def _list_class_changes(a: Taxonomy, b: Taxonomy) -> Iterator[str]:
    yield from _list_name_changes("species", a.species, b.species)
    for name in a.species:
        if name in b.species:
            yield from _list_name_changes(f"diseases of {name}", a.diseases.get(name, ()), b.diseases.get(name, ()))


def _list_name_changes(what: str, a: Sequence[str], b: Sequence[str]) -> Iterator[str]:
    if added := [name for name in b if name not in a]:
        yield f"{what} added: {', '.join(added)}"
    if removed := [name for name in a if name not in b]:
        yield f"{what} removed: {', '.join(removed)}"
    common = [[name for name in names if name in others] for names, others in ((a, b), (b, a))]
    if common[0] != common[1]:
        yield f"{what} reordered: {', '.join(common[0])} became {', '.join(common[1])}"


def _collect_settings(bundle: VerifiedBundle) -> dict[str, Any]:
    """Return the settings and the origin of a bundle, nested. Classes and measures are compared elsewhere."""
    document, report = bundle.metadata.to_dict(), bundle.report
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


def _find_differences(a: Mapping[str, Any], b: Mapping[str, Any], parent: str = "") -> Iterator[Difference]:
    for key in dict.fromkeys([*a, *b]):
        name, first, second = f"{parent}{key}", a.get(key), b.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _find_differences(first, second, f"{name}: ")
        elif first != second:
            yield Difference(name, _format_setting(first), _format_setting(second))


def _format_setting(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
