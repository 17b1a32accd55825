"""Sizes, directions and ranks of the updates of values, out of their factors.

The update of a value in a layer is `s * A @ B`. All here is computed from the two
factors, in float64 and with numpy: the product, of the kernel's size, is never made.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_flix._utils.displayed import Displayed, Rows, count
from keras_flix._utils.near_names import hint
from keras_flix._utils.renamed import renamed_keyword, warn_renamed
from keras_flix._utils.text_tables import aligned, number, plain
from keras_flix.analysis.by_feature import ByFeature
from keras_flix.analysis.sources import (
    kernel_norm,
    layer_ranks,
    norms_by_feature,
    updates_of,
)
from keras_flix.features.feature import Value
from keras_flix.features.schema import FeatureSchema, check_feature
from keras_flix.files.adapter_file import Adapters

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class UpdateNorms(ByFeature):
    """How large updates are: what `update_norms` returns.

    Attributes:
        layers: The paths of the adapted layers.
        values: The values of each feature.
        norms: By feature, Frobenius norms of shape `(values, layers)`.
        kernel_norms: Those of the base's kernels, `(layers,)`; NaN where there is
            no kernel in floating point.
    """

    layers: tuple[str, ...]
    values: Mapping[str, tuple[Value, ...]]
    norms: Mapping[str, np.ndarray]
    kernel_norms: np.ndarray

    @property
    def relative(self) -> dict[str, np.ndarray]:
        """The norms over those of the kernels, by feature."""
        return {name: norms / self.kernel_norms for name, norms in self.norms.items()}

    @property
    def total(self) -> dict[str, np.ndarray]:
        """By feature, the norm of each value over all layers, `(values,)`."""
        return {name: _over_layers(norms) for name, norms in self.norms.items()}

    def _rows(self, feature: str) -> Rows:
        kernels = _over_layers(self.kernel_norms)
        rows = [[feature, "norm", "relative", "largest in"]]
        for value, total, norms in zip(
            self.values[feature], self.total[feature], self.norms[feature]
        ):
            share = number(total / kernels)
            where = self.layers[int(np.argmax(norms))] if total > 0 else "-"
            rows.append([str(value), number(total), share, where])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The norms as a dict of JSON types; `None` stands for NaN."""
        return plain(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ValueSimilarity(Displayed):
    """How alike the updates of a feature's values are: see `value_similarity`.

    Attributes:
        feature: The feature's name.
        values: Its values.
        layers: The paths of the layers that count.
        matrix: Cosines of shape `(values, values)`, NaN for values without update.
    """

    feature: str
    values: tuple[Value, ...]
    layers: tuple[str, ...]
    matrix: np.ndarray

    @property
    def axis(self) -> str:
        """The former name of `feature`."""
        warn_renamed("`ValueSimilarity.axis`", "`feature`")
        return self.feature

    def _rows(self) -> Rows:
        rows = [[self.feature, "nearest", "cosine"]]
        others = np.where(np.eye(len(self.values), dtype=bool), np.nan, self.matrix)
        for value, cosines in zip(self.values, others):
            if np.isnan(cosines).all():
                rows.append([str(value), "-", "-"])
            else:
                best = int(np.nanargmax(cosines))
                row = [str(value), str(self.values[best]), f"{cosines[best]:.2f}"]
                rows.append(row)
        return rows

    def table(self) -> str:
        """Each value with the one that is most like it, as a text."""
        return aligned(self._rows())

    def __str__(self) -> str:
        return self.table()

    def _line(self) -> str:
        values = count(len(self.values), "value")
        layers = count(len(self.layers), "layer")
        return f"ValueSimilarity({layers}, {values} of {self.feature})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        return [("", self._rows())]

    def to_dict(self) -> dict[str, Any]:
        """The similarities as a dict of JSON types; `None` stands for NaN."""
        found = dataclasses.asdict(self)
        # What readers of the JSON of 0.1 know it as.
        return plain({"axis": found.pop("feature"), **found})


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EffectiveRank(ByFeature):
    """How much of their ranks updates use: what `effective_rank` returns.

    Attributes:
        layers: The paths of the adapted layers.
        values: The values of each feature.
        allotted: The rank of each value by feature, `(values,)`.
        energy: The share of the squared singular values that counts.
        singular_values: By feature and layer, of shape `(values, rank)`, falling.
        energy_ranks: By feature, `(values, layers)`: how many singular values hold
            that share; 0 without update.
        entropy_ranks: By feature, `(values, layers)`: `exp` of the entropy of the
            singular values as shares of their sum (Roy and Vetterli, 2007); a
            number between 1 and the rank, 0 without update.
        layer_ranks: By feature, `(values, layers)`: the rank in each layer, where some
            have ranks of their own; empty if none have.
    """

    layers: tuple[str, ...]
    values: Mapping[str, tuple[Value, ...]]
    allotted: Mapping[str, np.ndarray]
    energy: float
    singular_values: Mapping[str, tuple[np.ndarray, ...]]
    energy_ranks: Mapping[str, np.ndarray]
    entropy_ranks: Mapping[str, np.ndarray]
    layer_ranks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def used(self) -> dict[str, np.ndarray]:
        """`energy_ranks` over the allotted ranks, by feature."""
        return {
            name: ranks / self.layer_ranks.get(name, self.allotted[name][:, None])
            for name, ranks in self.energy_ranks.items()
        }

    def _rows(self, feature: str) -> Rows:
        """Means over the layers."""
        rows = [[feature, "rank", f"for {self.energy:.0%}", "by entropy", "used"]]
        for value, *numbers, used in zip(
            self.values[feature],
            self.allotted[feature],
            self.energy_ranks[feature].mean(axis=1),
            self.entropy_ranks[feature].mean(axis=1),
            self.used[feature].mean(axis=1),
        ):
            rows.append([str(value), *map(number, numbers), f"{used:.0%}"])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The ranks as a dict of JSON types; `None` stands for NaN."""
        return plain(dataclasses.asdict(self))


def update_norms(source: keras.Model | Adapters) -> UpdateNorms:
    """Frobenius norms of the updates of all values in all layers.

    Args:
        source: An adapted model, or what `read_adapters` read of a file.

    Returns:
        The `UpdateNorms`. NaN stands where adapter weights are not finite, and
        for kernels that are quantized or not there.

    Example:

    >>> inputs = keras.Input((8,), name="x")
    >>> head = keras.layers.Dense(4, kernel_initializer="ones", name="head")
    >>> model = keras.Model({"x": inputs}, head(inputs))
    >>> model = enable_flix(model, {"task": ["qa"]}, targets=["head"])
    >>> norms = update_norms(model)
    >>> norms.norms["task"], norms.kernel_norms
    (array([[0.]]), array([5.65685425]))
    """
    schema, layers = updates_of(source)
    norms = norms_by_feature(schema, layers)
    kernels = [kernel_norm(source, path) for path in layers]
    return UpdateNorms(tuple(layers), _values(schema), norms, np.asarray(kernels))


@renamed_keyword("axis", "feature")
def value_similarity(
    source: keras.Model | Adapters, feature: str, layers: Sequence[str] | None = None
) -> ValueSimilarity:
    """Cosines between the updates of a feature's values.

    The updates of a value in all layers count as one long vector. Each value starts
    from a random `A` of its own: cosines of unlike values are near 0, and those of
    like ones may be small too. Compare them with each other.

    Args:
        source: An adapted model, or what `read_adapters` read of a file.
        feature: The feature's name.
        layers: Paths, names, or regexes that match a whole path, of the layers to
            count; `None` counts all.

    Returns:
        The `ValueSimilarity`. A value whose update is zero, such as one that was
        never trained, has no direction: its row and column are NaN, as are those
        of a value whose adapter weights are not finite.

    Raises:
        ValueError: If there is no such feature, or nothing matches a layer.
    """
    schema, adapters = updates_of(source)
    check_feature(feature, schema.names, "A similarity")
    paths = _matching(list(adapters), layers)
    products = np.zeros((len(schema[feature].values),) * 2)
    for path in paths:
        products += adapters[path](feature).products()
    norms = np.sqrt(np.diag(products))
    norms = np.where(norms > 0, norms, np.nan)
    matrix = np.clip(products / np.outer(norms, norms), -1.0, 1.0)
    np.fill_diagonal(matrix, np.where(np.isnan(norms), np.nan, 1.0))
    return ValueSimilarity(feature, tuple(schema[feature].values), tuple(paths), matrix)


def effective_rank(
    source: keras.Model | Adapters, energy: float = 0.99
) -> EffectiveRank:
    """How much of its rank each value's update uses in each layer.

    Args:
        source: An adapted model, or what `read_adapters` read of a file.
        energy: The share of an update's squared singular values that must be
            held; in `(0, 1]`.

    Returns:
        The `EffectiveRank`. NaN stands where adapter weights are not finite.

    Raises:
        ValueError: If `energy` is not such a share.
    """
    if not 0 < energy <= 1:
        raise ValueError(
            "`energy` must be a share in (0, 1]. Received: "
            f"energy={energy!r}. 0.99 is the default."
        )
    schema, layers = updates_of(source)
    singular = {
        f.name: tuple(of(f.name).singular_values() for of in layers.values())
        for f in schema
    }
    return EffectiveRank(
        layers=tuple(layers),
        values=_values(schema),
        allotted={f.name: np.asarray(f.ranks) for f in schema},
        energy=float(energy),
        singular_values=singular,
        energy_ranks={
            name: np.stack([_energy_rank(s, energy) for s in each], axis=1)
            for name, each in singular.items()
        },
        entropy_ranks={
            name: np.stack([_entropy_rank(s) for s in each], axis=1)
            for name, each in singular.items()
        },
        layer_ranks=layer_ranks(source, layers),
    )


def _values(schema: FeatureSchema) -> dict[str, tuple[Value, ...]]:
    return {feature.name: tuple(feature.values) for feature in schema}


def _matching(paths: list[str], wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        return paths
    found = set()
    for pattern in [wanted] if isinstance(wanted, str) else wanted:
        matches = {
            path
            for path in paths
            if pattern in (path, path.rpartition("/")[2]) or re.fullmatch(pattern, path)
        }
        if not matches:
            raise ValueError(
                "`layers` must be paths, names or regexes of adapted layers. "
                f"Received: {pattern!r}, which matches none of {len(paths)}."
                f"{hint(pattern, paths)}"
            )
        found |= matches
    return [path for path in paths if path in found]


def _over_layers(norms: np.ndarray) -> Any:
    return np.sqrt((norms**2).sum(axis=-1))


def _energy_rank(singular: np.ndarray, energy: float) -> np.ndarray:
    held = np.cumsum(singular**2, axis=-1)
    # A share of exactly 1 must not fail for the last bit of a sum.
    short = held < energy * held[:, -1:] * (1 - 1e-12)
    ranks = np.where(held[:, -1] > 0, short.sum(axis=-1) + 1.0, 0.0)
    return np.where(np.isnan(held[:, -1]), np.nan, ranks)


def _entropy_rank(singular: np.ndarray) -> np.ndarray:
    total = singular.sum(axis=-1, keepdims=True)
    shares = singular / np.where(total > 0, total, 1.0)
    terms = shares * np.log(np.where(shares > 0, shares, 1.0))
    ranks = np.where(total[:, 0] > 0, np.exp(-terms.sum(axis=-1)), 0.0)
    return np.where(np.isnan(total[:, 0]), np.nan, ranks)
