"""What was measured on other samples than the images of a set: differences from PyTorch, and times.

>>> Parity(64, 3, 0.002, 0.001, None, {}, None, None, None, None).worst is None
True
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Scatter:
    """Some species logits of the same images and classes, evenly spaced among all; for a plot.

    Attributes:
        pytorch: logits of the checkpoint's network in PyTorch.
        fp16: logits of the FP16 model in ONNX Runtime.
        int8: logits of the INT8 model, as served.
    """

    pytorch: tuple[float, ...]
    fp16: tuple[float, ...]
    int8: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that the lists are equally long.

        Raises:
            ValueError: their lengths differ.
        """
        lengths = (len(self.pytorch), len(self.fp16), len(self.int8))
        if len(set(lengths)) > 1:
            raise ValueError(f"a scatter needs as many logits of each, got {lengths}")


@dataclass(frozen=True)
class ParitySample:
    """Largest absolute differences from PyTorch of one image in one run; None where an answer is missing or not finite.

    Attributes:
        image: number of the image, from 0.
        batch_size: images in the run.
        logits: difference of the FP16 species logits.
        embedding: difference of the FP16 embedding.
        int8_logits: difference of the INT8 species logits.
        int8_embedding: difference of the INT8 embedding.
        spread: standard deviation of PyTorch's species logits of the image; None if they are not finite, or in a report
            of an older format.
    """

    image: int
    batch_size: int
    logits: float | None
    embedding: float | None
    int8_logits: float | None
    int8_embedding: float | None
    spread: float | None = None


@dataclass(frozen=True)
class HeadSample:
    """Largest absolute differences of one disease head from PyTorch, on PyTorch's embeddings of all images.

    Attributes:
        logits: difference of the float head in ONNX Runtime; None where an answer is missing or not finite.
        int8_logits: difference of the packed INT8 head; None also if the bundle has no such head.
    """

    logits: float | None
    int8_logits: float | None


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences from PyTorch; None where an answer is missing or not finite.

    Attributes:
        images: number of real images.
        heads: number of disease heads.
        logits: difference of the FP16 species logits.
        embedding: difference of the FP16 embedding.
        head_logits: difference of the float heads in ONNX Runtime, on PyTorch's embeddings.
        by_batch_size: batch size to the larger difference of FP16 logits and embedding.
        int8_logits: difference of the INT8 species logits, for information.
        int8_embedding: difference of the INT8 embedding, for information.
        int8_head_logits: difference of the packed INT8 heads on PyTorch's embeddings, for information.
        scatter: some of the species logits; None when some are missing or not finite.
        samples: differences of each image in each run.
        head_samples: slug of a species to the differences of its head.
        relative_logits: largest difference of the FP16 species logits in standard deviations of the same image's
            logits, for information: 0.01 is much for logits that differ by 0.1. None if the logits of an image are all
            equal or unknown.
        relative_int8_logits: the same for INT8.
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
    samples: tuple[ParitySample, ...] = ()
    head_samples: Mapping[str, HeadSample] = field(default_factory=dict)
    relative_logits: float | None = None
    relative_int8_logits: float | None = None

    @classmethod
    def summarize(
        cls, samples: Sequence[ParitySample], heads: Mapping[str, HeadSample], scatter: Scatter | None
    ) -> "Parity":
        """Return the largest differences of these samples."""
        sizes = sorted({sample.batch_size for sample in samples})
        return cls(
            images=len({sample.image for sample in samples}),
            heads=len(heads),
            logits=_largest(sample.logits for sample in samples),
            embedding=_largest(sample.embedding for sample in samples),
            head_logits=_largest(head.logits for head in heads.values()),
            by_batch_size={
                str(size): _largest(value for s in samples if s.batch_size == size for value in (s.logits, s.embedding))
                for size in sizes
            },
            int8_logits=_largest(sample.int8_logits for sample in samples),
            int8_embedding=_largest(sample.int8_embedding for sample in samples),
            int8_head_logits=_largest(head.int8_logits for head in heads.values()),
            scatter=scatter,
            samples=tuple(samples),
            head_samples=heads,
            relative_logits=_largest(_divide(sample.logits, sample.spread) for sample in samples),
            relative_int8_logits=_largest(_divide(sample.int8_logits, sample.spread) for sample in samples),
        )

    @property
    def worst(self) -> float | None:
        """Value of the gate `parity`: the largest difference of FP16 logits, embedding and float heads.

        None when one of them is missing or not finite.
        """
        return _largest((self.logits, self.embedding, self.head_logits))


