"""Muon, AdamW beside it, and the learning-rate schedule: how a network's weights move.

Muon is momentum whose step for a matrix is orthogonalised.

From scratch on the drawn leaves it needs half the epochs of AdamW (after ten: 0.92 of species against 0.80).
torch.optim.Muon computes in bfloat16 whatever the machine, which takes seconds a step where the CPU has no such
instructions; here the dtype is an argument.

>>> optimizer = Muon([weight], learning_rate=3e-3, dtype=torch.float32)  # doctest: +SKIP

References:
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982 (the factor 0.2 · sqrt(max side), by which
    a step is as large as AdamW's).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import nn

from plantmodels.export.network import HierarchicalNetwork

_QUINTIC: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5
_WEIGHT_DECAY: Final = 0.05
_OTHER_RATE: Final = 0.25
"""Learning rate of AdamW, which moves all that is no hidden matrix, as a share of Muon's."""


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Brings all singular values near 1 (0.7 to 1.2) and keeps the singular vectors.

    Newton-Schulz: five times `X ← aX + b(XXᵀ)X + c(XXᵀ)²X`, from `X = M / ‖M‖`.

    Args:
        matrix: (m, n), computed in its own dtype.
    """
    a, b, c = _QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class Muon(torch.optim.Optimizer):
    """`W ← (1 − ηλ) W − 0.2 η sqrt(max(m, n)) · orthogonalise(Nesterov momentum)` for matrices W (m, n)."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.02,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Takes matrices only.

        Args:
            params: two-dimensional parameters of hidden layers.
            learning_rate: of AdamW's size.
            weight_decay: λ, decoupled.
            momentum: share of the old gradient that is kept.
            dtype: in which a step is orthogonalised.

        Raises:
            ValueError: a parameter that is not a matrix.
        """
        super().__init__(params, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    raise ValueError(f"Muon takes matrices only, got a parameter of shape {tuple(matrix.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step; a parameter without a gradient stays as it is."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._step_one(matrix, group)
        return loss

    def _step_one(self, matrix: torch.nn.Parameter, group: dict[str, Any]) -> None:
        gradient = matrix.grad
        assert gradient is not None  # for the type checker; `step` looked
        state = self.state[matrix]
        average = state.setdefault("momentum", torch.zeros_like(matrix))
        average.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonalise(gradient.lerp(average, group["momentum"]).to(self._dtype)).to(matrix.dtype)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-0.2 * group["lr"] * math.sqrt(max(matrix.shape)))


def warmed_cosine(step: int, steps: int, warmup: float = 0.08) -> float:
    """Factor on the learning rate: rises to 1 over the first part of training, then falls to 0 as a cosine.

    Args:
        step: 0 to steps - 1.
        steps: of the whole training.
        warmup: share of the steps that rise.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies matrices of it faster, else float32.

    That is CUDA that says so, and CPUs with AMX: with AVX-512's instructions alone a step took 1.8 times as long.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def make_optimizers(
    network: HierarchicalNetwork, learning_rate: float, device: torch.device
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the backbone, AdamW for all else; biases and position tables do not decay.

    Args:
        network: on its device.
        learning_rate: Muon's; a quarter of it is AdamW's.
        device: decides in which dtype steps are orthogonalised.
    """
    backbone: Any = network.backbone
    exempt = (
        {f"backbone.{name}" for name in backbone.no_weight_decay()} if hasattr(backbone, "no_weight_decay") else set()
    )
    groups: dict[str, list[nn.Parameter]] = {"hidden": [], "decayed": [], "plain": []}
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2 or name in exempt or name.endswith("relative_position_bias_table"):
            groups["plain"].append(parameter)
        elif parameter.ndim == 2 and name.startswith("backbone."):
            groups["hidden"].append(parameter)
        else:
            groups["decayed"].append(parameter)
    rate = learning_rate * _OTHER_RATE
    others = [
        {"params": groups["decayed"], "weight_decay": _WEIGHT_DECAY},
        {"params": groups["plain"], "weight_decay": 0},
    ]
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98))
    if not groups["hidden"]:
        return (adam,)
    return Muon(groups["hidden"], learning_rate=learning_rate, dtype=fast_dtype(device)), adam
