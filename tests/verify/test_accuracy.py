import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax as scipy_softmax

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import digest_content
from plantmodels.data.leaves import LeafSample, LeafSet
from plantmodels.data.streaming import ImageStream
from plantmodels.errors import BundleError, DataError
from plantmodels.report.per_image import ImageRow
from plantmodels.report.results import Accuracy, ClassRow, PrecisionAccuracy
from plantmodels.report.statistics import PairedCounts, Proportion
from plantmodels.serve.prediction import Outputs
from plantmodels.serve.routing import DiseaseAnswer, Routing
from plantmodels.verify.accuracy import _AHEAD, BATCH, embed_ahead, measure_accuracy

TAXONOMY = Taxonomy(("Apple", "Mint", "Rose"), {"Apple": ("rust", "scab", "healthy"), "Rose": ("spot", "healthy")})

COUNT = 75
RNG = np.random.default_rng(5)
TRUE_SPECIES = RNG.integers(0, 3, COUNT).tolist()
CLASSES = (3, 0, 2)
TRUE_DISEASE = [int(RNG.integers(0, CLASSES[s])) if CLASSES[s] else None for s in TRUE_SPECIES]


def make_script(seed: int) -> tuple[list[int], list[list[int]], list[float]]:
    rng = np.random.default_rng(seed)
    species = [int(rng.integers(0, 3)) if rng.random() < 0.4 else truth for truth in TRUE_SPECIES]
    diseases = [[int(rng.integers(0, max(1, n))) for n in CLASSES] for _ in range(COUNT)]
    return species, diseases, rng.normal(size=COUNT).tolist()


def make_leaves(paths: list[Path]) -> LeafSet:
    samples = (LeafSample(*row) for row in zip(paths, TRUE_SPECIES, TRUE_DISEASE, strict=True))
    return LeafSet(paths[0].parent, "val", tuple(samples))


def count_slowly(species: list[int], diseases: list[list[int]]) -> PrecisionAccuracy:
    """Apply the definitions image by image; end to end, the head of the answered species counts."""
    species_right = disease_right = with_head = end_to_end = 0
    for i, (true_species, true_disease) in enumerate(zip(TRUE_SPECIES, TRUE_DISEASE, strict=True)):
        species_right += species[i] == true_species
        if true_disease is not None:
            with_head += 1
            disease_right += diseases[i][true_species] == true_disease
        routed_disease = diseases[i][species[i]] if CLASSES[species[i]] else None
        end_to_end += (species[i], routed_disease) == (true_species, true_disease)
    return PrecisionAccuracy(
        Proportion(species_right, COUNT), Proportion(disease_right, with_head), Proportion(end_to_end, COUNT)
    )


def test_counts_equal_those_of_a_slow_loop(numbered_images: Callable[..., list[Path]], scripted: type) -> None:
    fp16_script, int8_script = make_script(1), make_script(2)
    fp16, int8 = scripted(*fp16_script), scripted(*int8_script)
    run = measure_accuracy(fp16, int8, make_leaves(numbered_images(COUNT)))
    assert run.accuracy.fp16 == count_slowly(*fp16_script[:2])
    assert run.accuracy.int8 == count_slowly(*int8_script[:2])
    assert run.accuracy.species_flips == sum(a != b for a, b in zip(fp16_script[0], int8_script[0], strict=True))
    assert run.accuracy.disease_flips == sum(
        fp16_script[1][i][s] != int8_script[1][i][s] for i, s in enumerate(TRUE_SPECIES) if CLASSES[s]
    )
    for index, name in enumerate(("Apple", "Mint", "Rose")):
        row = run.accuracy.by_species[name]
        mine = [i for i in range(COUNT) if TRUE_SPECIES[i] == index]
        assert (row.images, row.fp16, row.int8) == (
            len(mine),
            sum(fp16_script[0][i] == index for i in mine),
            sum(int8_script[0][i] == index for i in mine),
        )


def test_each_image_is_run_once_in_each_precision_and_scored_by_int8(
    numbered_images: Callable[..., list[Path]], scripted: type
) -> None:
    fp16, int8 = scripted(*make_script(1)), scripted(*make_script(2))
    run = measure_accuracy(fp16, int8, make_leaves(numbered_images(COUNT)))
    assert fp16.seen == int8.seen == list(range(COUNT))
    assert [row.ood_score for row in run.rows] == int8.scores
    assert [row.fp16_ood_score for row in run.rows] == int8.scores, "both embeddings are the image's number"
    assert [sample.path.name for sample in run.samples] == [f"{i:03d}.png" for i in range(COUNT)]


