"""What was measured, as values: counts, differences and times, and the rates that follow from them.

Nothing here measures anything. Whoever reads a report needs neither the networks nor their libraries.

>>> accuracy = ClassRow(images=12, fp16=11, int8=10)
>>> accuracy.is_small
True
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plantmodels.report.calibration.results import Probabilities
from plantmodels.report.statistics import (
    CONFIDENCE,
    Interval,
    PairedCounts,
    Proportion,
    normal_quantile,
    precision_at_share,
)

SMALL_CLASS: Final = 20
"""A class with fewer images is called small, because a single image changes its accuracy by 5 points or more."""


@dataclass(frozen=True)
class PrecisionAccuracy:
    """What one precision gets right.

    Attributes:
        species: images with the right species, of all images.
        disease: images with the right disease given the true species, of the images whose species has a disease head.
        end_to_end: images with the right species and disease, of all images. Without a disease head, the species
            alone counts.
    """

    species: Proportion
    disease: Proportion
    end_to_end: Proportion


@dataclass(frozen=True)
class ClassRow:
    """How many images of a class each precision gets right.

    Attributes:
        images: number of images of the class.
        fp16: number of images that FP16 gets right.
        int8: number of images that INT8 gets right.
    """

    images: int
    fp16: int
    int8: int

    def __post_init__(self) -> None:
        """Check that no more images are right than there are.

        Raises:
            ValueError: a count is negative or larger than the number of images.
        """
        if not 0 <= min(self.fp16, self.int8) <= max(self.fp16, self.int8) <= self.images:
            raise ValueError(f"right images must be from 0 to {self.images}, got {self.fp16} and {self.int8}")

    @property
    def is_small(self) -> bool:
        """Whether the class has fewer than `SMALL_CLASS` images, too few to say much about it."""
        return self.images < SMALL_CLASS


@dataclass(frozen=True)
class Baseline:
    """What always giving the same answer gets right, on the same images as INT8.

    Attributes:
        name: the commonest class, which is the best such answer.
        counts: images answered rightly; first by always answering `name`, second by INT8.
    """

    name: str
    counts: PairedCounts

    def gain_at(self, confidence: float) -> float | None:
        """Return the lower end of the interval of INT8's accuracy minus that of `name`; None without images.

        Above 0, INT8 is better than always answering `name`, beyond noise.
        """
        interval = self.counts.interval_at(confidence)  # of the first minus the second
        return None if interval is None else -interval[1]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of FP16 (its species model with the bundle's heads) and INT8 (which is served) on the same images.

    Attributes:
        species: species right; first FP16, second INT8; on all images.
        disease: disease right given the true species; first FP16, second INT8; on images whose species has a head.
        end_to_end: species and disease right, or species alone without a head; first FP16, second INT8; on all images.
        routing: species and disease right in INT8; first by hard, second by soft routing; on all images.
        disease_routing: name of the disease right in INT8, whatever the species; first by hard, second by soft
            routing; on images whose species has a head.
        species_flips: number of images for which the two precisions answer different species.
        disease_flips: number of images for which they answer different diseases, given the true species.
        by_species: species to its counts of right species. Species without images are absent.
        by_disease: "<species>___<disease>" to its counts of right diseases, given the true species. Classes without
            images are absent.
        by_class: class to its counts of right species and disease. A class is "<species>___<disease>", or the species
            alone without a head. Classes without images are absent.
        losses_by_species: species to its leaves that are right end to end; first FP16, second INT8.
        species_baseline: always answering the commonest species, against INT8.
        class_baseline: always answering the commonest class, against INT8, end to end.
        confusions: true species to each wrong species that INT8 answered, with the number of images.
        probabilities: how far the probabilities that INT8 serves can be trusted.
    """

    species: PairedCounts
    disease: PairedCounts
    end_to_end: PairedCounts
    routing: PairedCounts
    disease_routing: PairedCounts
    species_flips: int
    disease_flips: int
    by_species: Mapping[str, ClassRow]
    by_disease: Mapping[str, ClassRow]
    by_class: Mapping[str, ClassRow]
    losses_by_species: Mapping[str, PairedCounts]
    species_baseline: Baseline
    class_baseline: Baseline
    confusions: Mapping[str, Mapping[str, int]]
    probabilities: Probabilities

    @property
    def fp16(self) -> PrecisionAccuracy:
        """What FP16 gets right."""
        return PrecisionAccuracy(self.species.first, self.disease.first, self.end_to_end.first)

    @property
    def int8(self) -> PrecisionAccuracy:
        """What INT8 gets right."""
        return PrecisionAccuracy(self.species.second, self.disease.second, self.end_to_end.second)

    @property
    def int8_losses(self) -> Mapping[str, PairedCounts]:
        """What INT8 may lose, to its counts: species, disease and end to end, as far as there are images."""
        parts = {"species": self.species, "disease": self.disease, "end to end": self.end_to_end}
        return {name: paired for name, paired in parts.items() if paired.images}

    @property
    def worst(self) -> PairedCounts | None:
        """Counts of the part that loses most accuracy from FP16 to INT8; None without images."""
        return max(self.int8_losses.values(), key=lambda paired: paired.difference or 0.0, default=None)

    @property
    def worst_drop(self) -> float | None:
        """Value of the gate `int8_accuracy`: the largest drop of the parts; negative when INT8 is better at all."""
        return None if self.worst is None else self.worst.difference

    def worst_drop_at(self, confidence: float) -> float | None:
        """Return the highest end of the intervals of all drops; None without images."""
        intervals = [paired.interval_at(confidence) for paired in self.int8_losses.values()]
        return max((interval[1] for interval in intervals if interval is not None), default=None)


