import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from plantmodels.data.sampling import pick_each_class, thin_out

SAMPLES = st.lists(st.tuples(st.sampled_from("abcde"), st.integers()), min_size=1, max_size=200, unique=True)


def class_of(sample: tuple[str, int]) -> str:
    return sample[0]


@given(SAMPLES, st.integers(1, 250))
def test_thinning_out_keeps_proportions_within_one_image(samples: list[tuple[str, int]], at_most: int) -> None:
    kept = thin_out(samples, at_most, key=class_of)
    assert len(kept) == min(at_most, len(samples)) == len(set(kept))
    assert set(kept) <= set(samples)
    before, after = Counter(map(class_of, samples)), Counter(map(class_of, kept))
    for name, count in before.items():
        assert abs(after[name] - count * len(kept) / len(samples)) <= 1


def test_nothing_is_reordered_when_all_are_kept() -> None:
    samples = [("b", 1), ("a", 1), ("b", 2)]
    assert thin_out(samples, 3, key=class_of) == samples


@given(SAMPLES, st.integers(0, 250))
def test_classes_are_picked_equally_often(samples: list[tuple[str, int]], at_most: int) -> None:
    picked = pick_each_class(samples, at_most, key=class_of)
    assert len(picked) == min(at_most, len(samples)) == len(set(picked))
    before, after = Counter(map(class_of, samples)), Counter(map(class_of, picked))
    fullest = max(after.values(), default=0)
    for name, count in before.items():
        assert after[name] >= min(count, fullest - 1)


def test_with_more_classes_than_room_the_classes_are_spaced() -> None:
    samples = [(f"{i:02d}", 0) for i in range(40)]
    random.Random(1).shuffle(samples)
    assert len({class_of(s) for s in pick_each_class(samples, 10, key=class_of)}) == 10
