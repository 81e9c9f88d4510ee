"""Checks of the paths that a person gives, before anything that takes seconds to import reads them.

>>> check_checkpoint(checkpoint)
>>> check_data(data, "train", "val")
>>> check_image_folder(non_plants, "non-plants")
>>> name_split("Validation"), name_split("test"), name_split("fold 3")
('val', 'test', None)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from plantmodels.errors import CheckpointError, DataError

Split = Literal["train", "calibration", "val"]

_SPLIT_NAMES: Final[Mapping[str, Literal["train", "calibration", "val", "test"]]] = {
    "train": "train",
    "training": "train",
    "calibration": "calibration",
    "calib": "calibration",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
}
"""What people call the splits, in lower case. The split test is never read."""

_PARQUET: Final = ".parquet"


def name_split(name: str) -> Literal["train", "calibration", "val", "test"] | None:
    """Return which split a person means by a name, in any case; None if it is not plain."""
    return _SPLIT_NAMES.get(name.strip().lower())


def find_split(data: Path, split: Split) -> Path:
    """Return the folder of a split: the one with its own name, or else the one whose name means it.

    Raises:
        DataError: there is no such folder, or several folders mean the split.
    """
    exact = data / split
    if exact.is_dir():
        return exact
    found = sorted(path for path in data.iterdir() if path.is_dir() and name_split(path.name) == split)
    if len(found) > 1:
        raise DataError(f"{data}: {' and '.join(path.name for path in found)} both mean {split!r}; rename one of them")
    if not found:
        raise DataError(f"{exact}: no such folder; expected {data}/{{train,val}}/<Species>___<Disease>/*.jpg")
    return found[0]


def has_split_folder(data: Path, split: Split) -> bool:
    """Return whether a folder of leaf folders has a folder that means a split."""
    return any(path.is_dir() and name_split(path.name) == split for path in data.iterdir())


def is_image_table(data: Path) -> bool:
    """Return whether data are Parquet files that hold the images themselves, as Hugging Face writes them.

    A folder is one if it holds Parquet files and no class folders. A file may also be a manifest: its columns tell.
    """
    if data.is_file():
        return data.suffix.lower() == _PARQUET
    if not data.is_dir():
        return False
    splits = [path for path in data.iterdir() if name_split(path.name) and path.is_dir()]
    has_classes = any(path.is_dir() for split in splits for path in split.iterdir())
    return not has_classes and bool(list_tables(data))


def list_tables(folder: Path) -> list[Path]:
    """Return the Parquet files below a folder, at most two folders deep, as Hugging Face lays them out."""
    found = [path for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern + _PARQUET)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


WEIGHT_FILES: Final = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""The files that hold the weights in a folder of Hugging Face's; the first that exists is read."""


TRAINED_WEIGHTS: Final = "model"
"""The default of `--weights`: the weights as they were trained."""


def check_checkpoint(path: Path, hyper_parameters: Path | None = None) -> None:
    """Refuse a checkpoint that is neither a file nor a folder with weights, and a missing file of hyper-parameters.

    Raises:
        CheckpointError: no such file.
    """
    if path.is_dir() and not any((path / name).is_file() for name in WEIGHT_FILES):
        raise CheckpointError(f"{path}: no such checkpoint file: the folder holds none of {', '.join(WEIGHT_FILES)}")
    if not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if hyper_parameters is not None and not hyper_parameters.is_file():
        raise CheckpointError(f"{hyper_parameters}: no such file of hyper-parameters")


def check_data(data: Path, *splits: Split) -> None:
    """Refuse a data folder that is missing or lacks a split.

    Args:
        data: leaf folders, a manifest or Parquet files with images (contract 2); the content of files is not read here.
        splits: the splits that must exist.

    Raises:
        DataError: no such folder or file.
    """
    if not data.exists():
        raise DataError(f"{data}: no such data folder or manifest")
    if data.is_dir() and not is_image_table(data):
        for split in splits:
            find_split(data, split)


def check_field(data: Path) -> None:
    """Refuse field leaves that do not exist.

    Raises:
        DataError: no such folder or file.
    """
    if not data.exists():
        raise DataError(f"{data}: no such folder or manifest of field leaves")


def check_image_folder(folder: Path, kind: str) -> None:
    """Refuse a folder of images that does not exist.

    Args:
        folder: the folder.
        kind: what the images are, for the error message: "non-plants" or "unseen plants".

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of {kind}")
