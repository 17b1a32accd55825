"""The examples of a training: what it trains on, and what it is scored on."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_flix.command_line.adapting import with_settings
from keras_flix.command_line.combinations import parse_some_features
from keras_flix.command_line.data_files import read_mixture, wrapped
from keras_flix.command_line.templates import TEMPLATES
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.mixtures.dataset import values_of
from keras_flix.mixtures.mixture import Mixture

SHARED = "shared"
"""The feature that is always on."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The examples of a training.

    Attributes:
        train: What is trained on.
        validation: Others of the same combinations, if any are kept back.
        held_out: Those of combinations that are not trained on, if there are any.
    """

    train: Mixture
    validation: Mixture | None
    held_out: Mixture | None

    @property
    def scored(self) -> dict[str, Mixture]:
        """What there is to score, by name."""
        named = {"validation": self.validation, "held_out": self.held_out}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def counts(self) -> dict[str, int]:
        """Examples, by name."""
        counts = {name: len(part) for name, part in self.scored.items()}
        return {"train": len(self.train), **counts}

    def untrained(self) -> list[str]:
        """Values without any example that is trained on."""
        schema = self.train.schema()
        return [
            f"{name}={value}"
            for part in self.scored.values()
            for name, values in _values(part).items()
            for value in values
            if value not in schema[name]
        ]


def read_parts(settings: dict[str, Any]) -> tuple[Parts, FeatureSchema]:
    """The examples, and their features; raises for what the settings do not fit."""
    names = settings["features"]
    whole = read_mixture(
        settings["data"],
        names,
        settings["prompt"],
        settings["response"],
        settings["temperature"],
    )
    if settings["shared"] and SHARED in names:
        raise ValueError(
            f"With --shared true, no column may be called {SHARED!r}. Received: "
            f"--features {' '.join(names)}. Rename it, or pass --shared false."
        )
    ranks = dict(settings["rank"]) if isinstance(settings["rank"], dict) else {}
    shared = []
    if settings["shared"]:
        shared.append(Feature(SHARED, always=True, rank=ranks.pop(SHARED, None)))
    schema = with_settings(
        FeatureSchema([*whole.schema(rank=ranks), *shared]),
        settings["feature_settings"],
    )
    several = [x for x in whole.inputs()["responses"] if not isinstance(x, str)]
    if several:
        raise ValueError(
            "A response to train on must be one text. Received: "
            f"{several[0]!r}. Write a line for each, or choose one."
        )
    train, held_out = whole, None
    if settings["hold_out"]:
        known = whole.schema()
        combinations = [parse_some_features(known, [x]) for x in settings["hold_out"]]
        train, held_out = whole.split(*combinations)
    validation = None
    if settings["validation_split"]:
        train, validation = train.validation_split(
            settings["validation_split"], seed=settings["seed"]
        )
    template = TEMPLATES[settings["template"]]
    others = [x and wrapped(x, template) for x in (validation, held_out)]
    return Parts(wrapped(train, template), *others), schema


def _values(part: Mixture) -> dict[str, list[Any]]:
    found: dict[str, dict[Any, None]] = {}
    for dataset in part.datasets:
        for name, entry in dataset.features.items():
            found.setdefault(name, {}).update(dict.fromkeys(values_of(entry)))
    return {name: list(values) for name, values in found.items()}
