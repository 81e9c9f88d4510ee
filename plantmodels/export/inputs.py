"""Everything that an export reads, listed and checked before the long work starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plantmodels.checkpoint.reading import Checkpoint
from plantmodels.data.groups import Contents
from plantmodels.data.image_files import name_in_report
from plantmodels.data.leaves import LeafSet, digest_each, read_leaves, split_by_name
from plantmodels.data.non_plants import NonPlantSet, read_non_plants, refuse_seen
from plantmodels.data.streaming import UnreadableImage
from plantmodels.errors import DataError, DetectorError
from plantmodels.export.calibration.leaves import CalibrationChoice, choose_calibration
from plantmodels.export.checks.non_plants import refuse_known_files
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.ood.embeddings import number_groups
from plantmodels.ood.select import check_images

MAX_KEPT_LEAVES: Final = 20_000
"""Leaves whose embeddings are held in memory, 3 KB each. Of further leaves only the moments are kept."""


@dataclass(frozen=True)
class ExportInputs:
    """The checkpoint and the images of an export.

    Attributes:
        checkpoint: the checkpoint.
        network: its network, with its weights.
        leaves: all training leaves.
        digests: path of each training leaf to the digest of its content.
        calibration: the leaves that calibrate, and the training leaves that the detector is fitted on;
            `kept_leaves` and `further_leaves` are two parts of the latter.
        kept_leaves: at most `MAX_KEPT_LEAVES` leaves, whose embeddings are held in memory.
        further_leaves: leaves of which only the moments are kept.
        non_plants: images that show no plant, or None.
        selection: the half of them that chooses the detector, or None.
    """

    checkpoint: Checkpoint
    network: HierarchicalNetwork
    leaves: LeafSet
    digests: Mapping[Path, str]
    calibration: CalibrationChoice
    kept_leaves: LeafSet
    further_leaves: LeafSet
    non_plants: NonPlantSet | None
    selection: NonPlantSet | None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Lines about the files of the leaves and of the non-plants that are not taken as images."""
        others = "" if self.non_plants is None else self.non_plants.left_out.describe("non-plants")
        return tuple(filter(None, (self.leaves.left_out.describe("train"), others)))

    def list_unreadable(self, unreadable: Iterable[UnreadableImage]) -> list[dict[str, str]]:
        """Return skipped leaves and non-plants as the metadata and the gate report name them."""
        entries, chosen = [], self.calibration.leaves
        for image in unreadable:
            source, root = "train", self.leaves.root
            if self.non_plants is not None and image.path in self.non_plants.paths:
                source, root = "non-plants", self.non_plants.root
            elif image.path in chosen.paths:
                source, root = str(chosen.split), chosen.root
            entries.append({"source": source, "name": name_in_report(root, image.path), "reason": image.reason})
        return entries


def read_inputs(checkpoint: Checkpoint, data: Path, non_plants: Path | None, seed: int) -> ExportInputs:
    """List the images of an export, choose which of them calibrate, and build the network.

    Args:
        checkpoint: the checkpoint.
        data: leaf folders, a manifest or Parquet files (contract 2).
        non_plants: folder of images that show no plant, or None.
        seed: which leaves are kept, if there are too many.

    Raises:
        CheckpointError, DataError, DetectorError: an input is invalid.
    """
    checkpoint.log_ignored()
    taxonomy = checkpoint.spec.taxonomy
    leaves = read_leaves(data, "train", taxonomy)
    contents = Contents()
    digests = digest_each(leaves, contents)
    calibration = choose_calibration(data, taxonomy, leaves, digests, checkpoint.held_out, contents)
    further, kept = split_by_name(calibration.fit, 1.0, MAX_KEPT_LEAVES, seed)
    try:
        check_images(len(kept.samples), number_groups([calibration.groups[path] for path in kept.paths]))
    except DetectorError as error:
        raise DetectorError(f"{data}: {error}") from error
    others = None if non_plants is None else read_non_plants(non_plants)
    if others is not None:
        known = [*leaves.paths, *calibration.leaves.paths, *_list_val_images(data, checkpoint)]
        refuse_known_files(others, known, leaves.root)
        refuse_seen(others.half("gate"), checkpoint.seen_non_plants)
    return ExportInputs(
        checkpoint=checkpoint,
        network=load_network(checkpoint),
        leaves=leaves,
        digests=digests,
        calibration=calibration,
        kept_leaves=kept,
        further_leaves=further,
        non_plants=others,
        selection=None if others is None else others.half("selection"),
    )


def _list_val_images(data: Path, checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the validation leaves; none if there are none, or if they are not as they should be: `verify` says so."""
    try:
        return read_leaves(data, "val", checkpoint.spec.taxonomy).paths
    except DataError:
        return ()
