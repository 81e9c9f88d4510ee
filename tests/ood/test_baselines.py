"""Checks the scores of the literature against slow loops, SciPy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import OAS
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from plantmodels.ood.baselines import BASELINES, FitData
from plantmodels.ood.embeddings import ModelOutputs

CLASSES, DIM, SPECIES = 4, 8, 3


def make_training(seed: int = 0, count: int = 300, non_plants: int = 60) -> FitData:
    """Draw features and logits; the logits are an affine map of the features, as in a species head."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % CLASSES
    weight, bias = rng.normal(size=(SPECIES, DIM)), rng.normal(size=SPECIES)

    def embed(features: np.ndarray) -> ModelOutputs:
        return ModelOutputs(features.astype(np.float32), (features @ weight.T + bias).astype(np.float32))

    mixing = rng.normal(size=(DIM, DIM))
    plants = rng.normal(size=(count, DIM)) @ mixing + 4 * rng.normal(size=(CLASSES, DIM))[classes]
    return FitData(embed(plants), classes, embed(rng.normal(size=(non_plants, DIM)) * 6 - 3))


@pytest.fixture(scope="module")
def training() -> FitData:
    return make_training()


def tied(features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means = np.stack([features[classes == i].mean(axis=0) for i in range(CLASSES)])
    return means, np.linalg.inv(OAS(assume_centered=True).fit(features - means[classes]).covariance_)


def normalized(features: np.ndarray) -> np.ndarray:
    return features / np.sqrt((features**2).sum(axis=1, keepdims=True))


def expected_normalized_mahalanobis(training: FitData, queries: ModelOutputs) -> list[float]:
    means, inverse = tied(normalized(training.plants.features.astype(np.float64)), training.classes)
    unit = normalized(queries.features.astype(np.float64))
    return [min(mahalanobis(f, mean, inverse) for mean in means) for f in unit]


def expected_relative_mahalanobis(training: FitData, queries: ModelOutputs) -> list[float]:
    features = training.plants.features.astype(np.float64)
    means, inverse = tied(features, training.classes)
    whole = OAS().fit(features)
    far = np.linalg.inv(whole.covariance_)
    return [
        min(mahalanobis(f, mean, inverse) for mean in means) ** 2 - mahalanobis(f, whole.location_, far) ** 2
        for f in queries.features
    ]


def expected_energy(training: FitData, queries: ModelOutputs) -> list[float]:
    return [-math.log(sum(math.exp(logit) for logit in row)) for row in queries.logits.tolist()]


def expected_gen(training: FitData, queries: ModelOutputs) -> list[float]:
    scores = []
    for row in queries.logits.tolist():
        total = sum(math.exp(logit) for logit in row)
        scores.append(sum((math.exp(v) / total * (1 - math.exp(v) / total)) ** 0.1 for v in row))
    return scores


def expected_knn(training: FitData, queries: ModelOutputs) -> np.ndarray:
    distances = cdist(normalized(queries.features), normalized(training.plants.features))
    return np.sort(distances, axis=1)[:, 49]


def expected_vim(training: FitData, queries: ModelOutputs) -> np.ndarray:
    """Follow the authors' code: the principal space is an eigendecomposition of the features around the origin."""
    rng = np.random.default_rng(0)  # the head that `make_training` draws
    weight, bias = rng.normal(size=(SPECIES, DIM)), rng.normal(size=SPECIES)
    origin = -np.linalg.pinv(weight) @ bias
    features = training.plants.features - origin
    pca = PCA().fit(np.concatenate([features, -features]))  # symmetric, so that nothing is centred
    residual = pca.components_[DIM // 2 :].T
    alpha = training.plants.logits.max(axis=1).mean() / np.linalg.norm(features @ residual, axis=1).mean()
    virtual = alpha * np.linalg.norm((queries.features - origin) @ residual, axis=1)
    return virtual - np.log(np.exp(queries.logits).sum(axis=1))


def standardized(training: FitData) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    features = np.concatenate([training.plants.features, training.non_plants.features]).astype(np.float64)
    labels = np.repeat([0, 1], [len(training.plants), len(training.non_plants)])
    mean, std = features.mean(axis=0), features.std(axis=0)
    return (features - mean) / std, labels, mean, std


def expected_logistic(training: FitData, queries: ModelOutputs) -> np.ndarray:
    features, labels, mean, std = standardized(training)
    model = LogisticRegression(C=0.01, class_weight="balanced", tol=1e-10, max_iter=5000).fit(features, labels)
    return (queries.features - mean) / std @ model.coef_[0] + model.intercept_[0]


def expected_rbf_svm(training: FitData, queries: ModelOutputs) -> np.ndarray:
    features, labels, mean, std = standardized(training)
    gamma = 1 / (DIM * features.var())
    model = SVC(C=10, gamma=gamma, class_weight="balanced").fit(features, labels)
    kernel = np.exp(-gamma * cdist((queries.features - mean) / std, model.support_vectors_, "sqeuclidean"))
    return kernel @ model.dual_coef_[0] + model.intercept_[0]


@pytest.mark.parametrize("name", BASELINES)
def test_equals_an_independent_computation(name: str, training: FitData) -> None:
    queries = make_training(seed=1, count=30, non_plants=30).non_plants
    scores = BASELINES[name].fit(training)(queries)

    assert scores.shape == (30,)
    np.testing.assert_allclose(scores, globals()[f"expected_{name}"](training, queries), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", BASELINES)
def test_non_plants_only_matter_to_methods_that_are_exposed_to_them(name: str, training: FitData) -> None:
    if BASELINES[name].exposed:
        with pytest.raises(ValueError, match="needs non-plants"):
            BASELINES[name].fit(FitData(training.plants, training.classes, None))
        return
    alone = BASELINES[name].fit(FitData(training.plants, training.classes, None))

    np.testing.assert_array_equal(alone(training.non_plants), BASELINES[name].fit(training)(training.non_plants))


@pytest.mark.parametrize("name", ["relative_mahalanobis", "knn", "vim", "logistic", "rbf_svm"])
def test_non_plants_score_higher(name: str, training: FitData) -> None:
    score = BASELINES[name].fit(training)

    assert np.median(score(training.non_plants)) > np.median(score(training.plants))
