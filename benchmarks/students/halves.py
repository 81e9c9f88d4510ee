"""Measure out-of-distribution rejection on many random halves of the non-plants, not on the one half of the gates.

python -m benchmarks.students halves --checkpoint student.ckpt --bundle public/models --data leaves --non-plants others

In each round a random half of the non-plants fits the ratio of two Gaussians and its threshold, as in an export. The
other half and all leaves of the split val measure it. All images are embedded once, by the bundle's INT8 model.

A network that was trained with non-plants has learned some of them, which its checkpoint names. A half that holds such
images would flatter it. So its detector is always fitted on these images, and each round measures a sample, drawn with
replacement, of the images that it has not seen, and a sample of the leaves.
"""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.driver import PATH
from benchmarks.markdown import render_table
from plantmodels.arrays import Scores
from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.bundle.metadata import Metadata, read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.digests import digest_content
from plantmodels.data.leaves import read_leaves
from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.data.progress import log_step, log_to_terminal
from plantmodels.export.calibration.embedding import EmbeddedImages, embed_images
from plantmodels.export.inputs import read_inputs
from plantmodels.ood.embeddings import Embedder, ModelOutputs, NonPlantEmbeddings
from plantmodels.ood.held_out import Images, score_held_out
from plantmodels.ood.threshold import TARGET_PRECISION, TARGET_RECALL, choose_threshold
from plantmodels.report.statistics import Z_95, Proportion, precision_at_equal_numbers
from plantmodels.serve.cores import count_cores
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import open_session


