"""Make the demo's leaves, non-plants and checkpoint, unless the folder holds a complete demo already.

`demo.json` records the recipe, the digest of the source code and whether the run finished. If any of these differs from
what is wanted, the demo is made again.

    paths = prepare_demo(Path(".demo"))
    paths.checkpoint                        # .demo/demo.ckpt
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import plantmodels
from examples.drawn_leaves.draw import DATA_FOLDER, NON_PLANTS_FOLDER, TAXONOMY, clear_drawings, draw_dataset
from plantmodels.bundle.files import read_json, write_json
from plantmodels.bundle.manifest import digest_file
from plantmodels.errors import DataError

CHECKPOINT_FILE: Final = "demo.ckpt"
RECORD_FILE: Final = "demo.json"

_LEARNING_RATE: Final = 8e-3
_BACKBONE: Final = "swin_tiny_patch4_window7_224"
_LIBRARY: Final = Path(plantmodels.__file__).parent
_SOURCES: Final = (
    *sorted(Path(__file__).parent.glob("*.py")),
    *sorted((_LIBRARY / "training").glob("*.py")),
    _LIBRARY / "export" / "network.py",
)
"""The code that draws and trains: when a file changes, the demo is made again."""


@dataclass(frozen=True)
class DemoRecipe:
    """How much is drawn and how long the network is trained.

    Attributes:
        train_per_class: number of training images of each class.
        val_per_class: number of validation images of each class.
        non_plants: number of images without a plant.
        coarse_epochs: passes over the training images at half size, with patches of half the size.
        fine_epochs: passes over the training images at full size, after the coarse ones.
        batch_size: number of images in a step.
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
    """Paths of a complete demo.

    Attributes:
        checkpoint: checkpoint file, as contract 1 describes it.
        data: leaf folders, as contract 2 describes them.
        non_plants: folder with one folder of images for each source.
        made: False if the demo was complete already.
        summary: one line for people: the number of images and the network's accuracy.
    """

    checkpoint: Path
    data: Path
    non_plants: Path
    made: bool
    summary: str


def prepare_demo(folder: Path, *, seed: int = 0, recipe: DemoRecipe | None = None) -> DemoPaths:
    """Draw the data and train the checkpoint, unless a finished run of the same recipe left both.

    Args:
        folder: folder of the demo, which is created if it is missing.
        seed: seed of the drawings and of the training.
        recipe: amounts and training settings; the default is what `make demo` uses.

    Raises:
        DataError: if the folder holds `data`, `non_plants` or `demo.ckpt` without `demo.json`, or cannot be written.
        BundleError: if `demo.json` is not JSON, or if a file cannot be written.
    """
    recipe = recipe or DemoRecipe()
    wanted = _record_recipe(recipe, seed)
    record = _read_record(folder)
    made = not _is_complete(folder, record, wanted)
    if made:
        record = _make_demo(folder, recipe, seed, wanted)
    checkpoint, data, non_plants = _list_paths(folder)
    return DemoPaths(checkpoint, data, non_plants, made, _summarize(record))


def _list_paths(folder: Path) -> tuple[Path, Path, Path]:
    return folder / CHECKPOINT_FILE, folder / DATA_FOLDER, folder / NON_PLANTS_FOLDER


def _record_recipe(recipe: DemoRecipe, seed: int) -> dict[str, Any]:
    """Return the recipe in types that JSON has, with the seed and the digest of the source code."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}
    return {"seed": seed, **settings, "source_sha256": digest}


def _read_record(folder: Path) -> dict[str, Any]:
    """Return the content of `demo.json`, or an empty dictionary if the folder holds no demo.

    Raises:
        DataError: if `demo.json` is missing and the demo would replace existing files.
    """
    if (folder / RECORD_FILE).is_file():
        return read_json(folder / RECORD_FILE)
    for path in _list_paths(folder):
        if path.exists():
            raise DataError(f"{path}: exists, but {RECORD_FILE}, which every demo has, does not; choose another folder")
    return {}


def _is_complete(folder: Path, record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if record.get("recipe") != wanted or record.get("state") != "complete":
        return False
    checkpoint, data, non_plants = _list_paths(folder)
    if not checkpoint.is_file() or digest_file(checkpoint).sha256 != record.get("checkpoint_sha256"):
        return False
    return [_count_images(data), _count_images(non_plants)] == [record.get("leaves"), record.get("non_plants")]


def _count_images(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*.jpg") if path.stat().st_size)


def _make_demo(folder: Path, recipe: DemoRecipe, seed: int, wanted: dict[str, Any]) -> dict[str, Any]:
    checkpoint, data, non_plants = _list_paths(folder)
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
        "leaves": _count_images(data),
        "non_plants": _count_images(non_plants),
        "training": _train_checkpoint(data, checkpoint, recipe, seed),
        "checkpoint_sha256": digest_file(checkpoint).sha256,
    }
    write_json(folder / RECORD_FILE, record)
    return record


def _train_checkpoint(data: Path, checkpoint: Path, recipe: DemoRecipe, seed: int) -> dict[str, Any]:
    # torch and timm take seconds to import, and drawing needs neither
    from plantmodels.bundle.metadata import Preprocessing
    from plantmodels.bundle.taxonomy import Taxonomy
    from plantmodels.checkpoint.spec import NetworkSpec
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


def _summarize(record: dict[str, Any]) -> str:
    classes, training = sum(map(len, TAXONOMY.values())), record["training"]
    return (
        f"{len(TAXONOMY)} species, {classes} classes, {record['leaves']:,} leaves and {record['non_plants']:,} "
        f"non-plants drawn; trained in {training['train_seconds']:.0f} s ({training['dtype']}); on held-out leaves: "
        f"species {training['species_accuracy']:.3f}, disease given species {training['disease_accuracy']:.3f}, both "
        f"{training['end_to_end_accuracy']:.3f}"
    )
