"""Checkpoints that the `lightning` package itself writes are read, and answer as the module in PyTorch does."""

import argparse
import enum
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import CheckpointError
from plantmodels.export.network import load_network
from tests.fixtures.checkpoints import TINY_PARAMETERS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")


class Optimizer(enum.Enum):
    ADAM = "adam"


class Configuration(dict):
    """As Lightning's AttributeDict: a dict with a name of its own."""


class LeafModule(lightning.LightningModule):
    """A hierarchical classifier, with a loss that has weights, and any further hyper-parameter."""

    def __init__(
        self, species: list, diseases: dict, extra: object = None, compiled: bool = False, **fields: Any
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Module()
        self.model.backbone = timm.create_model(fields["backbone"], num_classes=0, **fields["backbone_kwargs"])
        self.model.projection = nn.Linear(self.model.backbone.num_features, fields["embedding_dim"])
        self.model.species_head = nn.Linear(fields["embedding_dim"], len(species))
        self.model.disease_heads = nn.ModuleDict(
            {name.replace(".", "_"): nn.Linear(fields["embedding_dim"], len(d)) for name, d in diseases.items()}
        )
        if compiled:
            self.model.backbone = torch.compile(self.model.backbone)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(len(species)))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.model.projection(self.model.backbone(images))
        return self.model.species_head(embedding), embedding

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.model.species_head.weight.square().mean() + self.model.projection.weight.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class OwnCallback(lightning.Callback):
    """A callback whose state holds objects of its own."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": Path("best.ckpt"), "history": [np.float64(0.5)], "module": nn.Linear(1, 1)}


class Images(lightning.LightningDataModule):
    """A data module with hyper-parameters of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(torch.zeros(4, 1), batch_size=2)


KINDS: dict[str, Callable[[], object]] = {
    "Path": lambda: Path("data"),
    "OmegaConf": lambda: OmegaConf.create({"lr": 0.1, "steps": [1, 2]}),
    "Namespace": lambda: argparse.Namespace(lr=0.1),
    "AttributeDict": lambda: Configuration(lr=0.1),
    "partial": lambda: functools.partial(torch.optim.AdamW, lr=0.1),
    "NumPy scalar": lambda: np.float32(0.1),
    "NumPy array": lambda: np.zeros(3),
    "enum": lambda: Optimizer.ADAM,
    "module": lambda: nn.Linear(2, 2),
}


def train(folder: Path, module: LeafModule, *callbacks: lightning.Callback, data: Any = None) -> Path:
    """Train two steps and let Lightning write its checkpoint."""
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data or Images(folder))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def assert_same_answers(path: Path, module: nn.Module, weights: str = "model") -> None:
    network = load_network(read_checkpoint(path, weights=weights))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for found, expected in zip(network(images), module.eval()(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_hyper_parameter(kind: str, tmp_path: Path) -> None:
    module = LeafModule(**TINY_PARAMETERS, extra=KINDS[kind]())
    path = train(tmp_path, module)

    assert {"optimizer_states", "loops", "datamodule_hyper_parameters"} <= set(torch.load(path, weights_only=False))
    assert_same_answers(path, module)
    assert read_checkpoint(path).ignored == "1 tensor: criterion.weight"


def test_callbacks_of_its_own(tmp_path: Path) -> None:
    module = LeafModule(**TINY_PARAMETERS)

    assert_same_answers(train(tmp_path, module, OwnCallback()), module)


def test_a_compiled_network(tmp_path: Path) -> None:
    module = LeafModule(**TINY_PARAMETERS, compiled=True)
    path = train(tmp_path, module)
    assert any("_orig_mod" in name for name in torch.load(path, weights_only=False)["state_dict"])

    module.model.backbone = module.model.backbone._orig_mod
    assert_same_answers(path, module)


def test_averaged_weights(tmp_path: Path) -> None:
    """Lightning's own callback puts the average into state_dict, and the trained weights beside it."""
    module = LeafModule(**TINY_PARAMETERS)
    path = train(tmp_path, module, lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.5))
    document = torch.load(path, weights_only=False)
    assert {"current_model_state", "averaging_state"} <= set(document)
    module.load_state_dict(document["state_dict"])

    assert_same_answers(path, module)
    assert_same_answers(path, module, weights="ema")


def test_hyper_parameters_as_one_omegaconf_object_are_refused_by_name(tmp_path: Path) -> None:
    module = LeafModule(**TINY_PARAMETERS)
    module._hparams = OmegaConf.create({"lr": 0.1})

    with pytest.raises(CheckpointError, match=r"hyper_parameters is omegaconf\.dictconfig\.DictConfig, which is not"):
        read_checkpoint(train(tmp_path, module))
