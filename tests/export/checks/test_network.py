"""Checks what `export` says of a network whose names, preprocessing or non-plants are wrong, before the long work."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.leaves import read_leaves
from plantmodels.errors import CheckpointError, DataError, PlantModelsError
from plantmodels.export import bundle as export_module
from plantmodels.export.bundle import export_bundle
from plantmodels.export.checks import network as network_module
from tests.fixtures.wrong_networks import Edit, exchange_diseases, exchange_species, reverse_species, scale_to_255


@pytest.fixture(autouse=True)
def _no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object) -> None:
        raise RuntimeError("the long work began")

    monkeypatch.setattr(export_module, "export_species", begin)


def forget_species(document: dict[str, Any]) -> None:
    document["state_dict"]["species_head.weight"] *= 0


def forget_diseases(document: dict[str, Any]) -> None:
    for name, tensor in document["state_dict"].items():
        if name.startswith("disease_heads.") and name.endswith(".weight"):
            tensor *= 0


REFUSED: dict[str, tuple[Edit, str]] = {
    "reversed": (
        reverse_species,
        r"tiny\.ckpt: answers fit the species in another order: '.*' is answered where '.*' is true \(\d+ of \d+\), .*"
        r"List the names in the order in which the network was trained, or correct the labels of the leaves in ",
    ),
    "two species": (exchange_species, r"the species in another order: '(Mint|Blueberry)' is answered where '(?!\1)"),
    "two diseases": (
        exchange_diseases,
        r"the diseases of 'Cherry_\(including_sour\)' in another order: '(Powdery_mildew|healthy)' is answered where",
    ),
    "untrained species": (forget_species, r"training leaves get the right species, no more than guesses would"),
    "untrained diseases": (forget_diseases, r"leaves get the right diseases, given the true species, no more than"),
    "mean 127.5": (scale_to_255, r"got mean \(127\.5, 127\.5, 127\.5\) .*scale 0 to 255: divide both by 255"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_network_is_refused_before_the_work(
    tiny_bundle, tiny_checkpoint_factory, tmp_path: Path, case: str
) -> None:
    edit, match = REFUSED[case]
    with pytest.raises(CheckpointError, match=match):
        export_bundle(tiny_checkpoint_factory(edit), tiny_bundle.data, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []


def test_a_good_network_and_real_non_plants_pass(tiny_bundle, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the long work began"):
        export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, tmp_path / "models", non_plants=tiny_bundle.non_plants)


def test_further_leaves_decide_where_the_first_are_too_few(
    tiny_bundle, tiny_checkpoint_factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = network_module.read_labelled_images

    def count(samples, *args):
        asked.append(len(samples))
        return read(samples, *args)

    monkeypatch.setattr(export_module, "CHECKED_IMAGES", 18)
    monkeypatch.setattr(network_module, "read_labelled_images", count)
    with pytest.raises(CheckpointError, match=r"'Blueberry' is answered where 'Mint' is true \((\d\d) of 20\)"):
        export_bundle(tiny_checkpoint_factory(exchange_species), tiny_bundle.data, tmp_path / "models")
    assert asked == [36], "the leaves of both species that were not among the first two of each class"


def leaves_as_non_plants(tiny_bundle, folder: Path) -> Path:
    """Leaves that are neither in train nor in val, by one pixel."""
    from PIL import Image

    for path in read_leaves(tiny_bundle.data, "train", tiny_bundle.summary.metadata.taxonomy).paths[::3]:
        image = Image.open(path).convert("RGB")
        image.putpixel((0, 0), (0, 0, 0))
        (folder / "things").mkdir(parents=True, exist_ok=True)
        image.save(folder / "things" / f"{path.parent.name} {path.stem}.png")
    return folder


def test_leaves_given_as_non_plants_are_refused_by_their_looks(tiny_bundle, tmp_path: Path) -> None:
    others = leaves_as_non_plants(tiny_bundle, tmp_path / "others")
    with pytest.raises(DataError, match=r"others: \d+ of \d+ non-plants look like known plants .* things/.*looks like"):
        export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, tmp_path / "models", non_plants=others)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_leaf_among_the_non_plants_is_refused_by_its_bytes(tiny_bundle, tmp_path: Path, split: str) -> None:
    others = Path(shutil.copytree(tiny_bundle.non_plants, tmp_path / "others"))
    leaf = next(path for path in sorted((tiny_bundle.data / split).rglob("*.*")) if path.is_file())
    shutil.copy(leaf, others / "noise" / f"tool{leaf.suffix}")
    name = re.escape(leaf.relative_to(tiny_bundle.data).as_posix())
    with pytest.raises(DataError, match=rf"1 of 49 non-plants are leaves of .*: noise/tool\.\w+ is {name}"):
        export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, tmp_path / "models", non_plants=others)


def test_a_val_split_that_is_wrong_is_left_to_verify(tiny_bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_bundle.data / "train", data / "train")
    (data / "val" / "Fig___rot").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="the long work began"):
        export_bundle(tiny_bundle.checkpoint, data, tmp_path / "models", non_plants=tiny_bundle.non_plants)


def test_odd_pixels_are_a_warning(tiny_bundle, tiny_checkpoint_factory, tmp_path: Path, monkeypatch) -> None:
    """Deviations of a tenth: the network is not told apart by its answers here, so that check is off."""

    def edit(document: dict[str, Any]) -> None:
        document["hyper_parameters"]["std"] = [value / 10 for value in document["hyper_parameters"]["std"]]

    monkeypatch.setattr(export_module, "check_network", lambda *_: None)
    inputs = export_module.read_inputs(read_checkpoint(tiny_checkpoint_factory(edit)), tiny_bundle.data, None, 0)
    _, _, (warning,) = export_module._check_inputs(inputs)
    assert warning.startswith("normalized training pixels have mean")
    assert "those that the network was trained with?" in warning


@pytest.mark.real
@pytest.mark.slow
class TestReal:
    def check(self, real_paths, tmp_path: Path, edit: Edit, non_plants: Path | None = None) -> None:
        import torch

        document = torch.load(real_paths.checkpoint, map_location="cpu", weights_only=True)
        edit(document)
        torch.save(document, tmp_path / "real.ckpt")
        inputs = export_module.read_inputs(read_checkpoint(tmp_path / "real.ckpt"), real_paths.leaves, non_plants, 0)
        export_module._check_inputs(inputs)

    def test_the_real_network_passes_with_real_non_plants(self, real_paths, tmp_path: Path) -> None:
        self.check(real_paths, tmp_path, lambda _: None, real_paths.non_plants)

    def test_two_small_species_exchanged(self, real_paths, tmp_path: Path) -> None:
        def edit(document: dict[str, Any]) -> None:
            species = document["hyper_parameters"]["species"]
            i, j = species.index("Raspberry"), species.index("Soybean")
            species[i], species[j] = species[j], species[i]

        with pytest.raises(PlantModelsError, match=r"'(Raspberry|Soybean)' is answered where '(Soybean|Raspberry)'"):
            self.check(real_paths, tmp_path, edit)
