"""Writes a checkpoint with many species: a real backbone, its own heads, and random heads for the rest.

What it is for: sizes and times of an export with hundreds of heads. Its answers for the added species mean nothing.

    python -m benchmarks.many_species last.ckpt many.ckpt --species 330 --diseases 40
"""

from pathlib import Path

import click
import torch

from plantmodels.build.checkpoint import read_checkpoint


def add_species(source: Path, target: Path, *, species: int, diseases: int, seed: int = 0) -> None:
    """Copies a checkpoint with random heads added until it has `species` species.

    Args:
        source: checkpoint of contract 1.
        target: where the new one goes.
        species: how many it shall have.
        diseases: most diseases of an added species; they have from 1 to that many.
        seed: of the random weights.
    """
    checkpoint = read_checkpoint(source)
    document = torch.load(source, map_location="cpu", weights_only=True)
    parameters, state = document["hyper_parameters"], document["state_dict"]
    generator = torch.Generator().manual_seed(seed)
    added = species - len(checkpoint.spec.taxonomy.species)
    dim = checkpoint.spec.embedding_dim

    def random_head(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(rows, dim, generator=generator) * 0.02, torch.zeros(rows)

    weight, bias = checkpoint.species_head
    further_weight, further_bias = random_head(added)
    prefix = next(name for name in state if name.endswith("species_head.weight")).removesuffix("species_head.weight")
    # far below every real logit, so that the real species keep their answers
    state[f"{prefix}species_head.weight"] = torch.cat([weight, further_weight])
    state[f"{prefix}species_head.bias"] = torch.cat([bias, further_bias - 30])
    for i in range(added):
        name = f"Plant {i + 1:03d}"
        count = 1 + i % diseases
        parameters["species"].append(name)
        parameters["diseases"][name] = [f"disease {j + 1:02d}" for j in range(count)]
        head_weight, head_bias = random_head(count)
        state[f"{prefix}disease_heads.{name}.weight"] = head_weight
        state[f"{prefix}disease_heads.{name}.bias"] = head_bias
    torch.save(document, target)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--species", default=330, show_default=True, help="Species in all.")
@click.option("--diseases", default=40, show_default=True, help="Most diseases of one species.")
def main(source: Path, target: Path, species: int, diseases: int) -> None:
    """Write a checkpoint with many species."""
    add_species(source, target, species=species, diseases=diseases)


if __name__ == "__main__":
    main()
