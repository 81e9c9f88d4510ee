"""Judges a network by its answers for labelled leaves: does it know them, and do its names stand in the right order?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from plantmodels.arrays import Labels, Weights
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import CheckpointError
from plantmodels.export.checks.class_order import Counts, Move, find_guessing, find_other_order, find_suspects
from plantmodels.foreign_text import name_some
from plantmodels.ood.embeddings import ModelOutputs

_NAMED: Final = 6
"""Moves that the error names."""


@dataclass(frozen=True)
class AnswerCounts:
    """How often each name is answered for each true name.

    Attributes:
        species: (S, S) answered species (columns) for true species (rows).
        diseases: index of each species with several diseases, and (N, N) answers of the true species' head.
    """

    species: Counts
    diseases: Mapping[int, Counts]

    def __add__(self, other: "AnswerCounts") -> "AnswerCounts":
        """Return the counts of both sets of leaves together."""
        return AnswerCounts(
            self.species + other.species, {i: counts + other.diseases[i] for i, counts in self.diseases.items()}
        )

    def find_suspects(self) -> frozenset[int]:
        """Return the species of which more leaves are needed to know whether names are in the right order."""
        species = {i for cycle in find_suspects(self.species) for i in cycle}
        return frozenset(species | {i for i, counts in self.diseases.items() if find_suspects(counts)})

    def describe(self) -> str:
        """Return a sentence that says how often INT8 is right on these training leaves."""
        right, images = int(np.trace(self.species)), int(self.species.sum())
        sentence = f"INT8 names the right species for {100 * right / images:.1f} % of {images:,} training leaves"
        asked = sum(int(counts.sum()) for counts in self.diseases.values())
        if not asked:
            return sentence
        right = sum(int(np.trace(counts)) for counts in self.diseases.values())
        return f"{sentence}, and given the species, the right disease for {100 * right / asked:.1f} % of {asked:,}"


def count_answers(
    outputs: ModelOutputs,
    species: Labels,
    diseases: Labels,
    heads: Mapping[int, tuple[Weights, Weights]],
    taxonomy: Taxonomy,
) -> AnswerCounts:
    """Count the answers for labelled leaves.

    Args:
        outputs: species logits and embeddings of N leaves.
        species: (N,) index of the true species.
        diseases: (N,) index of the true disease among those of the species, −1 without a disease.
        heads: index of each species with a head, and its float weights (C, D) and bias (C,).
        taxonomy: all classes in logit order.
    """
    tables: dict[int, Counts] = {}
    for i, (weight, bias) in heads.items():
        if len(bias) > 1:
            rows = species == i
            tables[i] = _count(diseases[rows], (outputs.features[rows] @ weight.T + bias).argmax(axis=1), len(bias))
    return AnswerCounts(_count(species, outputs.logits.argmax(axis=1), len(taxonomy.species)), tables)


def _count(true: Labels, answered: Labels, classes: int) -> Counts:
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (true, answered), 1)
    return counts


def refuse_wrong_answers(counts: AnswerCounts, taxonomy: Taxonomy, checkpoint: Path, data: Path) -> None:
    """Refuse a network that guesses, or whose answers fit its names in another order.

    Args:
        counts: its answers for training leaves.
        taxonomy: the names, as the checkpoint lists them.
        checkpoint: the checkpoint, for the error message.
        data: folder of the leaves, for the error message.

    Raises:
        CheckpointError: names the classes and how many leaves were answered with which name.
    """
    tables = 1 + len(counts.diseases)
    if moves := find_other_order(counts.species, tables=tables):
        raise CheckpointError(_describe_order(moves, "species", taxonomy.species, checkpoint, data))
    for i, table in counts.diseases.items():
        if moves := find_other_order(table, tables=tables):
            what = f"diseases of {taxonomy.species[i]!r}"
            raise CheckpointError(_describe_order(moves, what, taxonomy.diseases_of(i), checkpoint, data))
    _refuse_guesses("species", [counts.species], checkpoint, data)
    _refuse_guesses("diseases, given the true species", counts.diseases.values(), checkpoint, data)


def _describe_order(moves: tuple[Move, ...], what: str, names: tuple[str, ...], checkpoint: Path, data: Path) -> str:
    spelled = [
        f"{names[move.answered]!r} is answered where {names[move.true]!r} is true ({move.count:,} of {move.images:,})"
        for move in moves
    ]
    return (
        f"{checkpoint}: answers fit the {what} in another order: {name_some(spelled, _NAMED)}. List the names in the "
        f"order in which the network was trained, or correct the labels of the leaves in {data}"
    )


def _refuse_guesses(what: str, tables: Iterable[Counts], checkpoint: Path, data: Path) -> None:
    if found := find_guessing(tables):
        right, images = found
        raise CheckpointError(
            f"{checkpoint}: {right:,} of {images:,} training leaves get the right {what}, no more than guesses would. "
            f"Was it trained with this order of names, this mean and this std, on labels like those of {data}?"
        )
