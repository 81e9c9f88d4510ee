"""Checks that leaves among the non-plants are found, by their bytes and by their embeddings, and real ones are not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.errors import DataError
from plantmodels.export.checks.non_plants import (
    find_leaf_like,
    is_beyond_limit,
    refuse_known_files,
    refuse_leaf_like,
)
from plantmodels.ood.embeddings import ModelOutputs

TAXONOMY = Taxonomy(("Apple", "Mint"), {})


class TestKnownFiles:
    def test_a_renamed_leaf_is_found(self, tiny_data: Path, tiny_non_plants: Path, tmp_path: Path) -> None:
        leaves = sorted((tiny_data / "val").rglob("*.jpg"))
        others = Path(shutil.copytree(tiny_non_plants, tmp_path / "others"))
        shutil.copy(leaves[3], others / "bricks" / "wall.jpg")
        name = leaves[3].relative_to(tiny_data).as_posix().replace("(", r"\(").replace(")", r"\)")

        with pytest.raises(DataError, match=rf"1 of 49 non-plants are leaves .* bricks/wall.jpg is {name}\. Give"):
            refuse_known_files(read_non_plants(others), leaves, tiny_data)

    def test_five_are_named_and_the_rest_counted(self, tiny_data: Path) -> None:
        leaves = sorted((tiny_data / "val").rglob("*.jpg"))
        with pytest.raises(DataError, match=f"and {len(leaves) - 5} more"):
            refuse_known_files(NonPlantSet(tiny_data, tuple(leaves)), leaves, tiny_data)

    def test_other_files_pass_even_of_the_same_size(self, tmp_path: Path) -> None:
        for name, content in (("leaf.jpg", b"leaf"), ("wall.jpg", b"wall")):
            (tmp_path / name).write_bytes(content)
        others = NonPlantSet(tmp_path, (tmp_path / "wall.jpg", tmp_path / "gone.jpg"))
        refuse_known_files(others, [tmp_path / "leaf.jpg", tmp_path / "gone too.jpg"], tmp_path)


def outputs(features: np.ndarray, answer: int = 0) -> ModelOutputs:
    logits = np.zeros((len(features), 2), np.float32)
    logits[:, answer] = 1
    return ModelOutputs(features.astype(np.float32), logits)


def draw(centre: float, count: int, seed: int) -> np.ndarray:
    return centre + np.random.default_rng(seed).normal(size=(count, 16))


class TestLeafLike:
    def check(self, features: np.ndarray, sources: list[str]) -> None:
        root = Path("others")
        paths = [root / source / f"{i}.jpg" for i, source in enumerate(sources)]
        leaves = outputs(draw(0, 128, 0))
        refuse_leaf_like(NonPlantSet(root, tuple(paths)), paths, outputs(features, 1), leaves, TAXONOMY)

    def test_half_of_further_leaves_look_like_leaves_and_others_do_not(self) -> None:
        leaves = draw(0, 128, 0)
        assert 0.3 < find_leaf_like(draw(0, 200, 1), leaves).mean() < 0.7
        assert not find_leaf_like(draw(3, 200, 1), leaves).any()

    def test_leaves_are_refused_with_files_and_species(self) -> None:
        with pytest.raises(DataError, match=r"others: \d+ of 64 non-plants look like .* a/\d+.jpg looks like 'Mint'"):
            self.check(draw(0, 64, 1), ["a"] * 64)

    def test_one_source_of_leaves_is_named(self) -> None:
        features = np.concatenate([draw(3, 48, 1), draw(0, 16, 2)])
        with pytest.raises(DataError, match=r"of 16 non-plants of 'b' look like known plants .* at most 10% may"):
            self.check(features, ["a"] * 48 + ["b"] * 16)

    def test_non_plants_pass(self) -> None:
        self.check(draw(3, 64, 1), ["a"] * 64)

    def test_a_few_leaves_among_them_pass(self) -> None:
        self.check(np.concatenate([draw(3, 60, 1), draw(0, 4, 2)]), ["a"] * 64)

    def test_a_small_sample_cannot_be_refused(self) -> None:
        assert not is_beyond_limit(0, 0, 1)
        assert not is_beyond_limit(1, 1, 1)
        assert not is_beyond_limit(10, 64, 1)
        assert is_beyond_limit(16, 64, 1)
