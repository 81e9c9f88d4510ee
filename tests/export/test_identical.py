"""Checks that the same checkpoint, data and versions give the same bytes on any number of threads, anywhere."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from threadpoolctl import threadpool_info

from plantmodels.export import bundle as export_module
from plantmodels.export import inputs as inputs_module
from plantmodels.export.bundle import export_bundle
from plantmodels.export.onnx_species import ExportedSpecies
from plantmodels.ood.moments import RunningMoments

ROOT = Path(__file__).resolve().parents[2]

EXPORT = """
import json, os, sys, time
from pathlib import Path
shift, umask, jobs = json.loads(sys.argv[1])
os.umask(umask)
now, now_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: now() + shift, lambda: now_ns() + int(shift * 1e9)
from plantmodels.export.bundle import export_bundle
from plantmodels.export.checks import answers
answers.find_guessing = lambda tables: None  # the traced network has random weights
for checkpoint, data, others, out in jobs:
    export_bundle(Path(checkpoint), Path(data), Path(out), non_plants=Path(others))
"""

HEAD = "disease_heads.Cherry_(including_sour).weight"
HEAD_FILE = "disease-heads/cherry-including-sour-int8.onnx"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def differing(first: Path, second: Path) -> list[str]:
    a, b = snapshot(first), snapshot(second)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def copy_backwards(source: Path, target: Path) -> Path:
    """Copy the files in the opposite order and with other times of modification."""
    for i, path in enumerate(sorted((p for p in source.rglob("*") if p.is_file()), reverse=True)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        os.utime(copy, (1e9 - i, 1e9 - i))
    return target


def trace_resnet(document: dict[str, Any]) -> None:
    """Use a backbone that PyTorch's exporter traces."""
    torch.manual_seed(0)
    backbone = timm.create_model("resnet10t", num_classes=0).eval()
    features = backbone(torch.zeros(1, 3, 64, 64)).shape[1]
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    state |= {name: t for name, t in document["state_dict"].items() if name.split(".")[0] != "backbone"}
    state["projection.weight"] = torch.randn(len(state["projection.bias"]), features) / 9
    document["state_dict"] = state
    document["hyper_parameters"].update({"backbone": "resnet10t", "backbone_kwargs": {}, "image_size": 64})


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tiny_bundle, tiny_checkpoint_factory, tmp_path: Path) -> None:
    """Two folders, hash seeds, thread counts, working directories, locales, time zones, umasks and clocks; the data in
    another folder, made in another order and at other times; both graphs, our own and a traced one."""
    sources = tiny_bundle.checkpoint, tiny_checkpoint_factory(trace_resnet)
    settings = [
        (0.0, 0o022, tiny_bundle.data, tiny_bundle.non_plants, {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}),
        (
            4e8,
            0o077,
            copy_backwards(tiny_bundle.data, tmp_path / "andere Blätter"),
            copy_backwards(tiny_bundle.non_plants, tmp_path / "others"),
            {"PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": "/"},
        ),
    ]
    for number, (shift, umask, data, others, variables) in enumerate(settings):
        folder = tmp_path / str(number) / ("below" * number)
        folder.mkdir(parents=True)
        copies = [shutil.copy(source, folder / f"{i}.ckpt") for i, source in enumerate(sources)]
        jobs = [(str(path), str(data), str(others), f"models {i}") for i, path in enumerate(copies)]
        subprocess.run(
            [sys.executable, "-c", EXPORT, json.dumps([shift, umask, jobs])],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            check=True,
            capture_output=True,
        )

    for i, form in enumerate(("swin", "traced")):
        first, second = tmp_path / "0" / f"models {i}", tmp_path / "1" / "below" / f"models {i}"
        metadata = json.loads((first / "onnx-metadata.json").read_text())
        assert metadata["models"]["swin-species.onnx"]["recipe"]["graph"] == form
        assert differing(first, second) == []
        for name, content in snapshot(first).items():
            for trace in (
                str(tmp_path),
                str(ROOT),
                "site-packages",
                "stack_trace",
                "plantmodels.",
                "/root",
                "/home",
            ):
                assert trace.encode() not in content, (name, trace)
    assert differing(tmp_path / "0" / "models 0", tiny_bundle.bundle) == [], "this process is a third one"


def test_leaves_beyond_those_in_memory_are_added_up_on_one_thread(
    tiny_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several BLAS threads add numbers in another order, which changes the last bits."""
    threads: list[int] = []
    update = RunningMoments.update

    def watch(self: RunningMoments, labels: np.ndarray, features: np.ndarray) -> None:
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        update(self, labels, features)

    model = onnx.load(tiny_bundle.bundle / "swin-species.onnx")
    monkeypatch.setattr(export_module, "export_species", lambda *_: ExportedSpecies(model, "swin", 0.0))
    monkeypatch.setattr(inputs_module, "MAX_KEPT_LEAVES", 100)
    monkeypatch.setattr(RunningMoments, "update", watch)
    export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, tmp_path / "models")

    assert threads and set(threads) == {1}


def swap_head(scale: float) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        weight = document["state_dict"][HEAD]
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        document["state_dict"][HEAD] = weight + scale * weight.std() * noise

    return edit


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.2, 100.0], ids=["trained on", "wholly another"])
def test_another_head_rewrites_its_file_those_that_hold_it_and_the_manifests_alone(
    tiny_bundle, tiny_checkpoint_factory, tmp_path: Path, scale: float
) -> None:
    checkpoint = tiny_checkpoint_factory(swap_head(scale))
    export_bundle(checkpoint, tiny_bundle.data, tmp_path / "models", non_plants=tiny_bundle.non_plants)

    assert differing(tmp_path / "models", tiny_bundle.bundle) == [
        "disease-heads-packed.onnx",
        HEAD_FILE,
        "manifest.json",
        "onnx-metadata.json",
        "plant-classifier-int8.onnx",
    ]
