"""What a bundle holds, in words, after its digests were checked.

>>> print(describe_bundle(Path("public/models")))  # doctest: +SKIP
"""

from pathlib import Path

from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.layout import DETECTOR_FILE, GATE_REPORT_FILE, SIGNATURE_FILE, describe_sizes
from plantmodels.bundle.manifest import check_files
from plantmodels.bundle.metadata import read_metadata
from plantmodels.bundle.signature import read_trusted_manifest
from plantmodels.report.gate_report import read_report


def describe_bundle(bundle: Path, public_key: Path | None = None) -> str:
    """Classes, files and sizes, detector, provenance, and the gate table when it was verified.

    Args:
        bundle: its folder.
        public_key: file of the key whose signature it must bear; None for any.

    Raises:
        SignatureError: the bundle is not signed by that key.
        BundleError: the files are not those of the manifest, or documents that disagree.
        DetectorError: an unsafe or malformed detector pickle, or one of embeddings of another length.
    """
    manifest = read_trusted_manifest(bundle, public_key)
    check_files(bundle, manifest)
    metadata, detector = read_metadata(bundle), read_detector(bundle / DETECTOR_FILE)
    detector.check_length(metadata.embedding_dim)
    taxonomy = metadata.taxonomy
    lines = [
        f"{bundle}: {len(manifest.files)} files, all as in the manifest",
        f"classes     {len(taxonomy.species)} species, {len(taxonomy.species_with_head)} with a disease head, "
        f"at most {taxonomy.max_diseases} diseases; class order {taxonomy.digest[:12]}",
        f"input       {metadata.preprocessing.image_size}x{metadata.preprocessing.image_size}, "
        f"{metadata.preprocessing.interpolation}; embedding of {metadata.embedding_dim}",
        f"temperature {metadata.species_temperature:g} of species, {metadata.disease_temperature:g} of diseases",
        f"detector    {detector.method}, {len(detector.mean)} mean(s), threshold {detector.threshold:.3f}; "
        + ", ".join(f"{name} {value:.4g}" for name, value in detector.fit.items()),
        f"made from   checkpoint {metadata.provenance.get('checkpoint_sha256', '')[:12]}, "
        f"commit {metadata.provenance.get('git_commit')}",
        f"signature   {_describe_signature(bundle, public_key)}",
        "",
        *describe_sizes({name: entry.size_bytes for name, entry in manifest.files.items()}),
    ]
    if GATE_REPORT_FILE in manifest.files:
        lines += ["", read_report(bundle).table()]
    return "\n".join(lines)


def _describe_signature(bundle: Path, public_key: Path | None) -> str:
    if public_key is not None:
        return f"by the key of {public_key}"
    return "not checked, no public key was given" if (bundle / SIGNATURE_FILE).exists() else "none"
