"""Hundreds of disease heads: a checkpoint that has them, and how long they take.

python -m benchmarks.many_species write last.ckpt many.ckpt --species 330 --diseases 40
python -m benchmarks.many_species heads many.ckpt
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx
import torch

from plantmodels.build.checkpoint import read_checkpoint
from plantmodels.build.export import write_heads
from plantmodels.bundle.layout import (
    DISEASE_OUTPUT,
    EMBEDDING,
    HEADS_FOLDER,
    PACKED_HEADS_FILE,
    SPECIES_INDEX_INPUT,
    head_file,
)
from plantmodels.serve.session import open_session

PATH = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Measure an export with hundreds of species."""


@main.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--species", default=330, show_default=True, help="Species in all.")
@click.option("--diseases", default=40, show_default=True, help="Most diseases of an added species.")
def write(source: Path, target: Path, species: int, diseases: int) -> None:
    """Copy a checkpoint with random heads added; its answers for the added species mean nothing."""
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
    # so far below every real logit that the real species keep their answers
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
def heads(checkpoint: Path) -> None:
    """Quantize, write, check, open and compare every head of a checkpoint; prints seconds and sizes."""
    loaded = read_checkpoint(checkpoint)
    taxonomy = loaded.spec.taxonomy
    embedding = np.random.default_rng(0).normal(size=(4, loaded.spec.embedding_dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        folder, marks = Path(temporary), [time.perf_counter()]
        write_heads(folder, loaded)
        marks.append(time.perf_counter())
        files = sorted(folder.rglob("*.onnx"))
        for file in files:
            onnx.checker.check_model(onnx.load(file), full_check=True)
        marks.append(time.perf_counter())
        sessions = {file: open_session(file, threads=1) for file in files}
        marks.append(time.perf_counter())
        packed, worst = sessions[folder / PACKED_HEADS_FILE], 0.0
        for i in taxonomy.species_with_head:
            rows = {EMBEDDING: embedding, SPECIES_INDEX_INPUT: np.full(len(embedding), i)}
            together = packed.run([DISEASE_OUTPUT], rows)[0][:, : len(taxonomy.diseases_of(i))]
            alone = sessions[folder / head_file(taxonomy.slugs[i])].run([DISEASE_OUTPUT], {EMBEDDING: embedding})[0]
            worst = max(worst, float(np.abs(together - alone).max()))
        marks.append(time.perf_counter())
        sizes = [file.stat().st_size for file in files if file.parent.name == HEADS_FOLDER]
        packed_bytes = (folder / PACKED_HEADS_FILE).stat().st_size
    for step, seconds in zip(("quantize and write", "check", "open", "compare"), np.diff(marks), strict=True):
        click.echo(f"{seconds:8.2f} s  {step}")
    click.echo(f"{marks[-1] - marks[0]:8.2f} s  in all, {len(sizes)} heads")
    click.echo(f"largest head {max(sizes):,} bytes, packed {packed_bytes:,}; packed against single at most {worst:.1e}")


if __name__ == "__main__":
    main()