@dataclass(frozen=True)
class Histogram:
    """Numbers of images by out-of-distribution score, in common bins. Scores that are not finite are left out.

    Attributes:
        edges: bin edges, ascending, one more than there are bins; empty without scores.
        plants: number of plants in each bin.
        non_plants: number of non-plants in each bin.
        unseen_plants: number of plants of unknown species in each bin.
    """

    edges: tuple[float, ...]
    plants: tuple[int, ...]
    non_plants: tuple[int, ...]
    unseen_plants: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that there is one count for each bin.

        Raises:
            ValueError: a list of counts is too long or too short.
        """
        bins = max(0, len(self.edges) - 1)
        found = [len(counts) for counts in (self.plants, self.non_plants, self.unseen_plants)]
        if found != [bins] * 3:
            raise ValueError(f"{bins} bins need as many counts, got {', '.join(map(str, found))}")


@dataclass(frozen=True)
class Estimate:
    """A value and both ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Separation:
    """How well the scores separate other images from plants, whatever the threshold.

    Attributes:
        auroc: area under the ROC curve.
        fpr_at_95_recall: proportion of plants rejected by the threshold that rejects 95 % of the other images.
    """

    auroc: Estimate
    fpr_at_95_recall: Estimate


@dataclass(frozen=True)
class Round:
    """What the threshold of a single round of cross-validation would reject; the bundle serves the rounds' average.

    Attributes:
        threshold: the threshold.
        plants: rejected plants, of all plants that were measured.
        non_plants: rejected non-plants, of all that were measured.
    """

    threshold: float
    plants: Proportion
    non_plants: Proportion

    @property
    def precision(self) -> float | None:
        """Precision at equal numbers of plants and non-plants; None if nothing is rejected, or without images."""
        recall, alarms = self.non_plants.value, self.plants.value
        return None if recall is None or alarms is None else precision_at_share(recall, alarms, 0.5)


