"""Makes a report with made-up answers, as large as that of hundreds of species; its page needs no network.

Some species are known worse than others, and each is taken for a few species that look like it, as in real reports.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from plantmodels.bundle.layout import SPECIES_FILES, head_file
from plantmodels.bundle.manifest import FileDigest
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.accuracy import Temperatures, count_accuracy, name_class
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.judge import Measured
from plantmodels.report.evidence.rejection import count_rejection
from plantmodels.report.gate_report import GateReport
from plantmodels.report.inputs import ImageSet, Machine, ReportInputs
from plantmodels.report.leakage import Leakage, count_crossing
from plantmodels.report.per_image import ImageRow, ImageSetName
from plantmodels.report.policy import GatePolicy
from plantmodels.report.samples import HeadSample, Latency, Parity, ParitySample, Scatter

_THRESHOLD: Final = 5.0
_COMPARED: Final = 64
"""Leaves that are compared with PyTorch."""

_GENERA: Final = ("Acer", "Betula", "Citrus", "Dahlia", "Erica", "Ficus", "Geum", "Hosta", "Iris", "Juglans", "Kerria")
_DISEASES: Final = ("healthy", "Leaf_spot", "Powdery_mildew", "Rust", "Bacterial_blight")


@dataclass(frozen=True)
class Size:
    """How large the report is.

    Attributes:
        species: number of species.
        images: validation images of each species.
        unmeasured: number of species, the last ones, that have no validation image.
        non_plants: images without plants.
    """

    species: int = 330
    images: int = 40
    unmeasured: int = 0
    non_plants: int = 300


def make_taxonomy(species: int) -> Taxonomy:
    """Return species of eleven genera, with 1 to 5 diseases each."""
    names = [f"{_GENERA[i % len(_GENERA)]} sp. {i // len(_GENERA) + 1}" for i in range(species)]
    return Taxonomy(tuple(names), {name: _DISEASES[: 1 + i % len(_DISEASES)] for i, name in enumerate(names)})


def make_rows(taxonomy: Taxonomy, size: Size) -> tuple[ImageRow, ...]:
    """Return the rows of leaves of every species, and of non-plants. They are the same each time."""
    random = np.random.default_rng(0)
    return (*_make_leaves(taxonomy, size, random), *_make_others(taxonomy, size, random))


def _make_leaves(taxonomy: Taxonomy, size: Size, random: np.random.Generator) -> Iterator[ImageRow]:
    names = taxonomy.species
    for index, species in enumerate(names[: len(names) - size.unmeasured]):
        known = random.beta(12, 1.2)
        alike = [names[(index + step * len(_GENERA)) % len(names)] for step in (1, 1, 1, 2, 3)]  # of the same genus
        for number in range(size.images):
            diseases = taxonomy.diseases_of(index)
            disease = diseases[number % len(diseases)]
            fp16 = species if random.random() < known else alike[random.integers(len(alike))]
            int8 = fp16 if random.random() < 0.997 else alike[0]
            given = disease if random.random() < 0.96 else diseases[0]
            routed = given if int8 == species else taxonomy.diseases[int8][0]
            name = f"val/{name_class(species, disease)}/{number:03d}.jpg"
            score, probability = _THRESHOLD + 0.05 - random.gamma(2.0, 1.5), random.beta(9, 1.5)
            several, is_right = len(diseases) > 1, int8 == species
            loss, disease_loss = -math.log(probability), -math.log(0.9) + (0.0 if routed == disease else 2.0)
            yield ImageRow(
                *("val", name_class(species, disease), name, species, disease),
                *(fp16, given, int8, given, routed, routed, probability, score, score > _THRESHOLD),
                sha256=_digest(name),
                fp16_ood_score=score + 0.001 * random.normal(),
                pytorch_ood_score=score if number == 0 and index < _COMPARED else None,
                species_nll=loss if is_right else loss + 2,
                disease_given_species_probability=0.9,
                disease_nll=disease_loss if several else None,
                raw_species_probability=probability,
                raw_species_nll=loss if is_right else loss + 2,
                raw_disease_given_species_probability=0.9,
                raw_disease_nll=disease_loss if several else None,
                soft_disease_probability=0.9 * probability,
                soft_disease_given_species_probability=0.9,
                raw_soft_disease_probability=0.9 * probability,
                raw_soft_disease_given_species_probability=0.9,
                fp16_species_nll=loss if is_right else loss + 2,
                fp16_disease_nll=disease_loss if several else None,
            )


def _make_others(taxonomy: Taxonomy, size: Size, random: np.random.Generator) -> Iterator[ImageRow]:
    for number in range(size.non_plants):
        source = ("bricks", "clothing", "people", "rocks", "rooms", "tools")[number % 6]
        score, species = _THRESHOLD - 0.05 + random.gamma(3.0, 2.0), taxonomy.species[number % len(taxonomy.species)]
        yield ImageRow(
            *("non-plants", source, f"{source}/{number:04d}.jpg", "", ""),
            *(species, "", species, "", "", "", random.beta(2, 5), score, score > _THRESHOLD),
            sha256=_digest(f"{source} {number}"),
            fp16_ood_score=score,
            raw_species_probability=0.3,
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_report(taxonomy: Taxonomy, rows: tuple[ImageRow, ...], policy: GatePolicy | None = None) -> GateReport:
    """Return the report of these rows, with made-up files and times; every number follows from its evidence."""
    table, random = ImageTable.from_rows(rows), np.random.default_rng(1)
    heads = [head_file(taxonomy.slugs[index]) for index in taxonomy.species_with_head]
    sizes = {SPECIES_FILES["int8"]: 4_400_000, SPECIES_FILES["fp16"]: 8_300_000, **dict.fromkeys(heads, 3_000)}
    compared = int(np.sum(table.of_set("val").text("pytorch_ood_score") != ""))
    pytorch = random.normal(0, 4, 500)
    logits = [tuple((pytorch + random.normal(0, noise, 500)).tolist()) for noise in (0, 2e-4, 0.1)]
    samples = [ParitySample(image, image % 3 + 1, 6e-4, 4e-4, 0.3, 0.04) for image in range(compared)]
    times = random.normal(22, 0.6, 40).tolist()
    val, others = _make_set(table, "val"), _make_set(table, "non-plants")
    measured = Measured(
        taxonomy=taxonomy,
        files={name: FileDigest(size, _digest(name)) for name, size in sizes.items()},
        problems={"loads": (), "heads_complete": ()},
        heads_compared=True,
        accuracy=count_accuracy(table.of_set("val"), taxonomy, Temperatures(0.8, 1.1)),
        rejection=count_rejection(table, threshold=_THRESHOLD, held_out=True),
        leakage=Leakage(
            {"train": 66_000, "val": len(table.of_set("val")), "non-plants": len(table.of_set("non-plants"))},
            (),
            count_crossing(table.of_set("val")),
        ),
        latency=Latency.summarize(times, times, threads=2, cpu="a made-up processor", load=0.1),
        parity=Parity.summarize(samples, dict.fromkeys(taxonomy.slugs, HeadSample(1e-6, 0.01)), Scatter(*logits)),
        non_plants_given=True,
        not_run="",
    )
    return GateReport.from_measured(
        measured,
        policy or GatePolicy(),
        unreadable=(),
        inputs=ReportInputs("c" * 64, taxonomy.digest, val, others, None),
        versions={"python": "3.11"},
        machine=Machine("x86_64", "a made-up processor", ()),
    )


def _make_set(table: ImageTable, name: ImageSetName) -> ImageSet:
    rows = table.of_set(name)
    return ImageSet(len(rows), len(rows), rows.digest())
