"""Measure a rival of a student: a logistic regression on the frozen teacher's embedding, fitted to the same labels.

python -m benchmarks.students probe --teacher teacher.ckpt --data leaves --seeds 3

The student learns from the labels and from the teacher. The probe learns from the same labels and changes no weight of
the teacher. What the student has beyond it is more than the labels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.driver import PATH
from benchmarks.markdown import render_table
from plantmodels.arrays import Embeddings, Labels, Mask
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.leaves import LeafSample, LeafSet, read_leaves, split_by_name
from plantmodels.data.progress import log_to_terminal
from plantmodels.data.streaming import ImageStream
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.training.recipe import Recipe

STRENGTHS: Final = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of regularization; the leaves that training holds out choose one."""

_BATCH: Final = 16


def embed_leaves(
    network: HierarchicalNetwork, samples: tuple[LeafSample, ...], description: str
) -> tuple[tuple[LeafSample, ...], Embeddings]:
    """Return the leaves that can be read, and their embeddings (N, D).

    Args:
        network: the teacher.
        samples: labelled leaves.
        description: label of the progress bar.
    """
    stream = ImageStream([s.path for s in samples], network.spec.preprocessing, description=description)
    kept, parts = [], []
    with torch.inference_mode():
        for positions, inputs in stream.batches(_BATCH):
            kept += [samples[position] for position in positions]
            parts.append(network(torch.from_numpy(inputs))[1].numpy())
    return tuple(kept), np.concatenate(parts)


def fit_probe(features: Embeddings, labels: Labels, held_out: tuple[Embeddings, Labels]) -> tuple[Pipeline, float]:
    """Return the probe whose strength of regularization is best on held-out leaves, and that strength.

    Args:
        features: (N, D) embeddings to fit on.
        labels: (N,) classes.
        held_out: embeddings and classes that choose the strength.
    """
    probes = {
        strength: make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(features, labels)
        for strength in STRENGTHS
    }
    best = max(probes, key=lambda strength: float(probes[strength].score(*held_out)))
    return probes[best], best


def measure_probes(
    train: tuple[tuple[LeafSample, ...], Embeddings],
    val: tuple[tuple[LeafSample, ...], Embeddings],
    root: Path,
    seeds: int,
) -> Iterator[tuple[float, float, float]]:
    """Yield, for each seed, the strength of regularization and the shares of val whose species, and class, is right.

    A seed decides which leaves are held out, as in a training. The class is the pair of species and disease, predicted
    by a probe of its own.

    Args:
        train: leaves and embeddings of the split train.
        val: leaves and embeddings of the split val.
        root: folder of the leaves, which their names are relative to.
        seeds: number of seeds.
    """
    (samples, features), (val_samples, val_features) = train, val
    for seed in range(seeds):
        held = _find_held_out(samples, root, seed)
        found = []
        for of in (_species_of, _class_of):
            labels, expected = of(samples), of(val_samples)
            probe, strength = fit_probe(features[~held], labels[~held], (features[held], labels[held]))
            found += [strength, float(probe.score(val_features, expected))]
        yield found[0], found[1], found[3]


def _find_held_out(samples: tuple[LeafSample, ...], root: Path, seed: int) -> Mask:
    held = set(split_by_name(LeafSet(root, "train", samples), Recipe.held_out, len(samples), seed)[1].samples)
    return np.array([sample in held for sample in samples])


def _species_of(samples: tuple[LeafSample, ...]) -> Labels:
    return np.array([sample.species_index for sample in samples])


def _class_of(samples: tuple[LeafSample, ...]) -> Labels:
    return np.array([1000 * s.species_index + (-1 if s.disease_index is None else s.disease_index) for s in samples])


@click.command()
@click.option("--teacher", type=PATH, required=True, help="The checkpoint of the teacher.")
@click.option("--data", type=PATH, required=True, help="Leaf folders.")
@click.option("--seeds", default=3, show_default=True, help="Number of seeds, each with other held-out leaves.")
def probe(teacher: Path, data: Path, seeds: int) -> None:
    """Print how often a logistic regression on the frozen teacher's embedding is right on the split val."""
    log_to_terminal()
    network = load_network(read_checkpoint(teacher))
    sets = {split: read_leaves(data, split, network.spec.taxonomy) for split in ("train", "val")}
    train, val = (embed_leaves(network, leaves.samples, f"embed {split}") for split, leaves in sets.items())
    rows = [
        (str(seed), f"{strength:g}", f"{100 * species:.1f}", f"{100 * both:.1f}")
        for seed, (strength, species, both) in enumerate(measure_probes(train, val, sets["train"].root, seeds))
    ]
    click.echo(render_table(["seed", "strength", "species %", "species and disease %"], rows))
