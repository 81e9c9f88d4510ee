"""Builds Swin (v1 and v2) as an ONNX graph for CPUs: the mathematics of timm, with far fewer operators.

timm rolls, pads, partitions and reverses the tokens around each attention, in dozens of small operators. This graph
differs from timm's in the following ways:

- The tokens of a stage are kept in the order of its unshifted windows. A block with shifted windows then needs one
  Gather before attention and one after it, and patch merging is one Gather.
- Query, key and value are three products instead of one whose result is split and transposed.
- Attention is ONNX's own operator.
- Relative positions and window masks are stored as tables and labels. ONNX Runtime expands them once, when a session
  opens.

The mask adds −100 outside of a window, as in timm. Trained attention logits reach several hundred, so this mask is
soft, and a harder one would change outputs.

References:
    Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
    Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", CVPR 2022.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from timm.layers.activations import GELU, GELUTanh
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_builder import GraphBuilder

OPSET: Final = 23
"""The first opset with the operator Attention."""

_PADDING: Final = -1
"""Position of a token that pads the image."""

_MAX_LOGIT_SCALE: Final = float(np.log(100))
"""Swin v2 limits the learned factor of its cosine attention to 100."""

Array = NDArray[np.float64]
"""Weights of any shape; they are rounded to float32 when they are stored."""


def is_supported(network: HierarchicalNetwork) -> bool:
    """Return whether `build_swin` can build every part of this network's backbone."""
    backbone: Any = network.backbone
    if type(backbone) not in (SwinTransformer, SwinTransformerV2):
        return False
    side = network.spec.preprocessing.image_size
    blocks = [block for stage in backbone.layers for block in stage.blocks]
    norms = [backbone.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    norms += [stage.downsample.norm for stage in backbone.layers if not isinstance(stage.downsample, nn.Identity)]
    norms += [backbone.patch_embed.norm] if not isinstance(backbone.patch_embed.norm, nn.Identity) else []
    return (
        tuple(backbone.patch_embed.img_size) == (side, side)
        and backbone.head.global_pool.pool_type == "avg"
        and isinstance(backbone.head.fc, nn.Identity)
        and all(type(norm) is nn.LayerNorm and norm.elementwise_affine for norm in norms)
        and all(_find_gelu_approximation(block.mlp.act) is not None for block in blocks)
    )


def build_swin(network: HierarchicalNetwork) -> onnx.ModelProto:
    """Return the species model of a supported network in float32; this takes a second, because nothing is traced.

    Args:
        network: network in evaluation mode, for which `is_supported` is true.

    Returns:
        `input` (batch, 3, P, P) → `species_logits` (batch, S), `embedding` (batch, D); opset 23.
    """
    with torch.inference_mode():
        return _SwinGraph(network).build()


@dataclass(frozen=True)
class _Tokens:
    """The tokens between two blocks.

    Attributes:
        name: name of the tensor, (batch, H · W, C).
        grid: height H and width W of the grid of tokens.
        position: (H, W) index of each cell of the grid among the H · W tokens.
    """

    name: str
    grid: tuple[int, int]
    position: NDArray[np.int64]

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1]


