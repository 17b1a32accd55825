"""What each feature does to the loss of an example."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops, tree

from keras_flix._utils.displayed import Displayed, Rows, count, shown, some
from keras_flix._utils.renamed import renamed_keyword
from keras_flix._utils.text_tables import aligned, number, plain
from keras_flix.evaluation.evaluate import equal_batches, rows_of
from keras_flix.features.columns import as_columns
from keras_flix.features.encoding import ABSENT
from keras_flix.features.feature import Feature
from keras_flix.features.host_values import host_value
from keras_flix.features.input_entries import TEXT_KEYS, encode_batch, split_entries
from keras_flix.features.schema import FeatureSchema, check_feature
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.active_scope import Routing, routing_scope
from keras_flix.models.adapted.adaptation import adaptation_of
from keras_flix.models.adapted.mixture_data import as_mixture, columns_of

Loss = Callable[[Tensor, Tensor], Tensor]
"""From targets and outputs to losses by example, `(batch, ...)`."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FeatureContributions(Displayed):
    """Losses with and without each feature: what `feature_contributions` returns.

    All arrays have the shape `(examples,)`. A contribution is negative where the
    feature lowers the loss.

    Attributes:
        full: The loss of each example with all of its values.
        base: The loss of the base model.
        without: By feature, the loss with that feature absent.
        alone: By feature, the loss with all other features absent.
        values: By feature, the value of each example: a value, `None`, or a tuple.
    """

    full: np.ndarray
    base: np.ndarray
    without: Mapping[str, np.ndarray]
    alone: Mapping[str, np.ndarray]
    values: Mapping[str, tuple[Any, ...]]

    def __len__(self) -> int:
        return len(self.full)

    @property
    def leave_one_out(self) -> dict[str, np.ndarray]:
        """By feature, the loss with all features minus that without this one."""
        return {name: self.full - loss for name, loss in self.without.items()}

    @property
    def over_base(self) -> dict[str, np.ndarray]:
        """By feature, the loss with this feature alone minus that of the base."""
        return {name: loss - self.base for name, loss in self.alone.items()}

    def means(self) -> dict[str, dict[str, float]]:
        """By feature, the means of `"leave_one_out"` and `"over_base"`.

        Examples whose loss is NaN do not count.
        """
        return {
            name: {kind: _mean(losses) for kind, losses in pair.items()}
            for name, pair in self.samples().items()
        }

    def samples(self, feature: str | None = None) -> dict[Any, dict[str, np.ndarray]]:
        """What `means` and `by_value` are the means of.

        Args:
            feature: The feature whose values are told apart; `None` for the features.

        Returns:
            By feature or value, `"leave_one_out"` and `"over_base"` of its examples,
            without those whose loss is NaN.
        """
        left, over = self.leave_one_out, self.over_base
        finite = ~np.isnan(self.full)
        if feature is None:
            chosen: dict[Any, Any] = dict.fromkeys(self.without, finite)
        else:
            check_feature(feature, self.without, "Contributions")
            chosen = self._examples_by_value(feature)
        return {
            name: {
                "leave_one_out": left[feature or name][rows],
                "over_base": over[feature or name][rows],
            }
            for name, rows in chosen.items()
        }

    def _examples_by_value(self, feature: str) -> dict[Any, list[int]]:
        """By value of a feature, the examples that have it."""
        rows: dict[Any, list[int]] = {}
        for i in np.flatnonzero(~np.isnan(self.full)):
            entry = self.values[feature][i]
            for value in (entry or (None,)) if isinstance(entry, tuple) else (entry,):
                rows.setdefault(value, []).append(int(i))
        return rows

    @renamed_keyword("axis", "feature")
    def by_value(self, feature: str) -> dict[Any, dict[str, float]]:
        """Means of a feature's contributions for the examples of each of its values.

        Args:
            feature: The feature's name.

        Returns:
            By value (`None` for examples without), a dict with the number of
            `"examples"`, `"leave_one_out"` and `"over_base"`. An example with
            several values counts for each. Examples whose loss is NaN do not.
        """
        return {
            value: {
                "examples": len(pair["over_base"]),
                **{kind: float(losses.mean()) for kind, losses in pair.items()},
            }
            for value, pair in self.samples(feature).items()
        }

    @renamed_keyword("axis", "feature")
    def table(self, feature: str | None = None) -> str:
        """Mean contributions as a text: of all features, or by the values of one."""
        return aligned(self._rows(feature))

    def _rows(self, feature: str | None = None) -> Rows:
        if feature is not None:
            rows = [[feature, "examples", "leave one out", "alone over base"]]
            for value, means in self.by_value(feature).items():
                pair = [number(means[x]) for x in ("leave_one_out", "over_base")]
                rows.append([shown(value), str(means["examples"]), *pair])
            return rows
        rows = [["feature", "leave one out", "alone over base"]]
        for name, mean in self.means().items():
            rows.append([name, *map(number, mean.values())])
        rows.append(["all features", "", number(_mean(self.full - self.base))])
        return rows

    def _line(self) -> str:
        examples = count(len(self), "example")
        return f"FeatureContributions({examples}, features {some(self.without)})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        return [("", self._rows(name)) for name in (None, *self.without)]

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """The losses as a dict of JSON types; `None` stands for NaN."""
        return plain(dataclasses.asdict(self))


