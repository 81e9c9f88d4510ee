"""Calibrates a network in three ways on real leaves, and tries each on validation leaves that did not calibrate."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.bundle.metadata import read_metadata
from plantmodels.data.digests import digest_content, hash_to_fraction
from plantmodels.data.leaves import LeafSample, class_of, read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.export.calibration.leaves import pick_part
from plantmodels.ood.embeddings import Embedder, LeafEmbeddings, ModelOutputs, NonPlantEmbeddings
from plantmodels.ood.held_out import Images, score_held_out
from plantmodels.ood.select import select_detector
from plantmodels.ood.threshold import choose_threshold
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import open_session

_HEADER: Final = (
    "| calibrated on | leaves | aimed at | rejected | of leaves | p ≤ 0.05 | p ≤ 0.01 | recall | precision | "
    "precision of single rounds | recall of single rounds |"
)

_METHOD: Final = "gaussian_ratio"
"""The only method whose threshold depends on a seed: it is fitted on non-plants."""

_SEEDS_HEADER: Final = (
    "| calibrated on | seeds | rejected | recall | precision | standard deviation of the threshold: averaged | "
    "of single rounds |"
)


def read_embeddings(bundle: Path, data: Path, non_plants: Path, cache: Path) -> Mapping[str, Any]:
    """Return outputs of the INT8 model for all images, from a file that an earlier call wrote, or from the model."""
    if not cache.exists():
        np.savez(cache, **_embed(bundle, data, non_plants))
    with np.load(cache) as found:
        return {name: found[name] for name in found.files}


def _embed(bundle: Path, data: Path, non_plants: Path) -> dict[str, Any]:
    metadata = read_metadata(bundle)
    path, rows = bundle / SPECIES_FILES["int8"], metadata.rows_per_run("int8")
    session = open_session(path, options=metadata.session_options, threads=1, rows_per_run=rows)
    model, found = SpeciesModel(session, rows_per_run=rows, workers=1), {"species": list(metadata.taxonomy.species)}

    def embed(name: str, paths: list[Path], root: Path) -> list[int]:
        positions, outputs = Embedder(model, metadata.preprocessing, set_size=len(paths)).collect(paths, name)
        read = [paths[position] for position in positions]
        found[f"{name}_f"], found[f"{name}_l"] = outputs.features, outputs.logits
        found[f"{name}_p"] = [path.relative_to(root).as_posix() for path in read]
        found[f"{name}_h"] = [digest_content(path) for path in read]
        return [int(position) for position in positions]

    for split in ("train", "val"):
        leaves = read_leaves(data, split, metadata.taxonomy)
        positions = embed(split, list(leaves.paths), leaves.root)
        classes = np.array([class_of(leaves.samples[position]) for position in positions])
        found[f"{split}_s"], found[f"{split}_d"] = classes.T
    others = read_non_plants(non_plants)
    positions = embed("n", list(others.paths), others.root)
    found["n_src"] = [others.source_of(others.paths[position]) for position in positions]
    return found


def tabulate(embedded: Mapping[str, Any], held_out: float) -> str:
    """Return a Markdown table with a row for each way to calibrate, and the shares of each species.

    Args:
        embedded: from `read_embeddings`.
        held_out: share of the training leaves that training held out, by their names and the seed 0.
    """
    rows, species = [_HEADER, "|---" * 11 + "|"], []
    for name, (fit, calibration, fresh) in _list_ways(embedded, held_out).items():
        row, shares = _try(embedded, name, _leaves(embedded, "train", fit), calibration, fresh)
        rows.append(row)
        species += shares
    return "\n".join([*rows, "", *species])


def _list_ways(embedded: Mapping[str, Any], held_out: float) -> dict[str, tuple[Any, LeafEmbeddings | None, Any]]:
    """Return each way to calibrate: which training leaves fit, what calibrates, and which val leaves are fresh."""
    samples = [
        LeafSample(Path(path), int(species), None if disease < 0 else int(disease))
        for path, species, disease in zip(embedded["val_p"], embedded["val_s"], embedded["val_d"], strict=True)
    ]
    part = {sample.path for sample in pick_part(samples, embedded["val_h"].tolist())}
    in_part = np.array([sample.path in part for sample in samples])
    away = np.array([hash_to_fraction(f"0:{path}") < held_out for path in embedded["train_p"]])
    everything = np.ones(len(away), np.bool_)
    return {
        "training leaves, as before": (everything, None, ~np.zeros(len(in_part), np.bool_)),
        "held-out leaves": (~away, _leaves(embedded, "train", away), ~np.zeros(len(in_part), np.bool_)),
        "a third of val": (everything, _leaves(embedded, "val", in_part), ~in_part),
    }


def tabulate_seeds(embedded: Mapping[str, Any], held_out: float, seeds: int) -> Iterator[str]:
    """Yield the lines of a Markdown table: what the served threshold, an average over rounds, does with each seed.

    The thresholds are tried on the same images by the same detector, which does not depend on the seed.

    Args:
        embedded: from `read_embeddings`.
        held_out: as in `tabulate`.
        seeds: number of seeds of an export; no two share a round.
    """
    yield _SEEDS_HEADER
    yield "|---" * 7 + "|"
    others, half = _halve_non_plants(embedded)
    for name, (fit, calibration, fresh) in _list_ways(embedded, held_out).items():
        plants, leaves = _leaves(embedded, "train", fit), _leaves(embedded, "val", fresh).outputs
        detector, averaged, single = None, [], []
        for seed in range(seeds):
            with threadpool_limits(1):
                found = score_held_out(_METHOD, Images(plants, half, calibration, None, seed))
            detector = found.detector
            averaged.append(choose_threshold(found.plants, found.scores.non_plants).value)
            single += [choose_threshold(found.plants, scores).value for scores in found.rounds]
        if detector is None:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        scores, other_scores = detector.score(leaves.features), detector.score(others.features)
        alarms, recalls = (np.array([(s > t).mean() for t in averaged]) for s in (scores, other_scores))
        precisions = recalls / (recalls + alarms)
        ends = (f"{100 * column.min():.2f} to {100 * column.max():.2f} %" for column in (alarms, recalls, precisions))
        spread = (f"{np.std(values, ddof=1):.2f}" for values in (averaged, single))
        yield f"| {' | '.join((name, str(seeds), *ends, *spread))} |"


def _leaves(embedded: Mapping[str, Any], split: str, rows: Any) -> LeafEmbeddings:
    pairs = np.stack([embedded[f"{split}_s"], embedded[f"{split}_d"]], 1)
    classes = pairs[:, 0] * 100 + pairs[:, 1] + 1
    known = np.unique(embedded["train_s"] * 100 + embedded["train_d"] + 1)
    outputs = ModelOutputs(embedded[f"{split}_f"][rows], embedded[f"{split}_l"][rows])
    return LeafEmbeddings(outputs, np.searchsorted(known, classes)[rows], pairs[rows, 0])


def _halve_non_plants(embedded: Mapping[str, Any]) -> tuple[ModelOutputs, NonPlantEmbeddings]:
    """Return the half of the non-plants that the gates measure, and the half that chooses the threshold."""
    half = np.array([int(hash_to_fraction(digest) * 2) == 0 for digest in embedded["n_h"].tolist()])
    outputs = ModelOutputs(embedded["n_f"], embedded["n_l"])
    return outputs[~half], NonPlantEmbeddings(outputs[half], embedded["n_src"][half])


def _try(
    embedded: Mapping[str, Any], name: str, plants: LeafEmbeddings, calibration: LeafEmbeddings | None, fresh: Any
) -> tuple[str, list[str]]:
    others, chosen = _halve_non_plants(embedded)
    detector = select_detector(plants, chosen, calibration=calibration).detector
    leaves = _leaves(embedded, "val", fresh).outputs
    scores, other_scores = detector.score(leaves.features), detector.score(others.features)
    p_values = detector.p_values(scores, leaves.predicted)
    other_p_values = detector.p_values(other_scores, others.predicted)
    if p_values is None or other_p_values is None:
        raise RuntimeError("a detector that select_detector made has p-values")
    alarms, recall = detector.rejects(scores).mean(), detector.rejects(other_scores).mean()
    rounds = [((scores > t).mean(), (other_scores > t).mean()) for t in detector.round_thresholds]
    precisions = [100 * r / (r + a) for a, r in rounds]
    recalls = [100 * r for _, r in rounds]
    cells = [
        name,
        f"{detector.fit['calibration_images']:,}",
        f"{1 - float(detector.fit['quantile']):.2%}",
        f"{alarms:.2%}",
        f"{len(scores):,}",
        f"{(p_values <= 0.05).mean():.2%}",
        f"{(p_values <= 0.01).mean():.2%}",
        f"{recall:.2%}",
        f"{recall / (recall + alarms):.2%}",
        f"{min(precisions):.2f} to {max(precisions):.2f} %",
        f"{min(recalls):.2f} to {max(recalls):.2f} %",
    ]
    plain = detector.plant_scores
    pooled, other_pooled = (
        (1 + len(plain) - np.searchsorted(plain, values)) / (1 + len(plain)) for values in (scores, other_scores)
    )
    lines = [f"{name}: p ≤ 0.05 of all leaves alike, of leaves by species, and share rejected:"]
    truth = embedded["val_s"][fresh]
    for index, title in enumerate(embedded["species"].tolist()):
        rows = truth == index
        shares = (pooled[rows] <= 0.05, p_values[rows] <= 0.05, detector.rejects(scores[rows]))
        lines.append(f"  {title} ({rows.sum()}): " + ", ".join(f"{share.mean():.1%}" for share in shares))
    recalls_at = [
        f"{(values <= level).mean():.1%}" for level in (0.05, 0.01) for values in (other_pooled, other_p_values)
    ]
    lines.append("  recall at p ≤ 0.05 and p ≤ 0.01, each of all leaves alike and by species: " + ", ".join(recalls_at))
    return "| " + " | ".join(cells) + " |", lines
