"""Decodes the training leaves once into a memory-mapped file: memory does not grow with their number."""

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
"""Index of the disease of a leaf whose species has no disease head."""


@dataclass(frozen=True)
class LeafImages:
    """Decoded leaves and their labels.

    Attributes:
        pixels: (N, 3, P, P) uint8, mapped from disk.
        species: (N,) int64 index of the species.
        disease: (N,) int64 index of the disease among those of its species, −1 without a disease.
        preprocessing: mean and standard deviation that turn pixels into the network's input.
    """

    pixels: NDArray[np.uint8]
    species: torch.Tensor
    disease: torch.Tensor
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.species)

    def load_batch(self, rows: torch.Tensor, side: int, device: torch.device) -> torch.Tensor:
        """Return some images as the network's input, (B, 3, side, side) float32.

        Args:
            rows: (B,) rows to load.
            side: side of the images in pixels, at most P; smaller images are averages of pixels.
            device: device to load them to.
        """
        pixels = torch.from_numpy(self.pixels[rows.numpy()]).to(device).float() / 255
        if side < pixels.shape[-1]:
            pixels = functional.interpolate(pixels, size=(side, side), mode="area")
        mean, std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (pixels - mean) / std

    def weigh(self, rows: torch.Tensor, balance: float) -> torch.Tensor:
        """Return the weight of each image in the loss, (N,) float32, with a mean of 1 over `rows`.

        An image of a class with n images weighs n^−balance.

        Args:
            rows: rows to train on; classes are counted among them.
            balance: with 0 all images weigh the same, with 1 all classes.
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
        images: pixels and labels of N leaves.
        samples: the N leaves, in the same order.
        unreadable: files that were skipped.
    """

    images: LeafImages
    samples: tuple[LeafSample, ...]
    unreadable: tuple[UnreadableImage, ...]


def load_images(leaves: LeafSet, preprocessing: Preprocessing, folder: Path) -> LoadedLeaves:
    """Decode the leaves of a split, 3 · P² bytes each.

    Args:
        leaves: the leaves of any split.
        preprocessing: how to resize, with P as the side of the images.
        folder: folder on the disk that holds the pixels. No file is visible there, and none remains after a crash.

    Raises:
        DataError: too many files are unreadable, or the disk is full.
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
    images = LeafImages(pixels[: len(kept)], species.contiguous(), disease.contiguous(), preprocessing)
    return LoadedLeaves(images, tuple(kept), stream.unreadable)


def _allocate(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """Return the bytes of a nameless file. Its blocks are reserved now: a full disk would later crash the process."""
    size_bytes = math.prod(shape)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            return np.memmap(file, np.uint8, mode="r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{folder}: {shape[0]:,} decoded images take {size_bytes / 1e9:.1f} GB there ({error.strerror})"
        ) from error