def feature_contributions(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    loss: Any = None,
    batch_size: int = 32,
) -> FeatureContributions:
    """How much each feature lowers or raises the loss of each example.

    Two numbers per feature: what is lost by leaving it out, the others being there,
    and what it does to the base model alone. Where features stand in for each other,
    the first is small and the second large. The model runs forward only, and is not
    changed. `always` features are left out in the same way.

    Args:
        model: A model adapted by `enable_flix`.
        x: Its inputs with the entries of the features, all in memory, as a dict or
            another table that `fit` takes, or a `Mixture`, of which `y` and
            `sample_weight` name columns. A task with its preprocessor takes strings,
            such as `{"prompts", "responses"}`.
        y: Targets; those of a causal LM come from its preprocessor.
        sample_weight: How much each target of an example counts, of the shape of
            the losses: the loss of an example is their weighted mean. `None`
            counts all. An example whose weights are all zero has the loss NaN.
        loss: A Keras loss, its name, or a function of targets and outputs that
            returns losses of shape `(batch, ...)`. By default the cross entropy of
            the next token in nats for causal LMs, and what the model was compiled
            with for others.
        batch_size: Examples per forward pass, of which there are two for each feature
            and two more.

    Returns:
        The `FeatureContributions`.

    Raises:
        ValueError: If targets or the loss are missing, or shapes do not fit.

    Example:

    ```python
    contributions = feature_contributions(gemma, mixture)
    print(contributions)
    print(contributions.table("language"))
    ```
    """
    schema = adaptation_of(model).schema
    mixture = as_mixture(x)
    if mixture is not None:
        x, named = columns_of(mixture, {"y": y, "sample_weight": sample_weight})
        y, sample_weight = named["y"], named["sample_weight"]
    x = as_columns(x, schema.of_strings)
    if isinstance(x, Mapping) and any(key in x for key in TEXT_KEYS):
        if getattr(model, "preprocessor", None) is not None:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(
                model.preprocess_samples(x, y, sample_weight)
            )
    if y is None:
        raise ValueError(
            "Contributions to a loss need targets. Received: y=None. Pass `y`, or, to "
            'a causal LM with its preprocessor, "prompts" and "responses".'
        )
    loss_function = _loss_function(model, loss)
    own, entries = split_entries(encode_batch(schema, x), schema)
    schema.check_entries(entries, own if isinstance(own, Mapping) else ())
    entries = schema.by_name(entries)
    own, entries, y = (tree.map_structure(_on_host, each) for each in (own, entries, y))
    count = len(tree.flatten(y)[0])
    always = {f.name: np.zeros(count, "int32") for f in schema if f.always}
    ids = {f.name: {**entries, **always}[f.name] for f in schema}
    probe = _Probe(model, schema, loss_function)

    def losses(active: set[str]) -> np.ndarray:
        chosen = {
            name: value if name in active else np.full_like(value, ABSENT)
            for name, value in ids.items()
        }
        parts = []
        for rows, kept in equal_batches(count, batch_size):
            batch = tree.map_structure(
                lambda leaf, rows=rows: rows_of(leaf, rows),
                {"own": own, "ids": chosen, "targets": y},
            )
            result = np.asarray(host_value(probe.predict_on_batch(batch)), "float64")
            parts.append(result[:kept])
        return _weighted(np.concatenate(parts), sample_weight, count)

    names = set(ids)
    return FeatureContributions(
        full=losses(names),
        base=losses(set()),
        without={f.name: losses(names - {f.name}) for f in schema},
        alone={f.name: losses({f.name}) for f in schema},
        values={f.name: _decoded(f, ids[f.name]) for f in schema},
    )


