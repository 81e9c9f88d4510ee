"""Swin (v1 and v2) as an ONNX graph for CPUs: timm's mathematics, without its windows' comings and goings.

timm rolls, pads, partitions and reverses the tokens around every attention, as dozens of small operators. Here the
tokens of a stage lie in the order of its unshifted windows, so that a shifted block is one Gather before attention
and one after it, and patch merging is one Gather. Query, key and value are three products instead of one that is
split and transposed; attention is ONNX's own operator; relative positions and window masks are stored as tables
and labels that ONNX Runtime expands once, when a session opens. The mask stays timm's soft −100: trained attention
logits reach several hundred, and a harder mask changes answers.

>>> if is_supported(network):  # doctest: +SKIP
...     model = build_swin(network)

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
"""The first with Attention."""

_PADDING: Final = -1
"""Position of a token that is no part of the picture."""

_MAX_LOGIT_SCALE: Final = float(np.log(100))
"""v2 bounds the learned factor of its cosine attention by 100."""

Array = NDArray[np.float64]


def is_supported(network: HierarchicalNetwork) -> bool:
    """Whether `build_swin` knows every part of this network's backbone; others take the general path."""
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
        and all(_gelu_approximation(block.mlp.act) is not None for block in blocks)
    )


def build_swin(network: HierarchicalNetwork) -> onnx.ModelProto:
    """The species model of a supported network in float32; nothing is traced, which takes a second.

    Args:
        network: in evaluation mode, `is_supported`.

    Returns:
        `input` (batch, 3, S, S) → `species_logits` (batch, species), `embedding` (batch, D); opset 23.
    """
    with torch.inference_mode():
        return _SwinGraph(network).build()


@dataclass(frozen=True)
class _Tokens:
    """The token stream between two blocks.

    Attributes:
        name: of the tensor, (batch, H · W, C).
        grid: H, W.
        position: (H, W), where in the stream each cell of the grid lies.
    """

    name: str
    grid: tuple[int, int]
    position: NDArray[np.int64]

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1]


