"""Embeddings and scores of image files, streamed: nothing is lost, mixed up or held in memory."""

from pathlib import Path

import numpy as np
import pytest

from plantmodels.build.embeddings import Embedder
from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.errors import DataError
from plantmodels.serve.images import decode_image, preprocess

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


def detector(mean: float) -> OODDetector:
    return OODDetector("mahalanobis", np.full((1, 3), mean), np.eye(3), 1.0)


def test_every_image_is_embedded_once_and_in_order(paths: list[Path]) -> None:
    model = MeanModel()
    streamed = list(Embedder(model, PREPROCESSING, out_of=len(paths)).stream(paths, ""))

    assert [p for positions, _ in streamed for p in positions] == list(range(180))
    assert model.batches == [32, 32, 32, 32, 32, 20]
    expected = [embed_by_hand(path) for path in paths]
    np.testing.assert_allclose(np.concatenate([features for _, features in streamed]), expected, atol=1e-6)


def test_unreadable_files_are_skipped_over_all_streams(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    embedder = Embedder(MeanModel(), PREPROCESSING, out_of=300)
    streams = ([*paths[:40], tmp_path / "bad.jpg", *paths[40:80]], [tmp_path / "none.jpg", paths[0]])
    counts = [sum(len(positions) for positions, _ in embedder.stream(stream, "")) for stream in streams]

    assert counts == [80, 1]
    assert [image.path.name for image in embedder.unreadable] == ["bad.jpg", "none.jpg"]
    embedder.score([detector(0)], [tmp_path / "bad.jpg"], "")  # the third of 300: 1 %
    with pytest.raises(DataError, match=r"over 1% of 300 images cannot be read \(4 so far\)"):
        embedder.score([detector(0)], [tmp_path / "bad.jpg"], "")


def test_positions_skip_the_unreadable(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    mixed = [tmp_path / "bad.jpg", *paths[:3]]
    [(positions, features)] = Embedder(MeanModel(), PREPROCESSING, out_of=100).stream(mixed, "")

    assert positions == [1, 2, 3]
    np.testing.assert_allclose(features[2], embed_by_hand(paths[2]), atol=1e-6)


def test_scores_have_a_column_for_each_detector(paths: list[Path]) -> None:
    detectors = [detector(0), detector(5)]
    scores = Embedder(MeanModel(), PREPROCESSING, out_of=180).score(detectors, paths[:50], "")
    embedding = np.stack([embed_by_hand(path) for path in paths[:50]]).astype(np.float64)

    assert scores.shape == (50, 2)
    for column, mean in enumerate((0, 5)):
        np.testing.assert_allclose(scores[:, column], np.linalg.norm(embedding - mean, axis=1), rtol=1e-5)


def test_a_watcher_sees_every_batch(paths: list[Path]) -> None:
    seen: list[tuple[list[int], tuple[int, ...], np.ndarray]] = []
    embedder = Embedder(MeanModel(), PREPROCESSING, out_of=180)
    embedder.score(
        [detector(0)], paths[:40], "", watch=lambda *batch: seen.append((batch[0], batch[1].shape, batch[2]))
    )

    assert [(positions, shape) for positions, shape, _ in seen] == [
        (list(range(32)), (32, 2)),
        (list(range(32, 40)), (8, 2)),
    ]
    np.testing.assert_allclose(seen[1][2][7], embed_by_hand(paths[39]), atol=1e-6)


def test_no_paths_give_no_scores() -> None:
    assert Embedder(MeanModel(), PREPROCESSING, out_of=1).score([detector(0), detector(1)], [], "").shape == (0, 2)
