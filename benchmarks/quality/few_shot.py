"""A new language with a handful of examples: a blend of known ones, or its own table.

OMP_NUM_THREADS=1 KERAS_BACKEND=torch python -m benchmarks.quality.few_shot

A FLix of task, language and a shared part is trained on ten tasks in 18 languages, with
prompts that state both. Then a language joins that the adapters never met, with 4, 16
or 64 examples spread over the tasks. Other examples of it are scored.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix
from benchmarks.shared.environment import result_path, write_result
from benchmarks.shared.places import GUIDES
from keras_flix.evaluation import forced_exact_match
from keras_flix.mixtures import Dataset, Mixture

sys.path.insert(0, str(GUIDES))

import cldr_mixture  # noqa: E402

KNOWN = (
    "en", "de", "nl", "sv", "es", "pt", "fr", "it", "ru", "uk", "bg", "pl", "hi", "bn",
    "ar", "he", "tr", "ja",
)  # fmt: skip
# The base was not pretrained on them. Of languages that it knows, it gets most right
# without any value of their own: the prompts state the language.
NEW = ("gl", "af", "sl")
SIZES = (4, 16, 64)
RATES = (2e-3, 1e-2)
METHOD = (
    "Exact match in % of new examples of the language, 20 of each task, means over "
    "languages. `absent`: the language axis left out; `mean`: all known languages "
    "with equal weights; `blend`: `fit_blend`, 18 weights; `own`: a fresh table; `own, "
    "from blend`: a table that starts as the fitted blend. Tables of rank 2 trained "
    "for 30 epochs, all else frozen, at the better of two rates by these scores."
)


def examples(language: str, per_task: int, seed: str) -> Mixture:
    """Examples of a language, equally many of each task."""
    datasets = []
    for task in cldr_mixture.TASKS:
        rng = random.Random(f"{seed}/{task}/{language}")
        cell = cldr_mixture.cell_examples(task, language, per_task, rng)
        columns = {
            "prompts": [example.prompt for example in cell],
            "responses": [example.response for example in cell],
        }
        datasets.append(Dataset({"task": task, "language": language}, columns))
    return Mixture(datasets)


def train_known(steps: int, seed: int) -> keras_hub.models.GemmaCausalLM:
    """The small Gemma with adapters of all tasks and the known languages."""
    keras.utils.set_random_seed(seed)
    gemma = keras_hub.models.GemmaCausalLM.from_preset(str(GUIDES / "cldr_gemma"))
    features = [
        keras_flix.Feature("task", cldr_mixture.TASKS),
        keras_flix.Feature("language", KNOWN),
        keras_flix.Feature("shared", always=True),
    ]
    keras_flix.enable_flix(gemma, features, rank=2, targets="all-linear", seed=seed)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=6e-3, warmup_steps=steps // 10
    )
    compile_model(gemma, rate)
    mixture = Mixture(
        [data for lang in KNOWN for data in examples(lang, 60, "train").datasets]
    )
    gemma.fit(mixture.sample(32 * steps, seed=seed), batch_size=32, verbose=2)
    return gemma


def compile_model(model: Any, rate: Any) -> None:
    model.compile(
        optimizer=keras.optimizers.Adam(rate, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def score(model: Any, data: dict[str, Any], entry: Any) -> float:
    """Exact match in percent, the language stated as `entry`."""
    inputs = {**data, "language": [entry] * len(data["prompts"])}
    x, y, sample_weight = model.preprocess_samples(inputs)
    return 100 * float(forced_exact_match(model, x, y, sample_weight, 50).mean())


def train_own(model: Any, few: dict[str, Any], new: str, rate: float) -> None:
    """Trains the table of one language alone."""
    keras_flix.set_trainable(model, {"language": [new]})
    compile_model(model, rate)
    count = len(few["prompts"])
    model.fit(
        {**few, "language": [new] * count},
        batch_size=min(16, count),
        epochs=30,
        verbose=0,
    )
    keras_flix.set_trainable(model, None)


def measure(model: Any, new: str, size: int) -> dict[str, Any]:
    """The scores of all arms for one language and number of examples."""
    test = examples(new, 20, "test").inputs()
    pool = examples(new, max(SIZES), "few").inputs()
    # The tasks in turn, each with other inputs.
    per_task = max(SIZES)
    order = [
        (i % 10) * per_task + i // 10
        for i in np.random.default_rng(size).permutation(max(SIZES))[:size]
    ]
    few = {
        name: [values[i] for i in order]
        for name, values in pool.items()
        if name != "language"
    }
    test.pop("language")
    mean = dict.fromkeys(KNOWN, 1 / len(KNOWN))
    scores: dict[str, Any] = {
        "absent": score(model, test, None),
        "mean": score(model, test, mean),
    }
    blend = keras_flix.fit_blend(
        model, "language", new, few, batch_size=min(16, size), epochs=30
    )
    keras_flix.remove_values(model, "language", [new])
    scores["blend"] = score(model, test, blend.weights)
    for name, init in (("own", None), ("own, from blend", blend.weights)):
        for rate in RATES:
            keras_flix.add_values(model, "language", [new], init=init, seed=0)
            train_own(model, few, new, rate)
            scores[f"{name}, {rate:g}"] = score(model, test, new)
            keras_flix.remove_values(model, "language", [new])
    return {
        "language": new,
        "examples": size,
        "scores": scores,
        "weights": {k: round(w, 4) for k, w in blend.weights.items()},
        "kept": round(blend.kept, 4),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over languages, as Markdown."""
    arms = ["absent", "mean", "blend", "own", "own, from blend"]
    lines = [
        "| examples | " + " | ".join(arms) + " |",
        "| --- |" + " --- |" * len(arms),
    ]
    for size in sorted({row["examples"] for row in rows}):
        chosen = [row["scores"] for row in rows if row["examples"] == size]
        means = {name: statistics.mean(s[name] for s in chosen) for name in chosen[0]}
        cells = " | ".join(f"{_best(means, arm):.1f}" for arm in arms)
        lines.append(f"| {size} | {cells} |")
    return "\n".join(lines)


def _best(means: dict[str, float], arm: str) -> float:
    """The score of an arm, at the better rate if it has several."""
    names = {arm, *(f"{arm}, {rate:g}" for rate in RATES)}
    return max(mean for name, mean in means.items() if name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--languages", nargs="*", default=NEW)
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    options = parser.parse_args()
    model = train_known(options.steps, seed=0)
    rows = []
    for new in options.languages:
        for size in options.sizes:
            rows.append(measure(model, new, size))
            print(rows[-1], flush=True)
            # After each: what a stopped run has measured is kept.
            result = {"method": METHOD, "steps": options.steps, "rows": rows}
            write_result(result_path("few_shot"), result)
    print(table(rows))


if __name__ == "__main__":
    main()
