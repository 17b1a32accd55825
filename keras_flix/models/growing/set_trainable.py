"""`set_trainable`: which values of an adapted model train."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from keras_flix.features.feature import Value
from keras_flix.models.adapted.adaptation import Model
from keras_flix.models.adapted.frozen_values import choose, is_table
from keras_flix.models.growing.resize import changeable
from keras_flix.models.growing.schema_changes import checked_feature, checked_values


def set_trainable(model: Model, values: Mapping[str, Sequence[Value]] | None) -> Model:
    """Makes only some values of an adapted model train.

    All others stay bit-identical, and so does what the optimizer holds of them:
    averages of former steps, weight decay and averaged weights move them as little
    as gradients do. (With `use_ema`, the average of a value that is frozen is the value
    as it is then, since averages may take the place of the weights.) The choice stays
    when the model is compiled again or saved as a `.keras` file, until the next one.
    Values that are added later do not train unless they are chosen.

    Without a choice, values that do not occur stay as they are under some optimizers
    only: SGD and RMSprop without momentum, Adagrad, Adadelta, Adafactor, `LazyAdam` and
    `LazySGD`. Momentum (of Adam and most others) moves those that occurred before,
    weight decay moves all, and Ftrl sets those that never did to zero.

    It holds in `fit`, `train_on_batch` and loops of your own that use the Keras
    optimizer which the model is compiled with at the call. (Compiled anew, such a loop
    needs another call.) In other loops, gradients of frozen values are exactly zero,
    but an optimizer of torch's own moves what has momentum from before or weight decay.

    Args:
        model: A model adapted by `enable_flix`. It is changed in place, and need
            not be compiled again.
        values: By feature, the values that train, such as `{"language": ["rw"]}`.
            Features that are not named are frozen as a whole. A feature with
            always=True has one value, called like itself unless it was named.
            `None` lets all values train.

    Returns:
        `model`.

    Raises:
        ValueError: If a feature or a value is not the model's. The choice is then
            left as it was.

    Warns:
        UserWarning: If layers train whole besides, such as a classifier's head: that
            changes what all values compute. `layer.trainable = False` freezes one.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets=["head"])
    >>> model = add_values(model, "language", ["rw"], init="sw")
    >>> model = set_trainable(model, {"language": ["rw"]})
    >>> model.compile("adam", loss="mse")
    >>> batch = {"x": np.ones((3, 8)), "language": ["en", "sw", "rw"]}
    >>> history = model.fit(batch, np.zeros((3, 4)), verbose=0)
    """
    adaptation = changeable(model, within_fit=True)
    if values is None:
        choose(adaptation, None)
        return model
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            "`values` must be a dict from features to values that train, or None for "
            f"all. Received: values={values!r}. Write such as "
            f"{{{adaptation.schema.names[0]!r}: [...]}}."
        )
    choice = {
        name: list(checked_values(checked_feature(adaptation.schema, name), chosen))
        for name, chosen in values.items()
    }
    choose(adaptation, choice)
    besides = [v.path for v in model.trainable_variables if not is_table(v)]
    if besides:
        warnings.warn(
            "Values that are frozen compute the same only while nothing else trains. "
            f"Received: a model in which {besides[:3]} train besides. To freeze these, "
            "set `layer.trainable = False` on their layers, and compile again.",
            stacklevel=2,
        )
    return model