class _SwinGraph:
    """One graph under construction."""

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
                tokens = self._block(tokens, block)
        pooled = graph.apply("ReduceMean", self._norm(tokens.name, self._backbone.norm), graph.shape(1), keepdims=0)
        self._head(pooled)
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
        kernel = _numbers(embed.proj.weight)
        inputs = [IMAGE_INPUT, self._store(kernel)]
        if embed.proj.bias is not None:
            inputs.append(self._store(_numbers(embed.proj.bias)))
        patches = graph.apply("Conv", *inputs, kernel_shape=kernel.shape[2:], strides=kernel.shape[2:])
        rows = graph.apply("Reshape", patches, graph.shape(0, len(kernel), grid[0] * grid[1]))
        rows = graph.apply("Transpose", rows, perm=[0, 2, 1])
        cells = np.arange(grid[0] * grid[1]).reshape(grid)
        order = _home_order(cells, self._backbone.layers[0].blocks[0])
        name = self._take(rows, order, len(order))
        if not isinstance(embed.norm, nn.Identity):
            name = self._norm(name, embed.norm)
        return _Tokens(name, grid, np.argsort(order).reshape(grid))

    def _merge_patches(self, tokens: _Tokens, stage: Any) -> _Tokens:
        """As timm's PatchMerging: four neighbours, in the order (0, 0), (1, 0), (0, 1), (1, 1), become one token."""
        graph, merging = self._graph, stage.downsample
        padded = np.pad(tokens.position, [(0, size % 2) for size in tokens.grid], constant_values=_PADDING)
        grid = (padded.shape[0] // 2, padded.shape[1] // 2)
        four = padded.reshape(grid[0], 2, grid[1], 2).transpose(0, 2, 3, 1).reshape(-1, 4)
        order = _home_order(np.arange(len(four)).reshape(grid), stage.blocks[0])
        name = self._take(tokens.name, four[order].reshape(-1), tokens.count)
        name = graph.apply("Reshape", name, graph.shape(-1, len(four), 4 * merging.dim))
        weight = _numbers(merging.reduction.weight).T
        if self._v2:
            name = self._norm(self._product(name, weight, None), merging.norm)
        else:
            name = self._product(self._norm(name, merging.norm), weight, None)
        return _Tokens(name, grid, np.argsort(order).reshape(grid))

    def _block(self, tokens: _Tokens, block: Any) -> _Tokens:
        """Norms lie before attention and MLP in v1, behind them in v2."""
        graph = self._graph
        branch = self._attention(tokens.name if self._v2 else self._norm(tokens.name, block.norm1), tokens, block)
        name = graph.apply("Add", tokens.name, self._norm(branch, block.norm1) if self._v2 else branch)
        hidden = self._linear(name if self._v2 else self._norm(name, block.norm2), block.mlp.fc1)
        branch = self._linear(
            graph.apply("Gelu", hidden, approximate=_gelu_approximation(block.mlp.act)), block.mlp.fc2
        )
        name = graph.apply("Add", name, self._norm(branch, block.norm2) if self._v2 else branch)
        return replace(tokens, name=name)

    def _attention(self, name: str, tokens: _Tokens, block: Any) -> str:
        graph, attention = self._graph, block.attn
        order = _windows(tokens.position, block.window_size, block.shift_size)
        area = block.window_size[0] * block.window_size[1]
        windows = self._take(name, order, tokens.count)
        windows = graph.apply("Reshape", windows, graph.shape(-1, area, attention.qkv.in_features))
        query, key, value = (self._product(windows, weight, bias) for weight, bias in _query_key_value(attention))
        if self._v2:
            scale = np.exp(np.minimum(_numbers(attention.logit_scale), _MAX_LOGIT_SCALE)).reshape(1, 1, -1, 1)
            query = self._normalised_heads(query, area, attention, scale)
            key = self._normalised_heads(key, area, attention, None)
        mixed = graph.apply(
            *("Attention", query, key, value, self._attention_bias(block, len(order) // area)),
            q_num_heads=attention.num_heads,
            kv_num_heads=attention.num_heads,
            scale=1.0 if self._v2 else float(attention.scale),
        )
        mixed = graph.apply("Reshape", mixed, graph.shape(-1, len(order), attention.proj.in_features))
        real = np.flatnonzero(order != _PADDING)
        mixed = self._take(mixed, real[np.argsort(order[real])], len(order))
        return self._linear(mixed, attention.proj)

    def _normalised_heads(self, name: str, area: int, attention: Any, scale: Array | None) -> str:
        """Each head's vector (…, heads · d) divided by its length, at least 1e-12, and times a factor a head."""
        graph, heads = self._graph, attention.num_heads
        split = graph.apply("Reshape", name, graph.shape(-1, area, heads, attention.dim // heads))
        length = graph.apply("ReduceL2", split, graph.shape(-1), keepdims=1)
        length = graph.apply("Max", length, graph.constant(np.array(1e-12, np.float32)))
        unit = graph.apply("Div", split, length)
        if scale is not None:
            unit = graph.apply("Mul", unit, self._store(scale))
        return graph.apply("Reshape", unit, graph.shape(-1, area, attention.dim))

    def _attention_bias(self, block: Any, windows: int) -> str:
        """Relative position bias (1, heads, area, area), plus the mask of shifted windows (batch · windows, …)."""
        graph, attention = self._graph, block.attn
        index = graph.indices(attention.relative_position_index.numpy().astype(np.int64))
        bias = graph.apply("Gather", self._store(_position_table(attention)), index, axis=0)
        bias = graph.apply("Unsqueeze", graph.apply("Transpose", bias, perm=[2, 0, 1]), graph.shape(0))
        mask = block.get_attn_mask(device=torch.device("cpu"), dtype=torch.float32)
        if mask is None:
            return bias
        regions = graph.indices((mask == 0).int().argmax(dim=2).numpy())
        same = graph.apply(
            "Equal",
            graph.apply("Unsqueeze", regions, graph.shape(1, 3)),
            graph.apply("Unsqueeze", regions, graph.shape(1, 2)),
        )
        soft = (graph.constant(np.array(value, np.float32)) for value in (0, mask.min().item()))
        bias = graph.apply("Add", bias, graph.apply("Where", same, *soft))
        batch = graph.apply("Shape", IMAGE_INPUT, start=0, end=1)
        return graph.apply("Tile", bias, graph.apply("Concat", batch, graph.shape(1, 1, 1), axis=0))

    def _take(self, name: str, order: NDArray[np.int64], tokens: int) -> str:
        """Tokens in another order; `_PADDING` gives zeros. Nothing where the order is theirs already."""
        graph = self._graph
        if np.array_equal(order, np.arange(tokens)):
            return name
        if (order == _PADDING).any():
            name = graph.apply("Pad", name, graph.shape(0, 0, 0, 0, 1, 0))
            order = np.where(order == _PADDING, tokens, order)
        return graph.apply("Gather", name, graph.indices(order), axis=1)

    def _norm(self, name: str, norm: nn.LayerNorm) -> str:
        affine = (self._store(_numbers(parameter)) for parameter in (norm.weight, norm.bias))
        return self._graph.apply("LayerNormalization", name, *affine, axis=-1, epsilon=norm.eps)

    def _linear(self, name: str, layer: nn.Linear) -> str:
        return self._product(name, _numbers(layer.weight).T, None if layer.bias is None else _numbers(layer.bias))

    def _product(self, name: str, weight: Array, bias: Array | None) -> str:
        product = self._graph.apply("MatMul", name, self._store(weight))
        return product if bias is None else self._graph.apply("Add", product, self._store(bias))

    def _head(self, pooled: str) -> None:
        graph, network = self._graph, self._network
        if isinstance(network.projection, nn.Linear):
            self._gemm(pooled, network.projection, "projection", EMBEDDING)
        else:
            graph.apply("Identity", pooled, output=EMBEDDING)
        self._gemm(EMBEDDING, network.species_head, "species_head", SPECIES_OUTPUT)

    def _gemm(self, name: str, layer: nn.Linear, title: str, output: str) -> None:
        weight = self._graph.constant(layer.weight.numpy(), f"{title}.weight")
        bias = self._graph.constant(layer.bias.numpy(), f"{title}.bias")
        self._graph.apply("Gemm", name, weight, bias, output=output, transB=1)

    def _store(self, values: Array) -> str:
        return self._graph.constant(values.astype(np.float32))


def _gelu_approximation(activation: nn.Module) -> str | None:
    """What ONNX's Gelu calls it; None for another activation."""
    if type(activation) is nn.GELU:
        return activation.approximate
    return {GELU: "none", GELUTanh: "tanh"}.get(type(activation))


def _numbers(parameter: torch.Tensor) -> Array:
    return parameter.detach().double().numpy()


def _windows(position: NDArray[np.int64], window: tuple[int, int], shift: tuple[int, int]) -> NDArray[np.int64]:
    """Position of each token of each window, window after window, as timm rolls, pads and partitions the grid."""
    rolled = np.roll(position, (-shift[0], -shift[1]), (0, 1))
    pad = [(0, -size % side) for size, side in zip(rolled.shape, window, strict=True)]
    padded = np.pad(rolled, pad, constant_values=_PADDING)
    rows, columns = padded.shape[0] // window[0], padded.shape[1] // window[1]
    return padded.reshape(rows, window[0], columns, window[1]).transpose(0, 2, 1, 3).reshape(-1)


def _home_order(cells: NDArray[np.int64], block: Any) -> NDArray[np.int64]:
    """Order in which a stage keeps its tokens: that of a block's windows where no padding is among them."""
    order = _windows(cells, block.window_size, (0, 0))
    return cells.reshape(-1) if (order == _PADDING).any() else order


def _query_key_value(attention: Any) -> list[tuple[Array, Array | None]]:
    """Weight (in, out) and bias of the three products that timm computes as one."""
    weights = np.split(_numbers(attention.qkv.weight).T, 3, axis=1)
    if getattr(attention, "q_bias", None) is not None:  # v2
        biases = [_numbers(bias) for bias in (attention.q_bias, attention.k_bias, attention.v_bias)]
    elif attention.qkv.bias is not None:
        biases = np.split(_numbers(attention.qkv.bias), 3)
    else:
        return [(weight, None) for weight in weights]
    return list(zip(weights, biases, strict=True))


def _position_table(attention: Any) -> Array:
    """Bias of each relative position and head; v2 computes it from coordinates."""
    if hasattr(attention, "relative_position_bias_table"):
        return _numbers(attention.relative_position_bias_table)
    table = attention.cpb_mlp(attention.relative_coords_table).reshape(-1, attention.num_heads)
    return _numbers(16 * torch.sigmoid(table))
