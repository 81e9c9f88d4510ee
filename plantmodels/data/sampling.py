"""Which images are measured when not all are: deterministic, and the same for every order of the input.

>>> thin_out([("b", 1), ("a", 1), ("b", 2), ("a", 2)], 2, key=lambda s: s[0])
[('a', 2), ('b', 2)]
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

_S = TypeVar("_S")


def thin_out(samples: Sequence[_S], at_most: int, *, key: Callable[[_S], Any]) -> list[_S]:
    """Keeps every class's share: evenly spaced picks from the samples in class order.

    Args:
        samples: sorted within each class.
        at_most: how many to keep; all when there are no more.
        key: the class of a sample, sortable.

    Returns:
        The kept samples in class order, or all in the order given when none is left out.
    """
    if len(samples) <= at_most:
        return list(samples)
    ordered = sorted(samples, key=key)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * at_most)] for i in range(at_most)]


def pick_each_class(samples: Sequence[_S], at_most: int, *, key: Callable[[_S], Hashable]) -> list[_S]:
    """Takes as many of every class as there is room for: first one of each, then a second, and so on.

    Args:
        samples: any order; within a class, the earlier are taken first.
        at_most: how many to take. With more classes than that, classes are evenly spaced.
        key: the class of a sample.
    """
    ranks: dict[Hashable, int] = defaultdict(int)
    rounds: dict[int, list[_S]] = defaultdict(list)
    for sample in samples:
        rounds[ranks[key(sample)]].append(sample)
        ranks[key(sample)] += 1
    taken: list[_S] = []
    for number in sorted(rounds):
        room = at_most - len(taken)
        taken += thin_out(rounds[number], room, key=lambda _: 0) if room > 0 else []
    return taken
