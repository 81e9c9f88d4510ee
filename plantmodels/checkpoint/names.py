"""Finds the network in a state_dict: the prefix of its tensors, copies of it, and tensors that are not part of it.

>>> state = ["model.backbone.a", "model.species_head.weight", "criterion.weight"]
>>> names = find_network(Path("last.ckpt"), state, "model")
>>> names.network["backbone.a"], names.describe_ignored()
('model.backbone.a', '1 tensor: criterion.weight')
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plantmodels.errors import CheckpointError
from plantmodels.foreign_text import name_some

ROOTS: Final = ("backbone.", "projection.", "species_head.", "disease_heads.")

WRAPPERS: Final = frozenset(
    ("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
)
"""Parts of names that `torch.compile`, DataParallel, Fabric, FSDP and activation checkpointing add at any depth."""

_AVERAGED: Final = re.compile(r"(^|_)(ema|averaged?|avg|swa)(_|$)", re.IGNORECASE)
_SHOWN: Final = 8


@dataclass(frozen=True)
class NetworkNames:
    """Which entries of a state_dict are the network.

    Attributes:
        prefix: the common prefix, without wrappers; "" or text that ends with a dot.
        network: contract 1's name of each entry to its name in the file.
        ignored: names in the file that belong to no network, or to a copy of it that was not asked for.
    """

    prefix: str
    network: Mapping[str, str]
    ignored: tuple[str, ...]

    def describe_ignored(self) -> str:
        """Return how many entries were ignored, and their names or what they begin with; "" if there are none."""
        return describe_names(self.ignored)


def describe_names(names: Iterable[str]) -> str:
    """Return the number of names and the names themselves; those of a large group are named by their beginning."""
    listed = list(names)
    groups = Counter(name.partition(".")[0] for name in listed)
    shown = dict.fromkeys(
        name if groups[beginning] <= 2 else f"{beginning}.* ({groups[beginning]})"
        for name in listed
        if (beginning := name.partition(".")[0])
    )
    noun = "tensor" if len(listed) == 1 else "tensors"
    return f"{len(listed)} {noun}: {name_some(list(shown), _SHOWN)}" if listed else ""


def find_network(path: Path, names: Iterable[str], weights: str) -> NetworkNames:
    """Return which names are the network's.

    Args:
        path: the checkpoint, for error messages.
        names: the names in its state_dict.
        weights: "model", or "ema" for the averaged copy, or the prefix of one of several networks.

    Raises:
        CheckpointError: no prefix has a backbone and a species head, several have, or two names mean the same entry.
    """
    listed = list(names)
    unwrapped = _unwrap_names(path, listed)
    prefixes = find_prefixes(unwrapped)
    prefix = _choose(path, listed, prefixes, weights)
    network = {
        name.removeprefix(prefix): original
        for name, original in unwrapped.items()
        if name.startswith(tuple(prefix + root for root in ROOTS))
    }
    taken = set(network.values())
    return NetworkNames(prefix, network, tuple(name for name in listed if name not in taken))


def find_prefixes(names: Iterable[str]) -> dict[str, bool]:
    """Return each prefix under which both a backbone and a species head lie, and whether it is an averaged copy.

    Args:
        names: names without wrappers.
    """
    listed = list(names)
    heads = [name.removesuffix("species_head.weight") for name in listed if name.endswith("species_head.weight")]
    prefixes = [prefix for prefix in heads if not prefix or prefix.endswith(".")]
    with_backbone = [p for p in prefixes if any(name.startswith(f"{p}backbone.") for name in listed)]
    return {p: any(_AVERAGED.search(part) for part in p.split(".")) for p in with_backbone}


def _choose(path: Path, names: list[str], prefixes: Mapping[str, bool], weights: str) -> str:
    if not prefixes:
        raise _refuse_names(path, names)
    wanted = [prefix for prefix, averaged in prefixes.items() if averaged == (weights == "ema")]
    if weights not in ("model", "ema"):
        wanted = [prefix for prefix in prefixes if prefix.rstrip(".") == weights.rstrip(".")]
    if not wanted and weights == "model":
        wanted = list(prefixes)
    if len(wanted) != 1:
        problem = f"no weights {weights!r}" if not wanted else f"{len(wanted)} networks"
        listed = ", ".join(repr(prefix) for prefix in prefixes)
        raise CheckpointError(
            f"{path}: {problem} in state_dict; its networks have the prefixes {listed}: choose one with "
            "--weights PREFIX"
        )
    return wanted[0]


def _refuse_names(path: Path, names: list[str]) -> CheckpointError:
    """Return the error for a state_dict without a whole network under one prefix."""
    found = {
        root: sorted({name[: name.find(root)] for name in names if f".{root}" in f".{name}"})
        for root in ("backbone.", "species_head.")
    }
    if not found["backbone."]:
        problem = f"state_dict has no 'backbone.*' tensors ({describe_names(names) or 'it is empty'})"
    elif not found["species_head."]:
        problem = "species_head.weight or species_head.bias is missing in state_dict"
    else:
        places = [f"{root}* under {', '.join(map(repr, prefixes))}" for root, prefixes in found.items()]
        problem = f"state_dict has {' and '.join(places)}"
    return CheckpointError(
        f"{path}: {problem}; expected {', '.join(ROOTS)} with at most a common prefix. `plantmodels describe {path}` "
        "lists what is there"
    )


def _unwrap_names(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return each name without wrappers to the name in the file."""
    unwrapped: dict[str, str] = {}
    for name in names:
        plain = unwrap_name(name)
        if plain in unwrapped:
            raise CheckpointError(f"{path}: {unwrapped[plain]!r} and {name!r} are the same tensor {plain!r}")
        unwrapped[plain] = name
    return unwrapped


def unwrap_name(name: str) -> str:
    """Return a name without wrappers.

    Inside the backbone, `module` stays, because some timm models have a part of this name. A species may be called like
    a wrapper, so a disease head keeps its last part.

    >>> unwrap_name("module._orig_mod.backbone.module.norm.weight"), unwrap_name("disease_heads.module.bias")
    ('backbone.module.norm.weight', 'disease_heads.module.bias')
    """
    parts = name.split(".")
    inside = parts.index("backbone") if "backbone" in parts else len(parts)
    heads = parts.index("disease_heads") if "disease_heads" in parts[:inside] else len(parts)
    kept = [i for i, part in enumerate(parts) if part not in WRAPPERS or (part == "module" and i > inside)]
    if heads < len(parts) - 2 and not any(heads < i < len(parts) - 1 for i in kept):
        kept = sorted([*kept, len(parts) - 2])
    return ".".join(parts[i] for i in kept)
