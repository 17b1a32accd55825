"""Which optimizers move values that do not occur, and where that is worth a word."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.encoding import ABSENT
from keras_flix.features.feature import Feature
from keras_flix.models.adapted.trained_base import heads

LARGE = 1_000_000
"""Adapters of fewer parameters are updated in no time, whatever the optimizer."""
BATCH = 128
"""How many values of a feature a batch may have: what is beyond them lies idle."""


def moves_absent(optimizer: Any, seen: bool) -> bool:
    """Whether an optimizer moves values that do not occur in a batch.

    Args:
        optimizer: One of Keras' own or of this library's; of others, it is taken to.
        seen: Whether the values occurred in earlier batches.
    """
    optimizer = _compat.innermost(optimizer)
    if _compat.moves_all_rows(optimizer):
        return True
    if isinstance(optimizer, _compat.LazyRows):
        return False
    if isinstance(optimizer, (keras.optimizers.SGD, keras.optimizers.RMSprop)):
        return seen and bool(optimizer.momentum)
    without_momentum = (
        keras.optimizers.Adadelta,
        keras.optimizers.Adafactor,
        keras.optimizers.Adagrad,
    )
    if isinstance(optimizer, without_momentum):
        return False
    return seen or isinstance(optimizer, keras.optimizers.Ftrl)


def large_adapters(model: Any) -> str:
    """What to say of adapters that are larger than the base; empty if they are not.

    Those that batches use anyway count for nothing: no optimizer could leave them out.
    """
    if getattr(getattr(model, "optimizer", None), "takes_row_gradients", False):
        return ""
    adapters = idle = 0
    for table in model._adaptation.tables():
        values, *shape = table.variable.shape
        adapters += values * math.prod(shape)
        idle += max(0, values - BATCH) * math.prod(shape)
    if adapters < LARGE:
        return ""
    base = sum([math.prod(v.shape) for v in model.weights]) - adapters
    if idle <= base:
        return ""
    return (
        f"The adapters are larger than the base ({adapters:,} and {base:,} parameters)"
        ", and most optimizers pass over all of them in each step. "
        "`keras_flix.LazyAdam` updates those of the batch's values only."
    )


def added_alone(model: Any, x: Any) -> str:
    """What to say where only values train that were added later; empty elsewhere.

    Args:
        model: An adapted model.
        x: Encoded inputs, as far as they are arrays.
    """
    optimizer = getattr(model, "optimizer", None)
    adaptation = model._adaptation
    if (
        optimizer is None
        or not adaptation.added
        or adaptation.trainable is not None
        or not isinstance(x, Mapping)
        or not moves_absent(optimizer, bool(ops.convert_to_numpy(optimizer.iterations)))
    ):
        return ""
    for feature, added in added_values(adaptation):
        if _only(feature, added, x.get(feature.encoded_key)):
            name = type(_compat.innermost(optimizer)).__name__
            return (
                f"Of feature {feature.name!r}, only values train that were added "
                f"later: {added}. {name} goes on moving the others, by momentum or "
                "weight decay. To leave all else as it is, call "
                f"`set_trainable(model, {{{feature.name!r}: {added}}})`; "
                "`keras_flix.LazyAdam` moves the values of the batch only."
            )
    return ""


def added_values(adaptation: Any) -> Iterator[tuple[Feature, list[Any]]]:
    """The values of each feature that were added later, where others were not."""
    for feature in adaptation.schema:
        # Those that were renamed or removed since are not looked for.
        added = adaptation.added.get(feature.name, ())
        found = [value for value in feature.values if value in added]
        if found and len(found) < len(feature.values):
            yield feature, found


def _only(feature: Feature, added: Sequence[Any], ids: Any) -> bool:
    if not isinstance(ids, (np.ndarray, list, int)):
        return False
    ids = np.asarray(ids)
    present = ids[ids != ABSENT] if ids.dtype.kind == "i" else ids[:0]
    return bool(present.size) and bool(
        np.isin(present, [feature.id_of(value) for value in added]).all()
    )


def fresh_head(model: Any) -> str:
    """What to say of a task's head that is frozen as it was made; empty elsewhere."""
    for layer in heads(model):
        bias = getattr(layer, "bias", None)
        if (
            not layer.trainable_variables
            and bias is not None
            # Training leaves no bias at exactly zero.
            and not np.any(ops.convert_to_numpy(ops.cast(bias, "float32")))
        ):
            return (
                f"The head {layer.name!r} is frozen, and looks as freshly made: its "
                "bias is zero. To let it train besides the adapters, set "
                f"`model.get_layer({layer.name!r}).trainable = True` and compile "
                "again; it is saved with them."
            )
    return ""


def advise(model: Any, x: Any) -> None:
    """Warns, once per model and matter, where another optimizer would serve better."""
    said = model._adaptation.said
    for matter, text in (
        ("large adapters", large_adapters(model)),
        ("added alone", added_alone(model, x)),
        ("fresh head", fresh_head(model)),
    ):
        if text and matter not in said:
            said.add(matter)
            warnings.warn(text, stacklevel=4)
