"""Leaf folders and manifests (contract 2): which labelled images a split contains.

>>> taxonomy = list_classes(data)
>>> leaves = read_leaves(data, "train", taxonomy)
>>> taxonomy.species[leaves.samples[0].species_index] in leaves.samples[0].path.parent.name
True
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import digest_content, digest_lines, hash_to_fraction
from plantmodels.data.groups import Contents, Groups, find_groups, name_group
from plantmodels.data.image_files import IMAGE_SUFFIXES, name_in_digest, printable_name
from plantmodels.data.inputs import (
    Split,
    check_data,
    check_field,
    find_split,
    has_split_folder,
    is_image_table,
    name_split,
)
from plantmodels.data.labels import CLASS_SEPARATOR, Classes, LabelledImage, read_manifest_rows, to_nfc
from plantmodels.data.listing import LeftOut, list_class_images, list_folders
from plantmodels.data.progress import track
from plantmodels.data.tables import extract_images, holds_images
from plantmodels.errors import DataError
from plantmodels.foreign_text import name_some

_NAMED_FOLDERS: Final = 10
"""Folders and species that an error names; more are counted."""

_ADVICE: Final = "rename a folder that means a known class; measure plants of other species with --unseen-plants"


@dataclass(frozen=True)
class LeafSample:
    """One labelled leaf.

    Attributes:
        path: the image file.
        species_index: index of its species in the taxonomy.
        disease_index: index of its disease among those of its species; None for a species without a disease head.
        group: name of the group that it belongs to, such as the photographs of one plant; "" for none.
    """

    path: Path
    species_index: int
    disease_index: int | None
    group: str = ""


@dataclass(frozen=True)
class LeafSet:
    """The labelled leaves of one split, sorted by path.

    Attributes:
        root: the data folder, or the folder of the manifest; names of images are relative to it.
        split: which split; None for leaves from another place, which have none.
        samples: N labelled leaves.
        left_out: the files of the split that are not taken as images.
    """

    root: Path
    split: Split | None
    samples: tuple[LeafSample, ...]
    left_out: LeftOut = field(default=LeftOut(), compare=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The N image files, in the order of `samples`."""
        return tuple(sample.path for sample in self.samples)


def read_leaves(data: Path, split: Split, taxonomy: Taxonomy) -> LeafSet:
    """Return the labelled images of one split; opens none of them.

    Args:
        data: folder with `train/` and `val/`; a CSV or Parquet manifest with the columns path, species, disease, split
            (paths relative to the manifest); or Parquet files that hold the images, as Hugging Face writes them.
        split: which split.
        taxonomy: the classes of the checkpoint. Names are compared in Unicode form NFC.

    Raises:
        DataError: the split is missing or empty, the checkpoint does not know a class, or the manifest lacks a column
            or names no split.
    """
    check_data(data, split)
    classes, left_out = Classes(taxonomy), LeftOut()
    if data.is_dir() and not is_image_table(data):
        place, root = find_split(data, split), data
        labels = {folder: classes.find(folder, *_name_class(folder)) for folder in list_folders(place)}
        listing = list_class_images(place, list(labels))
        samples = [_label(place, path, labels, taxonomy) for path in listing.paths]
        left_out = listing.left_out
    else:
        root, rows = _read_rows(data, split)
        samples = [LeafSample(row.path, *classes.find(row.path, row.species, row.disease), row.group) for row in rows]
    if not samples:
        seen = left_out.describe(f"; {split}")
        raise DataError(f"{data}: split {split!r} holds no images of type {', '.join(IMAGE_SUFFIXES)}{seen}")
    return LeafSet(root, split, tuple(samples), left_out)


