"""Soft routing against a slow loop over the single heads' files."""

import numpy as np
import onnxruntime as ort
import pytest
from scipy.special import softmax as scipy_softmax

from plantmodels.bundle.layout import head_file
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.images import decode_image, preprocess
from plantmodels.serve.routing import MIN_SPECIES_PROBABILITY, DiseaseMixture

TAXONOMY = Taxonomy(
    ("apple", "fern", "pear"),
    {"apple": ("scab", "healthy"), "pear": ("healthy", "rust", "scab")},
)


def loop(species_probability: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """P(disease) of one image, as one would write it down."""
    found: dict[str, float] = {}
    for i in TAXONOMY.species_with_head:
        names = TAXONOMY.diseases_of(i)
        for name, probability in zip(names, scipy_softmax(logits[i, : len(names)]), strict=True):
            found[name] = found.get(name, 0.0) + species_probability[i] * probability
    return found


@pytest.mark.parametrize("count", [0, 1, 300])
def test_probabilities_are_summed_by_name(count: int) -> None:
    rng = np.random.default_rng(0)
    table = np.full((3, 3), -np.inf, dtype=np.float32)
    table[0, :2], table[2] = rng.normal(size=2), rng.normal(size=3)
    species_probability = scipy_softmax(rng.normal(size=(count, 3)), axis=1)
    runs: list[int] = []

    def run_heads(embedding: np.ndarray, species: np.ndarray) -> np.ndarray:
        runs.append(len(species))
        return table[species] * embedding[:, :1]

    embedding = np.abs(rng.normal(size=(count, 4))).astype(np.float32)
    mixture = DiseaseMixture(TAXONOMY)
    mixed = mixture.mix(species_probability, embedding, run_heads)
    assert mixture.names == ("scab", "healthy", "rust")
    assert sum(runs) == 2 * count and max(runs, default=0) <= 256
    for row in range(count):
        expected = loop(species_probability[row], table * embedding[row, 0])
        np.testing.assert_allclose(mixed[row], [expected[name] for name in mixture.names], rtol=1e-6)
    np.testing.assert_allclose(mixed.sum(axis=1), species_probability[:, [0, 2]].sum(axis=1), rtol=1e-6)


def test_improbable_species_are_not_asked() -> None:
    asked: list[int] = []

    def run_heads(embedding: np.ndarray, species: np.ndarray) -> np.ndarray:
        asked.extend(species.tolist())
        return np.zeros((len(species), 3), dtype=np.float32)

    tiny = MIN_SPECIES_PROBABILITY / 2
    DiseaseMixture(TAXONOMY).mix(np.array([[1 - tiny, 0, tiny]]), np.zeros((1, 4), np.float32), run_heads)
    assert asked == [0]


def test_without_a_head_nobody_answers() -> None:
    mixture = DiseaseMixture(Taxonomy(("fern",), {}))
    assert mixture.names == ()
    assert mixture.mix(np.ones((2, 1)), np.zeros((2, 4), np.float32), lambda *_: pytest.fail("asked")).shape == (2, 0)


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
        found: dict[str, float] = {}
        for i, session in heads.items():
            (answer,) = session.run(["disease_logits"], {"embedding": embedding})
            for name, probability in zip(taxonomy.diseases_of(i), scipy_softmax(answer[0]), strict=True):
                found[name] = found.get(name, 0.0) + scipy_softmax(logits[0])[i] * probability
        assert row.disease == max(found, key=found.__getitem__)
        assert row.disease_probability == pytest.approx(found[row.disease], rel=1e-4)
        assert (row.species, row.species_probability, row.ood_score) == (
            top.species,
            top.species_probability,
            pytest.approx(top.ood_score),
        )


def test_another_routing_is_named(tiny_bundle) -> None:
    with pytest.raises(ValueError, match="routing must be one of hard, soft, got 'firm'"):
        PlantClassifier.load(tiny_bundle.bundle, threads=1).predict([], routing="firm")
