"""What was measured, as values: counts, differences and times, and the rates that follow from them.

Nothing here measures, and nothing but the standard library is imported: whoever reads a report needs neither
the networks nor their libraries.

>>> Proportion(24, 25).value
0.96
>>> "%.3f to %.3f" % Proportion(24, 25).interval
'0.805 to 0.993'

References:
    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.
    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 1998.
    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plantmodels.report.statistics import Z_95, Interval, PairedCounts, Proportion

SMALL_CLASS: Final = 20
"""A class of fewer images is named as small: one image is 5 points or more of its accuracy."""


@dataclass(frozen=True)
class PrecisionAccuracy:
    """What one precision gets right.

    Attributes:
        species: of all images.
        disease: given the true species, of the images whose species has a head.
        end_to_end: species and disease both right; species alone where there is no head.
    """

    species: Proportion
    disease: Proportion
    end_to_end: Proportion


@dataclass(frozen=True)
class ClassRow:
    """One class: how many images, and how many each precision is right on.

    Attributes:
        images: of the class.
        fp16: right in FP16.
        int8: right in INT8.
    """

    images: int
    fp16: int
    int8: int

    @property
    def is_small(self) -> bool:
        """Whether it has fewer than `SMALL_CLASS` images, too few to say much of it."""
        return self.images < SMALL_CLASS


@dataclass(frozen=True)
class Bin:
    """Images of about the same confidence.

    Attributes:
        images: how many.
        right: how many of these the answer is right on.
        confidence: mean probability of the answer; 0 without images.
    """

    images: int
    right: int
    confidence: float


@dataclass(frozen=True)
class Reliability:
    """Probabilities of answers against how often these are right.

    Attributes:
        bins: of equal width, from 0 to 1.
        nll: mean of −log P(true class); None without images.
    """

    bins: tuple[Bin, ...]
    nll: float | None

    @property
    def ece(self) -> float | None:
        """Expected calibration error: `Σ |right − images · confidence| / Σ images` over bins; None without images."""
        images = sum(row.images for row in self.bins)
        gaps = sum(abs(row.right - row.images * row.confidence) for row in self.bins)
        return gaps / images if images else None


@dataclass(frozen=True)
class Calibration:
    """Probabilities before and after logits are divided by a temperature.

    Attributes:
        temperature: the bundle's.
        before: at temperature 1.
        after: as served.
    """

    temperature: float
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class Accuracy:
    """FP16, of its species model with the bundle's heads, beside INT8, which is served, on the same images.

    Attributes:
        species: species right, first FP16 and second INT8, of all images.
        disease: disease right given the true species, first FP16 and second INT8, of the images whose species has
            a head.
        end_to_end: species and disease both right, first FP16 and second INT8, species alone where there is no head.
        routing: the same of INT8, first by hard and second by soft routing.
        disease_routing: the disease's name right in INT8, whatever the species answered, first by hard and second by
            soft routing, of the images whose species has a head.
        species_flips: images to which the two precisions give different species, right or wrong.
        disease_flips: images to which they give different diseases, given the true species.
        by_species: species name to its row, of species right; species without images are absent.
        by_disease: "<species>___<disease>" to its row, of disease right given the true species; likewise.
        confusions: true species to the other species that INT8 gives its images, with how many; without empty entries.
        species_calibration: of INT8's species probability.
        disease_calibration: of INT8's disease probability given the true species, where that has several diseases.
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
    confusions: Mapping[str, Mapping[str, int]]
    species_calibration: Calibration
    disease_calibration: Calibration

    @property
    def fp16(self) -> PrecisionAccuracy:
        """What FP16 gets right."""
        return PrecisionAccuracy(self.species.first, self.disease.first, self.end_to_end.first)

    @property
    def int8(self) -> PrecisionAccuracy:
        """What INT8 gets right."""
        return PrecisionAccuracy(self.species.second, self.disease.second, self.end_to_end.second)

    @property
    def worst(self) -> PairedCounts | None:
        """Species or disease, whichever loses more from FP16 to INT8; None without images."""
        measured = [paired for paired in (self.species, self.disease) if paired.images]
        return max(measured, key=lambda paired: paired.difference or 0.0, default=None)

    @property
    def worst_drop(self) -> float | None:
        """The gated value: the larger of the two drops that exist; negative when INT8 is better at both."""
        return None if self.worst is None else self.worst.difference


@dataclass(frozen=True)
class Scatter:
    """Species logits of the same images and classes, evenly spaced among all; for a picture.

    Attributes:
        pytorch: the checkpoint's network.
        fp16: FP16 in ONNX Runtime.
        int8: as served.
    """

    pytorch: tuple[float, ...]
    fp16: tuple[float, ...]
    int8: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses lists of unequal length.

        Raises:
            ValueError: naming the lengths.
        """
        lengths = (len(self.pytorch), len(self.fp16), len(self.int8))
        if len(set(lengths)) > 1:
            raise ValueError(f"a scatter needs as many logits of each, got {lengths}")


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences from PyTorch; None where an answer is missing or not finite.

    Attributes:
        images: how many real images.
        heads: how many disease heads.
        logits: FP16 species logits.
        embedding: FP16 embedding.
        head_logits: float heads in ONNX Runtime on PyTorch's embeddings.
        by_batch_size: batch size to the larger of `logits` and `embedding`.
        int8_logits: as served, for information.
        int8_embedding: as served, for information.
        int8_head_logits: packed heads on PyTorch's embeddings, for information.
        scatter: some of the species logits; None where some are missing or not finite.
    """

    images: int
    heads: int
    logits: float | None
    embedding: float | None
    head_logits: float | None
    by_batch_size: Mapping[str, float | None]
    int8_logits: float | None
    int8_embedding: float | None
    int8_head_logits: float | None
    scatter: Scatter | None

    @property
    def worst(self) -> float | None:
        """The gated value: the largest of logits, embedding and heads; None when one is not finite."""
        values = (self.logits, self.embedding, self.head_logits)
        return None if None in values else max(value for value in values if value is not None)


