"""An adapted KerasHub Llama in plain PyTorch: the same numbers in less time.

What is left out is what costs: no position of padding goes through a frozen kernel,
logits are computed where the loss or a score asks for them, and products with frozen
kernels may be in bfloat16, while the residual stream, the tables, the softmax and the
logits stay in float32. The update itself is the library's `low_rank_update`, on the
library's own tables. Where the processor has nothing for bfloat16, products are in
float32, of values that are rounded to it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from keras_flix.layers.active_scope import Routing
from keras_flix.layers.low_rank_update import FeatureTables, low_rank_update
from keras_flix.models.adapted.adaptation import adaptation_of

Layers = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Ragged:
    """A batch, and where its tokens are.

    Attributes:
        tokens: int64 `(tokens,)`: those of all examples, one after the other.
        places: int64 `(tokens,)`: where they are in a padded batch, flat.
        positions: int64 `(tokens,)`: their positions in their examples.
        shape: `(examples, longest)` of the padded batch.
    """

    tokens: torch.Tensor
    places: torch.Tensor
    positions: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Ragged:
        """The batch of token sequences."""
        longest = max(map(len, sequences))
        lengths = np.array([len(sequence) for sequence in sequences])
        mask = np.arange(longest) < lengths[:, None]
        places = np.flatnonzero(mask)
        return cls(
            tokens=torch.tensor(np.concatenate(sequences).astype("int64")),
            places=torch.tensor(places),
            positions=torch.tensor(places % longest),
            shape=(len(sequences), longest),
        )

    def padded(self, x: torch.Tensor) -> torch.Tensor:
        """`(tokens, width)` as `(examples, longest, width)`, zeros in between."""
        examples, longest = self.shape
        if len(x) == examples * longest:
            return x.view(examples, longest, -1)
        flat = x.new_zeros(examples * longest, x.shape[-1])
        return flat.index_copy(0, self.places, x).view(examples, longest, -1)

    def packed(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `padded`."""
        x = x.reshape(-1, x.shape[-1])
        return x if len(x) == len(self.places) else x.index_select(0, self.places)


