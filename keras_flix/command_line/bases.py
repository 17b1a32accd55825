"""The base that a command loads, also with adapters."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub

from keras_flix.command_line.answering import Adapted
from keras_flix.command_line.output import say
from keras_flix.files.saving import load_adapters


def load_base(
    preset: str, model_class: str = "CausalLM", dtype: str | None = None
) -> keras.Model:
    """A base model.

    Args:
        preset: As KerasHub names it: a name, a folder, or a handle on a hub.
        model_class: Of `keras_hub.models`.
        dtype: Of the model; the preset's or Keras' own by default.
    """
    cls: Any = getattr(keras_hub.models, model_class, None)
    kinds = (keras_hub.models.Task, keras_hub.models.Backbone)
    fits = isinstance(cls, type) and issubclass(cls, kinds)
    if not fits:
        raise ValueError(
            "--class must be a task or backbone class of keras_hub.models. Received: "
            f"{model_class!r}. Write such as CausalLM or Backbone."
        )
    options = {} if dtype is None else {"dtype": dtype}
    return cls.from_preset(preset, **options)


def load_writer(preset: str, dtype: str | None = None) -> Any:
    """A base that answers prompts: a causal LM with its preprocessor."""
    model: Any = load_base(preset, dtype=dtype)
    if model.preprocessor is None:
        raise ValueError(
            "--preset must be a causal LM with a tokenizer. Received: "
            f"{preset!r}, without one. Choose another, or save it with its "
            "preprocessor."
        )
    return model


def check_template(model: Any, name: str, end: str) -> None:
    """Raises unless the base's tokenizer has the token that ends a template's turn."""
    tokenizer = model.preprocessor.tokenizer
    if end and end not in tokenizer.get_vocabulary():
        raise ValueError(
            f"--template {name} needs a tokenizer with the token {end!r}. Received: "
            f"that of a {type(model).__name__}, without it. Pass --template none."
        )


def load_adapted(adapted: Adapted, sampler: str = "greedy") -> Any:
    """The base with its adapters, ready to answer."""
    say(f"loading {adapted.settings['preset']}")
    model = load_writer(adapted.settings["preset"], adapted.settings["dtype"])
    check_template(model, adapted.settings["template"], adapted.template.end)
    load_adapters(model, adapted.file, check_base=not adapted.any_base)
    model.compile(sampler=sampler)
    return model
