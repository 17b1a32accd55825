"""Which layers a feature states for itself, as `Feature(targets=...)`."""

from __future__ import annotations

import re
from typing import Any

from keras_flix._utils.near_names import hint

OwnTargets = str | tuple[str, ...] | None


def checked_targets(name: str, targets: Any) -> OwnTargets:
    """The targets of a feature, a list of them as a tuple; raises for what is none.

    Args:
        name: The feature's name.
        targets: What was given.
    """
    if targets is None or targets == "all-linear":
        return targets
    if not isinstance(targets, (list, tuple)) or not targets:
        near, remedy = "", "Pass a list of layer names or regexes."
        if isinstance(targets, str):
            near = hint(targets, ["all-linear"])
            remedy = f"Write [{targets!r}] to name one layer."
        raise ValueError(
            f"The targets of feature {name!r} must be None, 'all-linear' or a list of "
            f"layer names or regexes. Received: targets={targets!r}.{near} {remedy}"
        )
    for target in targets:
        try:
            re.compile(target)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"The targets of feature {name!r} must be layer names or regular "
                f"expressions. Received: {target!r}, which does not compile ({error}). "
                "Correct it, or escape it with re.escape."
            ) from error
    return tuple(targets)


def check_no_targets(features: Any, layer: str) -> None:
    """Raises where features of a single layer choose among layers."""
    for feature in features:
        if feature.targets is not None:
            raise ValueError(
                "Targets choose among the layers of a model. Received: feature "
                f"{feature.name!r} with targets={feature.targets!r} for a single "
                f"{layer}. Leave them out, or adapt the model with `enable_flix`."
            )
