"""Make a checkpoint with hundreds of disease heads, and measure how long they take.

python -m benchmarks.many_species write last.ckpt many.ckpt --species 330 --diseases 40
python -m benchmarks.many_species heads many.ckpt
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch

from benchmarks.driver import PATH
from plantmodels.arrays import Embeddings, Labels, Logits
from plantmodels.bundle.layout import (
    DISEASE_OUTPUT,
    EMBEDDING,
    HEADS_FOLDER,
    PACKED_HEADS_FILE,
    SPECIES_INDEX_INPUT,
    head_file,
)
from plantmodels.checkpoint.reading import Checkpoint, read_checkpoint
from plantmodels.export.onnx_heads import write_heads
from plantmodels.serve.session import open_session

MIXED_ROWS: Final = 32
_STEPS: Final = ("quantize_and_write_s", "check_s", "open_s", "compare_s", "packed_rows_s")


@click.group()
def main() -> None:
    """Measure an export with hundreds of species."""


@main.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--species", default=330, show_default=True, help="Total number of species.")
@click.option("--diseases", default=40, show_default=True, help="Maximum number of diseases of an added species.")
def write(source: Path, target: Path, species: int, diseases: int) -> None:
    """Copy a checkpoint and add random heads; its answers for the added species mean nothing."""
    write_checkpoint(source, target, species, diseases)


def write_checkpoint(source: Path, target: Path, species: int, diseases: int = 40) -> None:
    """Copy a checkpoint and add random heads.

    Args:
        source: checkpoint file (contract 1).
        target: path of the copy.
        species: total number of species; the added ones never win.
        diseases: maximum number of diseases of an added species.
    """
    checkpoint = read_checkpoint(source)
    document = torch.load(source, map_location="cpu", weights_only=True)
    parameters, state = document["hyper_parameters"], document["state_dict"]
    generator = torch.Generator().manual_seed(0)
    added = species - len(checkpoint.spec.taxonomy.species)
    prefix = next(name for name in state if name.endswith("species_head.weight")).removesuffix("species_head.weight")

    def random_weight(rows: int) -> torch.Tensor:
        return torch.randn(rows, checkpoint.spec.embedding_dim, generator=generator) * 0.02

    weight, bias = checkpoint.species_head
    state[f"{prefix}species_head.weight"] = torch.cat([weight, random_weight(added)])
    # far below every real logit, so the real species keep their answers
    state[f"{prefix}species_head.bias"] = torch.cat([bias, torch.full((added,), -30.0)])
    for i in range(added):
        name, count = f"Plant {i + 1:03d}", 1 + i % diseases
        parameters["species"].append(name)
        parameters["diseases"][name] = [f"disease {j + 1:02d}" for j in range(count)]
        state[f"{prefix}disease_heads.{name}.weight"] = random_weight(count)
        state[f"{prefix}disease_heads.{name}.bias"] = torch.zeros(count)
    torch.save(document, target)


@main.command()
@click.argument("checkpoint", type=PATH)
@click.option("--as-json", is_flag=True, help="Print one line of JSON.")
def heads(checkpoint: Path, as_json: bool) -> None:
    """Quantize, write, check, open and compare every head of a checkpoint; print seconds and sizes."""
    measured = measure_heads(read_checkpoint(checkpoint))
    if as_json:
        click.echo(json.dumps(measured))
        return
    for step in _STEPS:
        click.echo(f"{measured[step]:10.5f} s  {step.removesuffix('_s').replace('_', ' ')}")
    click.echo(f"{measured['heads']} heads, the largest {measured['largest_bytes']:,} bytes")
    click.echo(f"packed {measured['packed_bytes']:,} bytes; against single at most {measured['packed_diff']:.1e}")


def measure_heads(checkpoint: Checkpoint) -> dict[str, Any]:
    """Time every step of the heads, from the weights to the answers of the packed file.

    Returns:
        Seconds of each step (`packed_rows_s` is the time of the packed file for `MIXED_ROWS` rows of mixed species),
        number and sizes of the heads, and the largest difference between packed and single heads.
    """
    taxonomy, dim = checkpoint.spec.taxonomy, checkpoint.spec.embedding_dim
    embedding = np.random.default_rng(0).normal(size=(MIXED_ROWS, dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        folder, marks = Path(temporary), [time.perf_counter()]
        write_heads(folder, checkpoint)
        marks.append(time.perf_counter())
        files = sorted(folder.rglob("*.onnx"))
        for file in files:
            onnx.checker.check_model(onnx.load(file), full_check=True)
        marks.append(time.perf_counter())
        sessions = {file: open_session(file, threads=1) for file in files}
        marks.append(time.perf_counter())
        packed, worst = sessions[folder / PACKED_HEADS_FILE], 0.0
        for i in taxonomy.species_with_head:
            together = _ask_packed(packed, embedding[:4], np.full(4, i))[:, : len(taxonomy.diseases_of(i))]
            alone = sessions[folder / head_file(taxonomy.slugs[i])].run([DISEASE_OUTPUT], {EMBEDDING: embedding[:4]})[0]
            worst = max(worst, float(np.abs(together - alone).max()))
        marks.append(time.perf_counter())
        mixed = np.resize(np.array(taxonomy.species_with_head, np.int64), MIXED_ROWS)
        _ask_packed(packed, embedding, mixed)
        before = time.perf_counter()
        _ask_packed(packed, embedding, mixed)
        seconds = [*np.diff(marks).tolist(), time.perf_counter() - before]
        sizes = [file.stat().st_size for file in files if file.parent.name == HEADS_FOLDER]
        packed_bytes = (folder / PACKED_HEADS_FILE).stat().st_size
    return dict(zip(_STEPS, seconds, strict=True)) | {
        "species": len(taxonomy.species),
        "heads": len(sizes),
        "largest_bytes": max(sizes),
        "packed_bytes": packed_bytes,
        "packed_diff": worst,
    }


def _ask_packed(session: ort.InferenceSession, embedding: Embeddings, species: Labels) -> Logits:
    logits: Logits = session.run([DISEASE_OUTPUT], {EMBEDDING: embedding, SPECIES_INDEX_INPUT: species})[0]
    return logits


if __name__ == "__main__":
    main()
