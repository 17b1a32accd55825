"""What an adapted model refuses, as it would lose or break the adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import keras
import keras_hub
from keras import tree

from keras_flix import _compat
from keras_flix.layers.active_scope import current_routing

ADAPT_THE_TASK = (
    "A task must be adapted as a whole: around an adapted backbone, it passes no "
    "features on. Received: an adapted {} as a part of another model, without "
    "features. Make the task with a plain backbone and call `enable_flix(task, ...)`; "
    "to keep trained adapters, `save_adapters(backbone, path)` and `load_adapters`. A "
    "saved task's weights load into one whose backbone was adapted alone."
)


class Refusals(_compat.Mixin):
    """The part of an adapted model that says no."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "An adapted model must be made by `enable_flix`. Received: a call of its "
            "class, as `keras.models.clone_model` does. Use `copy.deepcopy(model)`, or "
            "`merge_features(model, ...)` for a plain model."
        )

    def _refuse_a_task_around(self, inputs: Any) -> None:
        """Raises where inputs without features are those of a task in the making."""
        if (
            isinstance(self, keras_hub.models.Backbone)
            and self._adaptation.schema.routed
            and not self._adaptation.disabled
            and current_routing(self._adaptation.schema) is None
            and any(isinstance(x, keras.KerasTensor) for x in tree.flatten(inputs))
        ):
            raise ValueError(ADAPT_THE_TASK.format(type(self).__name__))

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "An adapted model must be saved as a `.keras` file: the old HDF5 "
                f"format cannot load it again. Received: filepath={str(filepath)!r}. "
                "Use `model.save('model.keras')`."
            )
        super().save(filepath, *args, **kwargs)

    def save_to_preset(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "A preset holds a plain model, and would lose the adapters. Received: "
            "a model adapted by `enable_flix`. Use `save_adapters(model, path)`, "
            "or `merge_features(model, ...).save_to_preset(...)`."
        )

    def export_to_transformers(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "An export to Transformers holds a plain model, and would lose the "
            "adapters. Received: a model adapted by `enable_flix`. Use "
            "`merge_features(model, ...).export_to_transformers(...)`."
        )

    def enable_lora(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "An adapted model must not have a LoRA of Keras' own besides. Received: a "
            "model adapted by `enable_flix`. Add a feature with always=True, which is "
            "a LoRA, to `features`."
        )

    def quantize(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "An adapted model cannot be quantized. Received: a model adapted by "
            "`enable_flix`. Use `merge_features(model, ...)` and quantize the plain "
            "model."
        )


def never_runs(paths: list[str], others: Sequence[str] = ()) -> str:
    """The error for targets whose `call` is bypassed.

    Args:
        paths: The targets that never run.
        others: The names of those that do.
    """
    instead = f", as in targets={list(others)}" if others else ""
    return (
        "Every target must be a layer that runs in the model's forward pass. "
        f"Received: {paths[:4]}, which the model never calls (it may read their "
        f"kernels directly). Leave them out of `targets`{instead}."
    )
