"""A classifier whose every answer is written down beforehand, images that say which answer is theirs, and a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.layout import METADATA_FILE, PACKED_HEADS_FILE, SPECIES_FILES, head_file
from plantmodels.bundle.manifest import FileDigest
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.serve.routing import DiseaseMixture
from plantmodels.verify.measurements import (
    Accuracy,
    Bin,
    Calibration,
    ClassRow,
    Estimate,
    Histogram,
    Latency,
    Paired,
    Parity,
    Rejection,
    Reliability,
    Scatter,
    Separation,
    Share,
)
from plantmodels.verify.policy import GatePolicy
from plantmodels.verify.report import GateReport, ImageSet, Inputs, Machine, UnreadableFile
from plantmodels.verify.verdicts import Measured, judge_all

PLAIN = Preprocessing(image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
TAXONOMY = Taxonomy(("Apple", "Mint", "Rose"), {"Apple": ("rust", "scab", "healthy"), "Rose": ("spot", "healthy")})


@dataclass
class ScriptedClassifier:
    """Image number i (its grey level) is answered by row i of the script; its embedding is (level, species).

    Attributes:
        species: predicted species of each image.
        diseases: per image, the disease predicted by each species' head.
        scores: OOD score of each image.
        threshold: of the detector.
        fit: of the detector.
        seen: image numbers that the network was run on, in order.
    """

    species: Sequence[int]
    diseases: Sequence[Sequence[int]]
    scores: Sequence[float]
    threshold: float = 0.0
    fit: dict[str, Any] = field(default_factory=dict)
    taxonomy: Taxonomy = TAXONOMY
    seen: list[int] = field(default_factory=list)

    @property
    def metadata(self) -> SimpleNamespace:
        return SimpleNamespace(preprocessing=PLAIN, species_temperature=0.5, disease_temperature=2.0)

    @property
    def detector(self) -> "ScriptedClassifier":
        return self

    def embed(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        numbers = np.rint(pixels.mean(axis=(1, 2, 3)) * 255).astype(int)
        self.seen += numbers.tolist()
        logits = np.eye(len(self.taxonomy.species), dtype=np.float32)[np.take(self.species, numbers)]
        return logits, numbers[:, None].astype(np.float32)

    def disease_logits(self, embedding: NDArray[np.float32], species_index: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = np.full((len(embedding), self.taxonomy.max_diseases), -np.inf, np.float32)
        for row, (number, species) in enumerate(zip(embedding[:, 0].astype(int), species_index, strict=True)):
            classes = len(self.taxonomy.diseases_of(int(species)))
            logits[row, :classes] = np.eye(max(1, classes))[self.diseases[number][species]][:classes]
        return logits

    def mix_diseases(
        self, species_logits: NDArray[np.float32], embedding: NDArray[np.float32]
    ) -> list[tuple[str | None, float | None]]:
        return DiseaseMixture(self.taxonomy).answer(species_logits, embedding, self.disease_logits)

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.take(self.scores, features[:, 0].astype(int))

    def rejects(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        return OODDetector("mahalanobis", np.zeros((1, 1)), np.eye(1), self.threshold).rejects(scores)


@pytest.fixture
def numbered_images(tmp_path: Path) -> Callable[..., list[Path]]:
    """`numbered_images(count, folder)`: grey images whose level is their number."""

    def draw(count: int, folder: str = "images", first: int = 0) -> list[Path]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        paths = [tmp_path / folder / f"{number:03d}.png" for number in range(first, first + count)]
        for number, path in enumerate(paths, first):
            Image.new("RGB", (20, 20), (number, number, number)).save(path)
        return paths

    return draw


@pytest.fixture
def scripted() -> type[ScriptedClassifier]:
    return ScriptedClassifier


def make_accuracy(**changes: Any) -> Accuracy:
    """Of 100 images FP16 and INT8 are right on as many, but not all the same."""
    bins = (Bin(60, 58, 0.98), Bin(40, 37, 0.85), Bin(0, 0, 0.0))
    calibration = Calibration(0.8, Reliability(bins[::-1], 0.31), Reliability(bins, 0.25))
    values: dict[str, Any] = {
        "species": Paired(94, 1, 1, 4),
        "disease": Paired(70, 0, 0, 10),
        "end_to_end": Paired(87, 1, 1, 11),
        "routing": Paired(86, 2, 3, 9),
        "disease_routing": Paired(68, 1, 5, 6),
        "species_flips": 3,
        "disease_flips": 0,
        "by_species": {"Apple": ClassRow(80, 77, 76), "Mint": ClassRow(19, 17, 18), "Rose": ClassRow(1, 1, 1)},
        "by_disease": {"Apple___rust": ClassRow(79, 69, 69), "Apple___scab": ClassRow(1, 1, 1)},
        "confusions": {"Apple": {"Mint": 3, "Rose": 1}, "Mint": {"Apple": 1}},
        "species_calibration": calibration,
        "disease_calibration": calibration,
    }
    return Accuracy(**{**values, **changes})


def make_measured(**changes: Any) -> Measured:
    """Measurements of an imaginary bundle of 3 species that passes every gate."""
    files = {
        SPECIES_FILES["int8"]: 4_200_000,
        SPECIES_FILES["fp16"]: 7_900_000,
        PACKED_HEADS_FILE: 31_000,
        head_file("apple"): 4_100,
        head_file("rose"): 3_300,
        METADATA_FILE: 9_000,
    }
    values: dict[str, Any] = {
        "files": {name: FileDigest(size, f"{number:064x}") for number, (name, size) in enumerate(files.items())},
        "onnx_files": tuple(name for name in files if name.endswith(".onnx")),
        "head_files": (head_file("apple"), head_file("rose")),
        "load_failures": {},
        "head_problems": (),
        "heads_compared": True,
        "accuracy": make_accuracy(),
        "rejection": Rejection(
            threshold=12.5,
            plants=Share(1, 200),
            non_plants=Share(49, 50),
            unseen_plants=Share(3, 10),
            held_out=True,
            by_source={"bricks": Share(20, 20), "rocks": Share(29, 30)},
            by_unseen_source={"ferns": Share(3, 10)},
            by_species={"Apple": Share(1, 200)},
            flips={"fp16": Share(2, 260), "fp32": Share(1, 128)},
            separation=Separation(Estimate(0.9981, 0.9952, 0.9997), Estimate(0.005, 0.0, 0.015)),
            separation_by_source={"rocks": Separation(Estimate(0.97, 0.95, 0.99), Estimate(0.02, 0.01, 0.04))},
            separation_by_unseen_source={"ferns": Separation(Estimate(0.7, 0.6, 0.8), Estimate(0.9, 0.8, 1.0))},
            roc=((0.0, 0.5), (0.005, 0.98), (0.2, 1.0)),
            histogram=Histogram((0.0, 10.0, 20.0, 30.0), (60, 40, 0), (0, 2, 48), (6, 1, 3)),
        ),
        "latency": Latency(40, 2, "A processor", 0.4, 27.4, 31.0, 29.9, 35.2),
        "parity": Parity(
            64,
            2,
            8e-4,
            5e-4,
            2e-6,
            {"1": 8e-4, "2": 7e-4},
            0.17,
            0.03,
            0.05,
            Scatter((-1.0, 0.5, 7.0), (-1.0, 0.5004, 6.9992), (-1.1, 0.6, 7.17)),
        ),
        "non_plants_given": True,
        "not_run": "",
    }
    return Measured(**{**values, **changes})


def make_report(policy: GatePolicy | None = None, **changes: Any) -> GateReport:
    measured, policy = make_measured(**changes), policy or GatePolicy()
    return GateReport(
        gates=judge_all(measured, policy),
        policy=policy,
        accuracy=measured.accuracy,
        parity=measured.parity,
        rejection=measured.rejection,
        latency=measured.latency,
        problems={"loads": tuple(measured.load_failures), "heads_complete": measured.head_problems},
        unreadable=(UnreadableFile("val", "val/Apple___rust/1 <b>.jpg", "zero bytes"),),
        inputs=Inputs("c" * 64, "d" * 64, ImageSet(101, 100, "e" * 64), ImageSet(100, 50, "f" * 64), None),
        files=measured.files,
        versions={"python": "3.11.9", "onnxruntime": "1.32.0"},
        machine=Machine("x86_64", "A processor", ("avx2", "avx512_vnni")),
    )


@pytest.fixture
def accuracy() -> Callable[..., Accuracy]:
    """`accuracy(**changes)`: counts that pass the gate, but for the changes."""
    return make_accuracy


@pytest.fixture
def measured() -> Callable[..., Measured]:
    """`measured(**changes)`: measurements that pass every gate, but for the changes."""
    return make_measured


@pytest.fixture
def report() -> Callable[..., GateReport]:
    """`report(policy, **changes)`: the report on such measurements."""
    return make_report
