"""Describes what a checkpoint holds, and makes a file of hyper-parameters from it for a person to complete.

>>> print(describe_checkpoint(checkpoint).splitlines()[1])
network      prefix '': backbone. 67 tensors, projection. 2, species_head. 2, disease_heads. 8
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.files import write_bytes
from plantmodels.checkpoint.archive import TensorSource
from plantmodels.checkpoint.files import Weights, open_weights
from plantmodels.checkpoint.inert_pickle import Foreign, StoredTensor
from plantmodels.checkpoint.names import ROOTS, describe_names, find_prefixes, unwrap_name
from plantmodels.checkpoint.spec import FILL_IN, OPTIONAL, REQUIRED
from plantmodels.errors import CheckpointError, PlantModelsError

_SHOWN: Final = 12
_PLAIN: Final = (str, int, float, bool, type(None))


def describe_checkpoint(path: Path) -> str:
    """Return what a checkpoint holds as text for a terminal: networks, shapes, candidates, and a template to complete.

    Raises:
        CheckpointError: the file is missing, is not a checkpoint or holds no weights.
    """
    with open_weights(path) as content:
        state = _list_tensors(content)
        lines = [f"file         {path}, {content.size_bytes:,} bytes, SHA-256 {content.sha256}"]
        lines += _describe_networks(state)
        lines += _describe_heads(state)
        lines += _describe_names_of_classes(content, state)
        lines += _describe_parameters(content)
        others = [str(key) for key in content.document if key not in ("state_dict", "hyper_parameters")]
        if content.archive is not None and others:
            lines.append(f"not read     {', '.join(others[:_SHOWN])}")
        lines += [
            "",
            "Hyper-parameters to complete, for --hyper-parameters FILE.yaml:",
            "",
            _render_template(content, state),
        ]
    return "\n".join(lines)


def write_template(path: Path, out: Path) -> None:
    """Write a YAML file with every hyper-parameter that a checkpoint tells, and `FILL IN` where a person must.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the file exists or cannot be written.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists and is not replaced")
    with open_weights(path) as content:
        template = _render_template(content, _list_tensors(content))
    try:
        write_bytes(out, (template + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror})") from error


def _list_tensors(content: Weights) -> dict[str, TensorSource]:
    state = content.select_state("model")
    return {str(name): value for name, value in state.items() if isinstance(value, TensorSource)}


def _describe_networks(state: Mapping[str, TensorSource]) -> Iterator[str]:
    names = [unwrap_name(name) for name in state]
    prefixes = find_prefixes(names)
    for prefix, averaged in prefixes.items():
        counts = {root: sum(name.startswith(prefix + root) for name in names) for root in ROOTS}
        parts = [f"{root} {count}" for root, count in counts.items() if count]
        first, *rest = parts
        copy = ", an averaged copy (--weights ema)" if averaged else ""
        yield f"network      prefix {prefix!r}: {', '.join([f'{first} tensors', *rest])}{copy}"
    others = [name for name in names if not any(name.startswith(p + root) for p in prefixes for root in ROOTS)]
    if not prefixes:
        yield f"network      none: no prefix has backbone.* and species_head.weight (expected {', '.join(ROOTS)})"
    if others:
        yield f"other        {describe_names(others)}"
    beginnings = Counter(name.partition(".")[0] for name in names)
    yield f"begins with  {', '.join(f'{name}. ({count})' for name, count in beginnings.most_common(_SHOWN))}"


