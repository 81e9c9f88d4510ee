"""What was measured on other samples than the images of a set: differences from PyTorch, and times.

>>> Parity(64, 3, 0.002, 0.001, None, {}, None, None, None, None).worst is None
True
"""

from collections.abc import Mapping
from dataclasses import dataclass


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
        """Value of the gate `parity`: the largest difference of FP16 logits, embedding and float heads.

        None when one of them is missing or not finite.
        """
        values = (self.logits, self.embedding, self.head_logits)
        return None if None in values else max(value for value in values if value is not None)


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
    """

    runs: int
    threads: int
    cpu: str
    load: float | None
    median_ms: float
    p95_ms: float
    encoded_median_ms: float
    encoded_p95_ms: float
