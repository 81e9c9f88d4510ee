"""Whole exports, as people run them: of folders as they have them, and of weights that are not the usual ones."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from plantmodels.bundle.metadata import read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.cli import main
from plantmodels.data.leaves import read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.export.network import load_network
from plantmodels.report.gate_report import read_report
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.preprocessing import decode_image, preprocess

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(os.environ.get("PLANTMODELS_SHARED", ROOT.parent / "shared")) / "cases" / "data.py"

Places = tuple[Path, Path]
"""Leaf folders and non-plants."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def have_own_cases(tiny_bundle, out: Path) -> Places:
    """Leaves and non-plants with one thing of each kind that people have."""
    data, non_plants = (
        Path(shutil.copytree(source, out / source.name)) for source in (tiny_bundle.data, tiny_bundle.non_plants)
    )
    (data / "train").rename(data / "Training")
    (data / "val").rename(data / "dev")
    train = data / "Training"
    leaf = min((train / "Mint___unlabelled").glob("*.jpg"))
    shutil.copy(leaf, os.fsencode(leaf.parent) + b"/caf\xe9.jpg")
    leaf.rename(leaf.with_suffix(".jfif"))
    leaf.with_name("empty.jpg").touch()
    leaf.with_name("photo.jpg?w=300").touch()
    (train / ".ipynb_checkpoints").mkdir()
    blueberry = next(train.glob("Blueberry*"))
    blueberry.rename(out / "elsewhere")
    blueberry.symlink_to(out / "elsewhere")
    (non_plants / ".ipynb_checkpoints").mkdir()
    shutil.copy(min(non_plants.glob("noise/*")), non_plants / ".ipynb_checkpoints")
    (non_plants / "bricks").rename(out / "bricks elsewhere")
    (non_plants / "bricks").symlink_to(out / "bricks elsewhere")
    return data, non_plants


def run_shared_cases(leaves: Path, non_plants: Path, out: Path) -> None:
    if not CASES.is_file():
        pytest.skip("no shared cases")
    subprocess.run([sys.executable, str(CASES), str(leaves), str(non_plants), str(out)], check=True)


def have_shared_cases(tiny_bundle, out: Path) -> Places:
    """Names that are not UTF-8, an unreadable leaf and a linked source."""
    run_shared_cases(tiny_bundle.data, tiny_bundle.non_plants, out)
    data = out / "unreadable" / "data"
    (named,) = (path for path in (out / "non_utf8" / "data").rglob("caf*"))
    shutil.copy(named, data / named.relative_to(out / "non_utf8" / "data"))
    return data, out / "linked_source" / "non_plants"


@pytest.mark.slow
@pytest.mark.parametrize("build", [have_own_cases, pytest.param(have_shared_cases, marks=pytest.mark.real)])
def test_folders_as_people_have_them(tiny_bundle, tmp_path: Path, build: Callable[..., Places]) -> None:
    data, non_plants = build(tiny_bundle, tmp_path)
    options = ("--data", data, "--non-plants", non_plants, "--checkpoint", tiny_bundle.checkpoint)
    exported = run("export", *options, "--bundle", tmp_path / "models")
    assert exported.exit_code == 0, exported.output
    assert exported.output.count("zero bytes") == 1 and "Traceback" not in exported.output
    if build is have_own_cases:
        left_out = r"train: 1 of 183 files \(0\.5%\) is not taken as an image: 1 \.jpg\?w=300 \(.*photo\.jpg\?w=300\)"
        assert len(re.findall(left_out, exported.output)) == 1

    verified = run("verify", *options, "--bundle", tmp_path / "models")
    assert verified.exit_code in (0, 1) and "Traceback" not in verified.output, verified.output
    report, taxonomy = read_report(tmp_path / "models"), read_metadata(tmp_path / "models").taxonomy
    assert [image.reason for image in report.unreadable] == ["zero bytes: expected an encoded image"]
    leaves = read_leaves(data, "train", taxonomy).paths
    assert len(leaves) == (182 if build is have_own_cases else 181) and any("\udce9" in path.name for path in leaves)
    assert len(read_non_plants(non_plants).paths) == 48 and report.rejection is not None


def have_own_leak(tiny_bundle, out: Path) -> Path:
    data = Path(shutil.copytree(tiny_bundle.data, out / "data"))
    shutil.rmtree(data / "val")
    return Path(shutil.copytree(data / "train", data / "val")).parent


def have_shared_leak(tiny_bundle, out: Path) -> Path:
    run_shared_cases(tiny_bundle.data, tiny_bundle.non_plants, out)
    return out / "leak" / "data"


@pytest.mark.slow
@pytest.mark.parametrize("build", [have_own_leak, pytest.param(have_shared_leak, marks=pytest.mark.real)])
def test_validation_that_is_training(tiny_bundle, tmp_path: Path, build: Callable[..., Path]) -> None:
    bundle = shutil.copytree(tiny_bundle.bundle, tmp_path / "models")
    (tmp_path / "gates.toml").write_text("[leakage]\nmin_images = 100\n")
    data = build(tiny_bundle, tmp_path)
    run("verify", "--data", data, "--bundle", bundle, "--policy", tmp_path / "gates.toml")

    report = read_report(bundle)
    assert next(gate for gate in report.gates if gate.name == "leakage").status == "failed"
    assert report.leakage is not None and report.leakage.share == 1.0 and len(report.leakage.leaks) == 180


@pytest.mark.slow
def test_averaged_weights_of_a_bare_state_dict(tiny_bundle, tiny_document, tmp_path: Path) -> None:
    """The trained weights answer with the wrong species; only the averaged copy is right."""
    state = tiny_document["state_dict"]
    wrong = state | {f"species_head.{part}": state[f"species_head.{part}"].roll(1, 0) for part in ("weight", "bias")}
    torch.save(wrong | {f"ema_model.{name}": tensor for name, tensor in state.items()}, tmp_path / "weights.pt")
    (tmp_path / "net.json").write_text(json.dumps(tiny_document["hyper_parameters"]))
    options = ["--data", tiny_bundle.data, "--non-plants", tiny_bundle.non_plants, "--bundle", tmp_path / "models"]
    options += ["--checkpoint", tmp_path / "weights.pt", "--hyper-parameters", tmp_path / "net.json"]
    exported = run("export", *options, "--weights", "ema")
    assert exported.exit_code == 0, exported.output
    assert f"--hyper-parameters {tmp_path / 'net.json'}" in exported.output, "the next command needs it"

    verified = run("verify", *options)
    report = read_report(tmp_path / "models")
    assert verified.exit_code in (0, 1) and report.parity is not None and report.parity.worst < 0.1, verified.output
    network = load_network(read_checkpoint(tmp_path / "weights.pt", tmp_path / "net.json", "ema"))
    assert_same_answers(network, PlantClassifier.load(tmp_path / "models", precision="fp16"), tiny_bundle.data)


def assert_same_answers(network: torch.nn.Module, classifier: PlantClassifier, data: Path) -> None:
    leaves = [path.read_bytes() for path in sorted(data.glob("val/*/*.png"))]
    inputs = np.stack([preprocess(decode_image(leaf), classifier.metadata.preprocessing) for leaf in leaves])
    with torch.inference_mode():
        logits = network(torch.from_numpy(inputs))[0]
    names = [classifier.taxonomy.species[i] for i in logits.argmax(1).tolist()]
    assert [answer.species for answer in classifier.predict(leaves)] == names
