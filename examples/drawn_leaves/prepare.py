"""Makes the demo's leaves, non-plants and checkpoint, once: a folder that is complete is left alone.

`demo.json` says by which recipe, with which source code, and whether it was finished; anything else is made anew.

>>> paths = prepare_demo(Path(".demo"))  # doctest: +SKIP
>>> paths.checkpoint  # doctest: +SKIP
PosixPath('.demo/demo.ckpt')
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from examples.drawn_leaves.draw import DATA_FOLDER, NON_PLANTS_FOLDER, TAXONOMY, clear_drawings, draw_dataset
from plantmodels.bundle.files import read_json, write_json
from plantmodels.bundle.manifest import digest_file
from plantmodels.errors import DataError

CHECKPOINT_FILE: Final = "demo.ckpt"
RECORD_FILE: Final = "demo.json"

_LEARNING_RATE: Final = 8e-3
_BACKBONE: Final = "swin_tiny_patch4_window7_224"
_TRAINER: Final = (
    "augment.py",
    "loop.py",
    "network.py",
    "objectives.py",
    "optimizer.py",
    "pictures.py",
    "sizes.py",
    "train.py",
)


@dataclass(frozen=True)
class DemoRecipe:
    """How much is drawn and how long the network is trained.

    Attributes:
        train_per_class: pictures of each species and disease to train on.
        val_per_class: the same to measure on.
        non_plants: pictures without a plant.
        coarse_epochs: passes over the training pictures at half size, with patches of half the size.
        fine_epochs: passes after that at full size.
        batch_size: pictures a step.
        embed_dim: width of the Swin's first stage; it doubles with each of the three.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
    """

    train_per_class: int = 80
    val_per_class: int = 20
    non_plants: int = 240
    coarse_epochs: int = 17
    fine_epochs: int = 2
    batch_size: int = 64
    embed_dim: int = 64
    depths: tuple[int, ...] = (1, 2, 2)
    num_heads: tuple[int, ...] = (2, 4, 8)


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo lies.

    Attributes:
        checkpoint: file of contract 1.
        data: leaf folders of contract 2.
        non_plants: folder of images, one folder a source.
        made: False when all was there already.
        summary: one line for people: what there is and how good the network is.
    """

    checkpoint: Path
    data: Path
    non_plants: Path
    made: bool
    summary: str


def prepare_demo(folder: Path, *, seed: int = 0, recipe: DemoRecipe | None = None) -> DemoPaths:
    """Draws the data and trains the checkpoint unless a finished run by the same recipe left both.

    Args:
        folder: made if it is not there.
        seed: of pictures and training.
        recipe: how much of everything; by default what `make demo` uses.

    Raises:
        DataError: the folder holds `data`, `non_plants` or `demo.ckpt` that no demo made, or cannot be written.
        BundleError: `demo.json` is not JSON, or a file cannot be written.
    """
    recipe = recipe or DemoRecipe()
    wanted = _describe(recipe, seed)
    record = _read_record(folder)
    made = not _is_complete(folder, record, wanted)
    if made:
        record = _make(folder, recipe, seed, wanted)
    checkpoint, data, non_plants = _paths(folder)
    return DemoPaths(checkpoint, data, non_plants, made, _summarise(record))


def _paths(folder: Path) -> tuple[Path, Path, Path]:
    return folder / CHECKPOINT_FILE, folder / DATA_FOLDER, folder / NON_PLANTS_FOLDER


def _describe(recipe: DemoRecipe, seed: int) -> dict[str, Any]:
    """The recipe in JSON's own types, and the digest of the source code that carries it out."""
    here = Path(__file__).parent
    sources = sorted(here.glob("*.py")) + [here.parent / "build" / name for name in _TRAINER]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}
    return {"seed": seed, **settings, "source_sha256": digest}


def _read_record(folder: Path) -> dict[str, Any]:
    """What `demo.json` says, empty without one.

    Raises:
        DataError: there is none, but things that a demo would write over.
    """
    if (folder / RECORD_FILE).is_file():
        return read_json(folder / RECORD_FILE)
    for path in _paths(folder):
        if path.exists():
            raise DataError(f"{path}: is there, but no {RECORD_FILE} that says a demo made it; name another folder")
    return {}


def _is_complete(folder: Path, record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if record.get("recipe") != wanted or record.get("state") != "complete":
        return False
    checkpoint, data, non_plants = _paths(folder)
    if not checkpoint.is_file() or digest_file(checkpoint).sha256 != record.get("checkpoint_sha256"):
        return False
    return [_count(data), _count(non_plants)] == [record.get("leaves"), record.get("non_plants")]


def _count(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*.jpg") if path.stat().st_size)


def _make(folder: Path, recipe: DemoRecipe, seed: int, wanted: dict[str, Any]) -> dict[str, Any]:
    checkpoint, data, non_plants = _paths(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD_FILE, {"state": "started", "recipe": wanted})
        clear_drawings(folder)
        checkpoint.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the demo cannot be written there ({error})") from error
    draw_dataset(
        folder,
        train_per_class=recipe.train_per_class,
        val_per_class=recipe.val_per_class,
        non_plants=recipe.non_plants,
        seed=seed,
    )
    record = {
        "state": "complete",
        "recipe": wanted,
        "leaves": _count(data),
        "non_plants": _count(non_plants),
        "training": _train(data, checkpoint, recipe, seed),
        "checkpoint_sha256": digest_file(checkpoint).sha256,
    }
    write_json(folder / RECORD_FILE, record)
    return record


def _train(data: Path, checkpoint: Path, recipe: DemoRecipe, seed: int) -> dict[str, Any]:
    # torch and timm take seconds to import, and drawing needs neither
    from plantmodels.bundle.metadata import Preprocessing
    from plantmodels.bundle.taxonomy import Taxonomy
    from plantmodels.export.checkpoint import NetworkSpec
    from plantmodels.training.recipe import Recipe, Stage
    from plantmodels.training.train import train_network

    swin: dict[str, Any] = {"patch_size": 16, "drop_path_rate": 0.0, "embed_dim": recipe.embed_dim}
    swin |= {"depths": list(recipe.depths), "num_heads": list(recipe.num_heads)}
    spec = NetworkSpec(
        backbone=_BACKBONE,
        backbone_kwargs=swin,
        embedding_dim=768,
        preprocessing=Preprocessing(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        taxonomy=Taxonomy(tuple(TAXONOMY), TAXONOMY),
    )
    training = Recipe(
        stages=(Stage(112, recipe.coarse_epochs), Stage(224, recipe.fine_epochs)),
        batch_size=recipe.batch_size,
        learning_rate=_LEARNING_RATE,
        seed=seed,
        scale_patches=True,
    )
    report = train_network(data, checkpoint, spec, training)
    return {"train_seconds": report.train_seconds, "dtype": report.dtype, **asdict(report.best)}


def _summarise(record: dict[str, Any]) -> str:
    classes, training = sum(map(len, TAXONOMY.values())), record["training"]
    return (
        f"{len(TAXONOMY)} species, {classes} classes, {record['leaves']:,} leaves and {record['non_plants']:,} "
        f"non-plants drawn; trained in {training['train_seconds']:.0f} s ({training['dtype']}); on held-out leaves: "
        f"species {training['species_accuracy']:.3f}, disease given species {training['disease_accuracy']:.3f}, both "
        f"{training['end_to_end_accuracy']:.3f}"
    )
