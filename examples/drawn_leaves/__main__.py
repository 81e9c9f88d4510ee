"""`python -m examples.drawn_leaves FOLDER` makes the demo's data and checkpoint, unless the folder has them already."""

from pathlib import Path

import click

from examples.drawn_leaves.prepare import prepare_demo
from plantmodels.data.progress import log_to_terminal
from plantmodels.errors import PlantModelsError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", default=0, show_default=True, help="Seed of the drawings and of the training.")
def main(folder: Path, seed: int) -> None:
    """Draw leaves and non-plants into FOLDER and train a small checkpoint on them."""
    log_to_terminal()
    try:
        paths = prepare_demo(folder, seed=seed)
    except (PlantModelsError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"demo {'made' if paths.made else 'already complete'}: {paths.summary}")
    for name in ("checkpoint", "data", "non_plants"):
        click.echo(f"  {name:<11}{getattr(paths, name)}")


if __name__ == "__main__":
    main()