@dataclass(frozen=True)
class Rejection:
    """How many plants, non-plants and plants of unknown species the threshold rejects.

    Attributes:
        threshold: an image whose score exceeds this value is rejected.
        plants: rejected plants, of all plants that were measured; these are false alarms.
        non_plants: rejected non-plants, of all that were measured; 0 of 0 when none were given.
        unseen_plants: rejected plants of unknown species, of all that were measured; 0 of 0 when none were given. No
            gate looks at them.
        held_out: whether the non-plants are the half that was not used to choose the detector.
        by_source: folder of non-plants to its rejected images.
        by_unseen_source: folder of plants of unknown species to its rejected images.
        by_species: species to its rejected leaves, which are false alarms.
        flips: precision to the images that it decides differently from INT8, of all that were compared.
        separation: separation of all non-plants from plants; None without finite scores of both.
        separation_by_source: folder of non-plants to its separation from plants.
        separation_by_unseen_source: folder of plants of unknown species to its separation from plants.
        rounds: what the threshold of each round of cross-validation alone would reject; empty if the bundle does not
            say.
        roc: points (proportion of plants rejected, proportion of non-plants rejected), ascending; empty when
            `separation` is None.
        histogram: histogram of the scores.
    """

    threshold: float
    plants: Proportion
    non_plants: Proportion
    unseen_plants: Proportion
    held_out: bool
    by_source: Mapping[str, Proportion]
    by_unseen_source: Mapping[str, Proportion]
    by_species: Mapping[str, Proportion]
    flips: Mapping[str, Proportion]
    separation: Separation | None
    separation_by_source: Mapping[str, Separation]
    separation_by_unseen_source: Mapping[str, Separation]
    rounds: tuple[Round, ...]
    roc: tuple[tuple[float, ...], ...]
    histogram: Histogram

    @property
    def recall(self) -> float | None:
        """Proportion of non-plants that are rejected; None without non-plants."""
        return self.non_plants.value

    @property
    def spread(self) -> tuple[Interval, Interval] | None:
        """Lowest and highest precision, and lowest and highest recall, of all rounds; None if they are not known."""
        precisions = [each.precision for each in self.rounds if each.precision is not None]
        recalls = [each.non_plants.value for each in self.rounds if each.non_plants.value is not None]
        if not precisions or not recalls:
            return None
        return (min(precisions), max(precisions)), (min(recalls), max(recalls))

    @property
    def false_alarm_rate(self) -> float | None:
        """Proportion of plants that are rejected; None without plants."""
        return self.plants.value

    @property
    def precision(self) -> float | None:
        """Precision at equal numbers of plants and non-plants: `recall / (recall + false_alarm_rate)`.

        None when one of the rates is unknown, or when nothing is rejected.
        """
        return self.precision_of(self.non_plants)

    def precision_of(self, rejected: Proportion, share: float = 0.5) -> float | None:
        """Return the precision for a share of other images among all images, such as the non-plants of one source.

        Args:
            rejected: rejected images, of all images of that kind.
            share: their share; the rest are plants.
        """
        recall, false_alarms = rejected.value, self.false_alarm_rate
        if recall is None or false_alarms is None:
            return None
        return precision_at_share(recall, false_alarms, share)

    @property
    def precision_interval(self) -> Interval | None:
        """95 % interval of the precision; None when the precision is None."""
        return self.precision_interval_at(CONFIDENCE)

    def precision_interval_at(self, confidence: float, share: float = 0.5, scale: float = 1.0) -> Interval | None:
        """Return a two-sided interval of the precision; None when the precision is None.

        Wald's interval of `log(recall / false_alarm_rate)`, with half an image added to every count.

        Args:
            confidence: confidence of the interval.
            share: share of non-plants among all images.
            scale: by what all counts are multiplied first, to ask what more images would tell.

        References:
            Katz et al., "Obtaining Confidence Intervals for the Risk Ratio in Cohort Studies", 1978.
        """
        if self.precision is None:
            return None
        parts = [(scale * side.count + 0.5, scale * side.images + 0.5) for side in (self.non_plants, self.plants)]
        log_ratio = math.log(parts[0][0] / parts[0][1]) - math.log(parts[1][0] / parts[1][1])
        log_ratio += math.log(share / (1 - share))
        error = normal_quantile(confidence) * math.sqrt(sum(1 / count - 1 / images for count, images in parts))
        low, high = (1 / (1 + math.exp(-(log_ratio + side * error))) for side in (-1, 1))
        return low, high
