"""What a bundle holds, in words for a terminal.

>>> print(describe_bundle(bundle).splitlines()[1].split(",")[0])
classes     5 species
"""

from collections.abc import Iterator
from pathlib import Path

from plantmodels.bundle.detector import OODDetector, read_detector
from plantmodels.bundle.layout import DETECTOR_FILE, GATE_REPORT_FILE, SIGNATURE_FILE, describe_sizes
from plantmodels.bundle.manifest import Manifest, check_files
from plantmodels.bundle.metadata import Metadata, read_metadata
from plantmodels.bundle.signature import read_trusted_manifest
from plantmodels.report.gate_report import GateReport, read_report


def describe_bundle(bundle: Path, public_key: Path | None = None) -> str:
    """Return the classes, detector, origin and files of a bundle, its gates and its accuracy.

    Every file is checked against the manifest first. A bundle that was never verified says so.

    Args:
        bundle: folder of the bundle.
        public_key: file of the key that must have signed the bundle; None to skip the check of the signature.

    Raises:
        SignatureError: the bundle is not signed by that key.
        BundleError: the files differ from the manifest, or the bundle's files contradict each other.
        DetectorError: the detector's file is unsafe or malformed, or the detector reads embeddings of another length.
    """
    manifest = read_trusted_manifest(bundle, public_key)
    check_files(bundle, manifest)
    metadata, detector = read_metadata(bundle), read_detector(bundle / DETECTOR_FILE)
    detector.check_length(metadata.embedding_dim)
    report = read_report(bundle) if GATE_REPORT_FILE in manifest.files else None
    if report is not None:
        report.check_served(metadata, detector)
    lines = [
        f"{bundle}: {len(manifest.files)} files, all as in the manifest",
        *_describe_model(metadata),
        *_describe_detector(detector),
        f"made from   checkpoint {metadata.provenance.get('checkpoint_sha256', '')[:12]}, "
        f"commit {metadata.provenance.get('git_commit')}",
        f"signature   {_describe_signature(bundle, public_key)}",
        f"verified    {_describe_verification(report)}",
        "",
        *_describe_files(manifest),
    ]
    if report is not None:
        lines += ["", report.table()]
    return "\n".join(lines)


def _describe_model(metadata: Metadata) -> Iterator[str]:
    taxonomy, preprocessing = metadata.taxonomy, metadata.preprocessing
    species, heads, side = len(taxonomy.species), len(taxonomy.species_with_head), preprocessing.image_size
    yield f"classes     {species} species, {heads} with a disease head of at most {taxonomy.max_diseases} diseases"
    yield f"class order {taxonomy.digest[:12]}"
    reading = f"{preprocessing.interpolation} interpolation, recipe {preprocessing.recipe}"
    yield f"input       images of {side} x {side} pixels, {reading}"
    yield f"embedding   {metadata.embedding_dim} numbers"
    yield (
        f"temperature {metadata.species_temperature:.4g} for species, {metadata.disease_temperature:.4g} for diseases"
    )


def _describe_detector(detector: OODDetector) -> Iterator[str]:
    means = len(detector.mean)
    yield f"detector    {detector.method}, {means} mean{'' if means == 1 else 's'}, threshold {detector.threshold:.3f}"
    if detector.fit:
        values = (
            f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in detector.fit.items()
        )
        yield f"fitted      {', '.join(values)}"


def _describe_signature(bundle: Path, public_key: Path | None) -> str:
    if public_key is not None:
        return f"by the key of {public_key}"
    return "not checked, no public key was given" if (bundle / SIGNATURE_FILE).exists() else "none"


def _describe_verification(report: GateReport | None) -> str:
    if report is None:
        return "never; run `plantmodels verify` to measure gates and accuracy"
    doubt = f", {len(report.uncertain)} of them uncertainly" if report.uncertain else ""
    if report.passed:
        return f"yes, all gates passed{doubt}"
    return f"yes, {len(report.gates) - len(report.failed)} of {len(report.gates)} gates passed{doubt}"


def _describe_files(manifest: Manifest) -> Iterator[str]:
    yield f"{'bytes':>12}  file"
    yield from describe_sizes({name: entry.size_bytes for name, entry in manifest.files.items()})
