"""What a report was measured on: images, checkpoint, class order and machine.

>>> ImageSet(images=45, measured=44, sha256="ab").measured
44
"""

from dataclasses import dataclass
from typing import Literal

from plantmodels.bundle.calibration import CalibrationRecord

Source = Literal["train", "calibration", "val", "non-plants", "unseen-plants", "field"]


@dataclass(frozen=True)
class UnreadableFile:
    """An image that was skipped.

    Attributes:
        source: set that the image belongs to.
        name: its name below the folder of the set.
        reason: why it could not be read.
    """

    source: Source
    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """A set of images that was given.

    Attributes:
        images: number of images, readable or not.
        measured: number of images that the gates rest on.
        sha256: digest of the names, true classes and contents of the measured images.
    """

    images: int
    measured: int
    sha256: str


@dataclass(frozen=True)
class ReportInputs:
    """What a report was measured on.

    Attributes:
        checkpoint_sha256: digest of the checkpoint that parity was measured against; None when none was given.
        class_order_digest: digest of the bundle's taxonomy.
        val: the validation leaves.
        non_plants: the images without plants; None when none were given.
        unseen_plants: the plants of unknown species; None when none were given.
        field: the field leaves; None when none were given.
        calibration: the leaves that gave threshold, p-values and temperatures; None if the bundle does not say.
        left_out: number of validation leaves that are among them, which no gate measured.
    """

    checkpoint_sha256: str | None
    class_order_digest: str
    val: ImageSet
    non_plants: ImageSet | None
    unseen_plants: ImageSet | None
    field: ImageSet | None = None
    calibration: CalibrationRecord | None = None
    left_out: int = 0

    def describe_calibration(self) -> str:
        """Return one line that says which leaves calibrated the bundle, and how many of them val holds."""
        if self.calibration is None:
            return "OPTIMISTIC: the bundle does not say which leaves calibrated it; export it again"
        found = f" ({self.left_out:,} of them found in val and left out)" if self.calibration.source == "val" else ""
        return self.calibration.describe() + found


@dataclass(frozen=True)
class Machine:
    """The machine that measured.

    Attributes:
        architecture: processor architecture, such as "x86_64".
        cpu: name of the processor; "" when the system does not tell it.
        features: features of the processor that speed up INT8.
    """

    architecture: str
    cpu: str
    features: tuple[str, ...]
