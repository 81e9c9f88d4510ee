"""Choose which images to measure when there are too many: always the same ones, in whatever order they come.

>>> thin_out([("b", 1), ("a", 1), ("b", 2), ("a", 2)], 2, key=lambda sample: sample[0])
[('a', 2), ('b', 2)]
>>> pick_each_class([("b", 1), ("b", 2), ("b", 3), ("a", 1)], 2, key=lambda sample: sample[0])
[('b', 1), ('a', 1)]
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeVar

DEFAULT_SEED: Final = 0
"""Default seed of an export and of a training."""

_Sample = TypeVar("_Sample")


def thin_out(samples: Sequence[_Sample], at_most: int, *, key: Callable[[_Sample], Any]) -> list[_Sample]:
    """Return a smaller set in which every class keeps its proportion: evenly spaced picks in class order.

    Args:
        samples: the samples, sorted within each class.
        at_most: number of samples to keep.
        key: returns the class of a sample; classes must be sortable.

    Returns:
        The samples kept, in class order; if none has to go, all of them in the order given.
    """
    if len(samples) <= at_most:
        return list(samples)
    ordered = sorted(samples, key=key)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * at_most)] for i in range(at_most)]


def pick_each_class(samples: Sequence[_Sample], at_most: int, *, key: Callable[[_Sample], Hashable]) -> list[_Sample]:
    """Return about equally many samples of every class: first one of each, then a second of each, and so on.

    Args:
        samples: the samples; within a class, earlier ones are taken first.
        at_most: number of samples to take. If there are more classes, evenly spaced classes are taken.
        key: returns the class of a sample.
    """
    ranks: dict[Hashable, int] = defaultdict(int)
    rounds: dict[int, list[_Sample]] = defaultdict(list)
    for sample in samples:
        rounds[ranks[key(sample)]].append(sample)
        ranks[key(sample)] += 1
    taken: list[_Sample] = []
    for number in sorted(rounds):
        room = at_most - len(taken)
        taken += thin_out(rounds[number], room, key=lambda _: 0) if room > 0 else []
    return taken