class FastLlama:
    """An adapted `Llama3CausalLM` on the torch backend, for training and scoring.

    It reads the tables of the Keras model, so training one trains the other.

    Args:
        model: Adapted by `enable_flix`, in float32.
        dtype: Of products with the base's kernels, and of the updates.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        backbone = model.backbone
        self.dtype = dtype
        self.products = dtype if multiplies_in(dtype) else torch.float32
        self.adaptation = adaptation_of(model)
        self.schema = self.adaptation.schema
        self.heads = backbone.num_query_heads
        self.key_heads = backbone.num_key_value_heads
        self.epsilon = backbone.layer_norm_epsilon
        self.wavelength = backbone.rope_max_wavelength
        self.embeddings = _frozen(backbone.token_embedding.embeddings)
        self.rounded = self.as_computed(self.embeddings)
        self.norm = _frozen(backbone.layer_norm.scale)
        self.blocks = [Block(b, self) for b in backbone.transformer_layers]

    @property
    def tables(self) -> list[torch.nn.Parameter]:
        """What trains."""
        return [table.variable.value for table in self.adaptation.tables()]

    def as_computed(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, rounded to `dtype`, in the dtype of products."""
        return x.to(self.dtype).to(self.products)

    def hidden(
        self,
        batch: Ragged,
        ids: Mapping[str, np.ndarray],
        places: torch.Tensor,
        training: bool = False,
    ) -> torch.Tensor:
        """The last hidden states.

        Args:
            batch: The examples.
            ids: By feature, of shape `(examples,)`.
            places: Indices of tokens in `batch.tokens`.
            training: Whether feature dropout applies.

        Returns:
            float32 `(places, width)`.
        """
        routing = Routing.from_ids(
            self.schema,
            {name: torch.tensor(np.asarray(x, "int32")) for name, x in ids.items()},
            batch_size=batch.shape[0],
            dropout_seed=self.adaptation.dropout_seed if training else None,
            trained=self.adaptation.trained,
        )
        x = self.embeddings[batch.tokens]
        rotation = self._rotation(batch)
        for block in self.blocks:
            x = block(x, batch, routing, rotation)
        return rms_norm(x.index_select(0, places), self.norm, self.epsilon)

    def nats(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """`-log p` of the next tokens, `(places,)`, of what `hidden` returned."""
        return Nats.apply(hidden, targets, self.embeddings, self.rounded)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 `(places, vocabulary)`, of what `hidden` returned."""
        return functional.linear(hidden, self.embeddings)

    def _rotation(self, batch: Ragged) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of RoPE, `(longest, 1, head_dim)`."""
        size = self.blocks[0].head_dim
        powers = torch.arange(0, size, 2, dtype=torch.float32) / size
        frequencies = 1.0 / (self.wavelength**powers)
        angles = torch.arange(batch.shape[1], dtype=torch.float32)[:, None]
        angles = (angles * frequencies).repeat(1, 2)[:, None]
        return angles.cos(), angles.sin()


class Block:
    """One decoder block.

    Args:
        block: KerasHub's.
        model: Whose block it is.
    """

    def __init__(self, block: Any, model: FastLlama) -> None:
        attention = block._self_attention_layer
        self.model = model
        self.epsilon = model.epsilon
        self.heads, self.key_heads = model.heads, model.key_heads
        self.attention_norm = _frozen(block._self_attention_layernorm.scale)
        self.inner_norm = _frozen(block._feedforward_layernorm.scale)
        self.head_dim = attention._query_dense.kernel.shape[-1]
        self.inputs = (
            attention._query_dense,
            attention._key_dense,
            attention._value_dense,
        )
        self.output = (attention._output_dense,)
        self.inner = (
            block._feedforward_gate_dense,
            block._feedforward_intermediate_dense,
        )
        self.down = (block._feedforward_output_dense,)
        self.kernels = {
            layers: self._side_by_side(layers)
            for layers in (self.inputs, self.output, self.inner, self.down)
        }

    def _side_by_side(self, layers: Layers) -> torch.Tensor:
        """The kernels of layers with the same input, `(outputs, inputs)`."""
        kernels = [_frozen(layer.kernel) for layer in layers]
        # That of the output is `(heads, head_dim, width)`, others begin with the width.
        d_in = -1 if layers == self.output else len(kernels[0])
        ends = kernels[0].shape[-1:] if layers == self.output else (-1,)
        flat = [kernel.reshape(d_in, *ends).t() for kernel in kernels]
        return self.model.as_computed(torch.cat(flat).contiguous())

    def __call__(
        self,
        x: torch.Tensor,
        batch: Ragged,
        routing: Routing,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """`(tokens, width)` to the same, in float32."""
        h = rms_norm(x, self.attention_norm, self.epsilon)
        h = self.linear(self.inputs, h, batch, routing)
        h = self.attention(batch.padded(h), rotation)
        x = x + self.linear(self.output, batch.packed(h), batch, routing)
        h = rms_norm(x, self.inner_norm, self.epsilon)
        gate, up = self.linear(self.inner, h, batch, routing).chunk(2, dim=-1)
        h = functional.silu(gate) * up
        return x + self.linear(self.down, h, batch, routing)

    def linear(
        self, layers: Layers, x: torch.Tensor, batch: Ragged, routing: Routing
    ) -> torch.Tensor:
        """The outputs of adapted layers, side by side."""
        x = self.model.as_computed(x)
        y = functional.linear(x, self.kernels[layers])
        for shared in (True, False):
            tables = [_tables(layer, routing, shared) for layer in layers]
            if not all(tables):
                continue
            # What all examples share needs no look-up, and so no padding.
            rows = x[None] if shared else batch.padded(x)
            active = {} if shared else routing.active or {}
            deltas = [low_rank_update(rows, one, active) for one in tables]
            delta = deltas[0] if len(deltas) == 1 else torch.cat(deltas, dim=-1)
            y = y + (delta[0] if shared else batch.packed(delta))
        return self.model.as_computed(y)

    def attention(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Causal attention; padding comes last, so that none attends to it.

        Args:
            x: Queries, keys and values, `(examples, longest, ...)`.
            rotation: Cosine and sine.
        """
        examples, longest, _ = x.shape
        heads = (self.heads, self.key_heads, self.key_heads)
        x = x.view(examples, longest, sum(heads), self.head_dim).float()
        query, key, value = x.split(heads, dim=2)
        query, key = (rotate(one, *rotation) for one in (query, key))
        # The queries of a group come after one another, for their one key.
        groups = (examples, longest, self.key_heads, -1, self.head_dim)
        query = query.reshape(groups).permute(0, 2, 3, 1, 4).flatten(2, 3)
        key, value = (one.transpose(1, 2) for one in (key, value))
        scores = (query * self.head_dim**-0.5) @ key.mT
        scores = scores.unflatten(2, (-1, longest)) + later(longest)
        attended = scores.softmax(dim=-1).flatten(2, 3) @ value
        attended = attended.unflatten(2, (-1, longest))
        return attended.permute(0, 3, 1, 2, 4).reshape(examples, longest, -1)


def multiplies_in(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies in a dtype at least as fast as in float32.

    Without AVX-512, PyTorch takes some fifty times as long in bfloat16.
    """
    return dtype == torch.float32 or "512" in torch.backends.cpu.get_cpu_capability()


class Nats(torch.autograd.Function):
    """`-log p` of each target: the logits in float32, their gradient in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        embeddings: torch.Tensor,
        rounded: torch.Tensor,
    ) -> torch.Tensor:
        """`(places,)`; `rounded` are the embeddings that the gradient takes."""
        log = functional.linear(hidden, embeddings).log_softmax(dim=-1)
        ctx.save_for_backward(log, targets, rounded)
        return -log.gather(1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        """Softmax minus one at the target."""
        log, targets, rounded = ctx.saved_tensors
        change = log.exp_()
        change.scatter_add_(1, targets[:, None], -torch.ones_like(change[:, :1]))
        change = (change * gradient[:, None]).to(rounded.dtype)
        return (change @ rounded).float(), None, None, None


def rms_norm(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`x / sqrt(mean(x ** 2) + epsilon) * scale`."""
    return functional.rms_norm(x, scale.shape, scale, epsilon)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """RoPE of `(examples, length, heads, head_dim)`."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


@functools.cache
def later(length: int) -> torch.Tensor:
    """Minus infinity where a key comes after its query: `(length, length)`."""
    return torch.full((length, length), float("-inf")).triu(1)


def _tables(layer: Any, routing: Routing, shared: bool) -> list[FeatureTables]:
    """The tables of a layer that need no look-up by example, or those that do."""
    if not hasattr(layer, "_tables"):
        return []
    return [
        table
        for table in layer._tables.by_feature()
        # A shared one may be dropped, and then differs by example.
        if (table.name not in (routing.active or {})) == shared
    ]


def _frozen(variable: Any) -> torch.Tensor:
    """The value of a variable of the base."""
    return variable.value.detach()