class _SwinGraph:
    """The graph of one network under construction. Each `_add_…` method returns the name of its output."""

    def __init__(self, network: HierarchicalNetwork) -> None:
        self._graph = GraphBuilder(opset=OPSET)
        self._network = network
        self._backbone: Any = network.backbone  # timm's modules; their attributes have no types
        self._v2 = isinstance(network.backbone, SwinTransformerV2)

    def build(self) -> onnx.ModelProto:
        graph, spec = self._graph, self._network.spec
        tokens = self._embed_patches()
        for stage in self._backbone.layers:
            if not isinstance(stage.downsample, nn.Identity):
                tokens = self._merge_patches(tokens, stage)
            for block in stage.blocks:
                tokens = self._add_block(tokens, block)
        pooled = graph.add_node(
            "ReduceMean", self._add_norm(tokens.name, self._backbone.norm), graph.add_shape(1), keepdims=0
        )
        self._add_heads(pooled)
        side = spec.preprocessing.image_size
        values = {IMAGE_INPUT: (3, side, side), SPECIES_OUTPUT: (len(spec.taxonomy.species),)}
        values[EMBEDDING] = (spec.embedding_dim,)
        described = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in values.items()
        ]
        return graph.build("swin", described[:1], described[1:])

    def _embed_patches(self) -> _Tokens:
        graph, embed = self._graph, self._backbone.patch_embed
        grid = (embed.grid_size[0], embed.grid_size[1])
        kernel = _to_float64(embed.proj.weight)
        inputs = [IMAGE_INPUT, self._store_float32(kernel)]
        if embed.proj.bias is not None:
            inputs.append(self._store_float32(_to_float64(embed.proj.bias)))
        patches = graph.add_node("Conv", *inputs, kernel_shape=kernel.shape[2:], strides=kernel.shape[2:])
        rows = graph.add_node("Reshape", patches, graph.add_shape(0, len(kernel), grid[0] * grid[1]))
        rows = graph.add_node("Transpose", rows, perm=[0, 2, 1])
        cells = np.arange(grid[0] * grid[1]).reshape(grid)
        order = _order_stage(cells, self._backbone.layers[0].blocks[0])
        name = self._reorder(rows, order, len(order))
        if not isinstance(embed.norm, nn.Identity):
            name = self._add_norm(name, embed.norm)
        return _Tokens(name, grid, np.argsort(order).reshape(grid))

    def _merge_patches(self, tokens: _Tokens, stage: Any) -> _Tokens:
        """Merge four neighbors into one token, in timm's order (0, 0), (1, 0), (0, 1), (1, 1)."""
        graph, merging = self._graph, stage.downsample
        padded = np.pad(tokens.position, [(0, size % 2) for size in tokens.grid], constant_values=_PADDING)
        grid = (padded.shape[0] // 2, padded.shape[1] // 2)
        four = padded.reshape(grid[0], 2, grid[1], 2).transpose(0, 2, 3, 1).reshape(-1, 4)
        order = _order_stage(np.arange(len(four)).reshape(grid), stage.blocks[0])
        name = self._reorder(tokens.name, four[order].reshape(-1), tokens.count)
        name = graph.add_node("Reshape", name, graph.add_shape(-1, len(four), 4 * merging.dim))
        weight = _to_float64(merging.reduction.weight).T
        if self._v2:
            name = self._add_norm(self._add_product(name, weight, None), merging.norm)
        else:
            name = self._add_product(self._add_norm(name, merging.norm), weight, None)
        return _Tokens(name, grid, np.argsort(order).reshape(grid))

    def _add_block(self, tokens: _Tokens, block: Any) -> _Tokens:
        """Add attention and MLP with their norms, which come first in v1 and last in v2."""
        graph = self._graph
        branch = self._add_attention(
            tokens.name if self._v2 else self._add_norm(tokens.name, block.norm1), tokens, block
        )
        name = graph.add_node("Add", tokens.name, self._add_norm(branch, block.norm1) if self._v2 else branch)
        hidden = self._add_linear(name if self._v2 else self._add_norm(name, block.norm2), block.mlp.fc1)
        branch = self._add_linear(
            graph.add_node("Gelu", hidden, approximate=_find_gelu_approximation(block.mlp.act)), block.mlp.fc2
        )
        name = graph.add_node("Add", name, self._add_norm(branch, block.norm2) if self._v2 else branch)
        return replace(tokens, name=name)

    def _add_attention(self, name: str, tokens: _Tokens, block: Any) -> str:
        graph, attention = self._graph, block.attn
        order = _order_by_windows(tokens.position, block.window_size, block.shift_size)
        area = block.window_size[0] * block.window_size[1]
        windows = self._reorder(name, order, tokens.count)
        windows = graph.add_node("Reshape", windows, graph.add_shape(-1, area, attention.qkv.in_features))
        query, key, value = (
            self._add_product(windows, weight, bias) for weight, bias in _split_query_key_value(attention)
        )
        if self._v2:
            scale = np.exp(np.minimum(_to_float64(attention.logit_scale), _MAX_LOGIT_SCALE)).reshape(1, 1, -1, 1)
            query = self._normalize_heads(query, area, attention, scale)
            key = self._normalize_heads(key, area, attention, None)
        mixed = graph.add_node(
            *("Attention", query, key, value, self._add_attention_bias(block)),
            q_num_heads=attention.num_heads,
            kv_num_heads=attention.num_heads,
            scale=1.0 if self._v2 else float(attention.scale),
        )
        mixed = graph.add_node("Reshape", mixed, graph.add_shape(-1, len(order), attention.proj.in_features))
        real = np.flatnonzero(order != _PADDING)
        mixed = self._reorder(mixed, real[np.argsort(order[real])], len(order))
        return self._add_linear(mixed, attention.proj)

    def _normalize_heads(self, name: str, area: int, attention: Any, scale: Array | None) -> str:
        """Divide the vector of each head by its length, and multiply it by the factor of the head."""
        graph, heads = self._graph, attention.num_heads
        split = graph.add_node("Reshape", name, graph.add_shape(-1, area, heads, attention.dim // heads))
        length = graph.add_node("ReduceL2", split, graph.add_shape(-1), keepdims=1)
        length = graph.add_node("Max", length, graph.add_constant(np.array(1e-12, np.float32)))
        unit = graph.add_node("Div", split, length)
        if scale is not None:
            unit = graph.add_node("Mul", unit, self._store_float32(scale))
        return graph.add_node("Reshape", unit, graph.add_shape(-1, area, attention.dim))

    def _add_attention_bias(self, block: Any) -> str:
        """Add the relative position bias, (1, heads, area, area), and the mask of shifted windows.

        With a mask, the first dimension is batch · windows.
        """
        graph, attention = self._graph, block.attn
        index = graph.add_indices(attention.relative_position_index.numpy().astype(np.int64))
        bias = graph.add_node("Gather", self._store_float32(_read_position_table(attention)), index, axis=0)
        bias = graph.add_node("Unsqueeze", graph.add_node("Transpose", bias, perm=[2, 0, 1]), graph.add_shape(0))
        mask = block.get_attn_mask(device=torch.device("cpu"), dtype=torch.float32)
        if mask is None:
            return bias
        regions = graph.add_indices((mask == 0).int().argmax(dim=2).numpy())
        same = graph.add_node(
            "Equal",
            graph.add_node("Unsqueeze", regions, graph.add_shape(1, 3)),
            graph.add_node("Unsqueeze", regions, graph.add_shape(1, 2)),
        )
        soft = (graph.add_constant(np.array(value, np.float32)) for value in (0, mask.min().item()))
        bias = graph.add_node("Add", bias, graph.add_node("Where", same, *soft))
        batch = graph.add_node("Shape", IMAGE_INPUT, start=0, end=1)
        return graph.add_node("Tile", bias, graph.add_node("Concat", batch, graph.add_shape(1, 1, 1), axis=0))

    def _reorder(self, name: str, order: NDArray[np.int64], tokens: int) -> str:
        """Put tokens into another order; `_PADDING` gives zeros. Nothing is added if the order stays the same."""
        graph = self._graph
        if np.array_equal(order, np.arange(tokens)):
            return name
        if (order == _PADDING).any():
            name = graph.add_node("Pad", name, graph.add_shape(0, 0, 0, 0, 1, 0))
            order = np.where(order == _PADDING, tokens, order)
        return graph.add_node("Gather", name, graph.add_indices(order), axis=1)

    def _add_norm(self, name: str, norm: nn.LayerNorm) -> str:
        affine = (self._store_float32(_to_float64(parameter)) for parameter in (norm.weight, norm.bias))
        return self._graph.add_node("LayerNormalization", name, *affine, axis=-1, epsilon=norm.eps)

    def _add_linear(self, name: str, layer: nn.Linear) -> str:
        return self._add_product(
            name, _to_float64(layer.weight).T, None if layer.bias is None else _to_float64(layer.bias)
        )

    def _add_product(self, name: str, weight: Array, bias: Array | None) -> str:
        product = self._graph.add_node("MatMul", name, self._store_float32(weight))
        return product if bias is None else self._graph.add_node("Add", product, self._store_float32(bias))

    def _add_heads(self, pooled: str) -> None:
        graph, network = self._graph, self._network
        if isinstance(network.projection, nn.Linear):
            self._add_gemm(pooled, network.projection, "projection", EMBEDDING)
        else:
            graph.add_node("Identity", pooled, output=EMBEDDING)
        self._add_gemm(EMBEDDING, network.species_head, "species_head", SPECIES_OUTPUT)

    def _add_gemm(self, name: str, layer: nn.Linear, title: str, output: str) -> None:
        weight = self._graph.add_constant(layer.weight.numpy(), f"{title}.weight")
        bias = self._graph.add_constant(layer.bias.numpy(), f"{title}.bias")
        self._graph.add_node("Gemm", name, weight, bias, output=output, transB=1)

    def _store_float32(self, values: Array) -> str:
        return self._graph.add_constant(values.astype(np.float32))


def _find_gelu_approximation(activation: nn.Module) -> str | None:
    """Return the attribute `approximate` of ONNX's Gelu; None for any other activation."""
    if type(activation) is nn.GELU:
        return activation.approximate
    return {GELU: "none", GELUTanh: "tanh"}.get(type(activation))


def _to_float64(parameter: torch.Tensor) -> Array:
    return parameter.detach().double().numpy()


def _order_by_windows(
    position: NDArray[np.int64], window: tuple[int, int], shift: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the position of each token, window after window, as timm rolls, pads and partitions the grid."""
    rolled = np.roll(position, (-shift[0], -shift[1]), (0, 1))
    pad = [(0, -size % side) for size, side in zip(rolled.shape, window, strict=True)]
    padded = np.pad(rolled, pad, constant_values=_PADDING)
    rows, columns = padded.shape[0] // window[0], padded.shape[1] // window[1]
    return padded.reshape(rows, window[0], columns, window[1]).transpose(0, 2, 1, 3).reshape(-1)


def _order_stage(cells: NDArray[np.int64], block: Any) -> NDArray[np.int64]:
    """Return the order in which a stage keeps its tokens: by unshifted windows, or row by row if these need padding."""
    order = _order_by_windows(cells, block.window_size, (0, 0))
    return cells.reshape(-1) if (order == _PADDING).any() else order


def _split_query_key_value(attention: Any) -> list[tuple[Array, Array | None]]:
    """Return weight (in, out) and bias of query, key and value, which timm computes as one product."""
    weights = np.split(_to_float64(attention.qkv.weight).T, 3, axis=1)
    if getattr(attention, "q_bias", None) is not None:  # v2
        biases = [_to_float64(bias) for bias in (attention.q_bias, attention.k_bias, attention.v_bias)]
    elif attention.qkv.bias is not None:
        biases = np.split(_to_float64(attention.qkv.bias), 3)
    else:
        return [(weight, None) for weight in weights]
    return list(zip(weights, biases, strict=True))


def _read_position_table(attention: Any) -> Array:
    """Return the bias of each relative position and head; in v2 it is computed from coordinates."""
    if hasattr(attention, "relative_position_bias_table"):
        return _to_float64(attention.relative_position_bias_table)
    table = attention.cpb_mlp(attention.relative_coords_table).reshape(-1, attention.num_heads)
    return _to_float64(16 * torch.sigmoid(table))