def read_field_leaves(data: Path, taxonomy: Taxonomy) -> LeafSet:
    """Return labelled leaves from another place than the data that the network was trained on; opens none of them.

    Args:
        data: folder with a sub-folder `<Species>___<Disease>` for each class; a CSV or Parquet manifest with columns
            path, species and disease; or Parquet files that hold the images. None of them has a split.
        taxonomy: the classes of the checkpoint; not every class needs an image.

    Raises:
        DataError: there is no image, the checkpoint does not know a class, or the data have splits.
    """
    check_field(data)
    left_out = LeftOut()
    if data.is_dir() and not (is_image_table(data) and not _list_class_folders(data)):
        labels = _label_folders(data, taxonomy)
        listing = list_class_images(data, list(labels))
        root, left_out = data, listing.left_out
        samples = [_label(data, path, labels, taxonomy) for path in listing.paths]
    else:
        root, rows = _read_rows(data, None)
        classes = Classes(taxonomy)
        samples = [LeafSample(row.path, *classes.find(row.path, row.species, row.disease), row.group) for row in rows]
    if not samples:
        seen = left_out.describe("; field")
        raise DataError(
            f"{data}: holds no field leaves of type {', '.join(IMAGE_SUFFIXES)}; expected "
            f"{data}/<Species>{CLASS_SEPARATOR}<Disease>/*.jpg{seen}"
        )
    return LeafSet(root, None, tuple(samples), left_out)


def _list_class_folders(data: Path) -> list[Path]:
    return [folder for folder in list_folders(data) if CLASS_SEPARATOR in folder.name]


def _label_folders(data: Path, taxonomy: Taxonomy) -> dict[Path, tuple[int, int | None]]:
    """Return species and disease of each class folder. Folders that are no class are refused, all at once."""
    classes, labels, errors = Classes(taxonomy), {}, {}
    for folder in list_folders(data):
        try:
            labels[folder] = classes.find(folder, *_name_class(folder))
        except DataError as error:
            errors[printable_name(folder.name)] = error
    if not errors:
        return labels
    names, splits = name_some(list(errors), _NAMED_FOLDERS), [name for name in errors if name_split(name)]
    if labels:
        others = f"; unknown folders are {names}" if len(errors) > 1 else ""
        raise DataError(f"{next(iter(errors.values()))}{others}; {_ADVICE}")
    if splits:
        raise DataError(
            f"{data}: field leaves have no split, but it holds {' and '.join(splits)}; give the folder that holds the "
            f"classes, such as {data / splits[0]}"
        )
    known = name_some(taxonomy.species, _NAMED_FOLDERS)
    raise DataError(
        f"{data}: none of its folders is a class of the checkpoint: {names}; its species are {known}; {_ADVICE}"
    )


def _label(place: Path, path: Path, labels: Mapping[Path, tuple[int, int | None]], taxonomy: Taxonomy) -> LeafSample:
    """Return a leaf of a class folder, or of a folder of a group in it.

    Groups of one name below classes of the same species are the same group.
    """
    species, disease = labels[place / path.relative_to(place).parts[0]]
    name = name_group(place, path)
    return LeafSample(path, species, disease, f"{taxonomy.species[species]}/{name}" if name else "")


def read_optional_leaves(data: Path, split: Split, taxonomy: Taxonomy) -> LeafSet | None:
    """Return the labelled images of a split as `read_leaves` does; None if the data have no such split.

    Raises:
        DataError: as `read_leaves`. A folder of the split that holds no images is an error, too.
    """
    check_data(data)
    if data.is_dir() and not is_image_table(data):
        return read_leaves(data, split, taxonomy) if has_split_folder(data, split) else None
    return read_leaves(data, split, taxonomy) if _read_rows(data, split)[1] else None


def digest_each(leaves: LeafSet, contents: Contents | None = None) -> dict[Path, str]:
    """Return the SHA-256 of each image's content by its path; it identifies an image whatever its name is.

    Args:
        leaves: the images.
        contents: what was read before, to which the other images are added for `group_leaves`.
    """
    if contents is None:
        return {path: digest_content(path) for path in track(leaves.paths, "digest images", unit="image")}
    contents.read(leaves.paths)
    return {path: contents.digests[path] for path in leaves.paths}


def leave_out(leaves: LeafSet, unwanted: Collection[str], digests: Mapping[Path, str] | None = None) -> LeafSet:
    """Return the leaves without those whose content is named.

    Args:
        leaves: the leaves of a split.
        unwanted: SHA-256 of the images to leave out.
        digests: path of each image to the digest of its content, from `digest_each`; read anew if None.
    """
    if not unwanted:
        return leaves
    known = digest_each(leaves) if digests is None else digests
    return replace(leaves, samples=tuple(sample for sample in leaves.samples if known[sample.path] not in unwanted))


def _name_class(folder: Path) -> tuple[str, str]:
    species, _, disease = folder.name.partition(CLASS_SEPARATOR)
    return species, disease


