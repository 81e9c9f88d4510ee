"""Checks the losses against slow loops in numpy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.losses import BatchLabels, DistillWeights, NetworkOutputs, distillation_loss, label_loss

TAXONOMY = Taxonomy(("a", "b", "c"), {"a": ("x", "y", "z"), "b": ("only",)})
SPEC = NetworkSpec("test_resnet", {}, 6, Preprocessing(32, (0.5,) * 3, (0.5,) * 3), TAXONOMY)
LABELS = BatchLabels(
    torch.tensor([0, 1, 0, 2, 0]), torch.tensor([2, 0, 1, -1, -1]), torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0])
)


@pytest.fixture(scope="module")
def networks() -> tuple[HierarchicalNetwork, HierarchicalNetwork]:
    torch.manual_seed(0)
    student, teacher = (HierarchicalNetwork(SPEC, projection=True).eval() for _ in range(2))
    return student, teacher


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 3, generator=generator), torch.randn(5, 6, generator=generator)


def head(network: HierarchicalNetwork, embedding: torch.Tensor, row: int) -> np.ndarray:
    return network.disease_heads["a"](embedding[row]).detach().numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_loss_equals_a_slow_loop(networks, smoothing: float):
    student, _ = networks
    logits, embedding = draw(1)

    def cross_entropy(values: np.ndarray, true: int) -> float:
        target = np.full(len(values), smoothing / len(values))
        target[true] += 1 - smoothing
        return float(-(target * log_softmax(values)).sum())

    total = 0.0
    for row in range(5):
        each = cross_entropy(logits[row].numpy(), int(LABELS.species[row]))
        if LABELS.species[row] == 0 and LABELS.disease[row] >= 0:
            each += cross_entropy(head(student, embedding, row), int(LABELS.disease[row]))
        total += float(LABELS.weight[row]) * each
    found = label_loss(student, NetworkOutputs(logits, embedding), LABELS, smoothing)
    assert float(found.detach()) == pytest.approx(total / 5, rel=1e-5)


def test_distillation_loss_equals_a_slow_loop(networks):
    student, teacher = networks
    (logits, embedding), (expected_logits, expected) = draw(1), draw(2)
    deviation = torch.tensor([0.5, 1, 2, 1, 1, 3])
    weights = DistillWeights(embedding=0.3, logits=0.7)
    total = 0.0
    for row in range(5):
        each = 0.7 * entropy(np.exp(log_softmax(expected_logits[row])), np.exp(log_softmax(logits[row])))
        if LABELS.species[row] == 0:
            pair = head(teacher, expected, row), head(student, embedding, row)
            each += 0.7 * entropy(*(np.exp(log_softmax(values)) for values in pair))
        each += 0.3 * float((((embedding[row] - expected[row]) / deviation) ** 2).mean())
        total += float(LABELS.weight[row]) * each
    teacher_outputs = NetworkOutputs(expected_logits, expected)
    found = distillation_loss(
        student, teacher, NetworkOutputs(logits, embedding), teacher_outputs, LABELS, deviation, weights
    )
    assert float(found.detach()) == pytest.approx(total / 5, rel=1e-5)


def test_a_student_that_answers_as_its_teacher_has_no_distance(networks):
    student, _ = networks
    logits, embedding = draw(1)
    same = distillation_loss(
        student,
        student,
        NetworkOutputs(logits, embedding),
        NetworkOutputs(logits, embedding),
        LABELS,
        torch.ones(6),
        DistillWeights(),
    )
    assert float(same.detach()) == pytest.approx(0, abs=1e-6)
