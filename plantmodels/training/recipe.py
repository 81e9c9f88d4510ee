"""How a network is trained, and what an epoch of it did.

>>> Recipe((Stage(112, 15), Stage(224, 5))).epochs
20
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Some epochs on pictures of one size.

    Attributes:
        image_size: side of the pictures, at most the network's; the last stage's must be the network's.
        epochs: how many at most.
    """

    image_size: int
    epochs: int


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        stages: pictures grow from one to the next.
        batch_size: pictures a step, at most: an epoch's steps are alike, for none may be of a single picture.
        learning_rate: the highest, of the hidden matrices; a quarter of it moves all else.
        seed: of weights, order, augmentation and which leaves are held out.
        scale_patches: a stage of smaller pictures has smaller patches, as many as the last; afterwards each patch
            kernel is spread out, so that the network sees large pictures exactly as it saw their averages. Every
            stage then costs what the cheapest does, and a large patch learns from few numbers first.
        patience: epochs without a better end-to-end accuracy after which a stage ends; 0 never ends one early.
        held_out: share of the training leaves that choose the best epoch and are not trained on.
        average: decay a step of the running average of the weights, which is what is judged and kept.
        balance: 0 counts every picture alike, 1 every class.
        smoothing: of the labels.
    """

    stages: tuple[Stage, ...]
    batch_size: int = 32
    learning_rate: float = 4e-3
    seed: int = 0
    scale_patches: bool = False
    patience: int = 0
    held_out: float = 0.1
    average: float = 0.99
    balance: float = 0.5
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what cannot be a recipe.

        Raises:
            ValueError: a number out of its range, or stages that shrink.
        """
        sides = [stage.image_size for stage in self.stages]
        if not sides or sides != sorted(set(sides)):
            raise ValueError(f"stages must be pictures of growing size, at least one, got {sides}")
        numbers = [("batch_size", self.batch_size), *(("epochs", stage.epochs) for stage in self.stages)]
        for name, value in (*numbers, *(("image_size", side) for side in sides)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.learning_rate <= 0 or self.patience < 0:
            raise ValueError(
                f"learning_rate must be above 0 and patience at least 0, got {self.learning_rate} and {self.patience}"
            )
        for name in ("held_out", "average", "balance", "smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 1 and name != "balance") or (value == 0 and name == "held_out"):
                raise ValueError(f"{name} must be a share, got {value}")

    @property
    def epochs(self) -> int:
        """Of all stages, at most."""
        return sum(stage.epochs for stage in self.stages)


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did; accuracies are of the averaged weights on the held-out leaves.

    Attributes:
        epoch: from 1.
        image_size: side of its pictures.
        loss: mean training loss.
        learning_rate: at its end.
        species_accuracy: share whose species is right.
        disease_accuracy: share whose disease is right given the true species, of those that have a disease; None
            when none has.
        end_to_end_accuracy: share whose species and disease are both right.
        seconds: wall-clock time.
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


def describe_epoch(record: EpochRecord) -> str:
    """One line for people."""
    disease = "" if record.disease_accuracy is None else f", disease {record.disease_accuracy:.3f}"
    return (
        f"epoch {record.epoch} ({record.image_size} pixels, {record.seconds:.0f} s): loss {record.loss:.3f}; held out: "
        f"species {record.species_accuracy:.3f}{disease}, both {record.end_to_end_accuracy:.4f}"
    )
