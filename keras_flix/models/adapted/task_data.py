"""What a task's `fit`, `evaluate` and `predict` are given, where it is in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix.models.adapted import token_weights
from keras_flix.models.adapted.cut_counts import CutTexts
from keras_flix.models.adapted.devices import check_whole
from keras_flix.models.adapted.example_order import (
    Drawn,
    Examples,
    capped_steps,
    new_seed,
    split_examples,
)

POSITIONAL = ("y", "batch_size", "sample_weight", "validation_data", "validation_split")
"""The arguments of a KerasHub task's `fit` and `evaluate` after `x`."""


def named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `fit` or `evaluate` after `x`, by name."""
    return {**dict(zip(POSITIONAL, args)), **kwargs}


class TaskData(_compat.Mixin):
    """The part of an adapted model that batches examples in memory."""

    def _training_examples(
        self,
        x: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        texts: CutTexts,
        drawn: Callable[[int], Drawn] | None = None,
    ) -> tuple[Examples, dict[str, Any]]:
        """The batches that `fit` trains on, and its other arguments."""
        options = named(args, kwargs)
        data, batch_size = self._take_data(x, options)
        share = options.pop("validation_split", None)
        if share and options.get("validation_data") is None:
            data, options["validation_data"] = split_examples(data, share)
        options.setdefault("validation_batch_size", batch_size)
        shuffle = options.pop("shuffle", True)
        is_task = isinstance(self, keras_hub.models.Task)
        initial_epoch = options.get("initial_epoch", 0)
        examples = Examples(
            data,
            batch_size,
            self._preprocess_batch if is_task else _without_none,
            texts=texts,
            seed=new_seed() if shuffle else None,
            first_batch=lambda: (_compat.initial_epoch(self) or initial_epoch) * steps,
            drawn=drawn and drawn(new_seed()),
        )
        wanted = options.get("steps_per_epoch")
        steps = capped_steps(wanted, examples)
        if wanted is not None and steps < wanted:
            warnings.warn(
                f"An epoch has {steps} batches at most, one for each that the examples "
                f"make. Received: steps_per_epoch={wanted}. Each epoch takes {steps}.",
                stacklevel=3,
            )
        return examples, {**options, "steps_per_epoch": steps, "shuffle": False}

    def _examples(
        self,
        x: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        texts: CutTexts | None,
    ) -> tuple[Examples, dict[str, Any]]:
        """The batches of `evaluate`, in order, and its other arguments."""
        options = named(args, kwargs)
        data, batch_size = self._take_data(x, options)
        return Examples(data, batch_size, self._preprocess_batch, texts=texts), options

    def _take_data(self, x: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        y, weight, batch_size = (
            options.pop(name, None) for name in ("y", "sample_weight", "batch_size")
        )
        check_whole(self)
        return self._checked_examples(x, y, weight), batch_size

    def _checked_examples(self, x: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
        token_weights.refuse_targets(getattr(self, "preprocessor", None), y)
        return self._encode_all(x), y, weight

    def _validation_examples(
        self, data: Any, batch_size: int | None, texts: CutTexts
    ) -> Examples:
        parts = keras.utils.unpack_x_y_sample_weight(tuple(data))
        data = self._checked_examples(*parts)
        return Examples(data, batch_size, self._preprocess_batch, texts=texts)

    def _validation_arrays(self, data: Any) -> tuple[Any, ...]:
        """Validation data that KerasHub's own pipeline batches."""
        parts = keras.utils.unpack_x_y_sample_weight(tuple(data))
        x, y, weight = self._checked_examples(*parts)
        if weight is not None and y is None:
            raise ValueError(
                "Weights of validation examples without `y` need training data of "
                "another kind. Received: lists or arrays with a sample_weight as "
                "validation_data, beside training data in a grain dataset. Pass both "
                "as lists or arrays, or both as datasets of `(x, None, sample_weight)`."
            )
        return (x, *data[1:])


def _without_none(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """A batch without labels and weights that there are not."""
    last = max(i for i, part in enumerate(batch) if part is not None)
    return batch[: last + 1]
