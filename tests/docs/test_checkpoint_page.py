"""The module and the script of docs/checkpoint.md work, and the errors in its table are those of the code."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.export.network import load_network

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
SPECIES = ["Pepper, bell", "Mint", "Aloe sp. 2"]
DISEASES = {"Pepper, bell": ["healthy", "Bacterial spot"], "Aloe sp. 2": ["rot"]}


class LightningModule(torch.nn.Module):
    """Stands for Lightning's: keeps what `__init__` was given."""

    def save_hyperparameters(self) -> None:
        frame = inspect.currentframe().f_back
        names = inspect.signature(type(self).__init__).parameters
        values = {name: frame.f_locals[name] for name in names if name != "self"}
        self.hparams = type("Parameters", (dict,), {"__getattr__": dict.__getitem__})(values)


@pytest.fixture
def module(code_blocks, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    lightning = ModuleType("lightning")
    lightning.LightningModule = LightningModule
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    names: dict = {}
    exec(code_blocks("checkpoint.md", "python")[0], names)
    torch.manual_seed(0)
    return names["HierarchicalClassifier"](
        SPECIES, DISEASES, backbone_kwargs=SMALL, embedding_dim=32, pretrained=False
    ).eval()


def test_the_module_gives_a_checkpoint_that_answers_alike(module: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 1, "state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    network = load_network(read_checkpoint(path))
    images = torch.rand(2, 3, 224, 224)

    with torch.inference_mode():
        for found, expected in zip(network(images), module(images), strict=True):
            torch.testing.assert_close(found, expected)


def test_the_module_learns(module: torch.nn.Module) -> None:
    batch = (torch.rand(3, 3, 224, 224), torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0]))
    optimizer = module.configure_optimizers()
    losses = []
    for _ in range(3):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]


def test_the_script_converts_a_bare_state_dict(
    code_blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script = code_blocks("checkpoint.md", "python")[1]
    backbone = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **SMALL)
    weights = {f"encoder.{name}": tensor for name, tensor in backbone.state_dict().items()}
    heads = {"proj": (768, 128), "heads.species": (2, 768), "heads.disease.Apple": (2, 768)}
    for name, shape in (heads | {"heads.disease.Tomato": (3, 768), "loss": (2, 2)}).items():
        weights |= {f"{name}.weight": torch.rand(shape), f"{name}.bias": torch.rand(shape[0])}
    torch.save(weights, "weights.pt")

    exec(script.replace('"backbone_kwargs": {}', f'"backbone_kwargs": {SMALL}'), {})

    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint.spec.taxonomy.diseases["Tomato"] == ("late blight", "healthy", "mosaic virus")
    assert "left out: loss.weight, loss.bias" in capsys.readouterr().out
    load_network(checkpoint)


def test_every_error_in_the_table_is_one_of_the_code() -> None:
    page = (ROOT / "docs" / "checkpoint.md").read_text(encoding="utf-8").partition("## What the errors mean")[2]
    messages = re.findall(r"^\| `(.+?)`", page, re.MULTILINE)
    sources = [
        path
        for room in ("checkpoint", "export", "bundle", "data")
        for path in (ROOT / "plantmodels" / room).glob("*.py")
    ]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)

    assert len(messages) > 10
    assert [message for message in messages if message not in code] == []
