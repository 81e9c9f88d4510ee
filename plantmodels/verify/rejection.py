"""One pass over images without known plants: non-plants and plants of unknown species, with their OOD scores.

What is counted follows from the image rows (`plantmodels.report.evidence`).

>>> from plantmodels.data.non_plants import read_non_plants
>>> images, held_out = choose_gate_images(read_non_plants(non_plants), {"selection_images": 24})
>>> held_out, len(images.paths) < 48
(True, True)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plantmodels.arrays import Inputs, Logits, Scores
from plantmodels.data.digests import digest_content
from plantmodels.data.image_files import name_in_report
from plantmodels.data.non_plants import BY_GROUP, HALVES_BY, NonPlantSet
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.rejection import count_rejection
from plantmodels.report.per_image import ImageRow, ImageSetName
from plantmodels.report.results import Rejection
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.routing import softmax
from plantmodels.verify.accuracy import BATCH, AccuracyRun, embed_ahead, list_p_values

if TYPE_CHECKING:
    from plantmodels.export.network import HierarchicalNetwork


@dataclass(frozen=True)
class ScoredImages:
    """Images that show no known plant, with the answers and OOD scores of both precisions.

    Attributes:
        paths: the N readable image files.
        rows: N rows, the answers for each image.
        unreadable: files that were skipped.
    """

    paths: tuple[Path, ...]
    rows: tuple[ImageRow, ...]
    unreadable: tuple[UnreadableImage, ...]


@dataclass(frozen=True)
class RejectionRun:
    """The result of one pass over non-plants and unseen plants.

    Attributes:
        rejection: what was measured.
        non_plants: the non-plants behind it; empty if none were given.
        unseen_plants: the plants of unknown species behind it; empty if none were given.
    """

    rejection: Rejection
    non_plants: ScoredImages
    unseen_plants: ScoredImages


def choose_gate_images(non_plants: NonPlantSet, fit: Mapping[str, object]) -> tuple[NonPlantSet, bool]:
    """Return the non-plants that the gates may measure, and whether they are a held-out half.

    If the other half chose the detector, only the held-out half may be measured; otherwise all may. Detectors of older
    bundles say nothing about groups; their halves were chosen image by image.

    Args:
        non_plants: all non-plants.
        fit: how the detector was fitted, from its file.
    """
    selected_on = fit.get("selection_images", 0)
    held_out = isinstance(selected_on, int) and selected_on > 0
    whole_groups = fit.get(HALVES_BY) == BY_GROUP
    return (non_plants.half("gate", whole_groups=whole_groups) if held_out else non_plants), held_out


def measure_rejection(
    fp16: PlantClassifier,
    int8: PlantClassifier,
    leaves: AccuracyRun,
    non_plants: NonPlantSet | None,
    unseen_plants: NonPlantSet | None,
) -> RejectionRun:
    """Score non-plants and unseen plants, and compare their scores and those of the leaves with the threshold.

    Args:
        fp16: the bundle with its FP16 species model.
        int8: the bundle as it is served.
        leaves: the result of the pass over the leaves.
        non_plants: all non-plants, or None; `choose_gate_images` chooses among them.
        unseen_plants: plants of unknown species, or None.

    Raises:
        DataError: too many files are unreadable.
    """
    detector = int8.detector
    chosen, held_out = (None, False) if non_plants is None else choose_gate_images(non_plants, detector.fit)
    set_size = 0 if non_plants is None else len(non_plants.paths)
    others = _score_images(fp16, int8, chosen, "non-plants", set_size)
    set_size = 0 if unseen_plants is None else len(unseen_plants.paths)
    unseen = _score_images(fp16, int8, unseen_plants, "unseen-plants", set_size)
    table = ImageTable.from_rows([*leaves.rows, *others.rows, *unseen.rows])
    rejection = count_rejection(
        table,
        threshold=detector.threshold,
        held_out=held_out,
        round_thresholds=detector.round_thresholds.tolist(),
    )
    return RejectionRun(rejection, others, unseen)


def _score_images(
    fp16: PlantClassifier, int8: PlantClassifier, images: NonPlantSet | None, name: ImageSetName, set_size: int
) -> ScoredImages:
    if images is None:
        return ScoredImages((), (), ())
    paths: list[Path] = []
    rows: list[ImageRow] = []
    stream = ImageStream(images.paths, int8.metadata.preprocessing, set_size=set_size, description=f"measure {name}")
    for positions, (logits, embeddings), (fp16_logits, fp16_embeddings) in embed_ahead(stream, int8, fp16):
        batch = [images.paths[position] for position in positions]
        paths += batch
        scores = (int8.detector.score(fp16_embeddings), int8.detector.score(embeddings))
        rows += _make_rows(images, name, batch, fp16_logits, logits, scores, int8)
    return ScoredImages(tuple(paths), tuple(rows), stream.unreadable)


def _make_rows(
    images: NonPlantSet,
    name: ImageSetName,
    paths: Sequence[Path],
    fp16_logits: Logits,
    logits: Logits,
    scores: tuple[Scores, Scores],
    int8: PlantClassifier,
) -> list[ImageRow]:
    names, temperature = int8.taxonomy.species, int8.metadata.species_temperature
    probabilities = softmax(logits, temperature).max(axis=1)
    return [
        ImageRow(
            set=name,
            source=images.source_of(path),
            name=name_in_report(images.root, path),
            species="",
            disease="",
            fp16_species=names[fp16],
            fp16_disease="",
            int8_species=names[best],
            int8_disease="",
            int8_routed_disease="",
            int8_soft_disease="",
            species_probability=float(probability),
            ood_score=float(score),
            rejected=bool(rejected),
            sha256=digest_content(path),
            fp16_ood_score=float(fp16_score),
            ood_p_value=p_value,
        )
        for path, fp16, best, probability, fp16_score, score, rejected, p_value in zip(
            paths,
            fp16_logits.argmax(axis=1).tolist(),
            logits.argmax(axis=1).tolist(),
            probabilities,
            scores[0].tolist(),
            scores[1].tolist(),
            int8.detector.rejects(scores[1]),
            list_p_values(int8, scores[1], logits.argmax(axis=1)),
            strict=True,
        )
    ]


def score_in_pytorch(network: "HierarchicalNetwork", int8: PlantClassifier, inputs: Inputs) -> Scores:
    """Return the out-of-distribution scores of PyTorch's embeddings, (N,) float64.

    Args:
        network: the checkpoint's network.
        int8: the bundle as it is served.
        inputs: (N, 3, P, P) float32, normalized.
    """
    import torch  # takes seconds

    scores: list[Scores] = [np.empty(0)]
    for start in range(0, len(inputs), BATCH):
        with torch.inference_mode():
            embeddings = network(torch.from_numpy(inputs[start : start + BATCH]))[1].numpy()
        scores.append(int8.detector.score(embeddings))
    return np.concatenate(scores)
