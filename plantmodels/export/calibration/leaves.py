"""Chooses the leaves that calibrate a bundle, and the training leaves that its detector is fitted on.

The best source that has enough leaves is taken:

1. the split "calibration" of the data;
2. the leaves of the split "train" that training held out, which the checkpoint names by their digests (contract 1);
3. a third of the split "val", which no gate measures then;
4. all leaves of the split "train". The network has learned them, so this is marked as optimistic.

Held-out leaves chose the best epoch of a training. This is a choice among a few networks by accuracy, and no weight was
fitted to them.

A leaf of the same group as a training leaf is not fresh, so it does not calibrate (`plantmodels.data.groups`).
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from plantmodels.bundle.calibration import CalibrationRecord, CalibrationSource
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import UNREADABLE, hash_to_fraction
from plantmodels.data.groups import Contents
from plantmodels.data.leaves import (
    LeafSample,
    LeafSet,
    class_of,
    group_leaves,
    leave_out,
    read_optional_leaves,
)
from plantmodels.errors import DataError

MIN_CALIBRATION_LEAVES: Final = 100
"""With fewer leaves, no threshold is sure to reject at most 1 % of fresh leaves: the conformal bound needs 99."""

MAX_CALIBRATION_LEAVES: Final = 10_000
"""More leaves make a share of 1 % no surer than 0.1 points. Their digests take 670 kB of the metadata."""

MIN_VAL_LEAVES: Final = 300
"""Leaves that the split "val" must keep: with fewer, the gates on accuracy are not measured by default."""

VAL_SHARE: Final = 1 / 3
"""Part of the split "val" that calibrates. It widens the gates' intervals by a fifth."""

MIN_CLASS_LEAVES: Final = 5
"""Leaves of each class that the split "val" must keep: with fewer of a species, the gate `coverage` fails."""


@dataclass(frozen=True)
class CalibrationChoice:
    """The leaves that calibrate, and those that the detector is fitted on.

    Attributes:
        leaves: the leaves that calibrate; for the source "train", those that the detector is fitted on.
        fit: training leaves that the detector is fitted on.
        record: what the bundle's metadata and its report say about the calibration.
        groups: path of each leaf of `fit` to the key of its group.
    """

    leaves: LeafSet
    fit: LeafSet
    record: CalibrationRecord
    groups: Mapping[Path, str]


@dataclass(frozen=True)
class _Grouped:
    """Fresh leaves, with the group and the digest of each of them and of each training leaf.

    Attributes:
        leaves: leaves that share no group with a leaf that the network has learned.
        key_of: path of each training leaf, and of each of `leaves`, to the key of its group.
        digest_of: the same paths to the digests of their contents.
    """

    leaves: LeafSet
    key_of: Mapping[Path, str]
    digest_of: Mapping[Path, str]


_Keep = Callable[[LeafSet], _Grouped]
"""Keeps the leaves that share no group with a leaf that the network has learned."""


def choose_calibration(
    data: Path,
    taxonomy: Taxonomy,
    train: LeafSet,
    digests: Mapping[Path, str],
    held_out: Collection[str],
    contents: Contents | None = None,
) -> CalibrationChoice:
    """Return the leaves of the best source that has at least `MIN_CALIBRATION_LEAVES`.

    Args:
        data: leaf folders, a manifest or Parquet files (contract 2).
        taxonomy: the classes of the checkpoint.
        train: all leaves of the split "train".
        digests: path of each of these leaves to the digest of its content.
        held_out: digests of the leaves that training held out, as the checkpoint names them; empty if it names none.
        contents: what was read of the leaves before, to which those of other splits are added; None reads them all.

    Raises:
        DataError: the split "calibration" holds no images or an unknown class.
    """
    known = Contents() if contents is None else contents
    learned = [path for path in train.paths if digests[path] not in held_out]
    grouped: list[_Grouped] = []

    def keep(leaves: LeafSet) -> _Grouped:
        grouped.append(_keep_fresh(train, leaves, learned, known))
        return grouped[-1]

    finders: dict[CalibrationSource, Callable[[], tuple[_Grouped | None, str]]] = {
        "calibration": lambda: _find_split(data, taxonomy, keep),
        "held-out": lambda: _find_held_out(train, digests, held_out, keep),
        "val": lambda: _find_part_of_val(data, taxonomy, keep),
    }
    reasons: list[str] = []
    for source, find in finders.items():
        found, reason = find()
        if found is not None and not reason:
            fit = leave_out(train, held_out, digests) if source == "held-out" else train
            return _make_choice(source, replace(found, leaves=_thin_out(found)), fit, taxonomy, reasons)
        reasons.append(reason)
    every = grouped[-1] if grouped else _keep_fresh(train, train, (), known)
    return _make_choice("train", replace(every, leaves=train), train, taxonomy, reasons)


