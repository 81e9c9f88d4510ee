"""Decodes the training images once into a memory-mapped file: memory does not grow with their number."""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.data.digests import digest_content
from plantmodels.data.leaves import LeafSample, LeafSet, class_of
from plantmodels.data.non_plants import read_non_plants
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.errors import DataError
from plantmodels.export.checks.non_plants import refuse_known_files

MIN_NON_PLANTS: Final = 20
"""With fewer non-plants a network would learn these images by heart."""

NO_DISEASE: Final = -1
"""Index of the disease of a leaf whose species has no disease head."""


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images of any kind.

    Attributes:
        pixels: (N, 3, P, P) uint8, mapped from disk.
        preprocessing: mean and standard deviation that turn pixels into the network's input.
    """

    pixels: NDArray[np.uint8]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.pixels)

    def load_batch(self, rows: torch.Tensor, side: int, device: torch.device) -> torch.Tensor:
        """Return some images as the network's input, (B, 3, side, side) float32.

        Args:
            rows: (B,) rows to load.
            side: side of the images in pixels, at most P; smaller images are averages of pixels.
            device: device to load them to.
        """
        return self._normalize(_shrink(torch.from_numpy(self.pixels[rows.numpy()]).to(device).float(), side))

    def load_crops(
        self, rows: torch.Tensor, side: int, device: torch.device, generator: torch.Generator
    ) -> torch.Tensor:
        """Return a random square of each of some images as the network's input, (B, 3, side, side) float32.

        A square has at least half the image's side, and at least `side` pixels: enlarged squares would be blurred, and
        a network would learn to recognize the blur.

        Args:
            rows: (B,) rows to load.
            side: side of the squares after shrinking, in pixels, at most P.
            device: device to load them to.
            generator: source of randomness on the CPU.
        """
        full = self.pixels.shape[-1]
        squares = []
        for row in rows.tolist():
            size = int(torch.randint(max(side, full // 2), full + 1, (), generator=generator))
            top, left = torch.randint(full - size + 1, (2,), generator=generator).tolist()
            square = torch.from_numpy(self.pixels[row, :, top : top + size, left : left + size].copy())
            squares.append(_shrink(square[None].to(device).float(), side))
        return self._normalize(torch.cat(squares))

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = (
            torch.tensor(values, device=pixels.device)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (pixels / 255 - mean) / std


@dataclass(frozen=True)
class LeafImages(DecodedImages):
    """Decoded leaves and their labels.

    Attributes:
        species: (N,) int64 index of the species.
        disease: (N,) int64 index of the disease among those of its species, −1 without a disease.
    """

    species: torch.Tensor
    disease: torch.Tensor

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
    pixels, positions, unreadable = _decode(leaves.paths, preprocessing, folder, f"read {leaves.split}")
    samples = tuple(leaves.samples[position] for position in positions)
    species, disease = torch.tensor([class_of(sample) for sample in samples]).T
    images = LeafImages(pixels, preprocessing, species.contiguous(), disease.contiguous())
    return LoadedLeaves(images, samples, unreadable)


@dataclass(frozen=True)
class NonPlantImages(DecodedImages):
    """Decoded images that show no plant, all from the selection half.

    Attributes:
        digests: SHA-256 of the content of each image, sorted.
        unreadable: files that were skipped.
    """

    digests: tuple[str, ...]
    unreadable: tuple[UnreadableImage, ...]


def load_non_plants(folder: Path, leaves: LeafSet, preprocessing: Preprocessing, scratch: Path) -> NonPlantImages:
    """Decode the selection half of a folder of non-plants. The gates measure the other half, so it is never decoded.

    Args:
        folder: folder of non-plants (contract 2).
        leaves: training leaves, none of which may be among the non-plants.
        preprocessing: how to resize, with P as the side of the images.
        scratch: folder on the disk that holds the pixels. No file is visible there, and none remains after a crash.

    Raises:
        DataError: the selection half has fewer than `MIN_NON_PLANTS` images, one of them is a training leaf, too many
            files are unreadable, or the disk is full.
    """
    selection = read_non_plants(folder).half("selection")
    refuse_known_files(selection, leaves.paths, leaves.root)
    if len(selection.paths) < MIN_NON_PLANTS:
        raise DataError(
            f"{folder}: training needs at least {MIN_NON_PLANTS} non-plants in the selection half, got "
            f"{len(selection.paths)}; the gates need the other half"
        )
    pixels, positions, unreadable = _decode(selection.paths, preprocessing, scratch, "read non-plants")
    digests = sorted(digest_content(selection.paths[position]) for position in positions)
    return NonPlantImages(pixels, preprocessing, tuple(digests), unreadable)


def _shrink(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Return images of this side, whose pixels are averages; images that have it already are returned as they are."""
    return functional.interpolate(pixels, size=(side, side), mode="area") if side < pixels.shape[-1] else pixels


def _decode(
    paths: Sequence[Path], preprocessing: Preprocessing, folder: Path, description: str
) -> tuple[NDArray[np.uint8], list[int], tuple[UnreadableImage, ...]]:
    """Return the pixels (N, 3, P, P) of the readable files, their positions in `paths`, and the files skipped."""
    side = preprocessing.image_size
    pixels = _allocate((len(paths), 3, side, side), folder)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    positions: list[int] = []
    stream = ImageStream(paths, preprocessing, description=description)
    for position, values in stream:
        pixels[len(positions)] = np.rint((values * std + mean) * 255).clip(0, 255)
        positions.append(position)
    return pixels[: len(positions)], positions, stream.unreadable


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