def _divide(value: float | None, spread: float | None) -> float | None:
    return None if value is None or not spread else value / spread


def _largest(values: Iterable[float | None]) -> float | None:
    """Return the largest value, 0 of none; None if one is missing."""
    largest = 0.0
    for value in values:
        if value is None:
            return None
        largest = max(largest, value)
    return largest


@dataclass(frozen=True)
class Latency:
    """Time for one image at a time, after a warm-up.

    Attributes:
        runs: number of measurements of each kind.
        threads: number of threads within an operator.
        cpu: name of the processor.
        load: load average of the machine over the minute before, because other work slows every run; None when the
            system does not tell it.
        median_ms: median time in milliseconds from a preprocessed tensor to species, score and disease; the value of
            the gate `latency`.
        p95_ms: 95th percentile of the same time, in milliseconds.
        encoded_median_ms: median time in milliseconds from an encoded image to a prediction, for information.
        encoded_p95_ms: 95th percentile of the time from an encoded image, in milliseconds.
        runs_ms: every measured time from a preprocessed tensor, in milliseconds.
        encoded_runs_ms: every measured time from an encoded image, in milliseconds.
        reference_runs_ms: time of a fixed piece of work right after each of `runs_ms`, in milliseconds. Empty in a
            report of an older format.
        reference_median_ms: median of these times; None without any.
        relative: median of `runs_ms[i] / reference_runs_ms[i]`. Other work on the machine slows both, so it moves this
            number little. None without any reference.
    """

    runs: int
    threads: int
    cpu: str
    load: float | None
    median_ms: float
    p95_ms: float
    encoded_median_ms: float
    encoded_p95_ms: float
    runs_ms: tuple[float, ...] = ()
    encoded_runs_ms: tuple[float, ...] = ()
    reference_runs_ms: tuple[float, ...] = ()
    reference_median_ms: float | None = None
    relative: float | None = None

    @classmethod
    def summarize(
        cls,
        runs_ms: Sequence[float],
        encoded_runs_ms: Sequence[float],
        reference_runs_ms: Sequence[float] = (),
        *,
        threads: int,
        cpu: str,
        load: float | None,
    ) -> "Latency":
        """Return medians and percentiles of these times, of which there must be as many of each kind, at least one.

        The reference's times may be missing.
        """
        ratios = [run / other for run, other in zip(runs_ms, reference_runs_ms, strict=False) if other > 0]
        medians, highs = (
            [float(statistic(times)) for times in (runs_ms, encoded_runs_ms)]
            for statistic in (np.median, lambda times: np.percentile(times, 95))
        )
        return cls(
            runs=min(len(runs_ms), len(encoded_runs_ms)),
            threads=threads,
            cpu=cpu,
            load=load,
            median_ms=medians[0],
            p95_ms=highs[0],
            encoded_median_ms=medians[1],
            encoded_p95_ms=highs[1],
            runs_ms=tuple(runs_ms),
            encoded_runs_ms=tuple(encoded_runs_ms),
            reference_runs_ms=tuple(reference_runs_ms),
            reference_median_ms=float(np.median(reference_runs_ms)) if len(reference_runs_ms) else None,
            relative=float(np.median(ratios)) if ratios else None,
        )
