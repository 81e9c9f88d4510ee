"""Leaf folders and non-plant images (contract 2), read as streams: memory does not grow with their number.

>>> leaves = read_leaves(Path("DATA"), "train", taxonomy)  # doctest: +SKIP
>>> for index, pixels in stream_images(leaves.paths, preprocessing, unreadable=[]): ...  # doctest: +SKIP
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pandas as pd

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import hash_to_fraction
from plantmodels.data.image_files import IMAGE_SUFFIXES, name_in_digest
from plantmodels.errors import DataError

Split = Literal["train", "val"]
CLASS_SEPARATOR: Final = "___"

_MANIFEST_COLUMNS: Final = ("path", "species", "disease", "split")


@dataclass(frozen=True)
class LeafSample:
    """One labelled leaf; `disease_index` is None for a species without a disease head."""

    path: Path
    species_index: int
    disease_index: int | None


@dataclass(frozen=True)
class LeafSet:
    """The labelled leaves of one split, sorted by path."""

    root: Path
    split: Split
    samples: tuple[LeafSample, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Image files, in sample order."""
        return tuple(sample.path for sample in self.samples)


def read_leaves(data: Path, split: Split, taxonomy: Taxonomy) -> LeafSet:
    """Lists the labelled images of one split; opens none.

    Args:
        data: folder with `train/` and `val/`, or a CSV or Parquet manifest with the columns path, species,
            disease, split (paths relative to the manifest).
        split: which part.
        taxonomy: the classes that the checkpoint knows.

    Raises:
        DataError: absent or empty split, a class that the checkpoint does not know, or a manifest without the
            columns.
    """
    if not data.exists():
        raise DataError(f"{data}: no such data folder or manifest")
    labelled = _read_folders(data, split, taxonomy) if data.is_dir() else _read_manifest(data, split)
    known = {
        (name, disease): LeafSample(Path(), i, taxonomy.diseases_of(i).index(disease))
        for i, name in enumerate(taxonomy.species)
        for disease in taxonomy.diseases_of(i)
    }
    headless = {name: i for i, name in enumerate(taxonomy.species) if name not in taxonomy.diseases}
    samples = []
    for path, species, disease in sorted(labelled):
        if species in headless:
            samples.append(LeafSample(path, headless[species], None))
        elif (species, disease) in known:
            match = known[species, disease]
            samples.append(LeafSample(path, match.species_index, match.disease_index))
        else:
            raise DataError(_unknown_class(path, species, disease, taxonomy))
    if not samples:
        raise DataError(f"{data}: split {split!r} holds no images of type {', '.join(IMAGE_SUFFIXES)}")
    return LeafSet(data if data.is_dir() else data.parent, split, tuple(samples))


def list_classes(data: Path) -> Taxonomy:
    """The classes of split "train" in alphabetical order, which a new training makes its logit order.

    Raises:
        DataError: absent or empty split, or a manifest without the columns.
        TaxonomyError: names that cannot form a taxonomy.
    """
    if not data.exists():
        raise DataError(f"{data}: no such data folder or manifest")
    if data.is_dir():
        labelled = {
            (species, disease)
            for folder in _class_folders(data, "train")
            for species, separator, disease in [folder.name.partition(CLASS_SEPARATOR)]
            if separator and next(_list_images(folder), None)
        }
    else:
        labelled = {(species, disease) for _, species, disease in _read_manifest(data, "train")}
    if not labelled:
        raise DataError(f"{data}: split 'train' holds no images in folders <Species>{CLASS_SEPARATOR}<Disease>")
    species = sorted({name for name, _ in labelled})
    return Taxonomy(tuple(species), {name: tuple(sorted(d for s, d in labelled if s == name)) for name in species})


def _unknown_class(path: Path, species: str, disease: str, taxonomy: Taxonomy) -> str:
    if species in taxonomy.diseases:
        known = f"its diseases of {species!r} are {', '.join(taxonomy.diseases[species])}"
    else:
        known = f"its species are {', '.join(taxonomy.species)}"
    return f"{path}: class {species + CLASS_SEPARATOR + disease!r} is not in the checkpoint; {known}"


def _read_folders(data: Path, split: Split, taxonomy: Taxonomy) -> Iterator[tuple[Path, str, str]]:
    for folder in _class_folders(data, split):
        species, _, disease = folder.name.partition(CLASS_SEPARATOR)
        headless = species in taxonomy.species and species not in taxonomy.diseases
        if not headless and disease not in taxonomy.diseases.get(species, ()):
            raise DataError(_unknown_class(folder, species, disease, taxonomy))
        yield from ((path, species, disease) for path in _list_images(folder))


def _class_folders(data: Path, split: Split) -> Iterator[Path]:
    folder = data / split
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected {data}/{{train,val}}/<Species>___<Disease>/*.jpg")
    return (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_images(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _read_manifest(path: Path, split: Split) -> Iterator[tuple[Path, str, str]]:
    try:
        # no na_filter: to pandas a disease called "None" is a missing value
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: neither a folder nor a CSV or Parquet manifest ({error})") from error
    missing = [name for name in _MANIFEST_COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} missing; a manifest has {', '.join(_MANIFEST_COLUMNS)}")
    table = table.loc[table["split"] == split, list(_MANIFEST_COLUMNS)]
    for row in table.itertuples(index=False):
        yield path.parent / str(row.path), str(row.species), "" if pd.isna(row.disease) else str(row.disease)


def split_by_name(leaves: LeafSet, share: float, at_most: int, seed: int) -> tuple[LeafSet, LeafSet]:
    """Parts training leaves in two; an image stays where it is when others are added, until there are `at_most`.

    Args:
        leaves: the training leaves.
        share: size of the second part, 0 to 1, as each image's name and the seed decide.
        at_most: upper bound on its size.
        seed: another seed picks others.

    Returns:
        The rest, and the picked.
    """
    buckets = [hash_to_fraction(f"{seed}:{name_in_digest(leaves.root, sample.path)}") for sample in leaves.samples]
    share = min([share, *sorted(buckets)[at_most : at_most + 1]])
    parts = [
        tuple(s for s, b in zip(leaves.samples, buckets, strict=True) if (b < share) == picked)
        for picked in (False, True)
    ]
    return LeafSet(leaves.root, leaves.split, parts[0]), LeafSet(leaves.root, leaves.split, parts[1])


def class_of(sample: LeafSample) -> tuple[int, int]:
    """Species and disease of a leaf, −1 where it has no disease; sortable."""
    return sample.species_index, -1 if sample.disease_index is None else sample.disease_index
