"""Leaf folders and non-plant images (contract 2), read as streams: memory does not grow with their number.

>>> leaves = read_leaves(Path("DATA"), "train", taxonomy)  # doctest: +SKIP
>>> for index, pixels in stream_images(leaves.paths, preprocessing, unreadable=[]): ...  # doctest: +SKIP
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from plantmodels.bundle.manifest import digest_file
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError, DataError, ImageError
from plantmodels.serve.images import decode_image, preprocess

Split = Literal["train", "val"]
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
CLASS_SEPARATOR: Final = "___"
MAX_UNREADABLE: Final = 0.01
"""Share of unreadable images above which a folder is an error."""

_MANIFEST_COLUMNS: Final = ("path", "species", "disease", "split")
_DECODERS: Final = 2
_AHEAD: Final = 16


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


@dataclass(frozen=True)
class NonPlantSet:
    """Images of no plant; the first folder below the root is an image's source."""

    root: Path
    paths: tuple[Path, ...]

    def source_of(self, path: Path) -> str:
        """Name of the folder that the image lies in, "." for the root itself."""
        parts = path.relative_to(self.root).parts
        return parts[0] if len(parts) > 1 else "."

    def half(self, which: Literal["selection", "gate"]) -> "NonPlantSet":
        """The half that may choose a detector, or the half that gates measure.

        Membership follows from an image's content alone: neither adding nor renaming images, nor giving another
        folder above or below, moves one to the other half.
        """
        bucket = 0 if which == "selection" else 1
        return NonPlantSet(self.root, tuple(p for p in self.paths if int(_fraction(_digest_content(p)) * 2) == bucket))


@dataclass(frozen=True)
class UnreadableImage:
    """A file that was skipped, and why."""

    path: Path
    reason: str


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
        raise DataError(f"{data}: split {split!r} holds no images of type {', '.join(SUFFIXES)}")
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
    return (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


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


def read_non_plants(folder: Path, kind: str = "non-plants") -> NonPlantSet:
    """Lists all images below a folder, sorted.

    Args:
        folder: of any depth.
        kind: what to call them in an error.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of {kind}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: holds no images of type {', '.join(SUFFIXES)}")
    return NonPlantSet(folder, tuple(paths))


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
    buckets = [_fraction(f"{seed}:{_name(leaves.root, sample.path)}") for sample in leaves.samples]
    share = min([share, *sorted(buckets)[at_most : at_most + 1]])
    parts = [
        tuple(s for s, b in zip(leaves.samples, buckets, strict=True) if (b < share) == picked)
        for picked in (False, True)
    ]
    return LeafSet(leaves.root, leaves.split, parts[0]), LeafSet(leaves.root, leaves.split, parts[1])


def _fraction(text: str) -> float:
    """A number in [0, 1) that follows from the text, evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def digest_images(root: Path, paths: Iterable[Path]) -> str:
    """SHA-256 over the names relative to the root and the contents of image files, whatever their order.

    A file that cannot be read counts by its name: skipping it is `stream_images`' to decide.
    """
    return _digest_lines(f"{_name(root, path)}\0{_digest_content(path)}\n" for path in paths)


def digest_leaves(leaves: LeafSet) -> str:
    """SHA-256 over names, labels and contents of labelled images, whatever their order."""
    return _digest_lines(
        f"{_name(leaves.root, s.path)}\0{s.species_index}\0{s.disease_index}\0{_digest_content(s.path)}\n"
        for s in leaves.samples
    )


def _digest_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _digest_content(path: Path) -> str:
    try:
        return digest_file(path.resolve()).sha256
    except BundleError:
        return "unreadable"


def stream_images(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    unreadable: list[UnreadableImage],
    out_of: int | None = None,
    description: str = "",
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Decodes images a few ahead of the consumer, with a progress bar; holds no more than those in memory.

    Args:
        paths: image files.
        preprocessing: how pixels become input.
        unreadable: files that are skipped are appended here; at most 1 % (`MAX_UNREADABLE`) may come together.
        out_of: size of the set that the list and this 1 % are about; None for that of `paths`.
        description: label of the progress bar; none is shown without one.

    Yields:
        Position in `paths`, and (3, S, S) float32.

    Raises:
        DataError: more unreadable images than allowed, naming the first few.
    """
    total = len(paths) if out_of is None else out_of
    progress = tqdm(total=len(paths), desc=description, unit="image", disable=not description)
    with ThreadPoolExecutor(_DECODERS) as pool, progress:
        pending: deque[tuple[int, Future[NDArray[np.float32]]]] = deque()
        queue = iter(enumerate(paths))
        while True:
            for index, path in queue:
                pending.append((index, pool.submit(_load, path, preprocessing)))
                if len(pending) > _AHEAD:
                    break
            if not pending:
                return
            index, future = pending.popleft()
            try:
                yield index, future.result()
            except ImageError as error:
                unreadable.append(UnreadableImage(paths[index], str(error)))
                if len(unreadable) > MAX_UNREADABLE * total:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise _too_many(unreadable, total) from error
            progress.update()


def stream_batches(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    size: int,
    unreadable: list[UnreadableImage],
    out_of: int | None = None,
    description: str = "",
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """`stream_images` in batches: yields positions in `paths`, and (n, 3, S, S) float32 with n at most `size`.

    Raises:
        DataError: more unreadable images than allowed, naming the first few.
    """
    images = stream_images(paths, preprocessing, unreadable=unreadable, out_of=out_of, description=description)
    while batch := list(islice(images, size)):
        positions, pixels = zip(*batch, strict=True)
        yield list(positions), np.stack(pixels)


def class_of(sample: LeafSample) -> tuple[int, int]:
    """Species and disease of a leaf, −1 where it has no disease; sortable."""
    return sample.species_index, -1 if sample.disease_index is None else sample.disease_index


def name_below(root: Path, path: Path) -> str:
    """What reports call an image: its name relative to its set's folder, or the bare name outside it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _load(path: Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    return preprocess(decode_image(data), preprocessing)


def _too_many(unreadable: Sequence[UnreadableImage], total: int) -> DataError:
    shown = "; ".join(f"{image.path}: {image.reason}" for image in unreadable[:3])
    return DataError(
        f"over {MAX_UNREADABLE:.0%} of {total:,} images cannot be read ({len(unreadable)} so far): {shown}"
    )
