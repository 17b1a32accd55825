"""The FLix update, written once: layers, merging and export all call it.

For an example whose active values are `F`, the flattened kernel is
`W = W_0 + sum over f in F of s_f * A_f @ B_f` (Lin et al., Featurized Low-rank
Mixtures, arXiv 2402.17934). An example pays for the ranks of its own values,
however many values there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.encoding import ABSENT, WEIGHT_UNIT
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.factors import side_by_side

eager = _compat.eager_ops


@dataclasses.dataclass(frozen=True)
class ActiveValues:
    """The active values of one feature in each example of a batch.

    Attributes:
        rows: int32 `(batch, k)`: rows to look up, a harmless one where absent.
        present: bool `(batch, k, 1)`: whether there is a value.
        filler: float32 `(batch, k, 1)`: what stands for a table where there is
            no value: 0, or NaN where an id that could not be checked is out
            of range. So it is never another value's table, nor unnoticed.
        weight: What the updates of present values are multiplied by, their `s_f`
            included: one number, or float32 `(batch, k, 1)`.
        trained: bool `(batch, k, 1)`: whether the value trains; `None` if all do.
    """

    rows: Tensor
    present: Tensor
    filler: Tensor
    weight: float | Tensor = 1.0
    trained: Tensor | None = None

    @classmethod
    def from_ids(
        cls,
        ids: Tensor,
        num_values: int,
        weight: float = 1.0,
        scale: float | np.ndarray = 1.0,
        trained: np.ndarray | None = None,
    ) -> ActiveValues:
        """Reads ids; what depends on the values alone is looked up here, once for all
        layers.

        Args:
            ids: int32 `(batch,)` or `(batch, k)`, -1 being absent; with weights
                `(batch, k, 2)`, see `WEIGHT_UNIT`.
            num_values: How many values the feature has.
            weight: What the updates of all values are multiplied by.
            scale: `s_f` of all values, or of each: float32 `(values,)`.
            trained: Which values train, bool `(values,)`; `None` for all.
        """
        if len(ids.shape) == 3:
            weight = weight * WEIGHT_UNIT * ops.cast(ids[..., 1:], "float32")
            ids = ids[..., 0]
        if len(ids.shape) == 1:
            ids = ops.expand_dims(ids, -1)
        present = ops.logical_and(ids >= 0, ids < num_values)
        valid = ops.logical_or(present, ops.equal(ids, ABSENT))
        rows = ops.where(present, ids, 0)
        if isinstance(scale, np.ndarray):
            scale = _compat.take_rows(ops.convert_to_tensor(scale, "float32"), rows)
        if trained is not None:
            trained = _compat.take_rows(ops.convert_to_tensor(trained, "bool"), rows)
        return cls(
            rows=rows,
            # Once for all layers, each of which looks up both tables of every feature.
            present=ops.expand_dims(present, -1),
            filler=ops.expand_dims(ops.where(valid, 0.0, float("nan")), -1),
            weight=weight * scale,
            trained=trained,
        )


@dataclasses.dataclass(frozen=True)
class FeatureTables:
    """The low-rank tables of one feature in one layer.

    Attributes:
        name: The feature's name.
        a: `(values, d_in, rank)`.
        b: `(values, rank, d_out)`. Values of a lower rank than the feature's
            highest have zeros beyond it in both, where gradients stay zero.
        scale: `s_f` of all values, or of each: float32 `(values,)`.
        relative: The same over what the weight of `ActiveValues` holds, where a layer
            has ranks of its own.
        shared: Whether all examples use the one value (`always`), so that no
            look-up per example is needed.
        trains: Whether it trains, where it is shared; see `ActiveValues` for others.
    """

    name: str
    a: Tensor
    b: Tensor
    scale: float | np.ndarray = 1.0
    relative: float | np.ndarray = 1.0
    shared: bool = False
    trains: bool = True

    def only(self, table: Tensor, dtype: str) -> Tensor:
        """The entry of a table that is `shared`, of shape `table.shape[1:]`."""
        found = ops.cast(table, dtype)[0]
        return found if self.trains else zero_gradient(found)

    def gather(
        self, active: ActiveValues, row_scope: Any = None, dtype: str = "float32"
    ) -> tuple[Tensor, Tensor]:
        """`A` of shape `(batch, d_in, k * rank)`, `B` `(batch, k * rank, d_out)`.

        In the tables' float32, or in float64. For `row_scope` see `low_rank_update`.
        """
        # Selecting, not multiplying by 0: a NaN in one table must not reach
        # an example that does not use it.
        if row_scope is None and active.trained is None:
            a = _compat.take_rows(self.a, active.rows)
            b = _compat.take_rows(self.b, active.rows)
        else:
            a, b = (
                look_up(self.a, active, row_scope),
                look_up(self.b, active, row_scope),
            )
        a = eager.where(active.present, a, active.filler)
        b = eager.where(active.present, b, active.filler)
        if dtype == "float64":
            a, b = eager.cast(a, dtype), eager.cast(b, dtype)
        if not isinstance(active.weight, float):
            a = a * eager.cast(active.weight, dtype)
        elif active.weight != 1.0:
            a = a * active.weight
        if isinstance(self.relative, np.ndarray):
            relative = ops.convert_to_tensor(self.relative, dtype)
            a = a * _compat.take_rows(relative, active.rows)
        elif self.relative != 1.0:
            a = a * self.relative
        _, d_in, rank = self.a.shape
        k = a.shape[1]
        if k is None:  # TensorFlow, where examples have any number of values.
            k = ops.shape(a)[1]
        b = eager.reshape(b, (-1, k * rank, self.b.shape[-1]))
        if a.shape[1] == 1:
            return eager.reshape(a, (-1, d_in, rank)), b
        a = ops.transpose(ops.reshape(a, (-1, k, d_in, rank)), (0, 2, 1, 3))
        return ops.reshape(a, (-1, d_in, k * rank)), b


def look_up(table: Tensor, active: ActiveValues, row_scope: Any = None) -> Tensor:
    """Entries of a table, each flat: `(batch, k, size)`.

    Their gradient is zero where they do not train.
    """
    found = None if row_scope is None else row_scope.take(table, active.rows)
    if found is None:
        found = _compat.take_rows(table, active.rows)
    if active.trained is None:
        return found
    return zero_gradient(found, ops.logical_not(active.trained))


def zero_gradient(x: Tensor, chosen: Tensor | bool = True) -> Tensor:
    """`x`, whose gradient is zero where it is chosen.

    Not cut off where all is: then too, the gradient is to be zeros.
    """
    return ops.where(chosen, ops.stop_gradient(x), x)


def gather_tables(
    tables: Sequence[FeatureTables],
    active: Mapping[str, ActiveValues],
    dtype: str,
    row_scope: Any = None,
) -> tuple[Tensor, Tensor] | None:
    """What each example's values look up: all features in one pair, ranks side by side.

    Returns:
        `A` of shape `(batch, d_in, ranks)` and `B` of shape `(batch, ranks, d_out)`;
        `None` where all tables are `shared`.
    """
    is_wide = keras.backend.standardize_dtype(dtype) == "float64"
    wide = "float64" if is_wide else "float32"
    routed = []
    for table in tables:
        if not table.shared:
            routed.append(table.gather(active[table.name], row_scope, wide))
    if not routed:
        return None
    a, b = routed[0] if len(routed) == 1 else side_by_side(routed, eager.concatenate)
    if a.dtype == dtype:
        return a, b
    # One cast for all features, not one for each.
    return eager.cast(a, dtype), eager.cast(b, dtype)


def low_rank_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`x @ a @ b`, where `x` may have more leading axes."""
    if len(x.shape) > 3 and len(a.shape) > 2:
        # Not left to the product: where the batch is one, TensorFlow's on CPUs
        # reads past the end of what it broadcasts.
        around = ops.shape(x)[:-2]
        a, b = (ops.broadcast_to(t, (*around, *ops.shape(t)[1:])) for t in (a, b))
    return eager.matmul(eager.matmul(x, a), b)


