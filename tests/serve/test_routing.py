"""Soft routing against a slow loop over the single heads' files."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax as scipy_softmax

from plantmodels.bundle.layout import head_file
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.preprocessing import decode_image, preprocess
from plantmodels.serve.routing import (
    MIN_SPECIES_PROBABILITY,
    DiseaseAnswer,
    DiseaseMixture,
    add_given_species,
    route_hard,
)

TAXONOMY = Taxonomy(
    ("apple", "fern", "pear"),
    {"apple": ("scab", "healthy"), "pear": ("healthy", "rust", "scab")},
)


TEMPERATURES = st.floats(1e-3, 1e3)


def loop(species_probability: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> dict[str, float]:
    """P(disease) of one image, as one would write it down."""
    found: dict[str, float] = {}
    for i in TAXONOMY.species_with_head:
        names = TAXONOMY.diseases_of(i)
        for name, probability in zip(names, scipy_softmax(logits[i, : len(names)] / temperature), strict=True):
            found[name] = found.get(name, 0.0) + species_probability[i] * probability
    return found


@pytest.mark.parametrize("temperatures", [((1.0, 1.0),), ((1.0, 1.0), (0.7, 2.5))])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_probabilities_are_summed_by_name(count: int, temperatures: tuple[tuple[float, float], ...]) -> None:
    rng = np.random.default_rng(0)
    table = np.full((3, 3), -np.inf, dtype=np.float32)
    table[0, :2], table[2] = rng.normal(size=2), rng.normal(size=3)
    species_logits = rng.normal(size=(count, 3)).astype(np.float32)
    runs: list[int] = []

    def run_heads(embedding: np.ndarray, species: np.ndarray) -> np.ndarray:
        runs.append(len(species))
        return table[species] * embedding[:, :1]

    embedding = np.abs(rng.normal(size=(count, 4))).astype(np.float32)
    mixture = DiseaseMixture(TAXONOMY)
    mixed = mixture.compute_probabilities(species_logits, embedding, run_heads, temperatures)
    assert mixture.names == ("scab", "healthy", "rust")
    assert sum(runs) == 2 * count and max(runs, default=0) <= 256
    for found, (species_temperature, disease_temperature) in zip(mixed, temperatures, strict=True):
        chances = scipy_softmax(species_logits / species_temperature, axis=1)
        for row in range(count):
            expected = loop(chances[row], table * embedding[row, 0], disease_temperature)
            np.testing.assert_allclose(found[row], [expected[name] for name in mixture.names], rtol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), chances[:, [0, 2]].sum(axis=1), rtol=1e-5)


@given(
    logits=arrays(np.float32, (4, 3), elements=st.floats(-30, 30, width=32)),
    heads=arrays(np.float32, (3, 3), elements=st.floats(-30, 30, width=32)),
    species_temperature=TEMPERATURES,
    disease_temperature=TEMPERATURES,
)
def test_no_temperature_changes_a_name(
    logits: np.ndarray, heads: np.ndarray, species_temperature: float, disease_temperature: float
) -> None:
    heads[0, 2] = -np.inf
    mixture = DiseaseMixture(TAXONOMY)
    embedding = np.zeros((4, 1), np.float32)

    def answer(**temperatures: float) -> list[tuple[str | None, float | None]]:
        return mixture.name_diseases(logits, embedding, lambda _, species: heads[species], **temperatures)

    plain = answer()
    tempered = answer(species_temperature=species_temperature, disease_temperature=disease_temperature)
    assert [name for name, _ in tempered] == [name for name, _ in plain]
    for row, (name, probability) in enumerate(tempered):
        if name is not None:
            chances = scipy_softmax(logits[row].astype(float) / species_temperature)
            assert probability == pytest.approx(loop(chances, heads.astype(float), disease_temperature)[name], abs=4e-6)


def test_improbable_species_are_not_asked() -> None:
    asked: list[int] = []

    def run_heads(embedding: np.ndarray, species: np.ndarray) -> np.ndarray:
        asked.extend(species.tolist())
        return np.zeros((len(species), 3), dtype=np.float32)

    tiny = MIN_SPECIES_PROBABILITY / 2
    DiseaseMixture(TAXONOMY).compute_probabilities(
        np.log(np.array([[1 - 2 * tiny, tiny, tiny]])), np.zeros((1, 4), np.float32), run_heads
    )
    assert asked == [0]


def test_without_a_head_nobody_answers() -> None:
    mixture = DiseaseMixture(Taxonomy(("fern",), {}))
    assert mixture.names == ()
    assert mixture.compute_probabilities(np.ones((2, 1)), np.zeros((2, 4)), lambda *_: pytest.fail("asked")).shape == (
        1,
        2,
        0,
    )
    assert (
        mixture.name_diseases(np.ones((2, 1)), np.zeros((2, 4)), lambda *_: pytest.fail("asked")) == [(None, None)] * 2
    )


def test_the_classifier_mixes_what_the_single_heads_say(tiny_bundle) -> None:
    classifier = PlantClassifier.load(tiny_bundle.bundle, threads=1)
    taxonomy = classifier.taxonomy
    images = [min(folder.iterdir()) for folder in sorted((tiny_bundle.data / "val").iterdir())]
    soft = classifier.predict([path.read_bytes() for path in images], routing="soft")
    hard = classifier.predict([path.read_bytes() for path in images])
    heads = {
        i: ort.InferenceSession(tiny_bundle.bundle / head_file(taxonomy.slugs[i])) for i in taxonomy.species_with_head
    }
    for path, row, top in zip(images, soft, hard, strict=True):
        pixels = preprocess(decode_image(path.read_bytes()), classifier.metadata.preprocessing)[None]
        logits, embedding = classifier.embed(pixels)
        temperatures = classifier.metadata.species_temperature, classifier.metadata.disease_temperature
        found: dict[str, float] = {}
        answers: dict[int, np.ndarray] = {}
        for i, session in heads.items():
            (answer,) = session.run(["disease_logits"], {"embedding": embedding})
            answers[i] = answer[0]
            for name, probability in zip(taxonomy.diseases_of(i), scipy_softmax(answer[0]), strict=True):
                found[name] = found.get(name, 0.0) + scipy_softmax(logits[0])[i] * probability
        assert row.disease == max(found, key=found.__getitem__)
        assert row.disease_probability == pytest.approx(
            sum(
                scipy_softmax(logits[0] / temperatures[0])[i]
                * scipy_softmax(head / temperatures[1])[taxonomy.diseases_of(i).index(row.disease)]
                for i, head in answers.items()
                if row.disease in taxonomy.diseases_of(i)
            ),
            rel=1e-4,
        )
        own = taxonomy.diseases_of(row.species_index)
        chance = 0.0
        if row.disease in own:
            chance = scipy_softmax(answers[row.species_index] / temperatures[1])[own.index(row.disease)]
        assert row.disease_given_species_probability == pytest.approx(chance, rel=1e-5)
        assert row.disease_probability >= row.species_probability * chance - 1e-6 * len(taxonomy.species)
        assert (row.species, row.species_probability, row.ood_score) == (
            top.species,
            top.species_probability,
            pytest.approx(top.ood_score),
        )


def test_soft_routing_may_name_a_disease_that_the_species_lacks() -> None:
    """The species is apple or fern; the disease rust is known of pears alone."""
    heads = np.array([[0, 0, -np.inf], [0, -np.inf, -np.inf], [0, np.log(6), 0]], np.float32)
    named: list[tuple[str | None, float | None]] = [("rust", 0.45), ("scab", 0.4), ("rust", 0.45), (None, None)]
    species = np.array([0, 0, 1, 1])
    answers = add_given_species(TAXONOMY, species, heads[species], 1.0, named)
    assert answers == [
        DiseaseAnswer("rust", 0.45, 0.0),
        DiseaseAnswer("scab", 0.4, 0.5),
        DiseaseAnswer("rust", 0.45, 0.0),
        DiseaseAnswer(None, None, None),
    ]


@given(
    logits=arrays(np.float32, (5, 3), elements=st.floats(-30, 30, width=32)),
    heads=arrays(np.float32, (3, 3), elements=st.floats(-30, 30, width=32)),
    temperature=TEMPERATURES,
)
def test_hard_routing_answers_with_the_probability_of_both(
    logits: np.ndarray, heads: np.ndarray, temperature: float
) -> None:
    heads[0, 2], species = -np.inf, logits.argmax(axis=1)
    chances = scipy_softmax(logits.astype(float), axis=1).max(axis=1)
    for row, answer in enumerate(route_hard(TAXONOMY, species, chances, heads[species], temperature)):
        names = TAXONOMY.diseases_of(int(species[row]))
        if not names:
            assert answer == DiseaseAnswer()
            continue
        given = scipy_softmax(heads[species[row], : len(names)].astype(float) / temperature)
        assert answer.name == names[int(heads[species[row], : len(names)].argmax())]
        assert answer.given_species == pytest.approx(given.max())
        assert answer.probability == chances[row] * answer.given_species <= chances[row]


def test_another_routing_is_named(tiny_bundle) -> None:
    with pytest.raises(ValueError, match="routing must be one of hard, soft, got 'firm'"):
        PlantClassifier.load(tiny_bundle.bundle, threads=1).predict([], routing="firm")
