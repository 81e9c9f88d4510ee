"""What was measured, as values: counts, differences and times, and the rates that follow from them.

Nothing here measures, and nothing but the standard library is imported: whoever reads a report needs neither
the networks nor their libraries.

>>> Share(24, 25).value
0.96
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """How many of how many images.

    Attributes:
        count: images that are right, or rejected.
        images: images that were counted.
    """

    count: int
    images: int

    def __post_init__(self) -> None:
        """Refuses a share that is no share.

        Raises:
            ValueError: outside 0 ≤ count ≤ images.
        """
        if not 0 <= self.count <= self.images:
            raise ValueError(f"count must be from 0 to images, got {self.count} of {self.images}")

    @property
    def value(self) -> float | None:
        """`count / images`; None without images."""
        return self.count / self.images if self.images else None


@dataclass(frozen=True)
class PrecisionAccuracy:
    """What one precision gets right.

    Attributes:
        species: of all images.
        disease: given the true species, of the images whose species has a head.
        end_to_end: species and disease both right; species alone where there is no head.
    """

    species: Share
    disease: Share
    end_to_end: Share


@dataclass(frozen=True)
class SpeciesRow:
    """One species' images: how many, and how many each precision gives the right species."""

    images: int
    fp16: int
    int8: int


@dataclass(frozen=True)
class Accuracy:
    """FP16 beside INT8 on the same images.

    Attributes:
        fp16: of the FP16 species model with the bundle's heads.
        int8: of what is served.
        species_flips: images to which the two give different species, right or wrong.
        disease_flips: images to which the two give different diseases, given the true species.
        by_species: species name to its row; species without images are absent.
    """

    fp16: PrecisionAccuracy
    int8: PrecisionAccuracy
    species_flips: int
    disease_flips: int
    by_species: Mapping[str, SpeciesRow]

    @property
    def species_drop(self) -> float | None:
        """FP16 minus INT8 species accuracy; negative when INT8 is better."""
        return _drop(self.fp16.species, self.int8.species)

    @property
    def disease_drop(self) -> float | None:
        """FP16 minus INT8 disease accuracy given the true species; None when no species has a head."""
        return _drop(self.fp16.disease, self.int8.disease)

    @property
    def worst_drop(self) -> float | None:
        """The gated value: the larger of the two drops that exist."""
        drops = [drop for drop in (self.species_drop, self.disease_drop) if drop is not None]
        return max(drops, default=None)


def _drop(fp16: Share, int8: Share) -> float | None:
    return (fp16.count - int8.count) / fp16.images if fp16.images else None


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

    @property
    def worst(self) -> float | None:
        """The gated value: the largest of logits, embedding and heads; None when one is not finite."""
        values = (self.logits, self.embedding, self.head_logits)
        return None if None in values else max(value for value in values if value is not None)


@dataclass(frozen=True)
class Histogram:
    """Counts of OOD scores of plants and non-plants in common bins; scores that are not finite are left out.

    Attributes:
        edges: bin edges, ascending, one more than there are bins; empty without scores.
        plants: count in each bin.
        non_plants: count in each bin.
    """

    edges: tuple[float, ...]
    plants: tuple[int, ...]
    non_plants: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses counts that do not fit the edges.

        Raises:
            ValueError: naming the lengths.
        """
        bins = max(0, len(self.edges) - 1)
        if (len(self.plants), len(self.non_plants)) != (bins, bins):
            raise ValueError(f"{bins} bins need as many counts, got {len(self.plants)} and {len(self.non_plants)}")


@dataclass(frozen=True)
class Rejection:
    """Plants and non-plants against the threshold.

    Attributes:
        threshold: scores above it are rejected.
        plants: rejected, of all plants measured.
        non_plants: rejected, of all non-plants measured; of none when none were given.
        held_out: whether the non-plants are the half that no detector was chosen on.
        by_source: folder of non-plants to its share rejected.
        by_species: species to its share of leaves rejected, which are false alarms.
        histogram: of the scores.
    """

    threshold: float
    plants: Share
    non_plants: Share
    held_out: bool
    by_source: Mapping[str, Share]
    by_species: Mapping[str, Share]
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
        recall, false_alarms = self.recall, self.false_alarm_rate
        if recall is None or false_alarms is None or recall + false_alarms == 0:
            return None
        return recall / (recall + false_alarms)


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
