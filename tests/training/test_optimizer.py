"""Checks Muon against PyTorch's, and the schedule of the learning rate."""

import numpy as np
import pytest
import torch
from torch import nn

from plantmodels.training.optimizer import Muon, orthogonalize, schedule_rate

BFLOAT16_STEP = 0.05


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonalize_keeps_singular_vectors_and_evens_their_values(shape: tuple[int, int]):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    core = (u.T @ orthogonalize(matrix) @ v.T).numpy()
    values = np.diag(core)
    np.testing.assert_allclose(core, np.diag(values), atol=1e-9)
    assert values.min() > 0.3 and values.max() < 1.3


def test_a_zero_gradient_moves_nothing_but_decays():
    weight = nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    Muon([weight], learning_rate=0.1, weight_decay=0.5).step()
    np.testing.assert_allclose(weight.detach(), 0.95, rtol=1e-6)


def test_agrees_with_torchs_muon():
    """torch computes the step in bfloat16, hence the tolerance; the sizes of the steps must agree closely."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(16, 48, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([mine], learning_rate=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        gradient = torch.randn(16, 48, generator=generator)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved, expected = (mine - start).detach(), (theirs - start).detach()
    assert float((moved - expected).norm() / expected.norm()) < BFLOAT16_STEP


def test_solves_a_linear_problem():
    generator = torch.Generator().manual_seed(2)
    inputs, true = torch.randn(64, 6, generator=generator), torch.randn(4, 6, generator=generator)
    weight = nn.Parameter(torch.zeros(4, 6))
    optimizer = Muon([weight], learning_rate=0.1, weight_decay=0)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * schedule_rate(step, 150)
        optimizer.zero_grad()
        (inputs @ weight.T - inputs @ true.T).square().mean().backward()
        optimizer.step()
    np.testing.assert_allclose(weight.detach(), true, atol=0.15)  # Newton-Schulz leaves values of 0.7 to 1.2


def test_a_parameter_without_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], learning_rate=0.1).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_only_matrices_are_taken():
    with pytest.raises(ValueError, match=r"matrices only, got a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], learning_rate=0.1)


@pytest.mark.parametrize("steps", [1, 2, 10, 300])
def test_the_schedule_rises_then_falls(steps: int):
    factors = [schedule_rate(step, steps) for step in range(steps)]
    peak = int(np.argmax(factors))
    assert max(factors) == 1.0 and min(factors) > 0 and peak <= 0.1 * steps
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] < 0.01 or steps < 100