def _list_linears(state: Mapping[str, TensorSource]) -> dict[str, tuple[int, int]]:
    """Return each layer with a two-dimensional weight and a bias that lies outside a backbone, and its shape."""
    found = {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        bias = state.get(f"{layer}.bias")
        is_matrix = name.endswith(".weight") and len(tensor.shape) == 2 and "backbone." not in unwrap_name(name)
        if bias is None or not is_matrix:
            continue
        if bias.shape == tensor.shape[:1]:
            found[layer] = (tensor.shape[0], tensor.shape[1])
    return found


def _describe_heads(state: Mapping[str, TensorSource]) -> Iterator[str]:
    linears = _list_linears(state)
    likely = {name: shape for name, shape in linears.items() if not any(part.isdigit() for part in name.split("."))}
    for name, (rows, columns) in list((likely or linears).items())[:_SHOWN]:
        yield f"linear       {name}: {columns} features to {rows} outputs"
    if len(likely or linears) > _SHOWN:
        yield f"linear       and {len(likely or linears) - _SHOWN} more"


def _count_species(state: Mapping[str, TensorSource]) -> int | None:
    heads = [tensor for name, tensor in state.items() if unwrap_name(name).endswith("species_head.weight")]
    return heads[0].shape[0] if heads and len(heads[0].shape) == 2 else None


def _list_head_names(state: Mapping[str, TensorSource]) -> dict[str, int]:
    """Return the name of each disease head and the number of its outputs."""
    found = {}
    for name, tensor in state.items():
        _, root, rest = unwrap_name(name).partition("disease_heads.")
        if root and rest.endswith(".weight") and tensor.shape:
            found[rest.removesuffix(".weight")] = tensor.shape[0]
    return found


def _find_lists(value: object, place: str, depth: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Yield every list of texts in plain data, and the place where it lies."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        yield place, [str(item) for item in value]
    elif isinstance(value, dict) and depth < 3:
        for key, item in list(value.items())[:1000]:
            yield from _find_lists(item, f"{place}[{key!r:.40}]", depth + 1)


def _describe_names_of_classes(content: Weights, state: Mapping[str, TensorSource]) -> Iterator[str]:
    count = _count_species(state)
    if count is not None:
        yield f"species      species_head has {count} outputs"
    if heads := _list_head_names(state):
        shown = ", ".join(f"{name} ({rows})" for name, rows in list(heads.items())[:_SHOWN])
        yield f"species      {len(heads)} disease heads: {shown}{' ...' if len(heads) > _SHOWN else ''}"
    places = {"hyper_parameters": content.parameters}
    places |= {str(key): content.document.get(key) for key in ("datamodule_hyper_parameters", "classes", "class_names")}
    for place, value in places.items():
        for where, names in _find_lists(value, place):
            if len(names) == count:
                yield f"species      {where} names {count}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _describe_parameters(content: Weights) -> Iterator[str]:
    parameters = content.parameters
    if isinstance(parameters, Foreign):
        yield f"parameters   hyper_parameters is {parameters.name}, which is not read"
        return
    known = parameters if isinstance(parameters, dict) else {}
    lacking = [name for name in REQUIRED if name not in known]
    yield f"parameters   {', '.join(str(name) for name in list(known)[: 2 * _SHOWN]) or 'none'}"
    if lacking:
        yield f"parameters   missing: {', '.join(lacking)}"
    for name in (*REQUIRED, *OPTIONAL):
        if name in known and not _is_plain(known[name]):
            yield f"parameters   {name} holds an object that is not read: {_find_foreign(known[name])}"


def _is_plain(value: object, depth: int = 0) -> bool:
    if isinstance(value, dict) and depth < 4 and len(value) < 10_000:
        return all(isinstance(key, _PLAIN) and _is_plain(item, depth + 1) for key, item in value.items())
    if isinstance(value, list | tuple) and depth < 4 and len(value) < 10_000:
        return all(_is_plain(item, depth + 1) for item in value)
    return isinstance(value, _PLAIN)


def _find_foreign(value: object) -> str:
    if isinstance(value, Foreign):
        return value.name
    if isinstance(value, StoredTensor):
        return "torch.Tensor"
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((child.name for child in children if isinstance(child, Foreign)), type(value).__name__)


def _render_template(content: Weights, state: Mapping[str, TensorSource]) -> str:
    """Return YAML with one line for each field of contract 1; JSON is YAML, so each value is written as JSON."""
    known = content.parameters if isinstance(content.parameters, dict) else {}
    guesses = _guess(state)
    lines = []
    for name in (*REQUIRED, *OPTIONAL):
        if name in known and _is_plain(known[name]):
            lines.append(f"{name}: {_to_json(known[name])}")
        elif name in guesses:
            lines.append(f"{name}: {_to_json(guesses[name][0])}  # {guesses[name][1]}")
    return "\n".join(lines)


def _to_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PlantModelsError(f"a hyper-parameter cannot be written as JSON ({error})") from error


def _guess(state: Mapping[str, TensorSource]) -> dict[str, tuple[Any, str]]:
    """Return a value for each required field, as far as the tensors tell it, and what a person must know about it."""
    heads, count = _list_head_names(state), _count_species(state)
    names = f"; heads are called {', '.join(heads)}" if heads else ""
    widths = [t.shape[1] for name, t in state.items() if unwrap_name(name).endswith("species_head.weight")]
    return {
        "backbone": (FILL_IN, "the name of the timm model"),
        "embedding_dim": (widths[0] if widths else FILL_IN, "the inputs of species_head"),
        "image_size": (FILL_IN, "the side of the square input, in pixels"),
        "mean": ([FILL_IN] * 3, "of training; ImageNet's are 0.485, 0.456, 0.406"),
        "std": ([FILL_IN] * 3, "of training; ImageNet's are 0.229, 0.224, 0.225"),
        "species": ([FILL_IN] * (count or 1), f"in the order of species_head's outputs{names}"),
        "diseases": (
            {name: [FILL_IN] * rows for name, rows in heads.items()},
            "in the order of each head's outputs; a head's name may stand for another spelling of the species",
        ),
    }
