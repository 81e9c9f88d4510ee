"""The contestants: each turns ready tensors, or encoded images, into final rows.

A final row holds the species, the OOD score and the disease by that species' head. A contestant imports its runtime
when it is opened, so that a worker process holds only one runtime.

    contestant = open_contestant("ours INT8", Setup(bundle, peers, checkpoint), threads=2, mode="whole")
    contestant.answer(inputs)[0].species      # "Tomato"
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from benchmarks.rows import FloatHeads, make_rows
from plantmodels.arrays import Embeddings, Inputs, Logits
from plantmodels.bundle.detector import OODDetector, read_detector
from plantmodels.bundle.layout import DETECTOR_FILE, Precision
from plantmodels.bundle.metadata import read_metadata
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.prediction import Prediction

Mode = Literal["whole", "apart"]
"""How a batch is answered: as a whole by all threads, or image by image with one thread for each image."""


@dataclass(frozen=True)
class Setup:
    """Paths of the bundle, the peers' files and the checkpoint."""

    bundle: Path
    peers: Path
    checkpoint: Path


class Contestant(ABC):
    """A runtime with its precision, number of threads and mode."""

    def __init__(self, setup: Setup) -> None:
        """Read what all contestants share: class names and preprocessing."""
        self.metadata = read_metadata(setup.bundle)

    @abstractmethod
    def embed(self, inputs: Inputs) -> tuple[Logits, Embeddings]:
        """Return species logits (N, S) and embeddings (N, D) of normalized inputs, (N, 3, P, P) float32."""

    @abstractmethod
    def complete(self, logits: Logits, embedding: Embeddings) -> list[Prediction]:
        """Return the final rows: score the embeddings and run the heads of the top species."""

    def answer(self, inputs: Inputs) -> list[Prediction]:
        """Return the final rows of normalized inputs, (N, 3, P, P) float32."""
        return self.complete(*self.embed(inputs))

    def answer_encoded(self, encoded: Sequence[bytes]) -> list[Prediction]:
        """Return the final rows of encoded images."""
        preprocessing = self.metadata.preprocessing
        return self.answer(np.stack([image_to_input(p, preprocessing) for p in encoded]))


class Ours(Contestant):
    """A bundle as `PlantClassifier` serves it."""

    def __init__(self, setup: Setup, threads: int, mode: Mode, *, precision: Precision) -> None:
        """Load the bundle: all threads for one image, or a worker with one thread for each image (mode "apart")."""
        super().__init__(setup)
        workers = threads if mode == "apart" else 1
        self.classifier = PlantClassifier.load(
            setup.bundle, precision=precision, threads=threads // workers, workers=workers
        )

    def embed(self, inputs: Inputs) -> tuple[Logits, Embeddings]:
        """Run the bundle's species model."""
        return self.classifier.embed(inputs)

    def complete(self, logits: Logits, embedding: Embeddings) -> list[Prediction]:
        """Run the steps of `PlantClassifier.run`; the rows are built as all contestants' rows are."""
        diseases = self.classifier.run_heads(embedding, logits.argmax(axis=1).astype(np.int64))
        detector = self.classifier.detector
        return make_rows(self.metadata.taxonomy, detector.threshold, logits, diseases, detector.score(embedding))

    def answer_encoded(self, encoded: Sequence[bytes]) -> list[Prediction]:
        """Call what users call."""
        return self.classifier.predict(encoded)


class LiteralRecipe(Contestant):
    """ONNX Runtime with its defaults: quantized files of `peers.py`, a session per head, SciPy's distance per row."""

    def __init__(self, setup: Setup, threads: int, mode: Mode) -> None:
        """Open the species model and every head."""
        import onnxruntime
        from scipy.spatial.distance import mahalanobis

        super().__init__(setup)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads

        def open_session(path: Path) -> Any:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        folder, taxonomy = setup.peers / "literal", self.metadata.taxonomy
        self._species = open_session(folder / "species-int8.onnx")
        self._heads = {
            i: open_session(folder / "heads" / f"{taxonomy.slugs[i]}-int8.onnx") for i in taxonomy.species_with_head
        }
        self._detector = read_detector(setup.bundle / DETECTOR_FILE)
        self._mean = self._detector.mean.mean(axis=0)
        self._distance = mahalanobis

    def embed(self, inputs: Inputs) -> tuple[Logits, Embeddings]:
        """Run the species model once."""
        logits, embedding = self._species.run(None, {"input": inputs})
        return logits, embedding

    def complete(self, logits: Logits, embedding: Embeddings) -> list[Prediction]:
        """Compute row by row; the classic detector has one mean, so SciPy suffices."""
        scores = np.array([self._distance(row, self._mean, self._detector.inv_cov) for row in embedding])
        diseases = [
            self._heads[i].run(None, {"input": embedding[n : n + 1]})[0][0] if i in self._heads else logits[n, :0]
            for n, i in enumerate(logits.argmax(axis=1).tolist())
        ]
        return make_rows(self.metadata.taxonomy, self._detector.threshold, logits, diseases, scores)