@dataclass(frozen=True)
class Histogram:
    """Counts of OOD scores in common bins; scores that are not finite are left out.

    Attributes:
        edges: bin edges, ascending, one more than there are bins; empty without scores.
        plants: count in each bin.
        non_plants: count in each bin.
        unseen_plants: count in each bin.
    """

    edges: tuple[float, ...]
    plants: tuple[int, ...]
    non_plants: tuple[int, ...]
    unseen_plants: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses counts that do not fit the edges.

        Raises:
            ValueError: naming the lengths.
        """
        bins = max(0, len(self.edges) - 1)
        found = [len(counts) for counts in (self.plants, self.non_plants, self.unseen_plants)]
        if found != [bins] * 3:
            raise ValueError(f"{bins} bins need as many counts, got {', '.join(map(str, found))}")


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Separation:
    """How well the scores tell other images from plants, whatever the threshold.

    Attributes:
        auroc: area under the ROC curve.
        fpr_at_95_recall: share of plants rejected where 95 % of the others are.
    """

    auroc: Estimate
    fpr_at_95_recall: Estimate


@dataclass(frozen=True)
class Rejection:
    """Plants, non-plants and plants of unseen species against the threshold.

    Attributes:
        threshold: scores above it are rejected.
        plants: rejected, of all plants measured.
        non_plants: rejected, of all non-plants measured; of none when none were given.
        unseen_plants: rejected, of plants that are of no known species; of none when none were given. Not gated.
        held_out: whether the non-plants are the half that no detector was chosen on.
        by_source: folder of non-plants to its share rejected.
        by_unseen_source: folder of unseen plants to its share rejected.
        by_species: species to its share of leaves rejected, which are false alarms.
        flips: precision to the images that it decides otherwise than INT8, which is served, of all compared.
        separation: of all non-plants; None without plants or non-plants of finite scores.
        separation_by_source: folder of non-plants to its own.
        separation_by_unseen_source: folder of unseen plants to its own.
        roc: (share of plants rejected, share of non-plants rejected), ascending; empty where `separation` is None.
        histogram: of the scores.
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
    roc: tuple[tuple[float, ...], ...]
    histogram: Histogram

    @property
    def recall(self) -> float | None:
        """Share of the non-plants that is rejected; None without non-plants."""
        return self.non_plants.value

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of the plants that is rejected; None without plants."""
        return self.plants.value

    @property
    def precision(self) -> float | None:
        """`recall / (recall + false_alarm_rate)`: precision at equal numbers of plants and non-plants.

        None when either rate is unknown, or nothing at all is rejected: it is then not defined.
        """
        return self.precision_of(self.non_plants)

    def precision_of(self, rejected: Proportion) -> float | None:
        """The same of other images than all non-plants, such as those of one source."""
        recall, false_alarms = rejected.value, self.false_alarm_rate
        if recall is None or false_alarms is None or recall + false_alarms == 0:
            return None
        return recall / (recall + false_alarms)

    @property
    def precision_interval(self) -> Interval | None:
        """95 % interval of the precision: Wald's on the log of recall / false-alarm rate, half an image added to each.

        None where the precision is.

        References:
            Katz et al., "Obtaining Confidence Intervals for the Risk Ratio in Cohort Studies", 1978.
        """
        if self.precision is None:
            return None
        parts = [(share.count + 0.5, share.images + 0.5) for share in (self.non_plants, self.plants)]
        log_ratio = math.log(parts[0][0] / parts[0][1]) - math.log(parts[1][0] / parts[1][1])
        error = Z_95 * math.sqrt(sum(1 / count - 1 / images for count, images in parts))
        low, high = (1 / (1 + math.exp(-(log_ratio + side * error))) for side in (-1, 1))
        return low, high


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one image at a time, after warm-up.

    Attributes:
        runs: measurements of each kind.
        threads: inside an operator.
        cpu: the processor's name for itself.
        load: the machine's load average over the last minute before; other work slows every run. None where
            the system has none.
        median_ms: preprocessed tensor to species, OOD score and disease; the gated value.
        p95_ms: 95th percentile of the same.
        encoded_median_ms: encoded photograph to a whole prediction, for information.
        encoded_p95_ms: 95th percentile of that.
    """

    runs: int
    threads: int
    cpu: str
    load: float | None
    median_ms: float
    p95_ms: float
    encoded_median_ms: float
    encoded_p95_ms: float
