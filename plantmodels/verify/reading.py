"""Everything that a verification reads, read and checked before anything is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plantmodels.bundle.layout import is_report
from plantmodels.bundle.manifest import read_manifest
from plantmodels.bundle.metadata import Metadata
from plantmodels.data.leaves import LeafSet, leave_out, read_field_leaves, read_leaves
from plantmodels.data.listing import log_left_out
from plantmodels.data.non_plants import NonPlantSet, read_non_plants, refuse_seen
from plantmodels.errors import DataError
from plantmodels.serve.loading import BundleContents, read_bundle
from plantmodels.verify.leakage import read_training_leaves

if TYPE_CHECKING:
    from plantmodels.checkpoint.reading import Checkpoint


@dataclass(frozen=True)
class VerificationInputs:
    """The images that a bundle is measured on, and the checkpoint that it is compared with.

    Attributes:
        leaves: the validation leaves that gates may measure.
        left_out: number of validation leaves that no gate may measure, because they calibrated the bundle.
        training: the training leaves, which no validation leaf may be among; None if there are none.
        non_plants: images that show no plant, or None.
        unseen_plants: images of plants of unknown species, or None.
        field: labelled leaves from another place, or None.
        checkpoint: the checkpoint that the bundle was made from, or None.
    """

    leaves: LeafSet
    left_out: int
    training: LeafSet | None
    non_plants: NonPlantSet | None
    unseen_plants: NonPlantSet | None
    field: LeafSet | None
    checkpoint: "Checkpoint | None"


def read_contents(bundle: Path) -> BundleContents:
    """Read every file of a bundle but an older report once, and compare all files with the manifest.

    Raises:
        BundleError: files differ from the manifest, or the metadata and the list of heads disagree.
        DetectorError: the detector's file is unsafe or malformed.
    """
    manifest = read_manifest(bundle)
    models = [name for name in manifest.files if name.endswith(".onnx") and not is_report(name)]
    return read_bundle(bundle, models=models, manifest=manifest)


def read_inputs(
    metadata: Metadata,
    data: Path,
    *,
    checkpoint: Path | None,
    non_plants: Path | None,
    unseen_plants: Path | None,
    field: Path | None = None,
    hyper_parameters: Path | None = None,
) -> VerificationInputs:
    """List the images, and read the checkpoint.

    Args:
        metadata: the bundle's metadata.
        data: leaf folders or manifest of contract 2.
        checkpoint: the checkpoint that the bundle was made from, or None.
        non_plants: folder of images that show no plant, or None.
        unseen_plants: folder of plants of unknown species, or None.
        field: labelled leaves from another place, without split, or None.
        hyper_parameters: the file of hyper-parameters that the checkpoint was exported with, or None.

    Raises:
        BundleError: the bundle was made from another checkpoint.
        CheckpointError: the checkpoint cannot be read.
        DataError: images are missing, a class is unknown, every validation leaf calibrated the bundle, or the network
            has learned from non-plants that the gates would measure.
    """
    val = read_leaves(data, "val", metadata.taxonomy)
    leaves = _leave_out_calibration(val, metadata, data)
    others = None if non_plants is None else read_non_plants(non_plants)
    if others is not None and (seen := _read_seen(metadata)):
        refuse_seen(others.half("gate"), seen)
    unseen = None if unseen_plants is None else read_non_plants(unseen_plants, "unseen plants")
    elsewhere = None if field is None else read_field_leaves(field, metadata.taxonomy)
    log_left_out({"val": val, "non-plants": others, "unseen plants": unseen, "field": elsewhere})
    matching = None if checkpoint is None else _read_checkpoint(checkpoint, metadata, hyper_parameters)
    training = read_training_leaves(data, metadata.taxonomy)
    left_out = len(val.samples) - len(leaves.samples)
    return VerificationInputs(leaves, left_out, training, others, unseen, elsewhere, matching)


def _read_seen(metadata: Metadata) -> frozenset[str]:
    """Return the digests of the non-plants that the network has learned from; none for older bundles."""
    seen = metadata.provenance.get("seen_non_plants_sha256", [])
    return frozenset(map(str, seen)) if isinstance(seen, list) else frozenset()


def _leave_out_calibration(val: LeafSet, metadata: Metadata, data: Path) -> LeafSet:
    """Return the validation leaves without those that calibrated the bundle, wherever it took them from."""
    calibration = metadata.calibration
    if calibration is None:
        return val
    leaves = leave_out(val, frozenset(calibration.sha256))
    if not leaves.samples:
        raise DataError(
            f"{data}: each of the {len(val.samples):,} images of split 'val' calibrated the bundle, so no gate may "
            "measure it; expected other images, too"
        )
    return leaves


def _read_checkpoint(path: Path, metadata: Metadata, hyper_parameters: Path | None) -> "Checkpoint":
    from plantmodels.verify.parity import read_matching_checkpoint  # imports torch, which takes seconds

    return read_matching_checkpoint(path, metadata, hyper_parameters)
