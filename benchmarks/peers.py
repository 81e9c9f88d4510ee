"""Make the files of the peers from the bundle's checkpoint, once, and reuse them later.

python -m benchmarks.peers last.ckpt leaves public/bench/peers

`literal/`: `torch.onnx.export` of the timm model and of each disease head, then ONNX Runtime's `quantize_dynamic` with
its defaults. `openvino/`: `openvino.convert_model` of the timm model, and NNCF's post-training INT8 of that on training
leaves. `heads.npz`: the heads' float weights, for peers without their own files of the heads.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.driver import PATH
from plantmodels.bundle.files import read_json
from plantmodels.checkpoint.reading import Checkpoint, read_checkpoint
from plantmodels.data.digests import digest_images
from plantmodels.data.leaves import read_leaves
from plantmodels.data.streaming import ImageStream
from plantmodels.export.network import HierarchicalNetwork, load_network

CALIBRATION_IMAGES: Final = 300
"""NNCF's own default. The training leaves are evenly spaced in the order of their paths, so all classes take part."""

DOCUMENT: Final = "peers.json"
_LIBRARIES: Final = ("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf")
_FORMAT: Final = 1
"""Raised when this file changes the peers' files, so that files of an earlier run are made again."""


def prepare_peers(checkpoint: Path, data: Path, out: Path) -> dict[str, Any]:
    """Make every file of the peers in `out`, unless they were made from the same checkpoint with the same versions.

    Args:
        checkpoint: checkpoint file (contract 1).
        data: leaf folders (contract 2); NNCF calibrates on the split "train".
        out: folder of the files; files of another checkpoint are replaced.

    Returns:
        The checkpoint and versions that they were made from, and the seconds of each step.
    """
    loaded = read_checkpoint(checkpoint)
    leaves = _choose_leaves(loaded, data)
    origin = {
        "format": _FORMAT,
        "checkpoint_sha256": loaded.sha256,
        "calibration_sha256": digest_images(data, leaves),
        **{name: version(name) for name in _LIBRARIES},
    }
    document = out / DOCUMENT
    if document.is_file():
        known: dict[str, Any] = read_json(document)
        if known["origin"] == origin:
            return known
    document.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    network = load_network(loaded)
    clock = _Clock()
    _write_heads(out / "heads.npz", loaded)
    _make_literal(out / "literal", network, clock)
    _make_openvino(out / "openvino", network, leaves, clock)
    made = {"origin": origin, "calibration_images": len(leaves), "seconds": clock.seconds}
    document.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return made


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        click.echo(f"peers, {name}: {self.seconds[name]:.1f} s", err=True)


def _write_heads(path: Path, checkpoint: Checkpoint) -> None:
    """Write weights (S, max diseases, D) and biases (S, max diseases); classes that a species lacks have bias −inf."""
    taxonomy = checkpoint.spec.taxonomy
    most = max(1, taxonomy.max_diseases)
    weight = np.zeros((len(taxonomy.species), most, checkpoint.spec.embedding_dim), np.float32)
    bias = np.full((len(taxonomy.species), most), -np.inf, np.float32)
    for i, (head_weight, head_bias) in checkpoint.disease_heads.items():
        weight[i, : len(head_weight)], bias[i, : len(head_bias)] = head_weight.numpy(), head_bias.numpy()
    np.savez(path, weight=weight, bias=bias)


def _make_literal(out: Path, network: HierarchicalNetwork, clock: _Clock) -> None:
    """Follow the recipe of the tutorials of PyTorch and ONNX Runtime."""
    side, dim = network.spec.preprocessing.image_size, network.spec.embedding_dim
    heads = out / "heads"
    heads.mkdir(parents=True, exist_ok=True)
    images, embedding = torch.zeros(2, 3, side, side), torch.zeros(2, dim)
    with clock.step("literal recipe, export species"):
        _export(network, images, out / "species.onnx", ["species_logits", "embedding"])
    with clock.step("literal recipe, export heads"):
        for slug, head in network.disease_heads.items():
            _export(head, embedding, heads / f"{slug}.onnx", ["disease_logits"])
    with clock.step("literal recipe, quantize_dynamic"):
        for path in [out / "species.onnx", *heads.glob("*.onnx")]:
            if not path.stem.endswith("-int8"):
                quantize_dynamic(path, path.with_name(f"{path.stem}-int8.onnx"), weight_type=QuantType.QInt8)


def _export(module: torch.nn.Module, example: torch.Tensor, path: Path, outputs: list[str]) -> None:
    """Write one file by PyTorch's exporter, for any batch size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            path,
            input_names=["input"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(onnx.load(path))


def _make_openvino(out: Path, network: HierarchicalNetwork, leaves: Sequence[Path], clock: _Clock) -> None:
    import nncf
    import openvino

    out.mkdir(parents=True, exist_ok=True)
    side = network.spec.preprocessing.image_size
    with clock.step("OpenVINO, convert_model"):
        model = openvino.convert_model(
            network, example_input=torch.zeros(1, 3, side, side), input=[("images", [-1, 3, side, side])]
        )
        openvino.save_model(model, out / "float.xml", compress_to_fp16=False)
    with clock.step(f"NNCF, INT8 on {len(leaves)} training leaves"):
        calibration = nncf.Dataset([pixels[None] for _, pixels in ImageStream(leaves, network.spec.preprocessing)])
        int8 = nncf.quantize(model, calibration, model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_IMAGES)
        openvino.save_model(int8, out / "int8.xml", compress_to_fp16=False)


def _choose_leaves(checkpoint: Checkpoint, data: Path) -> list[Path]:
    paths = read_leaves(data, "train", checkpoint.spec.taxonomy).paths
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(CALIBRATION_IMAGES, len(paths))).astype(int)]


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("data", type=PATH)
@click.argument("out", type=PATH)
def main(checkpoint: Path, data: Path, out: Path) -> None:
    """Make the peers' files."""
    logging.getLogger().setLevel(logging.ERROR)
    click.echo(json.dumps(prepare_peers(checkpoint, data, out)))


if __name__ == "__main__":
    os.environ |= {"CI": "true", "NNCF_CI": "1"}  # OpenVINO and NNCF must not send usage statistics
    main()
