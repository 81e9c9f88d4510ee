"""Turns the tensor names of older timm versions, and of Microsoft's Swin, into those of the installed timm.

The names are turned by timm's own `checkpoint_filter_fn`. Only its new names are used: where it would also compute new
numbers, such as tables of another window size, the checkpoint stays as it is and is refused.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import timm
import torch
from torch import nn

_ORIGINS: Final = (
    (r"^layers\.0\.downsample\.", "timm up to 0.6, or Microsoft's Swin"),
    (r"attn_mask$|relative_position_index$", "timm up to 0.8, or Microsoft's Swin"),
    (r"^(encoder|embeddings|swin|vit|convnext)\..*(layer|patch_embeddings)\.", "Hugging Face transformers"),
    (r"^features\.\d+\.", "torchvision"),
    (r"^stages\.\d+\.blocks\.\d+\.(attn\.w_msa|ffn\.layers)\.", "mmpretrain"),
    (r"^(blocks|layers)\.\d+\.(mixer|mlp)\.w12\.", "Meta's own code"),
)
"""Names that only one library writes, and the library."""

_FILTER_ERRORS: Final = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def translate_names(backbone: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the tensors under the names of the installed timm; unchanged if no translation makes them fit.

    Args:
        backbone: the backbone that they must fit.
        state: names in the checkpoint, without `backbone.`, to tensors.
    """
    attempts: tuple[Callable[[], Mapping[str, torch.Tensor]], ...] = (
        lambda: state,
        lambda: _drop_modules(state),
        lambda: _drop_buffers(backbone, state),
        lambda: _filter(backbone, state),
        lambda: _filter(backbone, _drop_modules(state)),
    )
    for attempt in attempts:
        found = attempt()
        if not list_misfits(backbone, found):
            return found
    return state


def list_misfits(backbone: nn.Module, found: Mapping[str, torch.Tensor]) -> list[str]:
    """Return what the tensors lack, have too much, or have in another shape or dtype than timm's backbone."""
    expected = backbone.state_dict()
    problems = [f"missing: {name}" for name in expected if name not in found]
    problems += [f"unknown: {name}" for name in found if name not in expected]
    both = [(name, found[name], tensor) for name, tensor in expected.items() if name in found]
    problems += [
        f"{name}: {tuple(ours.shape)}, timm has {tuple(tensor.shape)}"
        for name, ours, tensor in both
        if ours.shape != tensor.shape
    ]
    problems += [
        f"{name}: {ours.dtype}, timm has {tensor.dtype}"
        for name, ours, tensor in both
        if ours.is_floating_point() != tensor.is_floating_point()
    ]
    return problems


def describe_origin(names: Iterable[str]) -> str:
    """Return a sentence that says which library wrote such names, and which timm is installed."""
    listed = list(names)
    for pattern, origin in _ORIGINS:
        example = next((name for name in listed if re.search(pattern, name)), None)
        if example is not None:
            return f". Names such as {example!r} were written by {origin}; here is timm {timm.__version__}"
    return f". They were written by another timm than {timm.__version__}, or for other backbone_kwargs"


def _drop_modules(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the tensors without DataParallel's `module`, which some timm models also use for a part of their own."""
    renamed = {".".join(part for part in name.split(".") if part != "module"): name for name in state}
    return {name: state[old] for name, old in renamed.items()} if len(renamed) == len(state) else state


def _drop_buffers(backbone: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the tensors without those that timm computes itself and older versions stored."""
    expected = backbone.state_dict()
    computed = {name for name, _ in backbone.named_buffers() if name not in expected}
    return {name: tensor for name, tensor in state.items() if name not in computed}


def _filter(backbone: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the tensors under the names that timm's own filter gives them; unchanged if it would change a number."""
    rename: Any = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        with torch.inference_mode():
            renamed = rename(dict(state), backbone)
    except _FILTER_ERRORS:
        return state
    kept = {_identify(tensor) for tensor in state.values()}
    if not isinstance(renamed, dict) or any(_identify(tensor) not in kept for tensor in renamed.values()):
        return state
    return renamed


def _identify(tensor: object) -> tuple[int, int]:
    """Return where a tensor's numbers lie, and how many they are; a reshaped view has the same."""
    return (tensor.data_ptr(), tensor.numel()) if isinstance(tensor, torch.Tensor) else (0, -1)
