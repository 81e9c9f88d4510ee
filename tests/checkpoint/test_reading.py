"""Checks which checkpoints are read, and that errors name both sides when names and tensors disagree."""

import copy
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plantmodels.bundle.manifest import digest_file
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.errors import CheckpointError
from tests.fixtures.checkpoints import MINT_PARAMETERS

Edit = Callable[[dict[str, Any]], object]


def rename(old: str, new: str) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        state = document["state_dict"]
        document["state_dict"] = {name.replace(old, new): tensor for name, tensor in state.items()}

    return edit


def prefixed(prefix: str) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        document["state_dict"] = {prefix + name: tensor for name, tensor in document["state_dict"].items()}

    return edit


def cast(dtype: torch.dtype, part: str = "") -> Edit:
    def edit(document: dict[str, Any]) -> None:
        for name, tensor in document["state_dict"].items():
            if tensor.is_floating_point() and part in name:
                document["state_dict"][name] = tensor.to(dtype)

    return edit


def tensors(**changes: torch.Tensor | None) -> Edit:
    """Set tensors (`__` stands for a dot), or remove those that are None."""

    def edit(document: dict[str, Any]) -> None:
        for name, tensor in changes.items():
            document["state_dict"].pop(name.replace("__", "."), None)
            if tensor is not None:
                document["state_dict"][name.replace("__", ".")] = tensor

    return edit


def parameters(**changes: object) -> Edit:
    return lambda document: document["hyper_parameters"].update(changes)


