"""Checks that streams of image files lose no image, and keep the order."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.errors import DataError
from plantmodels.ood.embeddings import Embedder
from plantmodels.serve.preprocessing import decode_image, preprocess

PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class MeanModel:
    """Stands for the species model: the embedding is the mean of each channel."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.batches.append(len(inputs))
        return np.zeros((len(inputs), 2), np.float32), inputs.mean(axis=(2, 3))


@pytest.fixture(scope="module")
def paths(tiny_data: Path) -> list[Path]:
    return sorted(path for path in (tiny_data / "train").rglob("*") if path.is_file())


def embed_by_hand(path: Path) -> np.ndarray:
    return preprocess(decode_image(path.read_bytes()), PREPROCESSING).mean(axis=(1, 2))


def test_every_image_is_embedded_once_and_in_order(paths: list[Path]) -> None:
    model = MeanModel()
    streamed = list(Embedder(model, PREPROCESSING, set_size=len(paths)).stream(paths, ""))

    assert [p for positions, _ in streamed for p in positions] == list(range(180))
    assert model.batches == [32, 32, 32, 32, 32, 20]
    expected = [embed_by_hand(path) for path in paths]
    np.testing.assert_allclose(np.concatenate([embedded.features for _, embedded in streamed]), expected, atol=1e-6)


def test_unreadable_files_are_skipped_over_all_streams(paths: list[Path], tmp_path: Path) -> None:
    for name in ("bad.jpg", "third.jpg", "fourth.jpg"):
        (tmp_path / name).write_bytes(b"bad")
    embedder = Embedder(MeanModel(), PREPROCESSING, set_size=300)
    streams = ([*paths[:40], tmp_path / "bad.jpg", *paths[40:80]], [tmp_path / "none.jpg", paths[0]])
    counts = [sum(len(positions) for positions, _ in embedder.stream(stream, "")) for stream in streams]

    assert counts == [80, 1]
    assert [image.path.name for image in embedder.unreadable] == ["bad.jpg", "none.jpg"]
    list(embedder.stream([tmp_path / "third.jpg", tmp_path / "bad.jpg"], ""))  # the third of 300: 1 %
    with pytest.raises(DataError, match=r"over 1% of 300 images cannot be read \(4 so far\)"):
        list(embedder.stream([tmp_path / "fourth.jpg"], ""))


def test_positions_skip_the_unreadable(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    mixed = [tmp_path / "bad.jpg", *paths[:3]]
    [(positions, embedded)] = Embedder(MeanModel(), PREPROCESSING, set_size=100).stream(mixed, "")

    assert positions == [1, 2, 3]
    np.testing.assert_allclose(embedded.features[2], embed_by_hand(paths[2]), atol=1e-6)


def test_collect_equals_the_stream(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    mixed = [*paths[:40], tmp_path / "bad.jpg", *paths[40:70]]
    positions, embedded = Embedder(MeanModel(), PREPROCESSING, set_size=100).collect(mixed, "embed")

    assert positions.tolist() == [*range(40), *range(41, 71)]
    np.testing.assert_allclose(embedded.features, [embed_by_hand(path) for path in paths[:70]], atol=1e-6)
    assert embedded.logits.shape == (70, 2)
    assert len(embedded[np.arange(70) % 2 == 0]) == 35


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    with pytest.raises(DataError, match="embed: none of 1 images can be read"):
        Embedder(MeanModel(), PREPROCESSING, set_size=100).collect([tmp_path / "bad.jpg"], "embed")


def test_known_answers_are_kept_in_their_places_and_not_computed_again(paths: list[Path], tmp_path: Path) -> None:
    paths = [Path(shutil.copy(path, tmp_path / f"{number}{path.suffix}")) for number, path in enumerate(paths[:3])]
    model = MeanModel()
    _, right = Embedder(model, PREPROCESSING, set_size=3).collect(paths, "embed")
    known = {paths[1]: (right.logits[1], right.features[1]), tmp_path / "other.jpg": (right.logits[0],) * 2}
    paths[1].unlink()

    positions, found = Embedder(model, PREPROCESSING, set_size=3, known=known).collect(paths, "embed")
    assert positions.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.features, right.features)
    np.testing.assert_array_equal(found.logits, right.logits)
