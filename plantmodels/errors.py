"""Every error that a user can meet with correct code. Catching `PlantModelsError` catches all of them and no bug.

```
PlantModelsError
├── CheckpointError             a checkpoint cannot be read, or its names and tensors disagree
├── TaxonomyError               species or diseases have names that no taxonomy can hold
├── DataError                   leaf folders or image folders do not follow contract 2
├── ImageError                  one image cannot be used
├── DetectorError               a detector cannot be fitted, or its file is unsafe or malformed
├── TrainingError               a training diverged, cannot be resumed, or made an unusable network
├── ExportError                 a bundle cannot be made from a checkpoint, or cannot be written
├── PolicyError                 a gates.toml is malformed
├── GatesNotPassedError         a bundle does not pass every gate
├── BundleError                 a bundle's files are not what contract 3 says
│   ├── ManifestMismatchError   files differ from the manifest
│   └── SignatureError          a signature is missing or wrong, or cannot be made
├── RegistrationError           a model version cannot be registered
├── ScoringError                images cannot be scored in bulk
├── ServiceError                the HTTP service cannot start
└── RegistryError               a waiver, an audit or a repair was refused or failed
```

Each message names the file, the value that was found and what was expected. Data that a caller may act on is in
attributes too. Wrong arguments raise ValueError or TypeError instead.
"""

import errno
from typing import Final


class PlantModelsError(Exception):
    """Base class of every expected failure."""


class CheckpointError(PlantModelsError):
    """A checkpoint cannot be read, or its names and tensors disagree."""


class TaxonomyError(PlantModelsError):
    """Species or diseases cannot form a taxonomy: duplicates, empty names, or two species with one file name."""


class DataError(PlantModelsError):
    """Leaf folders, manifests or image folders do not follow contract 2."""


class ImageError(PlantModelsError):
    """One image cannot be used; the other images are not affected."""


class DetectorError(PlantModelsError):
    """An out-of-distribution detector cannot be fitted, or its file is unsafe or malformed."""


class TrainingError(PlantModelsError):
    """A training diverged, cannot be resumed, or made a network that cannot be used."""


class ExportError(PlantModelsError):
    """A bundle cannot be made from this checkpoint, or cannot be written to its folder."""


class PolicyError(PlantModelsError):
    """A `gates.toml` is not a valid gate policy."""


class GatesNotPassedError(PlantModelsError):
    """A bundle does not pass every gate (`GateReport.raise_for_failure`).

    Attributes:
        report: the `GateReport`.
    """

    def __init__(self, message: str, *, report: object) -> None:
        """Keep the report as an attribute."""
        super().__init__(message)
        self.report = report


class BundleError(PlantModelsError):
    """A bundle's files are not what contract 3 says."""


class ManifestMismatchError(BundleError):
    """Files differ from the manifest.

    Attributes:
        missing: names that the manifest lists and the folder lacks.
        changed: names whose size or SHA-256 differs.
        unexpected: names that the folder holds and the manifest does not list.
    """

    def __init__(
        self, message: str, *, missing: tuple[str, ...], changed: tuple[str, ...], unexpected: tuple[str, ...]
    ) -> None:
        """Keep the three lists beside the message."""
        super().__init__(message)
        self.missing = missing
        self.changed = changed
        self.unexpected = unexpected


class SignatureError(BundleError):
    """A bundle is not signed by the expected key, or a signature cannot be made or checked."""


class RegistrationError(PlantModelsError):
    """A model version could not be registered; the registry is unchanged."""


class ScoringError(PlantModelsError):
    """Images cannot be scored in bulk; rows that were written before stay."""


class ServiceError(PlantModelsError):
    """The HTTP service cannot start with what it was given."""


class RegistryError(PlantModelsError):
    """The registry refused a waiver, an audit or a repair, or could not do it."""


_NO_MEMORY: Final = (
    "bad_alloc",
    "bad allocation",
    "allocate memory",  # "Cannot …" by the system, "can't …" by PyTorch, "Failed to …" by ONNX Runtime
    "not enough memory",
    "failed to map segment from shared object",
    "can't start new thread",
)

_NO_PRIMITIVE: Final = "could not create a primitive"
"""The whole message of PyTorch's oneDNN; "… a primitive descriptor for …" is a different error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that memory ran out, in any library's words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        if any(text in str(cause) for text in _NO_MEMORY) or str(cause).endswith(_NO_PRIMITIVE):
            return True
        cause = cause.__cause__
    return False
