"""What people bring, as docs/intake.md lists it: each kind of checkpoint is read, or refused with a reason."""

import argparse
import enum
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from omegaconf import OmegaConf
from safetensors.torch import save_file

from plantmodels.checkpoint.reading import Checkpoint, read_checkpoint
from plantmodels.cli import main as cli
from plantmodels.errors import CheckpointError
from plantmodels.export.network import load_network

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(os.environ.get("PLANTMODELS_SHARED", ROOT.parent / "shared")) / "cases" / "checkpoints.py"


class Filter(enum.Enum):
    BICUBIC = "bicubic"


class AttributeDict(dict):
    """As Lightning's."""


FOREIGN: dict[str, tuple[Callable[[], object], str]] = {
    "Path": (lambda: Path("data"), "pathlib.PosixPath"),
    "OmegaConf": (lambda: OmegaConf.create({"a": [1]}), "omegaconf.dictconfig.DictConfig"),
    "Namespace": (lambda: argparse.Namespace(a=1), "argparse.Namespace"),
    "AttributeDict": (lambda: AttributeDict(a=1), "AttributeDict"),
    "partial": (lambda: functools.partial(torch.optim.AdamW, lr=1), "functools.partial"),
    "NumPy scalar": (lambda: np.float32(0.1), "scalar"),
    "NumPy array": (lambda: np.zeros(3), "numpy.ndarray"),
    "enum": (lambda: Filter.BICUBIC, "Filter"),
    "module": (lambda: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    "dtype": (lambda: torch.float16, "torch.float16"),
}


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.spec == expected.spec
    assert found.backbone.keys() == expected.backbone.keys()
    for name, tensor in expected.backbone.items():
        torch.testing.assert_close(found.backbone[name], tensor, rtol=0, atol=0)
    torch.testing.assert_close(found.species_head, expected.species_head, rtol=0, atol=0)


@pytest.fixture(scope="module")
def good(tiny_checkpoint: Path) -> Checkpoint:
    return read_checkpoint(tiny_checkpoint)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.filterwarnings("ignore")
def test_foreign_values_that_no_field_needs_stop_nothing(tiny_checkpoint_factory, good: Checkpoint, kind: str) -> None:
    make, _ = FOREIGN[kind]

    def edit(document: dict[str, Any]) -> None:
        document["hyper_parameters"] |= {"other": make(), "nested": {"deep": [make()]}}
        document |= {"optimizer_states": [make()], "callbacks": {"X": make()}, "loops": make(), "datamodule": make()}

    assert_same(read_checkpoint(tiny_checkpoint_factory(edit)), good)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("field", ["mean", "interpolation", "backbone_kwargs"])
@pytest.mark.filterwarnings("ignore")
def test_a_foreign_value_that_is_needed_is_named_with_a_way_out(tiny_checkpoint_factory, kind: str, field: str) -> None:
    make, name = FOREIGN[kind]
    path = tiny_checkpoint_factory(lambda document: document["hyper_parameters"].update({field: make()}))

    with pytest.raises(CheckpointError, match=rf"hyper_parameters\['{field}'\] holds .*{name}") as caught:
        read_checkpoint(path)
    first, *way_out = str(caught.value).splitlines()
    assert first.endswith("What to do:") and len(way_out) == 2
    assert way_out[0].startswith(f"  plantmodels describe {path} --write parameters.yaml")
    assert "--hyper-parameters parameters.yaml" in way_out[1]


def test_a_foreign_value_deep_inside_a_field_is_named_by_its_place(tiny_checkpoint_factory) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["hyper_parameters"]["backbone_kwargs"]["num_heads"] = (1, np.int64(1), 2, 2)

    with pytest.raises(CheckpointError, match=r"\['backbone_kwargs'\]\['num_heads'\]\[1\] holds "):
        read_checkpoint(tiny_checkpoint_factory(edit))


@pytest.mark.filterwarnings("ignore")
def test_the_way_out_works(tiny_checkpoint_factory, good: Checkpoint, tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["hyper_parameters"]["mean"] = np.array(document["hyper_parameters"]["mean"])

    path, parameters = tiny_checkpoint_factory(edit), tmp_path / "parameters.yaml"
    ran = CliRunner().invoke(cli, ["describe", str(path), "--write", str(parameters)])
    assert ran.exit_code == 0 and f"wrote {parameters}" in ran.output
    assert "mean holds an object that is not read: numpy.ndarray" in ran.output
    with pytest.raises(CheckpointError, match=r"still to be filled in: mean$"):
        read_checkpoint(path, parameters)
    values = yaml.safe_load(parameters.read_text()) | {"mean": list(good.spec.preprocessing.mean)}
    parameters.write_text(yaml.safe_dump(values))

    found = read_checkpoint(path, parameters)
    assert (found.spec.taxonomy, found.spec.preprocessing) == (good.spec.taxonomy, good.spec.preprocessing)
    again = CliRunner().invoke(cli, ["describe", str(path), "--write", str(parameters)])
    assert again.exit_code == 1 and "exists and is not replaced" in again.output


def test_hyper_parameters_that_are_one_foreign_object_are_named(tiny_checkpoint_factory) -> None:
    path = tiny_checkpoint_factory(lambda document: document.update(hyper_parameters=OmegaConf.create({"a": 1})))

    with pytest.raises(CheckpointError, match=r"hyper_parameters is omegaconf\.dictconfig\.DictConfig"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
@pytest.mark.parametrize("place", ["top", "state_dict", "model"])
def test_a_bare_state_dict_with_a_file_of_hyper_parameters(
    tiny_document, good: Checkpoint, tmp_path: Path, suffix: str, place: str
) -> None:
    state = tiny_document["state_dict"]
    torch.save(state if place == "top" else {place: state, "epoch": 3}, tmp_path / "weights.pt")
    parameters = tmp_path / f"mine{suffix}"
    plain = json.loads(json.dumps(tiny_document["hyper_parameters"]))
    parameters.write_text(json.dumps(plain) if suffix == ".json" else yaml.safe_dump(plain))

    found = read_checkpoint(tmp_path / "weights.pt", parameters)
    assert found.spec.taxonomy == good.spec.taxonomy and found.parameters_sha256 is not None
    torch.testing.assert_close(found.species_head, good.species_head, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="expected a dict with 'hyper_parameters'"):
        read_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["net.json", "hyper_parameters.json", "config.json", "hparams.yaml"])
def test_safetensors_with_a_file_beside_it(tiny_document, good: Checkpoint, tmp_path: Path, name: str) -> None:
    save_file(tiny_document["state_dict"], tmp_path / "net.safetensors")
    (tmp_path / name).write_text(json.dumps(tiny_document["hyper_parameters"]))

    found = read_checkpoint(tmp_path / "net.safetensors")
    assert found.spec.taxonomy == good.spec.taxonomy
    torch.testing.assert_close(found.species_head, good.species_head, rtol=0, atol=0)


def test_a_folder_of_hugging_face_s(tiny_document, good: Checkpoint, tmp_path: Path) -> None:
    state = tiny_document["state_dict"]
    names = sorted(state)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(tiny_document["hyper_parameters"] | {"architecture": "x"}))

    torch.testing.assert_close(read_checkpoint(tmp_path).species_head, good.species_head, rtol=0, atol=0)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret"}}')
    with pytest.raises(CheckpointError, match=r"'../secret' is not a file beside it"):
        read_checkpoint(tmp_path)


def test_damaged_safetensors_and_parameters_are_refused(tiny_document, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: not a safetensors file"):
        read_checkpoint(path)
    save_file(tiny_document["state_dict"], path)
    with pytest.raises(CheckpointError, match="expected a dict with 'hyper_parameters'"):
        read_checkpoint(path)
    for content, match in (
        ("[1]", "expected an object"),
        ("{", "not the hyper-parameters expected"),
        ("{}", "lack backbone"),
    ):
        (tmp_path / "net.json").write_text(content)
        with pytest.raises(CheckpointError, match=match):
            read_checkpoint(path)


def add_copies(prefixes: tuple[str, str]) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        state, (trained, averaged) = document["state_dict"], prefixes
        doubled = {
            averaged + name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in state.items()
        }
        document["state_dict"] = {trained + name: tensor for name, tensor in state.items()} | doubled

    return edit


@pytest.mark.parametrize("prefixes", [("", "ema_model."), ("model.", "model_ema.module.")])
def test_the_averaged_copy_in_state_dict(tiny_checkpoint_factory, good: Checkpoint, prefixes: tuple[str, str]) -> None:
    path = tiny_checkpoint_factory(add_copies(prefixes))
    assert_same(read_checkpoint(path), good)
    found = read_checkpoint(path, weights="ema")

    torch.testing.assert_close(found.species_head[0], good.species_head[0] * 2)
    assert found.weights == "ema" and "tensors: " in found.ignored


@pytest.mark.parametrize("entry", ["state_dict_ema", "ema_state_dict", "callback"])
def test_an_averaged_copy_beside_state_dict(tiny_checkpoint_factory, good: Checkpoint, entry: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        copy = {f"model.{n}": t * 2 if t.is_floating_point() else t for n, t in document["state_dict"].items()}
        document |= {"callbacks": {"EMA": {"ema_state_dict": copy}}} if entry == "callback" else {entry: copy}

    found = read_checkpoint(tiny_checkpoint_factory(edit), weights="ema")
    torch.testing.assert_close(found.species_head[0], good.species_head[0] * 2)


def test_an_averaged_copy_that_is_not_there(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights 'ema' in state_dict"):
        read_checkpoint(tiny_checkpoint, weights="ema")


def earlier(name: str) -> str:
    parts = name.split(".")
    if parts[:2] == ["backbone", "layers"] and parts[3] == "downsample":
        parts[2] = str(int(parts[2]) - 1)
    return ".".join(parts)


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_names_of_timm_0_6_and_microsoft(tiny_checkpoint_factory, good: Checkpoint, moved: bool, stored: bool) -> None:
    def edit(document: dict[str, Any]) -> None:
        values = document["hyper_parameters"]
        network = timm.create_model(values["backbone"], num_classes=0, **values["backbone_kwargs"])
        buffers = {f"backbone.{name}": value for name, value in network.named_buffers()} if stored else {}
        rename = earlier if moved else str
        document["state_dict"] = {rename(name): tensor for name, tensor in document["state_dict"].items()} | buffers

    network, expected = load_network(read_checkpoint(tiny_checkpoint_factory(edit))), load_network(good)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=0, atol=0)


def test_what_still_does_not_fit_says_who_wrote_it(tiny_checkpoint_factory) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["state_dict"] = {earlier(name): tensor for name, tensor in document["state_dict"].items()}
        document["hyper_parameters"]["backbone_kwargs"]["depths"] = (1, 1, 2, 1)

    with pytest.raises(
        CheckpointError, match=r"layers.0.downsample.* were written by timm up to 0.6, or Microsoft's Swin"
    ):
        load_network(read_checkpoint(tiny_checkpoint_factory(edit)))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("place", ["", "backbone.", "backbone.layers.0."])
def test_wrappers_at_any_depth(tiny_checkpoint_factory, good: Checkpoint, wrapper: str, place: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        state = document["state_dict"]
        document["state_dict"] = {
            name.replace(place, f"{place}{wrapper}.", 1) if place else f"{wrapper}.{name}": t
            for name, t in state.items()
        }

    network = load_network(read_checkpoint(tiny_checkpoint_factory(edit)))
    torch.testing.assert_close(network.state_dict(), load_network(good).state_dict(), rtol=0, atol=0)


def test_losses_metrics_and_buffers_are_ignored_and_named(tiny_checkpoint_factory, good: Checkpoint) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["state_dict"] |= {
            "criterion.weight": torch.ones(4),
            "pixel_mean": torch.full((3,), torch.nan),
            "val_accuracy._extra_state": Path("x"),
        }

    found = read_checkpoint(tiny_checkpoint_factory(edit))
    assert_same(found, good)
    assert found.ignored == "3 tensors: criterion.weight, pixel_mean, val_accuracy._extra_state"


WANTED = {
    "path_hparam": "read",
    "criterion": "read",
    "compiled": "read",
    "timm06": "read",
    "mean255": "scale 0 to 255",
    "reversed": "read",  # the order of the classes is checked against the leaves, by export
}


@pytest.mark.skipif(not CASES.is_file(), reason="no shared cases")
@pytest.mark.real
def test_the_shared_cases(tiny_checkpoint: Path, good: Checkpoint, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(CASES), str(tiny_checkpoint), str(tmp_path)], check=True)
    assert {path.stem for path in tmp_path.glob("*.ckpt")} == set(WANTED)
    for name, wanted in WANTED.items():
        if wanted == "read":
            load_network(read_checkpoint(tmp_path / f"{name}.ckpt"))
        else:
            with pytest.raises(CheckpointError, match=wanted):
                read_checkpoint(tmp_path / f"{name}.ckpt")


def test_describe_prints_what_was_found_and_a_template(tiny_document, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(
        {f"model.{name}": tensor for name, tensor in tiny_document["state_dict"].items()} | {"n": torch.ones(1)}, path
    )
    ran = CliRunner().invoke(cli, ["describe", str(path)])

    assert ran.exit_code == 0, ran.output
    assert "prefix 'model.': backbone." in ran.output and "disease_heads. 8" in ran.output
    assert "other        1 tensor: n" in ran.output
    assert "linear       model.species_head: 32 features to 5 outputs" in ran.output
    assert "species      species_head has 5 outputs" in ran.output
    template = yaml.safe_load(ran.output.partition("FILE.yaml:")[2])
    assert template["embedding_dim"] == 32 and template["species"] == ["FILL IN"] * 5
    assert [len(names) for names in template["diseases"].values()] == [2, 3, 1, 2]
    assert list(template["diseases"])[3] == "Aloe sp_ 2"
