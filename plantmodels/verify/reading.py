"""Everything that a verification reads, read and checked before anything is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plantmodels.bundle.layout import is_report
from plantmodels.bundle.manifest import read_manifest
from plantmodels.bundle.metadata import Metadata
from plantmodels.data.leaves import LeafSet, read_field_leaves, read_leaves
from plantmodels.data.listing import log_left_out
from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.serve.loading import BundleContents, read_bundle
from plantmodels.verify.leakage import read_training_leaves

if TYPE_CHECKING:
    from plantmodels.checkpoint.reading import Checkpoint


@dataclass(frozen=True)
class VerificationInputs:
    """The images that a bundle is measured on, and the checkpoint that it is compared with.

    Attributes:
        leaves: the validation leaves.
        training: the training leaves, which no validation leaf may be among; None if there are none.
        non_plants: images that show no plant, or None.
        unseen_plants: images of plants of unknown species, or None.
        field: labelled leaves from another place, or None.
        checkpoint: the checkpoint that the bundle was made from, or None.
    """

    leaves: LeafSet
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
        DataError: images are missing, or a class is unknown.
    """
    leaves = read_leaves(data, "val", metadata.taxonomy)
    others = None if non_plants is None else read_non_plants(non_plants)
    unseen = None if unseen_plants is None else read_non_plants(unseen_plants, "unseen plants")
    elsewhere = None if field is None else read_field_leaves(field, metadata.taxonomy)
    log_left_out({"val": leaves, "non-plants": others, "unseen plants": unseen, "field": elsewhere})
    matching = None if checkpoint is None else _read_checkpoint(checkpoint, metadata, hyper_parameters)
    training = read_training_leaves(data, metadata.taxonomy)
    return VerificationInputs(leaves, training, others, unseen, elsewhere, matching)


def _read_checkpoint(path: Path, metadata: Metadata, hyper_parameters: Path | None) -> "Checkpoint":
    from plantmodels.verify.parity import read_matching_checkpoint  # imports torch, which takes seconds

    return read_matching_checkpoint(path, metadata, hyper_parameters)
