"""What training minimises: the labels' cross-entropies, and, for a student, its distance from a teacher.

>>> loss = label_loss(network, answers, labels)  # doctest: +SKIP
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.dataset import NO_DISEASE


@dataclass(frozen=True)
class Answers:
    """A network's answers to a batch: species logits (B, species) and embedding (B, D), float32."""

    species_logits: torch.Tensor
    embedding: torch.Tensor

    def disease_logits(
        self, network: HierarchicalNetwork, species: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yields, of each true species with two diseases or more, index, rows (b,) and its head's logits (b, N)."""
        taxonomy = network.spec.taxonomy
        for index in torch.unique(species).tolist():
            if len(taxonomy.diseases_of(index)) > 1:
                rows = torch.nonzero(species == index)[:, 0]
                yield index, rows, network.disease_heads[taxonomy.slugs[index]](self.embedding[rows])


@dataclass(frozen=True)
class Labels:
    """True classes of a batch (B,), disease −1 where there is none, and each picture's weight in the loss (B,)."""

    species: torch.Tensor
    disease: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Lesson:
    """A teacher's answers to a batch: species logits (B, species), embedding (B, D), float32."""

    species_logits: torch.Tensor
    embedding: torch.Tensor


@dataclass(frozen=True)
class DistillWeights:
    """How much each part of a student's loss counts.

    Attributes:
        embedding: mean square difference of the embeddings, in units of the teacher's deviation of each component.
        logits: Kullback-Leibler divergence of the student's species and disease probabilities from the teacher's.
        labels: the labels' cross-entropies.
    """

    embedding: float = 0.5
    logits: float = 0.5
    labels: float = 1.0


def label_loss(network: HierarchicalNetwork, answers: Answers, labels: Labels, smoothing: float = 0.0) -> torch.Tensor:
    """Weighted mean over the batch of the species' cross-entropy and that of the true species' head.

    Args:
        network: for its heads.
        answers: its answers.
        labels: true classes and weights.
        smoothing: share of the target that is spread evenly over all classes.
    """

    def entropies(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, classes, reduction="none", label_smoothing=smoothing)

    total = (labels.weight * entropies(answers.species_logits, labels.species)).sum()
    for _, rows, logits in answers.disease_logits(network, labels.species):
        keep = labels.disease[rows] != NO_DISEASE
        given = rows[keep]
        total = total + (labels.weight[given] * entropies(logits[keep], labels.disease[given])).sum()
    return total / len(labels.species)


def lesson_loss(
    network: HierarchicalNetwork,
    teacher: HierarchicalNetwork,
    answers: Answers,
    lesson: Lesson,
    labels: Labels,
    deviation: torch.Tensor,
    weights: DistillWeights,
) -> torch.Tensor:
    """Distance of a student's answers from its teacher's, by `weights.embedding` and `weights.logits`.

    Args:
        network: the student, for its heads.
        teacher: for its heads, which are asked about the teacher's embedding.
        answers: the student's.
        lesson: the teacher's.
        labels: the heads of the true species are compared.
        deviation: (D,) of the teacher's embedding.
        weights: of the parts.

    References:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (the embedding).
    """
    count = len(labels.species)
    divergence = (labels.weight * _divergence(answers.species_logits, lesson.species_logits)).sum()
    for index, rows, logits in answers.disease_logits(network, labels.species):
        head = teacher.disease_heads[teacher.spec.taxonomy.slugs[index]]
        with torch.no_grad():
            expected = head(lesson.embedding[rows])
        divergence = divergence + (labels.weight[rows] * _divergence(logits, expected)).sum()
    square = (((answers.embedding - lesson.embedding) / deviation) ** 2).mean(dim=1)
    return weights.logits * divergence / count + weights.embedding * (labels.weight * square).mean()


def _divergence(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """KL(expected ‖ logits) of each row (B,)."""
    log_p, log_q = (functional.log_softmax(values, dim=1) for values in (expected, logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