def _keep_fresh(train: LeafSet, leaves: LeafSet, learned: Collection[Path], contents: Contents) -> _Grouped:
    """Return the leaves that share no group with any of `learned`, which are training leaves."""
    splits = (train,) if leaves.split == train.split else (train, leaves)
    groups, paths = group_leaves(*splits, contents=contents), [path for split in splits for path in split.paths]
    key_of = dict(zip(paths, groups.keys, strict=True))
    unwanted = {key_of[path] for path in learned}
    fresh = replace(leaves, samples=tuple(s for s in leaves.samples if key_of[s.path] not in unwanted))
    return _Grouped(fresh, key_of, dict(zip(paths, groups.digests, strict=True)))


def _find_enough(candidates: LeafSet, keep: _Keep, lack: str) -> tuple[_Grouped | None, str]:
    """Return the fresh leaves among the candidates; instead, in words, why they are too few."""
    found = keep(candidates) if len(candidates.samples) >= MIN_CALIBRATION_LEAVES else None
    fresh = candidates if found is None else found.leaves
    return found, _describe_lack(len(fresh.samples), lack)


def _describe_lack(leaves: int, lack: str) -> str:
    if leaves >= MIN_CALIBRATION_LEAVES:
        return ""
    return f"{lack} ({leaves:,} leaves, at least {MIN_CALIBRATION_LEAVES} are needed)"


def _find_split(data: Path, taxonomy: Taxonomy, keep: _Keep) -> tuple[_Grouped | None, str]:
    leaves = read_optional_leaves(data, "calibration", taxonomy)
    if leaves is None:
        return None, ""
    return _find_enough(leaves, keep, "the split calibration has too few leaves that are not in train")


def _find_held_out(
    train: LeafSet, digests: Mapping[Path, str], held_out: Collection[str], keep: _Keep
) -> tuple[_Grouped | None, str]:
    if not held_out:
        return None, "the checkpoint names no leaves that training held out"
    found = replace(train, samples=tuple(s for s in train.samples if digests[s.path] in held_out))
    lack = f"of {len(held_out):,} leaves that training held out, too few are in the split train"
    return _find_enough(found, keep, lack)


def _find_part_of_val(data: Path, taxonomy: Taxonomy, keep: _Keep) -> tuple[_Grouped | None, str]:
    try:
        val = read_optional_leaves(data, "val", taxonomy)
    except DataError:
        return None, "the split val cannot be read"  # `verify` says why
    if val is None:
        return None, "the data have no split val"
    found = keep(val)
    samples = found.leaves.samples
    chosen = pick_part(samples, [found.key_of[sample.path] for sample in samples])
    left = len(val.samples) - len(chosen)
    if left < MIN_VAL_LEAVES:
        return (
            None,
            f"a part of the split val would leave {left:,} of its leaves to the gates, fewer than {MIN_VAL_LEAVES}",
        )
    part = replace(found, leaves=replace(val, samples=chosen))
    return part, _describe_lack(len(chosen), "a third of the split val is too small")


def pick_part(samples: Sequence[LeafSample], groups: Sequence[str]) -> tuple[LeafSample, ...]:
    """Return a third of the leaves of each class, as whole groups, chosen by content.

    A group's key decides, which is the digest of an image or its name (`group_leaves`). At least `MIN_CLASS_LEAVES` of
    each class stay. A group counts as one of the class of its first leaf.

    Args:
        samples: N leaves.
        groups: (N,) key of each leaf's group.
    """
    sizes = Counter(groups)
    class_of_group: dict[str, tuple[int, int]] = {}
    for sample, group in zip(samples, groups, strict=True):
        class_of_group.setdefault(group, class_of(sample))
    images: Counter[tuple[int, int]] = Counter()
    for group, size in sizes.items():
        images[class_of_group[group]] += size
    room = {each: min(int(count * VAL_SHARE), count - MIN_CLASS_LEAVES) for each, count in images.items()}
    taken: set[str] = set()
    for group in sorted(sizes, key=hash_to_fraction):
        if sizes[group] <= room[class_of_group[group]]:
            taken.add(group)
            room[class_of_group[group]] -= sizes[group]
    return tuple(sample for sample, group in zip(samples, groups, strict=True) if group in taken)


def _thin_out(found: _Grouped) -> LeafSet:
    """Return at most `MAX_CALIBRATION_LEAVES` leaves, chosen by content."""
    leaves, digests = found.leaves, found.digest_of
    if len(leaves.samples) <= MAX_CALIBRATION_LEAVES:
        return leaves
    kept = set(sorted(digests[path] for path in leaves.paths)[:MAX_CALIBRATION_LEAVES])
    return replace(leaves, samples=tuple(s for s in leaves.samples if digests[s.path] in kept))


def _make_choice(
    source: CalibrationSource, found: _Grouped, fit: LeafSet, taxonomy: Taxonomy, reasons: Sequence[str]
) -> CalibrationChoice:
    leaves, digests = found.leaves, found.digest_of
    counts = Counter(taxonomy.species[sample.species_index] for sample in leaves.samples)
    sha256 = () if source == "train" else tuple(sorted({digests[path] for path in leaves.paths} - {UNREADABLE}))
    by_species = {name: counts[name] for name in taxonomy.species}
    record = CalibrationRecord(source, len(leaves.samples), by_species, "; ".join(filter(None, reasons)), sha256)
    return CalibrationChoice(leaves, fit, record, {path: found.key_of[path] for path in fit.paths})
