"""Checks which names of a state_dict are the network's: prefixes, wrappers, copies, and what is ignored."""

from pathlib import Path

import pytest

from plantmodels.checkpoint.names import describe_names, find_network, unwrap_name
from plantmodels.errors import CheckpointError

PATH = Path("last.ckpt")
NETWORK = (
    "backbone.patch_embed.proj.weight",
    "backbone.norm.bias",
    "projection.weight",
    "species_head.weight",
    "species_head.bias",
    "disease_heads.Apple.weight",
)


def under(prefix: str, names: tuple[str, ...] = NETWORK) -> list[str]:
    return [prefix + name for name in names]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "net.",
        "module.",
        "_orig_mod.",
        "model.net._orig_mod.",
        "classifier.net.",
        "lit_module.model.module.",
    ],
)
def test_any_common_prefix_is_stripped(prefix: str) -> None:
    found = find_network(PATH, under(prefix), "model")

    assert tuple(found.network) == NETWORK
    assert list(found.network.values()) == under(prefix)
    assert found.ignored == () and found.describe_ignored() == ""


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
@pytest.mark.parametrize(
    "place",
    [
        ("{}.backbone.a.weight", "backbone.a.weight"),
        ("backbone.{}.a.weight", "backbone.a.weight"),
        ("model.{}.backbone.a.{}.weight", "model.backbone.a.weight"),
        ("species_head.{}.weight", "species_head.weight"),
        ("disease_heads.{}.Apple.weight", "disease_heads.Apple.weight"),
        ("disease_heads.Apple.{}.weight", "disease_heads.Apple.weight"),
        ("disease_heads.Aloe sp. 2.{}.bias", "disease_heads.Aloe sp. 2.bias"),
    ],
)
def test_wrappers_are_dropped_wherever_they_stand(wrapper: str, place: tuple[str, str]) -> None:
    assert unwrap_name(place[0].replace("{}", wrapper)) == place[1]


@pytest.mark.parametrize("species", ["module", "_orig_mod"])
def test_a_species_may_be_called_like_a_wrapper(species: str) -> None:
    assert unwrap_name(f"module.disease_heads.{species}.weight") == f"disease_heads.{species}.weight"
    assert unwrap_name(f"disease_heads._orig_mod.{species}.weight") == f"disease_heads.{species}.weight"


def test_the_part_module_of_a_backbone_stays_for_timm_to_decide() -> None:
    assert unwrap_name("module.backbone.stages.0.module.fc.weight") == "backbone.stages.0.module.fc.weight"


def test_what_is_not_the_network_is_ignored_and_named() -> None:
    others = ["criterion.weight", "pixel_mean", "val_f1.confmat", "model.loss.center", "n_averaged"]
    found = find_network(PATH, [*under("model."), *others], "model")

    assert tuple(found.network) == NETWORK
    assert found.ignored == tuple(others)
    assert found.describe_ignored() == (
        "5 tensors: criterion.weight, pixel_mean, val_f1.confmat, model.loss.center, n_averaged"
    )


def test_a_large_group_is_named_by_its_beginning() -> None:
    assert describe_names(["a.1", "a.2", "a.3", "b"]) == "4 tensors: a.* (3), b"
    assert describe_names([f"n{i}" for i in range(10)]).endswith("n7 and 2 more")


EMA_PREFIXES = ["ema_model.", "ema.", "model_ema.module.", "averaged_model.", "net.ema_net.", "swa_model.module."]


@pytest.mark.parametrize("prefix", EMA_PREFIXES)
@pytest.mark.parametrize("trained", ["", "model."])
def test_the_averaged_copy_is_read_when_it_is_asked_for(prefix: str, trained: str) -> None:
    names = [*under(trained), *under(prefix)]

    assert list(find_network(PATH, names, "model").network.values()) == under(trained)
    assert list(find_network(PATH, names, "ema").network.values()) == under(prefix)
    assert set(find_network(PATH, names, "ema").ignored) == set(under(trained))


@pytest.mark.parametrize("name", ["schema.", "emanuel.", "model.", "gamma_net."])
def test_other_words_are_not_averaged_copies(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"no weights 'ema' in state_dict; its networks have the prefixes '{name}'"
    ):
        find_network(PATH, under(name), "ema")


def test_an_averaged_copy_alone_is_the_network() -> None:
    assert find_network(PATH, under("ema_model."), "model").prefix == "ema_model."


def test_one_of_several_networks_is_chosen_by_its_prefix() -> None:
    names = [*under("student."), *under("teacher.")]

    with pytest.raises(
        CheckpointError, match=r"2 networks in state_dict.*'student.', 'teacher.': choose one with --weights"
    ):
        find_network(PATH, names, "model")
    for weights in ("teacher", "teacher."):
        assert list(find_network(PATH, names, weights).network.values()) == under("teacher.")
    with pytest.raises(
        CheckpointError, match=r"no weights 'other' in state_dict; its networks have the prefixes 'student.'"
    ):
        find_network(PATH, names, "other")


REFUSED = {
    "no backbone": (["encoder.a", "species_head.weight"], r"no 'backbone\.\*' tensors \(2 tensors: encoder.a"),
    "nothing": ([], r"no 'backbone\.\*' tensors \(it is empty\)"),
    "no species head": (["backbone.a"], "species_head.weight or species_head.bias is missing in state_dict"),
    "two prefixes": (
        ["a.backbone.x", "b.species_head.weight"],
        r"backbone\.\* under 'a.' and species_head\.\* under 'b.'; expected .*plantmodels describe last.ckpt",
    ),
    "one tensor twice": (
        [*NETWORK, "backbone._orig_mod.norm.bias"],
        "'backbone.norm.bias' and 'backbone._orig_mod.norm.bias' are the same tensor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_without_a_network_are_refused(case: str) -> None:
    names, match = REFUSED[case]

    with pytest.raises(CheckpointError, match=match):
        find_network(PATH, names, "model")
