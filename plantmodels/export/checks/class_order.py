"""Finds names that are answered in each other's place, from how often each is answered for each true name.

A checkpoint lists its names in the order of its logits. If the list is in another order than in training, the network
is right and all that it says is wrong. The confusion counts then fit other names better than their own.

>>> swapped = np.array([[0, 20, 1], [19, 0, 0], [0, 1, 20]])
>>> order = find_other_order(swapped)
>>> [(move.true, move.answered, move.count, move.images) for move in order]
[(0, 1, 20, 21), (1, 0, 19, 19)]
>>> find_other_order(np.eye(3, dtype=int) * 20)
()
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

Counts = NDArray[np.int64]
"""(C, C): number of images of the true class (row) that get each answer (column)."""

_FALSE_ALARM: Final = 0.01
"""Largest probability with which names in the right order are reported, for a network that cannot tell them apart."""

_CROSSED: Final = 4
"""The other names must be answered this many times as often as the right ones."""

_GUESS: Final = 1e-3
"""Largest probability with which a network that is useful at all is taken for one that guesses."""

_OTHERS: Final = 10
"""Images outside the commonest class, at least: with fewer, right answers say nothing about the other classes."""


@dataclass(frozen=True)
class Move:
    """A name that is answered in the place of another one.

    Attributes:
        true: index of the true class.
        answered: index of the class that is answered for it.
        count: number of images of the true class that get this answer.
        images: number of images of the true class.
    """

    true: int
    answered: int
    count: int
    images: int


def find_suspects(counts: Counts) -> tuple[tuple[int, ...], ...]:
    """Return groups of classes whose names fit better when they are exchanged within the group.

    Of all orders of the names, the one that makes most answers right is compared with the order as it is. Few images
    make suspects by chance; `find_other_order` says whether they are more than that.

    Args:
        counts: (C, C) answers (columns) for true classes (rows).
    """
    as_it_is = np.eye(len(counts), dtype=np.int64)  # of two orders that fit equally well, the one as it is
    _, answered = linear_sum_assignment(counts * (len(counts) + 1) + as_it_is, maximize=True)
    return tuple(cycle for cycle in _list_cycles(answered) if _is_suspect(counts, cycle))


def _list_cycles(answered: NDArray[np.int64]) -> Iterator[tuple[int, ...]]:
    """Yield the cycles of a permutation that are longer than 1."""
    seen: set[int] = set()
    for start in range(len(answered)):
        cycle: list[int] = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = int(answered[start])
        if len(cycle) > 1:
            yield tuple(cycle)


def _list_moves(counts: Counts, cycle: tuple[int, ...]) -> list[Move]:
    """Return the moves of a cycle, without classes that have no image."""
    pairs = zip(cycle, (*cycle[1:], cycle[0]), strict=True)
    moves = [Move(true, answer, int(counts[true, answer]), int(counts[true].sum())) for true, answer in pairs]
    return [move for move in moves if move.images]


def _is_suspect(counts: Counts, cycle: tuple[int, ...]) -> bool:
    """Return whether each class with images gets the other name more often than its own, and there are two of them.

    A class that is always taken for another one, which is recognized, is a weak class and no wrong order.
    """
    moves = _list_moves(counts, cycle)
    return len(moves) > 1 and all(move.count > counts[move.true, move.true] for move in moves)


def find_other_order(counts: Counts, *, tables: int = 1) -> tuple[Move, ...]:
    """Return the moves of the order that fits the answers, most images first; empty if none stands out.

    An order stands out if its names are answered at least four times as often as the right ones, and if names that
    the network cannot tell apart would show any such order in at most 1 % of all cases: the tail of a binomial
    distribution with probability 1/2, times the number of orders of so many of the classes.

    Args:
        counts: (C, C) answers (columns) for true classes (rows).
        tables: number of tables that are looked at, for which together the 1 % holds.
    """
    cycles = find_suspects(counts)
    for group in (cycles, *((cycle,) for cycle in cycles)):
        moves = [move for cycle in group for move in _list_moves(counts, cycle)]
        if _stands_out(counts, sum(map(len, group)), moves, tables):
            return tuple(sorted(moves, key=lambda move: -move.count))
    return ()


def _stands_out(counts: Counts, moved: int, moves: list[Move], tables: int) -> bool:
    crossed = sum(move.count for move in moves)
    straight = sum(int(counts[move.true, move.true]) for move in moves)
    if not moves or crossed < _CROSSED * straight:
        return False
    orders = math.lgamma(len(counts) + 1) - math.lgamma(len(counts) - moved + 1)
    return bool(binom.logsf(crossed - 1, crossed + straight, 0.5) + orders < math.log(_FALSE_ALARM / tables))


def find_guessing(tables: Iterable[Counts]) -> tuple[int, int] | None:
    """Return right and all answers, if no more are right than of answers that know nothing of the image.

    What such answers get right follows from how often each class is true and how often it is answered (Cohen's
    kappa is then 0 or less). The result is None if the images are too few to tell guesses from a useful network, one
    that gets right at least a third of what guesses get wrong.

    Args:
        tables: (C, C) answers (columns) for true classes (rows), of one question each.
    """
    images, right, chance = 0, 0, 0.0
    for counts in tables:
        true, answered = counts.sum(axis=1), counts.sum(axis=0)
        if len(counts) > 1 and true.sum() - true.max() >= _OTHERS:
            images += int(true.sum())
            right += int(np.trace(counts))
            chance += float(true @ answered) / int(true.sum())
    if not images or right > chance:
        return None
    useful = (chance + (images - chance) / 3) / images
    return (right, images) if binom.cdf(right, images, useful) < _GUESS else None