def test_a_model_that_fails_ends_the_pass(numbered_images: Callable[..., list[Path]], scripted: type) -> None:
    fp16, int8 = scripted(*make_script(1)), scripted(*make_script(2))

    def fail(pixels: np.ndarray) -> None:
        raise BundleError("swin-species.onnx: does not run")

    fp16.embed = fail
    with pytest.raises(BundleError, match="does not run"):
        measure_accuracy(fp16, int8, make_leaves(numbered_images(COUNT)))
    assert len(int8.seen) < COUNT, "the other model stops soon, too"


def test_the_models_run_ahead_of_the_caller_but_not_far(
    numbered_images: Callable[..., list[Path]], scripted: type
) -> None:
    fp16, int8 = scripted(*make_script(1)), scripted(*make_script(2))
    batches = embed_ahead(ImageStream(numbered_images(COUNT), int8.metadata.preprocessing), int8, fp16)
    positions, _, _ = next(batches)
    assert positions == list(range(BATCH))
    assert len(int8.seen) <= (1 + _AHEAD) * BATCH, "images that nobody has asked for fill the memory"
    rest = [place for places, _, _ in batches for place in places]
    assert [*positions, *rest] == fp16.seen == int8.seen == list(range(COUNT))


def test_an_unreadable_leaf_is_skipped_named_and_not_counted(
    numbered_images: Callable[..., list[Path]], scripted: type
) -> None:
    paths = numbered_images(COUNT)
    leaves = make_leaves(paths)
    many = LeafSet(leaves.root, "val", leaves.samples * 2)
    broken = LeafSet(leaves.root, "val", (LeafSample(paths[0].with_name("x.png"), 0, 0), *many.samples))
    (leaves.root / "x.png").write_bytes(b"")
    run = measure_accuracy(scripted(*make_script(1)), scripted(*make_script(2)), broken)
    assert [(image.path.name, image.reason[:10]) for image in run.unreadable] == [("x.png", "zero bytes")]
    assert run.accuracy.fp16.species.images == len(run.rows) == len(run.samples) == 2 * COUNT


def test_too_many_unreadable_leaves_are_an_error(numbered_images: Callable[..., list[Path]], scripted: type) -> None:
    paths = numbered_images(COUNT)
    for path in paths[:2]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"over 1% of 75 images cannot be read"):
        measure_accuracy(scripted(*make_script(1)), scripted(*make_script(2)), make_leaves(paths))


def drops(accuracy: Callable[..., Accuracy], species: int, disease: int, both: int) -> Accuracy:
    """Return an accuracy where FP16 is right on so many more of 100 species, 50 diseases and 100 of both than INT8."""
    return accuracy(
        species=PairedCounts(80, max(0, species), max(0, -species), 20 - abs(species)),
        disease=PairedCounts(40, max(0, disease), max(0, -disease), 10 - abs(disease)),
        end_to_end=PairedCounts(70, max(0, both), max(0, -both), 30 - abs(both)),
    )


@pytest.mark.parametrize(
    ("species", "disease", "both", "worst"), [(1, 0, 0, 0.01), (0, 1, 0, 0.02), (0, 0, 3, 0.03), (-5, -1, -3, -0.02)]
)
def test_the_worst_of_the_drops_is_gated(
    accuracy: Callable[..., Accuracy], species: int, disease: int, both: int, worst: float
) -> None:
    assert drops(accuracy, species, disease, both).worst_drop == pytest.approx(worst)


def test_without_heads_the_species_drop_alone_counts(accuracy: Callable[..., Accuracy]) -> None:
    nothing = PairedCounts(0, 0, 0, 0)
    found = accuracy(species=PairedCounts(8, 1, 0, 1), disease=nothing)
    assert (found.disease.difference, found.disease.interval, found.int8.disease.value) == (None, None, None)
    assert found.worst_drop == pytest.approx(0.1)
    assert accuracy(species=nothing, disease=nothing, end_to_end=nothing).worst_drop is None


def soft_name(script: tuple, i: int) -> str:  # type: ignore[type-arg]
    """Route softly by hand: the scripted logits are 1 for the answer and 0 elsewhere."""
    found: dict[str, float] = {}
    for species, chance in enumerate(scipy_softmax(np.eye(3)[script[0][i]])):
        names = TAXONOMY.diseases_of(species)
        for name, share in zip(names, scipy_softmax(np.eye(max(1, len(names)))[script[1][i][species]]), strict=False):
            found[name] = found.get(name, 0.0) + chance * share
    return max(found, key=lambda name: found[name])