class _Peer(Contestant):
    """A runtime that runs only the species model; our detector and plain numpy do the other steps."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._detector: OODDetector = read_detector(setup.bundle / DETECTOR_FILE)
        self._heads = FloatHeads(setup.peers / "heads.npz")

    def complete(self, logits: Logits, embedding: Embeddings) -> list[Prediction]:
        diseases = self._heads.run(embedding, logits.argmax(axis=1))
        scores = self._detector.score(embedding)
        return make_rows(self.metadata.taxonomy, self._detector.threshold, logits, diseases, scores)


class PyTorch(_Peer):
    """timm's model in eager PyTorch."""

    def __init__(self, setup: Setup, threads: int, mode: Mode, *, bf16: bool) -> None:
        """Build the network; with `bf16` it runs under CPU autocast."""
        import torch

        from plantmodels.checkpoint.reading import read_checkpoint
        from plantmodels.export.network import load_network

        super().__init__(setup)
        torch.set_num_threads(threads)
        self._torch, self._bf16 = torch, bf16
        self._network = load_network(read_checkpoint(setup.checkpoint))

    def embed(self, inputs: Inputs) -> tuple[Logits, Embeddings]:
        """Run the forward pass."""
        torch = self._torch
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            logits, embedding = self._network(torch.from_numpy(inputs))
        return logits.float().numpy(), embedding.float().numpy()


class OpenVINO(_Peer):
    """OpenVINO on the CPU with a compiled model for each batch size, because static shapes are its fastest."""

    def __init__(self, setup: Setup, threads: int, mode: Mode, *, file: str, precision: str | None) -> None:
        """Read the model.

        Args:
            setup: paths of the files.
            threads: number of threads of the CPU plugin.
            mode: "whole" sets the latency hint and sends a batch as one request; "apart" sets the throughput hint,
                with a stream for each thread, and sends each image as an asynchronous request.
            file: file name in the peers' folder.
            precision: hint for the inference precision; None leaves the choice to the plugin.
        """
        import openvino

        super().__init__(setup)
        self._openvino, self._core, self._mode = openvino, openvino.Core(), mode
        self._path = setup.peers / "openvino" / file
        self._options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        self._options |= {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        if mode == "apart":
            self._options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads}
            self._queue = openvino.AsyncInferQueue(self._compile(1))
            self._queue.set_callback(_keep_outputs)
        else:
            self._options |= {"PERFORMANCE_HINT": "LATENCY"}
            self._requests: dict[int, Any] = {}

    def _compile(self, batch: int) -> Any:
        model = self._core.read_model(self._path)
        side = self.metadata.preprocessing.image_size
        model.reshape([batch, 3, side, side])
        return self._core.compile_model(model, "CPU", self._options)

    def embed(self, inputs: Inputs) -> tuple[Logits, Embeddings]:
        """Run one request for the batch, or one for each row."""
        if self._mode == "apart":
            outputs: list[Any] = [None] * len(inputs)
            for i in range(len(inputs)):
                self._queue.start_async([inputs[i : i + 1]], (outputs, i))
            self._queue.wait_all()
            return np.concatenate([o[0] for o in outputs]), np.concatenate([o[1] for o in outputs])
        if len(inputs) not in self._requests:
            self._requests[len(inputs)] = self._compile(len(inputs)).create_infer_request()
        request = self._requests[len(inputs)]
        request.infer([inputs], share_inputs=True)
        return request.get_output_tensor(0).data, request.get_output_tensor(1).data


def _keep_outputs(request: Any, place: tuple[list[Any], int]) -> None:
    outputs, i = place
    outputs[i] = (request.get_output_tensor(0).data.copy(), request.get_output_tensor(1).data.copy())


REFERENCE: Final = "PyTorch FP32"
LITERAL: Final = "literal recipe INT8"
OURS_INT8: Final = "ours INT8"

_CONTESTANTS: Final[dict[str, Callable[[Setup, int, Mode], Contestant]]] = {
    LITERAL: LiteralRecipe,
    REFERENCE: partial(PyTorch, bf16=False),
    "PyTorch bf16": partial(PyTorch, bf16=True),
    "OpenVINO FP32": partial(OpenVINO, file="float.xml", precision="f32"),
    "OpenVINO bf16": partial(OpenVINO, file="float.xml", precision="bf16"),
    "OpenVINO INT8": partial(OpenVINO, file="int8.xml", precision=None),
    "ours FP16": partial(Ours, precision="fp16"),
    OURS_INT8: partial(Ours, precision="int8"),
}
CONTESTANTS: Final = tuple(_CONTESTANTS)


def open_contestant(name: str, setup: Setup, *, threads: int, mode: Mode) -> Contestant:
    """Open one of `CONTESTANTS`, which imports its runtime.

    Args:
        name: key in `CONTESTANTS`.
        setup: paths of its files.
        threads: number of threads that it may use.
        mode: how it answers a batch (see `modes_of`).
    """
    return _CONTESTANTS[name](setup, threads, mode)


def modes_of(name: str, threads: int) -> tuple[Mode, ...]:
    """Return the ways in which a contestant can answer a batch; the better one counts.

    Our classifier has only one way on one thread. The literal recipe and eager PyTorch are called as everyone does.
    """
    if name.startswith("OpenVINO") or (name.startswith("ours") and threads > 1):
        return "whole", "apart"
    return ("whole",)
