"""What says where a mixture goes to those who take it for an array."""

from __future__ import annotations

from typing import Any, NoReturn


class NotAnArray:
    """Refuses to be an array, which Keras and numpy make of what they do not know.

    A model without adapters cannot know a mixture. Keras would say `Unrecognized data
    type`, and numpy hold it as one object.
    """

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise ValueError(self._refusal())

    @property
    def shape(self) -> NoReturn:
        """What Keras asks for first; that there is none is as it was."""
        raise AttributeError(self._refusal())

    def _refusal(self) -> str:
        return (
            "A mixture goes into `fit`, `evaluate` and `predict` of a model with "
            f"feature adapters. Received: {self!r}, read as an array. Adapt the model "
            "by `enable_flix(model, mixture.schema(), ...)` before, or take columns "
            "out of `mixture.inputs()`."
        )