def test_reads_contract_1(tiny_checkpoint: Path, tiny_document, tiny_taxonomy) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    state = tiny_document["state_dict"]

    assert checkpoint.spec.taxonomy == tiny_taxonomy
    assert checkpoint.spec.taxonomy.species == tuple(tiny_document["hyper_parameters"]["species"])
    assert checkpoint.spec.embedding_dim == 32
    assert checkpoint.spec.preprocessing.interpolation == "bicubic"
    assert checkpoint.spec.preprocessing.crop_pct == 1.0
    assert checkpoint.sha256 == digest_file(tiny_checkpoint).sha256
    assert list(checkpoint.disease_heads) == [0, 1, 3, 4]
    assert {f"backbone.{name}" for name in checkpoint.backbone} == {n for n in state if n.startswith("backbone.")}
    torch.testing.assert_close(checkpoint.species_head[0], state["species_head.weight"], rtol=0, atol=0)
    aloe = state["disease_heads.Aloe sp_ 2.weight"]
    torch.testing.assert_close(checkpoint.disease_heads[4][0], aloe, rtol=0, atol=0)
    torch.testing.assert_close(checkpoint.projection[1], state["projection.bias"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "_orig_mod.", "module.", "net._orig_mod.", "model.net._orig_mod."]
)
def test_a_common_prefix_is_stripped(tiny_checkpoint_factory, tiny_checkpoint: Path, prefix: str) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint_factory(prefixed(prefix)))

    assert checkpoint.backbone.keys() == read_checkpoint(tiny_checkpoint).backbone.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_used_as_float32(tiny_checkpoint_factory, tiny_document, dtype: torch.dtype) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint_factory(cast(dtype)))
    rounded = tiny_document["state_dict"]["species_head.weight"].to(dtype).float()

    assert checkpoint.species_head[0].dtype == torch.float32
    torch.testing.assert_close(checkpoint.species_head[0], rounded, rtol=0, atol=0)
    assert {tensor.dtype for tensor in checkpoint.backbone.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("key", ["aloe-sp-2", "Aloe sp_ 2", "Aloe sp. 2"])
def test_a_head_is_found_by_name_or_slug(tiny_checkpoint_factory, tiny_document, key: str) -> None:
    path = tiny_checkpoint_factory(rename("disease_heads.Aloe sp_ 2.", f"disease_heads.{key}."))
    expected = tiny_document["state_dict"]["disease_heads.Aloe sp_ 2.weight"]

    torch.testing.assert_close(read_checkpoint(path).disease_heads[4][0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [[224, 224], (224, 224)])
def test_a_pair_of_equal_sides_is_one_side(tiny_checkpoint_factory, size: object) -> None:
    assert read_checkpoint(tiny_checkpoint_factory(parameters(image_size=size))).spec.preprocessing.image_size == 224


def test_options_of_the_preprocessing_are_taken(tiny_checkpoint_factory) -> None:
    path = tiny_checkpoint_factory(parameters(interpolation="bilinear", crop_pct=0.9))
    preprocessing = read_checkpoint(path).spec.preprocessing

    assert (preprocessing.interpolation, preprocessing.crop_pct) == ("bilinear", 0.9)


def test_held_out_leaves_are_read(tiny_checkpoint_factory, tiny_checkpoint: Path) -> None:
    digests = ["0" * 64, "ab" * 32]

    assert read_checkpoint(tiny_checkpoint_factory(parameters(held_out_sha256=digests))).held_out == {*digests}
    assert read_checkpoint(tiny_checkpoint).held_out == frozenset()


def test_an_empty_list_of_diseases_needs_no_head(tiny_checkpoint_factory, tiny_taxonomy) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["hyper_parameters"]["diseases"]["Mint"] = []

    assert read_checkpoint(tiny_checkpoint_factory(edit)).spec.taxonomy == tiny_taxonomy


def test_a_link_to_a_checkpoint_is_followed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").symlink_to(tiny_checkpoint)

    assert read_checkpoint(tmp_path / "last.ckpt").sha256 == read_checkpoint(tiny_checkpoint).sha256


class TestNoCheckpoint:
    def test_nothing_there(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.ckpt", tmp_path):
            with pytest.raises(CheckpointError, match=r"no such checkpoint file"):
                read_checkpoint(path)
        (tmp_path / "dangling").symlink_to(tmp_path / "none")
        with pytest.raises(CheckpointError, match="no such checkpoint file"):
            read_checkpoint(tmp_path / "dangling")

    @pytest.mark.parametrize(
        "content",
        [b"", b"a text file\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04 no zip", b"PK\x05\x06" + bytes(18), b"\x80\x02."],
    )
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.ckpt"
        path.write_bytes(content)

        with pytest.raises(CheckpointError, match=f"{path}: not a checkpoint"):
            read_checkpoint(path)

    def test_a_zip_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("leaf.jpg", b"leaf")

        with pytest.raises(CheckpointError, match="not a checkpoint that torch wrote"):
            read_checkpoint(path)

    def test_half_a_checkpoint(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.ckpt"
        whole = tiny_checkpoint.read_bytes()
        for length in (1, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match="not a checkpoint"):
                read_checkpoint(path)

    @pytest.mark.parametrize(
        ("legacy", "match"),
        [(False, r"backbone.a is not a plain tensor, got .*pathlib"), (True, "expected the zip archive")],
    )
    def test_a_pickle_bomb_is_refused_and_not_run(self, tmp_path: Path, legacy: bool, match: str) -> None:
        marker = tmp_path / "executed"

        class Bomb:
            def __reduce__(self):
                return (Path.write_text, (marker, "boom"))

        path = tmp_path / "bomb.ckpt"
        state = {"backbone.a": Bomb(), "species_head.weight": Bomb()}
        document = {"state_dict": state, "hyper_parameters": MINT_PARAMETERS}
        torch.save(document, path, _use_new_zipfile_serialization=not legacy)

        with pytest.raises(CheckpointError, match=match):
            read_checkpoint(path)
        assert not marker.exists()
        torch.load(path, weights_only=False)
        assert marker.exists(), "the bomb was none"

    def test_a_plain_pickle_bomb_is_refused_and_not_run(self, tmp_path: Path) -> None:
        marker = tmp_path / "executed"

        class Bomb:
            def __reduce__(self):
                return (Path.write_text, (marker, "boom"))

        path = tmp_path / "bomb.ckpt"
        for protocol in range(2, 6):
            path.write_bytes(pickle.dumps(Bomb(), protocol))
            with pytest.raises(CheckpointError, match="not a checkpoint"):
                read_checkpoint(path)
        assert not marker.exists()

    @pytest.mark.parametrize("value", [3, "text", [1], torch.ones(3), {"state_dict": {}}, {"hyper_parameters": {}}])
    def test_another_document(self, tmp_path: Path, value: object) -> None:
        torch.save(value, tmp_path / "a.ckpt")

        with pytest.raises(CheckpointError, match=r"expected a dict with '(state_dict|hyper_parameters)'"):
            read_checkpoint(tmp_path / "a.ckpt")

    @settings(max_examples=150, deadline=None)
    @given(data=st.binary(max_size=30) | st.text(max_size=20).map(str.encode))
    def test_any_bytes_are_refused_and_nothing_else(self, tmp_path_factory, data: bytes) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzzed.ckpt"
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


NAN = torch.full((5, 32), torch.nan)
INF = torch.full((5,), torch.inf)

REFUSED: dict[str, tuple[Edit, str]] = {
    "no backbone": (rename("backbone.", "encoder."), r"no 'backbone.\*' tensors \(.*encoder"),
    "a prefix on some": (
        rename("species_head", "model.species_head"),
        "has backbone.. under '' and species_head.. under 'model.'; expected",
    ),
    "no tensors": (lambda d: d.update(state_dict={}), "no 'backbone..' tensors .it is empty"),
    "a name that is none": (lambda d: d["state_dict"].update({3: torch.ones(1)}), "must map names to tensors"),
    "a tensor that is none": (lambda d: d["state_dict"].update({"backbone.x": 3}), "must map names to tensors"),
    "a missing head": (
        tensors(**{"disease_heads__Pepper,_bell__weight": None, "disease_heads__Pepper,_bell__bias": None}),
        r"no head for species 'Pepper,_bell'; expected one of disease_heads.Pepper,_bell.weight, "
        r"disease_heads.pepper-bell.weight",
    ),
    "a missing head with dots": (
        rename("disease_heads.Aloe sp_ 2", "disease_heads.Aloe"),
        r"no head for species 'Aloe sp. 2'; expected .* disease_heads.Aloe sp_ 2.weight, disease_heads.aloe-sp-2",
    ),
    "a missing bias": (tensors(disease_heads__Blueberry__bias=None), "Blueberry.weight or .*bias is missing"),
    "a head of no species": (
        tensors(disease_heads__Fig__weight=torch.ones(1, 32), disease_heads__Fig__bias=torch.ones(1)),
        r"2 tensor.s. belong to no species .*: disease_heads.Fig.bias, disease_heads.Fig.weight",
    ),
    "a head of a species without diseases": (
        tensors(disease_heads__Mint__weight=torch.ones(1, 32), disease_heads__Mint__bias=torch.ones(1)),
        "belong to no species .*: disease_heads.Mint.bias",
    ),
    "a head under both names": (
        tensors(**{"disease_heads__pepper-bell__weight": torch.ones(2, 32), "disease_heads__pepper-bell__bias": INF}),
        "pepper-bell.bias holds 5 NaN or infinite",
    ),
    "two heads of one species": (
        tensors(
            **{
                "disease_heads__pepper-bell__weight": torch.ones(2, 32),
                "disease_heads__pepper-bell__bias": torch.ones(2),
            }
        ),
        "several heads for species 'Pepper,_bell'",
    ),
    "too few rows in a head": (
        tensors(**{"disease_heads__Cherry_(including_sour)__weight": torch.ones(2, 32)}),
        r"Cherry_\(including_sour\).weight \(2, 32\) and .*bias \(3,\) do not fit the 3 classes of hyper_parameters "
        r"\(Powdery_mildew, Leaf spot, healthy\): expected \(3, 32\) and \(3,\)",
    ),
    "swapped heads": (
        lambda d: swap(d, "disease_heads.Blueberry.", "disease_heads.Pepper,_bell."),
        r"weight \(1, 32\) and .* do not fit the 2 classes of hyper_parameters \(Bacterial_spot, healthy\)",
    ),
    "too many columns in a head": (
        tensors(disease_heads__Blueberry__weight=torch.ones(1, 33)),
        r"weight \(1, 33\) .* expected \(1, 32\)",
    ),
    "a head of one dimension": (tensors(disease_heads__Blueberry__weight=torch.ones(32)), r"weight \(32,\)"),
    "too few rows of species": (
        tensors(species_head__weight=torch.ones(4, 32), species_head__bias=torch.ones(4)),
        r"species_head.weight \(4, 32\) .* do not fit the 5 classes",
    ),
    "a wrong bias of species": (
        tensors(species_head__bias=torch.ones(4)),
        r"species_head.bias \(4,\) do not fit the 5",
    ),
    "no species head": (tensors(species_head__weight=None, species_head__bias=None), "species_head.weight or"),
    "half a projection": (tensors(projection__bias=None), "projection.weight or projection.bias is missing"),
    "a wrong projection": (tensors(projection__weight=torch.ones(31, 128)), r"projection.weight \(31, 128\)"),
    "NaN weights": (tensors(species_head__weight=NAN), "species_head.weight holds 160 NaN or infinite of 160"),
    "infinite weights": (tensors(species_head__bias=INF), "species_head.bias holds 5 NaN or infinite of 5"),
    "NaN in the backbone": (
        lambda d: d["state_dict"]["backbone.norm.weight"][3:5].fill_(torch.nan),
        "backbone.norm.weight holds 2 NaN or infinite of 128",
    ),
    "float64": (cast(torch.float64), "is torch.float64, expected float16, bfloat16 or float32"),
    "float64 in one tensor": (cast(torch.float64, "species_head.bias"), "species_head.bias is torch.float64"),
    "float8": (cast(torch.float8_e4m3fn, "species_head.bias"), "species_head.bias is torch.float8_e4m3fn"),
    "integer weights": (
        lambda d: d["state_dict"].update({"species_head.weight": torch.ones(5, 32, dtype=torch.int8)}),
        "species_head is torch.int8 and torch.float32, expected float16",
    ),
    "complex weights": (
        lambda d: d["state_dict"].update({"species_head.bias": torch.ones(5, dtype=torch.complex64)}),
        "species_head is torch.float32 and torch.complex64",
    ),
    "a species too many": (
        lambda d: d["hyper_parameters"]["species"].append("Fig"),
        "species_head.weight .* do not fit the 6 classes",
    ),
    "a disease too many": (
        lambda d: d["hyper_parameters"]["diseases"]["Blueberry"].append("rot"),
        r"do not fit the 2 classes of hyper_parameters \(healthy, rot\)",
    ),
    "two species of one slug": (
        parameters(species=["Pepper,_bell", "Pepper (bell)", "Mint", "Blueberry", "Aloe sp. 2"]),
        "hyper_parameters: .*",
    ),
    "colliding slugs": (
        lambda d: d["hyper_parameters"].update(species=["Aloe sp. 2", "aloe_sp_2"], diseases={}),
        "species 'Aloe sp. 2' and 'aloe_sp_2' have the same slug 'aloe-sp-2'",
    ),
    "diseases of a stranger": (
        lambda d: d["hyper_parameters"]["diseases"].update(Fig=["rot"]),
        "diseases are given for 'Fig', which is not among the species",
    ),
    "species that are no list": (parameters(species=3), "hyper_parameters: "),
    "diseases that are no dict": (parameters(diseases=["rot"]), "hyper_parameters: "),
    "no embedding size": (parameters(embedding_dim=0), "embedding_dim must be a positive integer, got 0"),
    "embedding size as text": (parameters(embedding_dim="32"), "embedding_dim must be .*, got '32'"),
    "another embedding size": (parameters(embedding_dim=64), r"expected \(2, 64\)"),
    "a backbone that is no name": (parameters(backbone=3), "backbone must be a timm name"),
    "arguments that are no dict": (parameters(backbone_kwargs=[1]), "backbone_kwargs a dict"),
    "image size as text": (parameters(image_size="224"), "image_size must be an integer"),
    "image size as a wide pair": (parameters(image_size=[224, 192]), r"image_size must be square, got \[224, 192\]"),
    "image size as three numbers": (parameters(image_size=[3, 224, 224]), "image_size must be an integer"),
    "two means": (parameters(mean=[0.5, 0.5]), "mean must be three finite numbers"),
    "one mean": (parameters(mean=0.5), "hyper_parameters: "),
    "a mean of tensors": (
        parameters(mean=torch.zeros(3)),
        r"hyper_parameters\['mean'\] holds torch.Tensor, which is not a plain value",
    ),
    "a zero std": (parameters(std=[0.5, 0, 0.5]), "std must be positive"),
    "a gigantic std": (parameters(std=[0.5, 10**400, 0.5]), "std must be three finite numbers"),
    "another filter": (parameters(interpolation="cubic"), "interpolation must be one of"),
    "another crop": (parameters(crop_pct=1.5), "crop_pct must be"),
    "held-out leaves as text": (parameters(held_out_sha256="ab"), "held_out_sha256 must be a list .*, got str"),
    "a held-out leaf by name": (parameters(held_out_sha256=["leaf.jpg"]), "digits, got 'leaf.jpg'"),
}


def swap(document: dict[str, Any], first: str, second: str) -> None:
    for part in ("weight", "bias"):
        state = document["state_dict"]
        state[first + part], state[second + part] = state[second + part], state[first + part]


@pytest.mark.parametrize("case", REFUSED)
def test_names_and_tensors_that_disagree_are_refused(tiny_checkpoint_factory, case: str) -> None:
    edit, match = REFUSED[case]
    path = tiny_checkpoint_factory(edit)

    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["backbone", "embedding_dim", "image_size", "mean", "std", "species", "diseases"])
def test_a_missing_hyper_parameter_is_named(tiny_checkpoint_factory, name: str) -> None:
    path = tiny_checkpoint_factory(lambda document: document["hyper_parameters"].pop(name))

    with pytest.raises(CheckpointError, match=f"hyper_parameters lack {name}"):
        read_checkpoint(path)


def test_missing_backbone_kwargs_are_none(tiny_checkpoint_factory) -> None:
    path = tiny_checkpoint_factory(lambda document: document["hyper_parameters"].pop("backbone_kwargs"))

    assert read_checkpoint(path).spec.backbone_kwargs == {}


def test_the_file_is_not_changed(tiny_checkpoint: Path, tiny_document) -> None:
    before = tiny_checkpoint.read_bytes()
    read_checkpoint(tiny_checkpoint)

    assert tiny_checkpoint.read_bytes() == before
    assert np.isfinite(copy.deepcopy(tiny_document)["state_dict"]["species_head.bias"].numpy()).all()
