"""The recipe of a training, and the record of each of its epochs.

>>> Recipe((Stage(112, 15), Stage(224, 5))).epochs
20
"""

from collections.abc import Callable
from dataclasses import dataclass

from plantmodels.data.sampling import DEFAULT_SEED


@dataclass(frozen=True)
class Stage:
    """A number of epochs on images of one size.

    Attributes:
        image_size: side of the images in pixels. In the last stage it must be the network's, before it less.
        epochs: largest number of epochs.
    """

    image_size: int
    epochs: int


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        stages: stages of training; the images grow from one to the next.
        batch_size: largest number of images in a step. All steps of an epoch have about the same number, so that no
            step has a single image, which batch norm would refuse.
        learning_rate: highest learning rate of the matrices in the backbone; all other parameters have a quarter.
        seed: seed of weights, order, augmentation and held-out leaves.
        scale_patches: whether stages of smaller images have smaller patches, so that their number stays the same.
            Between stages each patch kernel is spread out, which changes no output. Every stage then costs as much
            as the cheapest.
        patience: a stage ends after this many epochs without a better end-to-end accuracy; with 0 it never ends early.
        held_out: share of the training leaves that choose the best epoch instead of being trained on.
        average: decay per step of the running average of the weights. The average is measured and kept.
        balance: with 0 all images weigh the same in the loss, with 1 all classes.
        smoothing: share of each label that is spread evenly over all classes.
        exposure: weight of the loss that tells non-plants from leaves; it counts only if there are non-plants.
        non_plants_per_leaf: number of non-plants in a step, per leaf.
    """

    stages: tuple[Stage, ...]
    batch_size: int = 32
    learning_rate: float = 4e-3
    seed: int = DEFAULT_SEED
    scale_patches: bool = False
    patience: int = 0
    held_out: float = 0.1
    average: float = 0.99
    balance: float = 0.5
    smoothing: float = 0.0
    exposure: float = 2.0
    non_plants_per_leaf: float = 0.5

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a number is out of range, or the images do not grow from stage to stage.
        """
        sides = [stage.image_size for stage in self.stages]
        if not sides or sides != sorted(set(sides)):
            raise ValueError(
                f"at least one stage is needed, and images must grow from stage to stage, got sizes {sides}"
            )
        numbers = [("batch_size", self.batch_size), *(("epochs", stage.epochs) for stage in self.stages)]
        for name, value in (*numbers, *(("image_size", side) for side in sides)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.learning_rate <= 0 or self.patience < 0:
            raise ValueError(
                f"learning_rate must be above 0 and patience at least 0, got {self.learning_rate} and {self.patience}"
            )
        for name in ("exposure", "non_plants_per_leaf"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("held_out", "average", "balance", "smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 1 and name != "balance") or (value == 0 and name == "held_out"):
                raise ValueError(f"{name} must be a share, got {value}")

    @property
    def epochs(self) -> int:
        """Return the largest number of epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)


@dataclass(frozen=True)
class EpochRecord:
    """The result of one epoch. Accuracies are measured on the held-out leaves, with the averaged weights.

    Attributes:
        epoch: number of the epoch, from 1.
        image_size: side of its images in pixels.
        loss: mean training loss.
        learning_rate: learning rate at its end.
        species_accuracy: share of the leaves whose species is right.
        disease_accuracy: share of the leaves with a disease whose disease is right, given the true species; None if
            no leaf has a disease.
        end_to_end_accuracy: share of the leaves whose species and disease are both right.
        seconds: wall-clock time in seconds.
    """

    epoch: int
    image_size: int
    loss: float
    learning_rate: float
    species_accuracy: float
    disease_accuracy: float | None
    end_to_end_accuracy: float
    seconds: float


Observer = Callable[[EpochRecord], None]
"""A function that is called with the record of each epoch."""


def describe_epoch(record: EpochRecord) -> str:
    """Return an epoch as one line for people."""
    disease = "" if record.disease_accuracy is None else f", disease {record.disease_accuracy:.3f}"
    return (
        f"epoch {record.epoch} ({record.image_size} pixels, {record.seconds:.0f} s): loss {record.loss:.3f}; held out: "
        f"species {record.species_accuracy:.3f}{disease}, both {record.end_to_end_accuracy:.4f}"
    )
