"""Checks of the paths that a person gives, before anything that takes seconds to import reads them.

>>> check_checkpoint(checkpoint)
>>> check_data(data, "train", "val")
>>> check_image_folder(non_plants, "non-plants")
"""

from pathlib import Path

from plantmodels.errors import CheckpointError, DataError


def check_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that is not a file.

    Raises:
        CheckpointError: no such file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")


def check_data(data: Path, *splits: str) -> None:
    """Refuse a data folder that is missing or lacks a split.

    Args:
        data: leaf folders or a manifest (contract 2); a manifest's content is not read here.
        splits: names of the folders that must exist, "train" or "val".

    Raises:
        DataError: no such folder or file.
    """
    if not data.exists():
        raise DataError(f"{data}: no such data folder or manifest")
    if data.is_dir():
        for split in splits:
            if not (data / split).is_dir():
                raise DataError(
                    f"{data / split}: no such folder; expected {data}/{{train,val}}/<Species>___<Disease>/*.jpg"
                )


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
