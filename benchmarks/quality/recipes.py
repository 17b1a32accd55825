"""Which trials the search for a recipe is made of; `recipe_search` runs them.

Every arm has the same budget of trials over targets, learning rate and rank
(`arm_search`), of which the one with the fewest nats per answer on validation examples
of *seen* cells counts. Trials lie beside those of `evidence`, in `standin/`, and resume
as those do. Recipes, and the same arms without them, lie in a folder of their own, so
that both are of the same data: stored searches are of another Babel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.quality import arm_search, store
from benchmarks.quality.arm_search import Setting
from benchmarks.quality.cldr_mix import Data
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.trial import Trial

SIZE, BASE = "standin", "base_instructed"
RECIPE_SIZE = "standin_recipes"
"""Of recipes, and of what they are compared with."""
STEPS, BATCH = 120, 32
RANKS: dict[str, dict[str, int]] = {
    "lora": {"shared": 6},
    "flix_shared": {"task": 2, "language": 2, "shared": 2},
    "task_shared": {"task": 3, "shared": 3},
    "flix": {"task": 3, "language": 3},
    "task_only": {"task": 6},
    "flix_family": {"task": 2, "language": 2, "shared": 1, "family": 1},
    "arithmetic": {"task": 3, "language": 3},
    "lora_per_cell": {"cell": 6},
    "shuffled": {"task": 2, "language": 2, "shared": 2},
    "hyper": {"cell": 6},
}
"""Where the search of each arm begins: an active rank of 6."""

OPTIONS: dict[str, dict[str, Any]] = {
    "arithmetic": {"apart": True},
    "shuffled": {"labels": "shuffled"},
    "hyper": {"outside": "hyper"},
}
"""What else an arm states, by its name."""

FIRST_RATE = 6e-3
FINALISTS = ("lora", "flix_shared", "task_shared")


Known = Callable[[Trial], "dict[str, Any] | None"]


def known(trial: Trial, size: str = SIZE) -> dict[str, Any] | None:
    """The stored result of a trial."""
    return store.load(size, trial.key)


def trial_of(name: str, setting: Setting, seed: int = 0, **changes: Any) -> Trial:
    """A trial of an arm; `changes` are fields of `Arm`."""
    ranks = {axis: rank * setting.times for axis, rank in RANKS[name].items()}
    usual = {"ranks": ranks, "targets": setting.targets, **OPTIONS.get(name, {})}
    arm = Arm(name, **{**usual, **changes})
    return Trial(
        arm,
        setting.rate,
        Data(),
        seed=seed,
        steps=STEPS,
        batch_size=BATCH,
        base=BASE,
        details=True,
    )


SEEN, HELD_OUT = "validation_nats", "validation_held_out_nats"
"""What a setting can be chosen by: both in nats per answer."""


def score_of(name: str, known: Known = known, by: str = SEEN) -> arm_search.Score:
    """The nats per answer of an arm's settings on validation examples."""

    def score(setting: Setting) -> float | None:
        result = known(trial_of(name, setting))
        return None if result is None else result[by]

    return score


def search(name: str, known: Known = known) -> list[Setting]:
    """The settings that an arm is tried with, as far as results tell by now."""
    return arm_search.search(FIRST_RATE, score_of(name, known))


def tuned(name: str, known: Known = known, by: str = SEEN) -> Setting | None:
    """The best setting of an arm, `None` until its search is over.

    Args:
        name: Of the arm.
        known: What looks up results.
        by: `SEEN`, or `HELD_OUT`, to choose among the same trials by validation
            examples of held-out cells.
    """
    tried = search(name, known)
    if not arm_search.is_over(tried, score_of(name, known)):
        return None
    return arm_search.best_of(tried, score_of(name, known, by))


OF_ALL_ARMS: dict[str, dict[str, Any]] = {
    "B learns 4 times as fast": {"b_rate": 4.0},
    "weight decay 0.1": {"decay": 0.1},
    "average of weights": {"ema": 0.95},
    "early stopping": {"stop": True},
    "three times the steps": {"times": 3},
}
"""Recipes that need no feature."""

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "task_shared": {
        "dropout 0.1": {"dropout": {"task": 0.1}},
        "dropout 0.3": {"dropout": {"task": 0.3}},
        "one `A` for all tasks": {"one_a": ["task"]},
        **OF_ALL_ARMS,
    },
    "flix_shared": {
        "dropout 0.1": {"dropout": {"task": 0.1, "language": 0.1}},
        "dropout 0.3": {"dropout": {"task": 0.3, "language": 0.3}},
        "language rank halved": {"halved": ("language",)},
        "task and language rank halved, shared doubled": {
            "halved": ("task", "language"),
            "doubled": ("shared",),
        },
        "language in the outer blocks, task in the middle": {
            "blocks": {"language": [0, 2], "task": [1]}
        },
        "one `A` for all tasks, one for all languages": {"one_a": ["task", "language"]},
        **OF_ALL_ARMS,
    },
    "lora": OF_ALL_ARMS,
}
"""By arm and name, what a recipe changes in the arm's best setting."""


def recipe_trial(name: str, recipe: str, setting: Setting, seed: int = 0) -> Trial:
    """A recipe, tried with the best setting of its arm."""
    changes = dict(RECIPES[name][recipe])
    ranks = {axis: rank * setting.times for axis, rank in RANKS[name].items()}
    times = changes.pop("times", 1)
    for axis in changes.pop("halved", ()):
        ranks[axis] //= 2
    for axis in changes.pop("doubled", ()):
        ranks[axis] *= 2
    trial = trial_of(name, setting, seed, ranks=ranks, **changes)
    return dataclasses.replace(trial, steps=trial.steps * times)


def missing(
    seeds: int = 1, recipe_seeds: int = 1, arms: Iterable[str] = RANKS
) -> list[tuple[str, Trial]]:
    """Trials that can run now: those of each search in turn, then seeds, then recipes.

    Those of recipes begin with the same arms without them.

    Args:
        seeds: Of the finalists.
        recipe_seeds: Of the recipes; 0 for none.
        arms: Names of those that count.

    Returns:
        The folder that a result belongs in, and the trial.
    """
    searches = {name: search(name) for name in arms}
    wanted = [
        (len(tried), trial_of(name, tried[-1])) for name, tried in searches.items()
    ]
    # Searches take turns, so that a run that is stopped leaves equal budgets.
    found = [trial for _, trial in sorted(wanted, key=lambda pair: pair[0])]
    best = {name: setting for name in arms if (setting := tuned(name))}
    found += [
        trial_of(name, best[name], seed)
        for seed in range(1, seeds)
        for name in FINALISTS
        if name in best
    ]
    tried = [name for name in RECIPES if name in best]
    with_recipes: list[Trial] = []
    for seed in range(recipe_seeds):
        with_recipes += [trial_of(name, best[name], seed) for name in tried]
        with_recipes += [
            recipe_trial(name, recipe, best[name], seed)
            for name in tried
            for recipe in RECIPES[name]
        ]
    every = [(SIZE, trial) for trial in found]
    every += [(RECIPE_SIZE, trial) for trial in with_recipes]
    return [(size, trial) for size, trial in every if known(trial, size) is None]