def name_of(species: int, disease: int | None) -> str:
    return "" if disease is None or not CLASSES[species] else TAXONOMY.diseases_of(species)[disease]


def test_every_image_has_a_row_with_all_answers(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    fp16, int8 = make_script(1), make_script(2)
    run = measure_accuracy(scripted(*fp16), scripted(*int8), make_leaves(numbered_images(COUNT)))
    names = TAXONOMY.species
    for i, (row, species, disease) in enumerate(zip(run.rows, TRUE_SPECIES, TRUE_DISEASE, strict=True)):
        truth = name_of(species, disease)
        assert row == ImageRow(
            set="val",
            source=f"{names[species]}___{truth}" if truth else "Mint",
            name=f"{i:03d}.png",
            species=names[species],
            disease=truth,
            fp16_species=names[fp16[0][i]],
            fp16_disease=name_of(species, fp16[1][i][species]),
            int8_species=names[int8[0][i]],
            int8_disease=name_of(species, int8[1][i][species]),
            int8_routed_disease=name_of(int8[0][i], int8[1][i][int8[0][i]]),
            int8_soft_disease=soft_name(int8, i),
            species_probability=pytest.approx(scipy_softmax([2.0, 0, 0])[0]),  # type: ignore[arg-type]
            ood_score=int8[2][i],
            rejected=int8[2][i] > 0,
            sha256=digest_content(tmp_path / "images" / f"{i:03d}.png"),
            fp16_ood_score=int8[2][i],
            species_nll=loss(int8[0][i] == species, 3, 0.5),
            raw_species_probability=chance(3, 1.0),
            raw_species_nll=loss(int8[0][i] == species, 3, 1.0),
            fp16_species_nll=loss(fp16[0][i] == species, 3, 0.5),
            disease_given_species_probability=chance(CLASSES[int8[0][i]], 2.0),
            raw_disease_given_species_probability=chance(CLASSES[int8[0][i]], 1.0),
            disease_nll=loss(int8[1][i][species] == disease, CLASSES[species], 2.0),
            raw_disease_nll=loss(int8[1][i][species] == disease, CLASSES[species], 1.0),
            fp16_disease_nll=loss(fp16[1][i][species] == disease, CLASSES[species], 2.0),
            **soft_probabilities(int8, i, "", (0.5, 2.0)),
            **soft_probabilities(int8, i, "raw_", (1.0, 1.0)),
        )


def soft_probabilities(script: tuple, i: int, prefix: str, temperatures: tuple[float, float]) -> dict[str, Any]:  # type: ignore[type-arg]
    """The probability of the disease that soft routing names, and of that disease given the answered species."""
    name, mixed, given = soft_name(script, i), 0.0, 0.0
    for species, share in enumerate(scipy_softmax(np.eye(3)[script[0][i]] / temperatures[0])):
        names = TAXONOMY.diseases_of(species)
        if name in names:
            heads = scipy_softmax(np.eye(len(names))[script[1][i][species]] / temperatures[1])
            mixed += share * heads[names.index(name)]
            given = heads[names.index(name)] if species == script[0][i] else given
    return {
        f"{prefix}soft_disease_probability": pytest.approx(mixed, rel=1e-5),
        f"{prefix}soft_disease_given_species_probability": pytest.approx(given, rel=1e-5),
    }


def chance(classes: int, temperature: float) -> Any:
    """The probability of the answer: the scripted logits are 1 for it and 0 elsewhere. None without a class."""
    if not classes:
        return None
    return pytest.approx(scipy_softmax(np.eye(classes)[0] / temperature)[0])


def loss(is_right: bool, classes: int, temperature: float) -> Any:
    """−log of the probability of the truth; None without a class."""
    if not classes:
        return None
    probabilities = scipy_softmax(np.eye(classes)[0] / temperature)
    return pytest.approx(-math.log(probabilities[0 if is_right else 1]))


def test_pairs_classes_and_confusions_equal_those_of_a_slow_loop(
    numbered_images: Callable[..., list[Path]], scripted: type
) -> None:
    fp16, int8 = make_script(1), make_script(2)
    leaves = make_leaves(numbered_images(COUNT))
    served = scripted(*int8)
    names = np.random.default_rng(6).choice(["rust", "scab", "healthy", "spot"], COUNT).tolist()
    route = served.name_diseases

    def name_diseases(
        outputs: Outputs, routing: Routing, *, temperatures: tuple[float, float] | None = None
    ) -> list[DiseaseAnswer]:
        answers: list[DiseaseAnswer] = route(outputs, routing, temperatures=temperatures)
        if routing == "soft":
            numbers = outputs.embedding[:, 0].astype(int).tolist()
            answers = [replace(answer, name=names[number]) for number, answer in zip(numbers, answers, strict=True)]
        return answers

    served.name_diseases = name_diseases
    run = measure_accuracy(scripted(*fp16), served, leaves)
    rows, found = run.rows, run.accuracy
    assert [row.int8_soft_disease for row in rows] == names
    outcomes: dict[str, list[tuple[bool, bool]]] = {
        "species": [],
        "disease": [],
        "end_to_end": [],
        "routing": [],
        "disease_routing": [],
    }
    confusions: dict[str, dict[str, int]] = {}
    by_disease: dict[str, list[int]] = {}
    for row in rows:
        species = row.fp16_species == row.species, row.int8_species == row.species
        disease = row.fp16_disease == row.disease, row.int8_disease == row.disease
        outcomes["species"].append(species)
        outcomes["end_to_end"].append((species[0] and disease[0], species[1] and disease[1]))
        hard = species[1] and (not row.disease or row.int8_routed_disease == row.disease)
        soft = species[1] and (not row.disease or row.int8_soft_disease == row.disease)
        outcomes["routing"].append((hard, soft))
        if row.disease:
            outcomes["disease"].append(disease)
            named = row.int8_routed_disease == row.disease, row.int8_soft_disease == row.disease
            outcomes["disease_routing"].append(named)
            counts = by_disease.setdefault(f"{row.species}___{row.disease}", [0, 0, 0])
            counts[0] += 1
            counts[1] += disease[0]
            counts[2] += disease[1]
        if not species[1]:
            answers = confusions.setdefault(row.species, {})
            answers[row.int8_species] = answers.get(row.int8_species, 0) + 1
    for name, pairs in outcomes.items():
        expected = [sum(pair == kind for pair in pairs) for kind in ((1, 1), (1, 0), (0, 1), (0, 0))]
        assert getattr(found, name) == PairedCounts(*expected)
    assert found.routing.first == found.int8.end_to_end
    assert found.routing.only_first and found.routing.only_second, "the script tells hard from soft routing"
    assert found.by_disease == {name: ClassRow(*counts) for name, counts in by_disease.items()}
    assert list(found.by_disease) == [f"Apple___{name}" for name in ("rust", "scab", "healthy")] + [
        "Rose___spot",
        "Rose___healthy",
    ]
    assert found.confusions == confusions
    probabilities = found.probabilities
    assert (probabilities.species_temperature, probabilities.disease_temperature) == (0.5, 2.0)
    species, both = probabilities.served["species"], probabilities.served["disease"]
    assert species.after.ece == pytest.approx(abs(found.int8.species.value - scipy_softmax([2.0, 0, 0])[0]))
    assert species.before.ece == pytest.approx(abs(found.int8.species.value - scipy_softmax([1.0, 0, 0])[0]))
    assert both.after.images == sum(row.int8_routed_disease != "" for row in rows)
    assert probabilities.served["disease_given_species"].after.images == sum(
        row.int8_species == row.species and row.disease != "" for row in rows
    )


def test_classes_and_the_commonest_equal_those_of_a_slow_loop(
    numbered_images: Callable[..., list[Path]], scripted: type
) -> None:
    run = measure_accuracy(scripted(*make_script(1)), scripted(*make_script(2)), make_leaves(numbered_images(COUNT)))
    rows, found = run.rows, run.accuracy
    for baseline, names, hits in (
        (found.species_baseline, [row.species for row in rows], [row.int8_species == row.species for row in rows]),
        (
            found.class_baseline,
            [row.source for row in rows],
            [(row.int8_species, row.int8_disease) == (row.species, row.disease) for row in rows],
        ),
    ):
        assert names.count(baseline.name) == max(map(names.count, names))
        pairs = [(name == baseline.name, hit) for name, hit in zip(names, hits, strict=True)]
        assert baseline.counts == PairedCounts(*(pairs.count(kind) for kind in ((1, 1), (1, 0), (0, 1), (0, 0))))
    assert sum(row.images for row in found.by_class.values()) == COUNT
    assert sum(row.int8 for row in found.by_class.values()) == found.int8.end_to_end.count
    assert sum(row.fp16 for row in found.by_class.values()) == found.fp16.end_to_end.count
    assert set(found.by_class) == {row.source for row in rows}


@pytest.mark.parametrize(("count", "images"), [(-1, 5), (6, 5)])
def test_a_count_is_between_none_and_all(count: int, images: int) -> None:
    with pytest.raises(ValueError, match=f"count must be from 0 to images, got {count} of {images}"):
        Proportion(count, images)
