"""The parts of the loss that training minimizes.

They are cross-entropies with the labels, for a student its distance from a teacher, and with non-plants how badly
these are told from plants.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.dataset import NO_DISEASE


class ExposedNetwork(HierarchicalNetwork):
    """A network with one more logit of the embedding, high for non-plants. It exists only while a network is trained.

    The logit makes the embeddings of plants and non-plants lie apart, which is what the served detector needs: it is
    fitted on embeddings.
    """

    def __init__(self, spec: NetworkSpec, *, projection: bool) -> None:
        """Build the layers with random weights, as `HierarchicalNetwork` does, and the further logit."""
        super().__init__(spec, projection=projection)
        self.non_plant_head = nn.Linear(spec.embedding_dim, 1)

    def network_state(self) -> dict[str, torch.Tensor]:
        """Return the `state_dict` without the further logit, as a checkpoint holds it."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("non_plant_head.")}


@dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of a network for B images.

    Attributes:
        species_logits: (B, S) float32.
        embedding: (B, D) float32.
    """

    species_logits: torch.Tensor
    embedding: torch.Tensor

    def disease_logits(
        self, network: HierarchicalNetwork, species: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield, for each species with at least two diseases, its index, its rows (b,) and its head's logits (b, N).

        Args:
            network: network whose heads are used.
            species: (B,) true species of each image.
        """
        taxonomy = network.spec.taxonomy
        for index in torch.unique(species).tolist():
            if len(taxonomy.diseases_of(index)) > 1:
                rows = torch.nonzero(species == index)[:, 0]
                yield index, rows, network.disease_heads[taxonomy.slugs[index]](self.embedding[rows])


@dataclass(frozen=True)
class BatchLabels:
    """True classes of the B images of a batch, and how much each image counts.

    Attributes:
        species: (B,) index of the species.
        disease: (B,) index of the disease among those of its species, −1 without a disease.
        weight: (B,) weight of each image in the loss.
    """

    species: torch.Tensor
    disease: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class DistillWeights:
    """How much each part of a student's loss counts.

    Attributes:
        embedding: weight of the mean square difference of the embeddings, in units of the standard deviation of each
            component of the teacher's embedding.
        logits: weight of the Kullback-Leibler divergence of the student's species and disease probabilities from the
            teacher's.
        labels: weight of the cross-entropies with the labels.
    """

    embedding: float = 0.5
    logits: float = 0.5
    labels: float = 1.0


def label_loss(
    network: HierarchicalNetwork, outputs: NetworkOutputs, labels: BatchLabels, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the weighted mean of two cross-entropies: of the species, and of the disease by the true species' head.

    Args:
        network: network whose heads are used.
        outputs: its outputs for the batch.
        labels: true classes and weights.
        smoothing: share of the target that is spread evenly over all classes.
    """

    def cross_entropies(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, classes, reduction="none", label_smoothing=smoothing)

    total = (labels.weight * cross_entropies(outputs.species_logits, labels.species)).sum()
    for _, rows, logits in outputs.disease_logits(network, labels.species):
        has_disease = labels.disease[rows] != NO_DISEASE
        diseased = rows[has_disease]
        entropies = cross_entropies(logits[has_disease], labels.disease[diseased])
        total = total + (labels.weight[diseased] * entropies).sum()
    return total / len(labels.species)


def distillation_loss(
    network: HierarchicalNetwork,
    teacher: HierarchicalNetwork,
    outputs: NetworkOutputs,
    teacher_outputs: NetworkOutputs,
    labels: BatchLabels,
    deviation: torch.Tensor,
    weights: DistillWeights,
) -> torch.Tensor:
    """Return the distance of a student's outputs from its teacher's, weighted by `weights.embedding` and `.logits`.

    Args:
        network: the student, whose heads are used.
        teacher: the teacher, whose heads are applied to the teacher's embedding.
        outputs: outputs of the student for the batch.
        teacher_outputs: outputs of the teacher for the batch.
        labels: true classes; the heads of the true species are compared.
        deviation: (D,) standard deviation of the teacher's embedding.
        weights: weights of the parts.

    References:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (the embedding).
    """
    count = len(labels.species)
    divergence = (labels.weight * _divergence(outputs.species_logits, teacher_outputs.species_logits)).sum()
    for index, rows, logits in outputs.disease_logits(network, labels.species):
        head = teacher.disease_heads[teacher.spec.taxonomy.slugs[index]]
        with torch.no_grad():
            expected = head(teacher_outputs.embedding[rows])
        divergence = divergence + (labels.weight[rows] * _divergence(logits, expected)).sum()
    square = (((outputs.embedding - teacher_outputs.embedding) / deviation) ** 2).mean(dim=1)
    return weights.logits * divergence / count + weights.embedding * (labels.weight * square).mean()


def exposure_loss(network: ExposedNetwork, plants: torch.Tensor, non_plants: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of the non-plant logit: the mean over plants and the mean over non-plants, averaged.

    Args:
        network: network whose `non_plant_head` is used.
        plants: (B, D) embedding of leaves.
        non_plants: (M, D) embedding of non-plants.

    References:
        Hendrycks, Mazeika and Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019. They ask for even
        softmax probabilities of outliers; here the embedding is what the served detector reads.
    """
    return (
        functional.softplus(network.non_plant_head(plants)).mean()
        + functional.softplus(-network.non_plant_head(non_plants)).mean()
    ) / 2


def _divergence(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return KL(expected ‖ logits) of each row, (B,)."""
    log_p, log_q = (functional.log_softmax(values, dim=1) for values in (expected, logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
