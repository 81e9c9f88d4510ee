"""Checks the decoded training images against serving's preprocessing, and the weights of the classes."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.leaves import read_leaves
from plantmodels.errors import DataError
from plantmodels.serve.preprocessing import decode_image, preprocess
from plantmodels.training.dataset import LeafImages, load_images

PREPROCESSING = Preprocessing(32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
ROUNDING = 0.51 / 255 / 0.2
CPU = torch.device("cpu")


def test_images_equal_the_input_of_the_network(tiny_data: Path, tiny_taxonomy: Taxonomy, tmp_path: Path):
    leaves = read_leaves(tiny_data, "val", tiny_taxonomy)
    loaded = load_images(leaves, PREPROCESSING, tmp_path)
    images, samples = loaded.images, loaded.samples
    assert samples == leaves.samples and len(images) == len(samples) and loaded.unreadable == ()
    assert images.species.tolist() == [sample.species_index for sample in samples]
    assert images.disease.tolist() == [-1 if s.disease_index is None else s.disease_index for s in samples]
    rows = torch.tensor([3, 0])
    expected = np.stack([preprocess(decode_image(samples[i].path.read_bytes()), PREPROCESSING) for i in rows])
    np.testing.assert_allclose(images.load_batch(rows, 32, CPU), expected, atol=ROUNDING)
    halves = functional.avg_pool2d(images.load_batch(rows, 32, CPU), 2)
    torch.testing.assert_close(images.load_batch(rows, 16, CPU), halves)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error(
    tiny_data: Path, tiny_taxonomy: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    leaves = read_leaves(tiny_data, "val", tiny_taxonomy)
    with pytest.raises(DataError, match=r"45 decoded images take 0\.0 GB there \(No space left on device\)"):
        load_images(leaves, PREPROCESSING, tmp_path)


@pytest.mark.parametrize(("balance", "expected"), [(0.0, [1, 1, 1, 1]), (1.0, [2 / 3] * 3 + [2])])
def test_weights_balance_classes_among_the_rows(balance: float, expected: list[float]):
    species, disease = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1, 1, 1, 1, -1])
    images = LeafImages(np.zeros((5, 3, 1, 1), np.uint8), PREPROCESSING, species, disease)
    rows = torch.tensor([0, 1, 2, 4])
    np.testing.assert_allclose(images.weigh(rows, balance)[rows], expected, rtol=1e-6)
