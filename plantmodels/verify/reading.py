"""The bundle and the images that a verification reads, checked before anything is measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plantmodels.bundle.layout import is_report, is_single_head
from plantmodels.bundle.manifest import read_manifest
from plantmodels.bundle.metadata import Metadata
from plantmodels.data.leaves import LeafSet, leave_out, read_field_leaves, read_leaves
from plantmodels.data.listing import log_left_out
from plantmodels.data.non_plants import NonPlantSet, read_non_plants, refuse_seen
from plantmodels.errors import DataError
from plantmodels.serve.loading import BundleContents, read_bundle
from plantmodels.verify.leakage import read_training_leaves


@dataclass(frozen=True)
class VerificationInputs:
    """The images that a bundle is measured on.

    Attributes:
        leaves: the validation leaves that gates may measure.
        left_out: number of validation leaves that no gate may measure, because they calibrated the bundle.
        training: the training leaves, which no validation leaf may be among; None if there are none.
        non_plants: images that show no plant, or None.
        unseen_plants: images of plants of unknown species, or None.
        field: labelled leaves from another place, or None.
    """

    leaves: LeafSet
    left_out: int
    training: LeafSet | None
    non_plants: NonPlantSet | None
    unseen_plants: NonPlantSet | None
    field: LeafSet | None


class OnnxFiles(Mapping[str, bytes]):
    """The content of each ONNX file of a bundle, read and compared with the manifest whenever it is asked for.

    Only the disease heads, which are small, many and asked for three times, are kept in memory.
    """

    def __init__(self, contents: BundleContents) -> None:
        """List the files; read none.

        Args:
            contents: what `read_contents` returned.
        """
        self._contents = contents
        files = contents.manifest.files
        self._names = dict.fromkeys(name for name in files if name.endswith(".onnx") and not is_report(name))

    def __getitem__(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            BundleError: the file has changed since the bundle was read.
        """
        if name not in self._names:
            raise KeyError(name)
        return self._contents.read_model(name)

    def __contains__(self, name: object) -> bool:
        """Return whether the manifest lists the file; reads nothing."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """Return the names of the files, in the order of the manifest."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._names)


def read_contents(bundle: Path) -> BundleContents:
    """Compare every file of a bundle with the manifest; of the ONNX files, keep the single disease heads.

    Raises:
        BundleError: files differ from the manifest, or the metadata and the list of heads disagree.
        DetectorError: the detector's file is unsafe or malformed.
    """
    manifest = read_manifest(bundle)
    return read_bundle(bundle, models=list(filter(is_single_head, manifest.files)), manifest=manifest)


def read_inputs(
    metadata: Metadata,
    data: Path,
    *,
    non_plants: Path | None,
    unseen_plants: Path | None,
    field: Path | None = None,
) -> VerificationInputs:
    """List the images.

    Args:
        metadata: the bundle's metadata.
        data: leaf folders or manifest of contract 2.
        non_plants: folder of images that show no plant, or None.
        unseen_plants: folder of plants of unknown species, or None.
        field: labelled leaves from another place, without split, or None.

    Raises:
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
    training = read_training_leaves(data, metadata.taxonomy)
    left_out = len(val.samples) - len(leaves.samples)
    return VerificationInputs(leaves, left_out, training, others, unseen, elsewhere)


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