class _Probe(keras.Model):
    """A model's losses, with ids for all features: for those that always act, too.

    A model takes no entry for an `always` feature. But where a scope is open already
    and there are no entries, it follows that scope.
    """

    def __init__(self, model: keras.Model, schema: FeatureSchema, loss: Loss) -> None:
        super().__init__(name="probe")
        self.probed = model
        self.routes = functools.partial(Routing.from_ids, schema)
        self.losses_of = loss

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Mapping[str, Any]) -> Tensor:
        with routing_scope(self.routes(inputs["ids"])):
            outputs = self.probed(inputs["own"], training=False)
        return self.losses_of(inputs["targets"], outputs)


def next_token_losses(targets: Tensor, logits: Tensor) -> Tensor:
    """Cross entropy in nats of each next token, `(batch, length)`, in float32."""
    return keras.losses.sparse_categorical_crossentropy(
        targets, ops.cast(logits, "float32"), from_logits=True
    )


def _loss_function(model: Any, loss: Any) -> Loss:
    if loss is None and isinstance(model, keras_hub.models.CausalLM):
        return next_token_losses
    loss = getattr(model, "loss", None) if loss is None else loss
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss.call
    if not callable(loss):
        raise ValueError(
            "`loss` must be a Keras loss, its name or a function of targets and "
            f"outputs. Received: {loss!r}. Pass `loss=`, or compile the model with "
            "one loss."
        )
    return loss


def _on_host(x: Any) -> Any:
    return x if x is None else np.asarray(host_value(x))


def _weighted(losses: np.ndarray, weights: Any, count: int) -> np.ndarray:
    """The weighted mean loss of each example."""
    if losses.shape[:1] != (count,):
        raise ValueError(
            "A loss must be by example, of shape (batch, ...). Received: losses of "
            f"shape {losses.shape} for {count} examples. Leave out the reduction."
        )
    if weights is None:
        return losses.reshape(count, -1).mean(axis=1)
    weights = np.asarray(host_value(weights), "float64")
    if weights.shape != losses.shape:
        raise ValueError(
            "`sample_weight` must have the shape of the losses. Received: weights of "
            f"shape {weights.shape} and losses of shape {losses.shape}. Pass one "
            "weight per target, or None."
        )
    weights = weights.reshape(count, -1)
    totals = weights.sum(axis=1)
    counted = np.where(weights > 0, losses.reshape(count, -1), 0.0)
    sums = (weights * counted).sum(axis=1)
    return np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), np.nan)


def _decoded(feature: Feature, ids: np.ndarray) -> tuple[Any, ...]:
    """The values of each example: a tuple of them where it may have several."""
    entries = feature.decode(ids)
    return tuple(entries if ids.ndim == 1 else map(tuple, entries))


def _mean(x: np.ndarray) -> float:
    counted = x[~np.isnan(x)]
    return float(counted.mean()) if len(counted) else float("nan")
