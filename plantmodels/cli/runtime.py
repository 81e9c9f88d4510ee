"""What `plantmodels inspect --runtime` prints: how far this machine's answers are from those at verification.

>>> print(describe_runtime(bundle).splitlines()[0])
runtime     the answers to 64 images, now and when the bundle was verified
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from plantmodels.bundle.layout import PACKED_HEADS_FILE, PRECISIONS, SPECIES_FILES
from plantmodels.data.progress import log_step
from plantmodels.export.provenance import describe_cpu
from plantmodels.extras import read_version
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.loading import LoadOptions, read_bundle
from plantmodels.serve.reference import Difference, read_reference

_MODELS: Final = (*SPECIES_FILES.values(), PACKED_HEADS_FILE)


def describe_runtime(bundle: Path, public_key: Path | None = None) -> str:
    """Run a bundle on its reference images, and return how far the answers are from the reference answers.

    Args:
        bundle: folder of the bundle.
        public_key: file of the key that must have signed the bundle; None to skip the check of the signature.

    Raises:
        SignatureError: the bundle is not signed by that key.
        BundleError: the bundle has no reference answers, or one of its files is damaged.
        DetectorError: the detector's file is unsafe or malformed.
    """
    contents = read_bundle(bundle, models=_MODELS, public_key=public_key)
    differences: dict[str, Difference] = {}
    reference, pixels = read_reference(contents)
    with log_step("answer reference images", total=len(PRECISIONS) * len(pixels), unit="image") as advance:
        for precision in PRECISIONS:
            classifier = PlantClassifier.from_contents(contents, LoadOptions(precision=precision, threads=1))
            differences[precision.upper()] = reference.compare(classifier, pixels, advance)
    count = len(reference.images)
    return "\n".join(
        (
            f"runtime     the answers to {count} images, now and when the bundle was verified",
            f"  then      ONNX Runtime {reference.onnxruntime}, {reference.cpu or 'unknown processor'}",
            f"  now       ONNX Runtime {read_version('onnxruntime')}, {describe_cpu().model or 'unknown processor'}",
            "",
            *_make_table(differences, count),
        )
    )


def _make_table(differences: dict[str, Difference], count: int) -> Iterator[str]:
    yield "      labels changed  rejections changed  largest difference: probability  OOD score"
    for name, found in differences.items():
        labels, rejections = (f"{number} of {count}" for number in (found.labels, found.rejections))
        yield f"{name:5} {labels:>14} {rejections:>19} {found.probability:>32.2g} {found.ood_score:>10.2g}"