def _read_rows(data: Path, split: Split | None) -> tuple[Path, list[LabelledImage]]:
    """Return the root, and each row of a manifest or of Parquet files, in path order."""
    if holds_images(data):
        return extract_images(data, split)
    rows = read_manifest_rows(data, split)
    return data.parent, sorted(rows, key=lambda row: (row.path.parts, row.species, row.disease))


def list_classes(data: Path) -> Taxonomy:
    """Return the classes of the split "train" in alphabetical order, which a new training uses as its logit order.

    Args:
        data: leaf folders, a manifest or Parquet files, as in `read_leaves`.

    Raises:
        DataError: the split is missing or empty, or the manifest lacks a column.
        TaxonomyError: the names of the classes cannot form a taxonomy.
    """
    check_data(data, "train")
    if data.is_dir() and not is_image_table(data):
        folders = [folder for folder in list_folders(find_split(data, "train")) if CLASS_SEPARATOR in folder.name]
        labels = [_name_class(folder) for folder in folders if list_class_images(folder, [folder]).paths]
    else:
        labels = [(row.species, row.disease) for row in _read_rows(data, "train")[1]]
    names = {(to_nfc(species), to_nfc(disease)) for species, disease in labels}
    if not names:
        raise DataError(f"{data}: split 'train' holds no images in folders <Species>{CLASS_SEPARATOR}<Disease>")
    species = sorted({name for name, _ in names})
    return Taxonomy(tuple(species), {name: tuple(sorted(d for s, d in names if s == name)) for name in species})


def group_leaves(*splits: LeafSet, contents: Contents | None = None) -> Groups:
    """Return which leaves of all splits together belong together: by the names of their groups, and by what they show.

    Reads every image that was not read before.

    Args:
        splits: one or several splits of the same data.
        contents: what was read before, to which the other images are added; None reads every image.
    """
    samples = [sample for leaves in splits for sample in leaves.samples]
    paths, names = [sample.path for sample in samples], [sample.group for sample in samples]
    return find_groups(splits[0].root, paths, names, contents)


def split_by_name(
    leaves: LeafSet, fraction: float, at_most: int, seed: int, groups: Groups | None = None
) -> tuple[LeafSet, LeafSet]:
    """Split leaves into those left over and those picked; an image's name and the seed decide.

    A group goes whole to one side, and its key decides. An image stays on its side when images of other groups are
    added or renamed, as long as fewer than `at_most` are picked.

    Args:
        leaves: the leaves to split.
        fraction: about how much of them to pick, 0 to 1.
        at_most: largest number of leaves to pick.
        seed: another seed picks other leaves.
        groups: which leaves belong together; None if each is a group of its own.

    Returns:
        The leaves left over, and the leaves picked.
    """
    names = [name_in_digest(leaves.root, sample.path) for sample in leaves.samples]
    if groups is not None:
        sizes = groups.sizes
        rows = zip(leaves.samples, names, groups.keys, strict=True)
        names = [key if sample.group or sizes[key] > 1 else name for sample, name, key in rows]
    places = [hash_to_fraction(f"{seed}:{name}") for name in names]
    end = min([fraction, *sorted(places)[at_most : at_most + 1]])
    left_over, picked = (
        tuple(sample for sample, place in zip(leaves.samples, places, strict=True) if (place < end) == is_picked)
        for is_picked in (False, True)
    )
    return LeafSet(leaves.root, leaves.split, left_over), LeafSet(leaves.root, leaves.split, picked)


def digest_leaves(leaves: LeafSet, digests: Mapping[Path, str] | None = None) -> str:
    """Return the SHA-256 of a set of labelled images: of their names, labels and contents.

    Args:
        leaves: the labelled images.
        digests: path of each image to the digest of its content, from `digest_each`; read anew if None.
    """
    known = digest_each(leaves) if digests is None else digests
    return digest_lines(
        f"{name_in_digest(leaves.root, s.path)}\0{s.species_index}\0{s.disease_index}\0{known[s.path]}\n"
        for s in leaves.samples
    )


def class_of(sample: LeafSample) -> tuple[int, int]:
    """Return species and disease index of a leaf, with −1 for no disease, so that classes can be sorted."""
    return sample.species_index, -1 if sample.disease_index is None else sample.disease_index