def of_shared(
    delta: Tensor, table: FeatureTables, active: Mapping[str, ActiveValues]
) -> Tensor:
    """The update of a feature that is always active, unless it is dropped."""
    if table.name not in active:
        return delta
    one = active[table.name]
    filler = ops.cast(one.filler, delta.dtype)
    return ops.where(one.present, delta * one.weight, filler)


def low_rank_update(
    x: Tensor,
    tables: Sequence[FeatureTables],
    active: Mapping[str, ActiveValues],
    gathered: tuple[Tensor, Tensor] | None = None,
    row_scope: Any = None,
    product: Callable[[Tensor, Tensor, Tensor], Tensor] = low_rank_product,
) -> Tensor:
    """The update of each example, applied to its activations.

    Args:
        x: Activations of shape `(batch, positions, d_in)`, or several of them along
            leading axes.
        tables: The tables of all features.
        active: The active values by feature. Features whose tables are `shared` may
            be missing: they are then active in every example.
        gathered: What `gather_tables` gave ahead for these tables and values;
            `None` looks up now.
        row_scope: The training step without dense gradients that runs, if any.
        product: What multiplies `x` by factors: of each example, or of all.

    Returns:
        `sum over f in F(x) of s_f * x @ A_f @ B_f`, of shape
        `(batch, positions, d_out)`.
    """
    dtype = x.dtype
    if gathered is None:
        gathered = gather_tables(tables, active, dtype, row_scope)
    deltas = []
    if gathered is not None:
        deltas.append(product(x, *gathered))
    for table in tables:
        if table.shared:
            a, b = table.only(table.a, dtype), table.only(table.b, dtype)
            delta = product(x, a * table.scale, b)
            deltas.append(of_shared(delta, table, active))
    return sum(deltas[1:], deltas[0])


def active_alone(
    tables: Sequence[FeatureTables], ids: Mapping[str, Any]
) -> tuple[list[FeatureTables], dict[str, ActiveValues]]:
    """The tables of one layer, and active values with its own scales.

    Args:
        tables: The tables of all features.
        ids: Ids of one example by feature, of shape `(1,)` or `(1, k)`.
    """
    active = {
        table.name: ActiveValues.from_ids(
            ops.convert_to_tensor(ids[table.name], "int32"),
            table.a.shape[0],
            # One that is shared scales by itself.
            scale=1.0 if table.shared else table.scale,
        )
        for table in tables
        if table.name in ids
    }
    return [dataclasses.replace(table, relative=1.0) for table in tables], active


def combined_matrix(
    tables: Sequence[FeatureTables],
    ids: Mapping[str, np.ndarray],
    d_in: int,
    product: Callable[[Tensor, Tensor, Tensor], Tensor] = low_rank_product,
) -> Tensor:
    """The update of one combination as a `(d_in, d_out)` matrix, in float32.

    Args:
        tables: The tables of all features.
        ids: Ids of one example by feature, of shape `(1,)` or `(1, k)`.
        d_in: The flattened kernel's input dimension.
        product: See `low_rank_update`. Axes that it puts first are there, too.
    """
    tables, active = active_alone(tables, ids)
    identity = ops.expand_dims(ops.eye(d_in, dtype="float32"), 0)
    return ops.squeeze(
        low_rank_update(identity, tables, active, product=product), axis=-3
    )
