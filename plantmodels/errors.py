"""Every error that a user can meet with correct code; all derive from `PlantModelsError`.

Each message names the file, the value that was met and what was expected. Errors whose data a caller may
want to act on carry it as attributes.
"""

import errno
from typing import Final


class PlantModelsError(Exception):
    """Base of the family: catching it catches every expected failure and no bug."""


class CheckpointError(PlantModelsError):
    """A checkpoint that cannot be read, or whose names and tensors disagree."""


class TaxonomyError(PlantModelsError):
    """Species or diseases that cannot form a taxonomy: duplicates, empty names, colliding slugs."""


class DataError(PlantModelsError):
    """Leaf folders, manifests or image folders that do not follow contract 2."""


class ImageError(PlantModelsError):
    """One image that cannot be used; neighbours are unaffected."""


class DetectorError(PlantModelsError):
    """An out-of-distribution detector that cannot be fitted, or whose file is not one."""


class TrainingError(PlantModelsError):
    """A training that diverged, cannot be resumed, or whose network could not be used."""


class ExportError(PlantModelsError):
    """A bundle that cannot be made from this checkpoint, or not be written there."""


class PolicyError(PlantModelsError):
    """A `gates.toml` that is not a gate policy."""


class BundleError(PlantModelsError):
    """A bundle whose files or JSON documents are not what contract 3 says."""


class ManifestMismatchError(BundleError):
    """Files that differ from the manifest.

    Attributes:
        missing: names that the manifest lists and the folder lacks.
        changed: names whose size or SHA-256 differs.
        unexpected: names that the folder holds and the manifest does not list.
    """

    def __init__(
        self, message: str, *, missing: tuple[str, ...], changed: tuple[str, ...], unexpected: tuple[str, ...]
    ) -> None:
        """Keeps the three lists beside the message."""
        super().__init__(message)
        self.missing = missing
        self.changed = changed
        self.unexpected = unexpected


class SignatureError(BundleError):
    """A bundle that is not signed by the key that was asked for, or cannot be signed or checked."""


class RegistrationError(PlantModelsError):
    """A model version that could not be registered; nothing was."""


class ScoringError(PlantModelsError):
    """Images that cannot be scored in bulk; what was scored before stays."""


class RegistryError(PlantModelsError):
    """A waiver, audit or repair that the gated registry refused or could not carry out."""


_NO_MEMORY: Final = (
    "bad_alloc",
    "bad allocation",
    "allocate memory",  # "Cannot …" is the system's, "can't …" PyTorch's, "Failed to …" ONNX Runtime's
    "not enough memory",
    "failed to map segment from shared object",
    "can't start new thread",
)

_NO_PRIMITIVE: Final = "could not create a primitive"
"""All that PyTorch's oneDNN says; "… a primitive descriptor for …" is another error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out, which each library says its own way."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        if any(text in str(cause) for text in _NO_MEMORY) or str(cause).endswith(_NO_PRIMITIVE):
            return True
        cause = cause.__cause__
    return False
