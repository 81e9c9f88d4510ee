"""Checks that exchanged names are found, and that weak, untrained or rarely seen classes are not taken for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.export.checks.class_order import find_guessing, find_other_order, find_suspects


def confuse(rates: np.ndarray, images: int, seed: int = 0) -> np.ndarray:
    """Draw the answers for `images` leaves of each class, by the probability of each answer."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(images, row) for row in rates])


def network(classes: int, accuracy: float) -> np.ndarray:
    """Answer rates of a network that errs to all other classes alike."""
    rest = (1 - accuracy) / (classes - 1)
    return np.full((classes, classes), rest) + np.eye(classes) * (accuracy - rest)


@pytest.mark.parametrize("accuracy", [0.5, 0.8, 1.0])
def test_two_exchanged_names_are_found(accuracy: float) -> None:
    rates = network(14, accuracy)[:, [0, 5, 2, 3, 4, 1, *range(6, 14)]]
    moves = find_other_order(confuse(rates, 30))
    assert {(move.true, move.answered) for move in moves} == {(1, 5), (5, 1)}
    assert [move.images for move in moves] == [30, 30]


@pytest.mark.parametrize("order", [[*range(8, -1, -1)], [8, *range(8)]], ids=["reversed", "moved by one"])
def test_a_whole_other_order_is_found(order: list[int]) -> None:
    moves = find_other_order(confuse(network(9, 0.9)[:, order], 10))
    assert {(move.true, move.answered) for move in moves} == {
        (true, order.index(true)) for true in range(9) if order.index(true) != true
    }
    assert [move.count for move in moves] == sorted((move.count for move in moves), reverse=True)


def test_an_accident_beside_exchanged_names_does_not_hide_them() -> None:
    counts = np.diag([30] * 12)
    counts[[0, 1], [0, 1]], counts[[0, 1], [1, 0]] = 0, 30
    for pair in range(2, 12, 2):  # three leaves of either class, two of them with the other name
        counts[[pair, pair + 1], [pair, pair + 1]], counts[[pair, pair + 1], [pair + 1, pair]] = 1, 2
    assert {(0, 1), (1, 0)} <= {(move.true, move.answered) for move in find_other_order(counts)}


@pytest.mark.parametrize(
    "counts",
    [
        np.array([[0, 50], [0, 50]]),  # a class that is always taken for another one
        np.array([[25, 25], [25, 25]]),  # classes that the network cannot tell apart
        np.array([[0, 3], [3, 0]]),  # six leaves
        np.array([[0, 50], [0, 0]]),  # no leaf of the other class
        np.array([[20, 45], [40, 20]]),  # names that are often, but not nearly always, exchanged
        np.zeros((3, 3), int),
        np.array([[7]]),
    ],
)
def test_other_weaknesses_are_no_order(counts: np.ndarray) -> None:
    assert find_other_order(counts) == ()


@pytest.mark.parametrize("classes", [2, 14, 330])
@pytest.mark.parametrize("accuracy", [0.1, 0.3, 0.9])
def test_a_weak_network_in_the_right_order_is_never_refused(classes: int, accuracy: float) -> None:
    accuracy = max(accuracy, 1 / classes)
    for seed in range(10):
        counts = confuse(network(classes, accuracy), -(-128 // classes), seed)
        assert find_other_order(counts) == ()


def test_a_network_that_cannot_tell_classes_apart_is_refused_in_one_of_a_hundred_cases() -> None:
    """The worst network in the right order: every pair of names is a coin."""
    rates = np.kron(np.eye(5), np.full((2, 2), 0.5))
    refused = sum(find_other_order(confuse(rates, 8, seed)) != () for seed in range(300))
    assert refused <= 3


@given(st.permutations(range(6)))
def test_any_order_is_undone(order: list[int]) -> None:
    moves = find_other_order((np.eye(6, dtype=int) * 40)[:, order])
    undone = {true: true for true in range(6)} | {move.true: move.answered for move in moves}
    assert [order[undone[true]] for true in range(6)] == list(range(6))


def test_suspects_need_leaves_of_two_classes() -> None:
    assert find_suspects(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 5]])) == ((0, 1),)
    assert find_suspects(np.array([[0, 1, 0], [0, 0, 0], [0, 0, 5]])) == ()


def test_many_tables_need_more_evidence_each() -> None:
    counts = np.array([[0, 5], [5, 0]])
    assert find_other_order(counts)
    assert not find_other_order(counts, tables=30)


class TestGuessing:
    def test_answers_that_know_nothing_are_guesses(self) -> None:
        constant, blind = np.zeros((6, 6), int), np.full((6, 6), 4)
        constant[:, 2] = 20
        assert find_guessing([constant]) == (20, 120)
        assert find_guessing([blind]) == (24, 144)
        assert find_guessing([constant, blind]) == (44, 264)

    @pytest.mark.parametrize("accuracy", [0.3, 0.6])
    def test_a_barely_trained_network_is_not_guessing(self, accuracy: float) -> None:
        for seed in range(20):
            assert find_guessing([confuse(network(10, accuracy), 13, seed)]) is None

    @pytest.mark.parametrize(
        "counts",
        [
            np.array([[3, 3], [3, 3]]),  # twelve leaves
            np.array([[0, 100], [0, 5]]),  # five leaves of the only other class
            np.array([[100]]),
            np.zeros((4, 4), int),
        ],
    )
    def test_too_few_images_are_no_guesses(self, counts: np.ndarray) -> None:
        assert find_guessing([counts]) is None
