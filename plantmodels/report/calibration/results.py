"""How often answers are right against the probabilities that are served for them, as values.

>>> rows = (Bin(50, 20, 0.5), Bin(50, 45, 0.9))
>>> reliability = Reliability(rows, brier=0.17, log_loss=0.51)
>>> reliability.images, round(reliability.ece, 3), round(reliability.mean_probability, 3)
(100, 0.05, 0.7)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from plantmodels.report.statistics import Proportion

ServedName = Literal["species", "disease", "disease_given_species", "soft_disease", "soft_disease_given_species"]

SERVED: Final[Mapping[ServedName, str]] = {
    "species": "Species",
    "disease": "Species and disease, hard routing",
    "disease_given_species": "Disease if the species is right, hard routing",
    "soft_disease": "Disease, soft routing",
    "soft_disease_given_species": "Disease if the species is right, soft routing",
}
"""Every probability of contract 4 to what it is about, in words.

| name | the number that is served | leaves | right if |
|---|---|---|---|
| `species` | `species_probability` | all | the species is right |
| `disease` | `disease_probability`, hard | the named species has a head | species and disease are |
| `disease_given_species` | `disease_given_species_probability`, hard | right species with several | the disease is |
| `soft_disease` | `disease_probability`, soft | a disease is named | the disease is |
| `soft_disease_given_species` | `disease_given_species_probability`, soft | as for hard | the disease is |
"""


@dataclass(frozen=True)
class Bin:
    """Images whose answers have about the same probability.

    Attributes:
        images: number of images.
        right: number of these images with the right answer.
        confidence: mean probability of the answers; 0 without images.
    """

    images: int
    right: int
    confidence: float


@dataclass(frozen=True)
class Reliability:
    """Probabilities of answers against how often the answers are right.

    Attributes:
        bins: bins of equal width from probability 0 to 1.
        brier: Brier score, the mean of (probability − 1 if right, 0 if wrong)²; None without images.
        log_loss: mean of −log of the probability that was given to what happened, right or wrong; None without images.
    """

    bins: tuple[Bin, ...]
    brier: float | None
    log_loss: float | None

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(row.images for row in self.bins)

    @property
    def right(self) -> Proportion:
        """Images with the right answer, of all."""
        return Proportion(sum(row.right for row in self.bins), self.images)

    @property
    def mean_probability(self) -> float | None:
        """Mean probability of the answers; None without images. Of calibrated probabilities it is near `right`."""
        return sum(row.images * row.confidence for row in self.bins) / self.images if self.images else None

    @property
    def ece(self) -> float | None:
        """Expected calibration error: `Σ |right − images · confidence| / Σ images` over the bins; None without images.

        References:
            Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
        """
        gaps = sum(abs(row.right - row.images * row.confidence) for row in self.bins)
        return gaps / self.images if self.images else None


@dataclass(frozen=True)
class Noise:
    """What chance alone does to perfectly calibrated probabilities, which are these very probabilities.

    Attributes:
        ece: mean of the calibration error; no model gets below it on average.
        ece_high: calibration error that chance alone exceeds in 1 of 20 samples.
        bands: of each bin, the ends of the share of right answers that chance alone makes in 19 of 20 samples; None for
            a bin without images.
    """

    ece: float
    ece_high: float
    bands: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class Change:
    """A difference of two means on the same images, and both ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of one served probability, before and after the logits are divided by a temperature.

    Attributes:
        before: calibration at temperature 1.
        after: calibration as served.
        noise: what chance alone does to the served probabilities; None without images.
        brier_change: Brier score after minus before; below 0 the temperature helps. None with fewer than 2 images.
        log_loss_change: log loss after minus before.
    """

    before: Reliability
    after: Reliability
    noise: Noise | None
    brier_change: Change | None
    log_loss_change: Change | None

    @property
    def is_beyond_noise(self) -> bool:
        """Whether chance alone makes so large a calibration error in fewer than 1 of 20 samples."""
        return self.noise is not None and (self.after.ece or 0.0) > self.noise.ece_high


@dataclass(frozen=True)
class TrueClass:
    """The negative log-likelihood (NLL): the mean of −log of the probability that the true class gets.

    Unlike the scores of answers it compares two models fairly, because both are asked about the same classes.

    Attributes:
        before: INT8 at temperature 1; None without images, or if a true class got the probability 0.
        after: INT8 as served.
        fp16: FP16 at the temperatures that are served.
        temperature_change: `after` minus `before`; below 0 the temperature helps.
        int8_change: INT8 minus FP16, both as served; above 0 INT8 costs.
    """

    before: float | None
    after: float | None
    fp16: float | None
    temperature_change: Change | None
    int8_change: Change | None


@dataclass(frozen=True)
class Probabilities:
    """Calibration of every probability that INT8 serves.

    Attributes:
        species_temperature: the bundle's temperature of P(species).
        disease_temperature: the bundle's temperature of P(disease given species).
        served: names of `SERVED` to the calibration of this number.
        true_species: NLL of the true species, on all leaves.
        true_both: NLL of the true species and disease, P(species) · P(disease given species), on all leaves.
    """

    species_temperature: float
    disease_temperature: float
    served: Mapping[str, Calibration]
    true_species: TrueClass
    true_both: TrueClass
