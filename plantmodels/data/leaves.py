"""Leaf folders and manifests (contract 2): which labelled images a split contains.

>>> taxonomy = list_classes(data)
>>> leaves = read_leaves(data, "train", taxonomy)
>>> taxonomy.species[leaves.samples[0].species_index] in leaves.samples[0].path.parent.name
True
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pandas as pd

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import digest_content, digest_lines, hash_to_fraction
from plantmodels.data.image_files import IMAGE_SUFFIXES, name_in_digest
from plantmodels.data.inputs import check_data
from plantmodels.errors import DataError
from plantmodels.foreign_text import quote_error

Split = Literal["train", "val"]
CLASS_SEPARATOR: Final = "___"
"""Between species and disease in the name of a folder, as in PlantVillage."""

_MANIFEST_COLUMNS: Final = ("path", "species", "disease", "split")


@dataclass(frozen=True)
class LeafSample:
    """One labelled leaf.

    Attributes:
        path: the image file.
        species_index: index of its species in the taxonomy.
        disease_index: index of its disease among those of its species; None for a species without a disease head.
    """

    path: Path
    species_index: int
    disease_index: int | None


@dataclass(frozen=True)
class LeafSet:
    """The labelled leaves of one split, sorted by path.

    Attributes:
        root: the data folder, or the folder of the manifest; names of images are relative to it.
        split: which split.
        samples: N labelled leaves.
    """

    root: Path
    split: Split
    samples: tuple[LeafSample, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The N image files, in the order of `samples`."""
        return tuple(sample.path for sample in self.samples)


def read_leaves(data: Path, split: Split, taxonomy: Taxonomy) -> LeafSet:
    """Return the labelled images of one split; opens none of them.

    Args:
        data: folder with `train/` and `val/`, or a CSV or Parquet manifest with the columns path, species,
            disease, split (paths relative to the manifest).
        split: which split.
        taxonomy: the classes of the checkpoint.

    Raises:
        DataError: the split is missing or empty, the checkpoint does not know a class, or the manifest lacks a column.
    """
    check_data(data, split)
    labelled = _read_folders(data, split, taxonomy) if data.is_dir() else _read_manifest(data, split)
    known = {
        (name, disease): (species_index, disease_index)
        for species_index, name in enumerate(taxonomy.species)
        for disease_index, disease in enumerate(taxonomy.diseases_of(species_index))
    }
    headless = {name: i for i, name in enumerate(taxonomy.species) if name not in taxonomy.diseases}
    samples = []
    for path, species, disease in sorted(labelled):
        if species in headless:
            samples.append(LeafSample(path, headless[species], None))
        elif (species, disease) in known:
            samples.append(LeafSample(path, *known[species, disease]))
        else:
            raise _unknown_class(path, species, disease, taxonomy)
    if not samples:
        raise DataError(f"{data}: split {split!r} holds no images of type {', '.join(IMAGE_SUFFIXES)}")
    return LeafSet(data if data.is_dir() else data.parent, split, tuple(samples))


def list_classes(data: Path) -> Taxonomy:
    """Return the classes of the split "train" in alphabetical order, which a new training uses as its logit order.

    Args:
        data: leaf folders or a manifest, as in `read_leaves`.

    Raises:
        DataError: the split is missing or empty, or the manifest lacks a column.
        TaxonomyError: the names of the classes cannot form a taxonomy.
    """
    check_data(data, "train")
    if data.is_dir():
        labelled = {
            (species, disease)
            for folder in _list_class_folders(data, "train")
            for species, separator, disease in [folder.name.partition(CLASS_SEPARATOR)]
            if separator and next(_list_images(folder), None)
        }
    else:
        labelled = {(species, disease) for _, species, disease in _read_manifest(data, "train")}
    if not labelled:
        raise DataError(f"{data}: split 'train' holds no images in folders <Species>{CLASS_SEPARATOR}<Disease>")
    species = sorted({name for name, _ in labelled})
    return Taxonomy(tuple(species), {name: tuple(sorted(d for s, d in labelled if s == name)) for name in species})


def _unknown_class(path: Path, species: str, disease: str, taxonomy: Taxonomy) -> DataError:
    if species in taxonomy.diseases:
        known = f"its diseases of {species!r} are {', '.join(taxonomy.diseases[species])}"
    else:
        known = f"its species are {', '.join(taxonomy.species)}"
    return DataError(f"{path}: class {species + CLASS_SEPARATOR + disease!r} is not in the checkpoint; {known}")


def _read_folders(data: Path, split: Split, taxonomy: Taxonomy) -> Iterator[tuple[Path, str, str]]:
    for folder in _list_class_folders(data, split):
        species, _, disease = folder.name.partition(CLASS_SEPARATOR)
        headless = species in taxonomy.species and species not in taxonomy.diseases
        if not headless and disease not in taxonomy.diseases.get(species, ()):
            raise _unknown_class(folder, species, disease, taxonomy)
        yield from ((path, species, disease) for path in _list_images(folder))


def _list_class_folders(data: Path, split: Split) -> Iterator[Path]:
    return (path for path in (data / split).iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_images(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _read_manifest(path: Path, split: Split) -> Iterator[tuple[Path, str, str]]:
    try:
        # no na_filter: to pandas a disease called "None" is a missing value
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: neither a folder nor a CSV or Parquet manifest ({quote_error(error)})") from error
    missing = [name for name in _MANIFEST_COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} missing; a manifest has {', '.join(_MANIFEST_COLUMNS)}")
    table = table.loc[table["split"] == split, list(_MANIFEST_COLUMNS)]
    for row in table.itertuples(index=False):
        yield path.parent / str(row.path), str(row.species), "" if pd.isna(row.disease) else str(row.disease)


def split_by_name(leaves: LeafSet, fraction: float, at_most: int, seed: int) -> tuple[LeafSet, LeafSet]:
    """Split leaves into those left over and those picked; an image's name and the seed decide.

    An image stays on its side when other images are added, as long as fewer than `at_most` are picked.

    Args:
        leaves: the leaves to split.
        fraction: about how much of them to pick, 0 to 1.
        at_most: largest number of leaves to pick.
        seed: another seed picks other leaves.

    Returns:
        The leaves left over, and the leaves picked.
    """
    places = [hash_to_fraction(f"{seed}:{name_in_digest(leaves.root, sample.path)}") for sample in leaves.samples]
    end = min([fraction, *sorted(places)[at_most : at_most + 1]])
    left_over, picked = (
        tuple(sample for sample, place in zip(leaves.samples, places, strict=True) if (place < end) == is_picked)
        for is_picked in (False, True)
    )
    return LeafSet(leaves.root, leaves.split, left_over), LeafSet(leaves.root, leaves.split, picked)


def digest_leaves(leaves: LeafSet) -> str:
    """Return the SHA-256 of a set of labelled images: of their names, labels and contents."""
    return digest_lines(
        f"{name_in_digest(leaves.root, s.path)}\0{s.species_index}\0{s.disease_index}\0{digest_content(s.path)}\n"
        for s in leaves.samples
    )


def class_of(sample: LeafSample) -> tuple[int, int]:
    """Return species and disease index of a leaf, with −1 for no disease, so that classes can be sorted."""
    return sample.species_index, -1 if sample.disease_index is None else sample.disease_index
