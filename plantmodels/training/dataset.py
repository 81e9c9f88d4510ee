"""Training pictures as bytes in a file that is mapped, not read: memory does not grow with their number.

>>> loaded = load_pictures(leaves, preprocessing, folder)  # doctest: +SKIP
>>> loaded.pictures.batch(rows, side=112, device=device).shape  # doctest: +SKIP
torch.Size([32, 3, 112, 112])
"""

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.data.leaves import LeafSample, LeafSet, class_of
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.errors import DataError

NO_DISEASE: Final = -1


@dataclass(frozen=True)
class Pictures:
    """Decoded leaves and their labels.

    Attributes:
        pixels: (N, 3, S, S) uint8, mapped from disk.
        species: (N,) int64.
        disease: (N,) int64, −1 where there is none.
        preprocessing: whose mean and deviation make pixels the network's input.
    """

    pixels: NDArray[np.uint8]
    species: torch.Tensor
    disease: torch.Tensor
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.species)

    def batch(self, rows: torch.Tensor, side: int, device: torch.device) -> torch.Tensor:
        """Normalised float32 pictures (B, 3, side, side): averages of pixels where side is less than S.

        Args:
            rows: (B,) which ones.
            side: at most S.
            device: where they are wanted.
        """
        pixels = torch.from_numpy(self.pixels[rows.numpy()]).to(device).float() / 255
        if side < pixels.shape[-1]:
            pixels = functional.interpolate(pixels, size=(side, side), mode="area")
        mean, std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (pixels - mean) / std

    def weights(self, rows: torch.Tensor, balance: float) -> torch.Tensor:
        """Weight of each picture (N,) in the loss, by its class's size n: n^−balance, 1 on average over `rows`.

        Args:
            rows: those that are trained on; classes are counted among them.
            balance: 0 counts every picture alike, 1 every class.
        """
        labels = torch.stack([self.species, self.disease], 1)
        _, number = torch.unique(labels, dim=0, return_inverse=True)
        sizes = torch.bincount(number[rows], minlength=int(number.max()) + 1).clamp(min=1)
        weights = sizes[number].double() ** -balance
        return (weights / weights[rows].mean()).float()


@dataclass(frozen=True)
class LoadedLeaves:
    """The leaves of a split that could be decoded.

    Attributes:
        pictures: pixels and labels of N leaves.
        samples: the N leaves, in the same order.
        unreadable: files that were skipped.
    """

    pictures: Pictures
    samples: tuple[LeafSample, ...]
    unreadable: tuple[UnreadableImage, ...]


def load_pictures(leaves: LeafSet, preprocessing: Preprocessing, folder: Path) -> LoadedLeaves:
    """Decodes leaves once, 3 · S² bytes each.

    Args:
        leaves: of any split.
        preprocessing: with S.
        folder: on whose disk they take room; no file is to be seen there, and nothing is left by a kill.

    Raises:
        DataError: too many unreadable files, or no room.
    """
    side = preprocessing.image_size
    pixels = _allocate((len(leaves.samples), 3, side, side), folder)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    kept: list[LeafSample] = []
    stream = ImageStream(leaves.paths, preprocessing, description=f"read {leaves.split}")
    for index, values in stream:
        pixels[len(kept)] = np.rint((values * std + mean) * 255).clip(0, 255)
        kept.append(leaves.samples[index])
    species, disease = torch.tensor([class_of(sample) for sample in kept]).T
    pictures = Pictures(pixels[: len(kept)], species.contiguous(), disease.contiguous(), preprocessing)
    return LoadedLeaves(pictures, tuple(kept), stream.unreadable)


def _allocate(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """Bytes of a nameless file; its blocks are taken now, for a full disk would later be a crash."""
    size_bytes = math.prod(shape)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            return np.memmap(file, np.uint8, mode="r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{folder}: {shape[0]:,} decoded pictures take {size_bytes / 1e9:.1f} GB there ({error.strerror})"
        ) from error
