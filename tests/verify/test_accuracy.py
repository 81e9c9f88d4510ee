from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plantmodels.build.data import LeafSample, LeafSet, UnreadableImage
from plantmodels.errors import DataError
from plantmodels.verify.accuracy import measure_accuracy
from plantmodels.verify.measurements import Accuracy, PrecisionAccuracy, Share

COUNT = 75
RNG = np.random.default_rng(5)
TRUE_SPECIES = RNG.integers(0, 3, COUNT).tolist()
CLASSES = (3, 0, 2)
TRUE_DISEASE = [int(RNG.integers(0, CLASSES[s])) if CLASSES[s] else None for s in TRUE_SPECIES]


def make_script(seed: int) -> tuple[list[int], list[list[int]], list[float]]:
    rng = np.random.default_rng(seed)
    species = [int(rng.integers(0, 3)) if rng.random() < 0.4 else truth for truth in TRUE_SPECIES]
    diseases = [[int(rng.integers(0, max(1, n))) for n in CLASSES] for _ in range(COUNT)]
    return species, diseases, rng.normal(size=COUNT).tolist()


def make_leaves(paths: list[Path]) -> LeafSet:
    samples = (LeafSample(*row) for row in zip(paths, TRUE_SPECIES, TRUE_DISEASE, strict=True))
    return LeafSet(paths[0].parent, "val", tuple(samples))


def count_slowly(species: list[int], diseases: list[list[int]]) -> PrecisionAccuracy:
    """The definitions, image by image: the ROUTED head answers end to end."""
    species_right = disease_right = with_head = end_to_end = 0
    for i, (true_species, true_disease) in enumerate(zip(TRUE_SPECIES, TRUE_DISEASE, strict=True)):
        species_right += species[i] == true_species
        if true_disease is not None:
            with_head += 1
            disease_right += diseases[i][true_species] == true_disease
        routed_disease = diseases[i][species[i]] if CLASSES[species[i]] else None
        end_to_end += (species[i], routed_disease) == (true_species, true_disease)
    return PrecisionAccuracy(Share(species_right, COUNT), Share(disease_right, with_head), Share(end_to_end, COUNT))


def test_counts_equal_those_of_a_slow_loop(numbered_images: Callable[..., list[Path]], scripted: type) -> None:
    fp16_script, int8_script = make_script(1), make_script(2)
    fp16, int8 = scripted(*fp16_script), scripted(*int8_script)
    run = measure_accuracy(fp16, int8, make_leaves(numbered_images(COUNT)), unreadable=[])
    assert run.accuracy.fp16 == count_slowly(*fp16_script[:2])
    assert run.accuracy.int8 == count_slowly(*int8_script[:2])
    assert run.accuracy.species_flips == sum(a != b for a, b in zip(fp16_script[0], int8_script[0], strict=True))
    assert run.accuracy.disease_flips == sum(
        fp16_script[1][i][s] != int8_script[1][i][s] for i, s in enumerate(TRUE_SPECIES) if CLASSES[s]
    )
    for index, name in enumerate(("Apple", "Mint", "Rose")):
        row = run.accuracy.by_species[name]
        mine = [i for i in range(COUNT) if TRUE_SPECIES[i] == index]
        assert (row.images, row.fp16, row.int8) == (
            len(mine),
            sum(fp16_script[0][i] == index for i in mine),
            sum(int8_script[0][i] == index for i in mine),
        )


def test_each_image_is_run_once_in_each_precision_and_scored_by_int8(
    numbered_images: Callable[..., list[Path]], scripted: type
) -> None:
    fp16, int8 = scripted(*make_script(1)), scripted(*make_script(2))
    run = measure_accuracy(fp16, int8, make_leaves(numbered_images(COUNT)), unreadable=[])
    assert fp16.seen == int8.seen == list(range(COUNT))
    np.testing.assert_array_equal(run.scores, int8.scores)
    assert [sample.path.name for sample in run.samples] == [f"{i:03d}.png" for i in range(COUNT)]


def test_an_unreadable_leaf_is_skipped_named_and_not_counted(
    numbered_images: Callable[..., list[Path]], scripted: type
) -> None:
    paths = numbered_images(COUNT)
    leaves = make_leaves(paths)
    many = LeafSet(leaves.root, "val", leaves.samples * 2)
    broken = LeafSet(leaves.root, "val", (LeafSample(paths[0].with_name("x.png"), 0, 0), *many.samples))
    (leaves.root / "x.png").write_bytes(b"")
    unreadable: list[UnreadableImage] = []
    run = measure_accuracy(scripted(*make_script(1)), scripted(*make_script(2)), broken, unreadable=unreadable)
    assert [(image.path.name, image.reason[:10]) for image in unreadable] == [("x.png", "zero bytes")]
    assert run.accuracy.fp16.species.images == len(run.scores) == len(run.samples) == 2 * COUNT


def test_too_many_unreadable_leaves_are_an_error(numbered_images: Callable[..., list[Path]], scripted: type) -> None:
    paths = numbered_images(COUNT)
    for path in paths[:2]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"over 1% of 75 images cannot be read"):
        measure_accuracy(scripted(*make_script(1)), scripted(*make_script(2)), make_leaves(paths), unreadable=[])


def counts(species: int, disease: int) -> PrecisionAccuracy:
    return PrecisionAccuracy(Share(species, 100), Share(disease, 50), Share(0, 100))


@pytest.mark.parametrize(
    ("fp16", "int8", "worst"),
    [((90, 45), (89, 45), 0.01), ((90, 45), (90, 44), 0.02), ((90, 45), (95, 46), -0.02)],
)
def test_the_worse_of_both_drops_is_gated(fp16: tuple[int, int], int8: tuple[int, int], worst: float) -> None:
    accuracy = Accuracy(counts(*fp16), counts(*int8), 0, 0, {})
    assert accuracy.worst_drop == pytest.approx(worst)


def test_without_heads_the_species_drop_alone_counts() -> None:
    none = Share(0, 0)
    accuracy = Accuracy(
        PrecisionAccuracy(Share(9, 10), none, Share(9, 10)),
        PrecisionAccuracy(Share(8, 10), none, Share(8, 10)),
        1,
        0,
        {},
    )
    assert accuracy.disease_drop is None
    assert accuracy.worst_drop == pytest.approx(0.1)


@pytest.mark.parametrize(("count", "images"), [(-1, 5), (6, 5)])
def test_a_share_is_between_none_and_all(count: int, images: int) -> None:
    with pytest.raises(ValueError, match=f"count must be from 0 to images, got {count} of {images}"):
        Share(count, images)