@dataclass(frozen=True)
class Round:
    """What one round measured.

    Attributes:
        plants: rejected leaves, of all that were measured.
        non_plants: rejected non-plants, of all that were measured.
    """

    plants: Proportion
    non_plants: Proportion

    @property
    def precision(self) -> float:
        """Precision at equal numbers of leaves and non-plants; 0 if nothing is rejected."""
        return precision_at_equal_numbers(self.non_plants.value or 0.0, self.plants.value or 0.0) or 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower ends of the two-sided 95 % intervals of precision and recall, as a report computes them."""
        parts = [(rejected.count + 0.5, rejected.images + 0.5) for rejected in (self.non_plants, self.plants)]
        log_ratio = math.log(parts[0][0] / parts[0][1]) - math.log(parts[1][0] / parts[1][1])
        error = Z_95 * math.sqrt(sum(1 / count - 1 / images for count, images in parts))
        interval = self.non_plants.interval
        return 1 / (1 + math.exp(error - log_ratio)), 0.0 if interval is None else interval[0]

    def judge(self) -> str:
        """Return the verdict that the two gates on rejection would have: the worse of both."""
        limits = TARGET_PRECISION, TARGET_RECALL
        values = self.precision, self.non_plants.value or 0.0
        if any(value < limit for value, limit in zip(values, limits, strict=True)):
            return "failed"
        certain = all(bound >= limit for bound, limit in zip(self.bounds, limits, strict=True))
        return "passed" if certain else "passed, uncertain"


@dataclass(frozen=True)
class Embedded:
    """Outputs of the INT8 model for everything that a round may need.

    Attributes:
        images: leaves that fit and leaves that calibrate.
        val: (N, D) embeddings of the leaves of the split val that do not calibrate.
        non_plants: all non-plants.
        seen: (M,) whether the network has learned each of them.
    """

    images: EmbeddedImages
    val: ModelOutputs
    non_plants: NonPlantEmbeddings
    seen: NDArray[np.bool_]


def embed(checkpoint: Path, bundle: Path, data: Path, folder: Path) -> Embedded:
    """Run the bundle's INT8 model over all images.

    Args:
        checkpoint: checkpoint that the bundle was exported from.
        bundle: folder of the bundle.
        data: leaf folders.
        folder: folder of non-plants.
    """
    source, metadata = read_checkpoint(checkpoint), read_metadata(bundle)
    inputs = read_inputs(source, data, folder, 0)
    images = embed_images(bundle, replace(inputs, non_plants=None, selection=None), metadata)
    model = _open_model(bundle, metadata)
    calibrated = set(inputs.calibration.record.sha256)
    leaves = read_leaves(data, "val", metadata.taxonomy)
    val = [path for path in leaves.paths if digest_content(path) not in calibrated]
    _, outputs = Embedder(model, metadata.preprocessing, set_size=len(val)).collect(val, "embed val")
    non_plants, seen = _embed_non_plants(read_non_plants(folder), source.seen_non_plants, model, metadata)
    return Embedded(images, outputs, non_plants, seen)


def _open_model(bundle: Path, metadata: Metadata) -> SpeciesModel:
    rows = metadata.rows_per_run("int8")
    session = open_session(
        bundle / SPECIES_FILES["int8"], options=metadata.session_options, threads=1, rows_per_run=rows
    )
    return SpeciesModel(session, rows_per_run=rows, workers=count_cores())


def _embed_non_plants(
    others: NonPlantSet, known: Collection[str], model: SpeciesModel, metadata: Metadata
) -> tuple[NonPlantEmbeddings, NDArray[np.bool_]]:
    embedder = Embedder(model, metadata.preprocessing, set_size=len(others.paths))
    positions, outputs = embedder.collect(others.paths, "embed non-plants")
    paths = [others.paths[position] for position in positions]
    sources = np.array([others.source_of(path) for path in paths])
    return NonPlantEmbeddings(outputs, sources), np.array([digest_content(path) in known for path in paths])


def measure_halves(embedded: Embedded, rounds: int) -> Iterator[Round]:
    """Yield what each round measures (see the top of this file).

    Args:
        embedded: all embeddings.
        rounds: number of rounds.
    """
    if embedded.seen.any():
        yield from _resample(embedded, rounds)
        return
    count = len(embedded.seen)
    for number in range(rounds):
        chosen = np.zeros(count, bool)
        chosen[np.random.default_rng(number).permutation(count)[: count // 2]] = True
        rejected = _reject(embedded, chosen, number)
        yield Round(*(Proportion(int(each.sum()), len(each)) for each in rejected))


def _resample(embedded: Embedded, rounds: int) -> Iterator[Round]:
    rejected = _reject(embedded, embedded.seen, 0)
    for number in range(rounds):
        rng = np.random.default_rng(number)
        yield Round(*(Proportion(int(rng.choice(each, len(each)).sum()), len(each)) for each in rejected))


def _reject(embedded: Embedded, selection: NDArray[np.bool_], seed: int) -> tuple[Scores, Scores]:
    """Return which leaves of val, and which non-plants outside the selection, a detector rejects."""
    others, images = embedded.non_plants, embedded.images
    chosen = NonPlantEmbeddings(others.outputs[selection], others.sources[selection])
    calibration = None if images.calibration is images.fit else images.calibration.embeddings
    with threadpool_limits(1):
        scored = score_held_out(
            "gaussian_ratio", Images(images.fit.embeddings, chosen, calibration, images.further_moments, seed)
        )
    threshold = choose_threshold(scored.scores.plants, scored.scores.non_plants).value
    plants, rest = (scored.detector.score(each.features) for each in (embedded.val, others.outputs[~selection]))
    return plants > threshold, rest > threshold


def render(rounds: Sequence[Round]) -> str:
    """Return the rounds as a table, and how often the gates pass."""
    rows = []
    for number, each in enumerate(rounds):
        shares = each.precision, each.bounds[0], each.non_plants.value or 0.0, each.bounds[1]
        counts = f"{each.plants.count} of {each.plants.images}"
        rows.append([str(number), counts, *(f"{100 * share:.2f}" for share in shares), each.judge()])
    head = ["round", "false alarms", "precision %", "at least", "recall %", "at least", "verdict"]
    verdicts = [each.judge() for each in rounds]
    passed, certain = len(rounds) - verdicts.count("failed"), verdicts.count("passed")
    summary = f"Both gates pass in {passed} of {len(rounds)} rounds, with certainty in {certain}."
    return f"{render_table(head, rows)}\n\n{summary}"


@click.command()
@click.option("--checkpoint", type=PATH, required=True, help="The checkpoint that the bundle was exported from.")
@click.option("--bundle", type=PATH, required=True, help="The bundle.")
@click.option("--data", type=PATH, required=True, help="Leaf folders.")
@click.option("--non-plants", type=PATH, required=True, help="Folder of images that show no plant.")
@click.option("--rounds", default=20, show_default=True, help="Number of random halves.")
@click.option("--out", type=PATH, default=None, help="Also write the counts as JSON into this file.")
def halves(checkpoint: Path, bundle: Path, data: Path, non_plants: Path, rounds: int, out: Path | None) -> None:
    """Print both gates on rejection for many random halves of the non-plants."""
    log_to_terminal()
    embedded = embed(checkpoint, bundle, data, non_plants)
    measured = []
    with log_step("measure halves", total=rounds, unit="half") as advance:
        for each in measure_halves(embedded, rounds):
            measured.append(each)
            advance()
    if out is not None:
        counts: list[dict[str, Any]] = [
            {"plants": [r.plants.count, r.plants.images], "non_plants": [r.non_plants.count, r.non_plants.images]}
            for r in measured
        ]
        out.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    click.echo(render(measured))
