"""What a hypernetwork makes for a language that was never trained.

OMP_NUM_THREADS=1 KERAS_BACKEND=torch python -m benchmarks.quality.new_languages_hyper

As `new_languages`: the same base, examples, steps, active rank and new languages. But
the adapters of all pairs of task and language come from one network (`hyper_trial`). It
is told of a language either by an embedding of its own, of which a new one gets an
average, or by what descent and typology say of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix
from benchmarks.quality import cldr_mix, new_languages as flix, scoring, training
from benchmarks.quality.hyper_trial import EMBEDDING, Hyper, Projection
from benchmarks.quality.trial import compile_for_scoring
from benchmarks.shared.environment import result_path, write_result
from keras_flix.mixtures import Mixture

RANK = 3 * flix.RANK
RATES = (6e-3, 3e-3)
VALIDATION = 2
AVERAGES = ("mean", "nearest", "weighted", "typology", "typology nearest 3")
"""Starts of `new_languages`."""

STARTS = {"embeddings": AVERAGES, "features": ("mean", "own")}
"""What a new language's embedding is, by what the network is told of languages."""

KINDS = ("descent", "typology")
METHOD = (
    "As `new_languages`, with a hypernetwork that makes the adapters of all pairs of "
    "task and language (rank 6), of embeddings of task, language and block. "
    "`embeddings`: every known language has a free one, and a new one the `mean` of "
    "all, that of the `nearest` by descent, or the average `weighted` by descent or by "
    "`typology`, or of its three nearest there. `features`: a language's embedding is "
    "a linear map, trained too, of its coordinates by descent and typology, in which "
    "inner products are the cosines of `language_distances`; a new one has its `own`, "
    "or the `mean` of all known. All rates with the first seed; more seeds at the "
    "better one by nats of validation examples of held-out cells of known languages. "
    "No examples of new languages."
)


def coordinates(
    similar: np.ndarray, new_similar: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points whose inner products are these similarities, of mean 0 and mean square 1.

    Args:
        similar: `(known, known)`.
        new_similar: `(new, known)`.

    Returns:
        `(known, axes)` and `(new, axes)`: a new point is where the known ones' span is
        nearest to it.
    """
    values, vectors = np.linalg.eigh(similar)
    # What is left of 0 by rounding would blow up a new point.
    kept = values > 1e-6
    to_axes = vectors[:, kept] / np.sqrt(values[kept])
    known, new = similar @ to_axes, new_similar @ to_axes
    center = known.mean(axis=0)
    size = np.sqrt(((known - center) ** 2).sum(axis=1).mean())
    return (known - center) / size, (new - center) / size


def features() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of known and of new languages, by descent and by typology."""
    found = []
    for kind in KINDS:
        far = keras_flix.language_distances(
            [*flix.TRAINED, *flix.LANGUAGES], flix.TRAINED, kind=kind
        )
        rows = np.array([[1 - far[c][k] for k in flix.TRAINED] for c in far])
        count = len(flix.TRAINED)
        found.append(coordinates(rows[:count], rows[count:]))
    known, new = (np.concatenate(part, axis=1) for part in zip(*found))
    return known, new


def cells(languages: Sequence[str]) -> list[str]:
    """All pairs, task by task."""
    return [f"{task}/{code}" for task in cldr_mix.TASKS for code in languages]


def trained(kind: str, rate: float, seed: int) -> tuple[Any, Hyper]:
    """The adapted base and the network, which met no new language."""
    keras.utils.set_random_seed(seed)
    model = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(flix.BASE), dtype="float32"
    )
    feature = keras_flix.Feature("cell", cells(flix.TRAINED))
    keras_flix.enable_flix(model, [feature], rank=RANK, targets="all-linear", seed=seed)
    language = Projection(features()[0]) if kind == "features" else None
    hyper = Hyper(model, pairs(len(flix.TRAINED)), language)
    examples = flix.training_examples(seed)
    hyper.compile(
        optimizer=training.optimizer(rate, flix.STEPS),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, y, weight = scoring.inputs(examples, ids_of(model, examples))
    losses = training.LossesOfSteps()
    hyper.fit(
        x,
        y,
        sample_weight=weight,
        batch_size=flix.BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[losses],
    )
    hyper.give()
    compile_for_scoring(model)
    print(kind, rate, seed, "loss", losses.at_end(), flush=True)
    return model, hyper


def pairs(languages: int) -> np.ndarray:
    """Ids of task and language, in the order of `cells`."""
    tasks = range(len(cldr_mix.TASKS))
    return np.array([(t, n) for t in tasks for n in range(languages)], "int32")


def ids_of(model: Any, examples: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ids of the pairs of examples."""
    return keras_flix.schema_of(model).encode({"cell": list(examples["name"])})


def new_embeddings(hyper: Hyper, kind: str, start: str) -> np.ndarray:
    """Embeddings of the new languages, `(languages, EMBEDDING)`."""
    language = hyper.network.language
    if kind == "features":
        own = features()[1]
        # The mean of all known ones is 0.
        return to_numpy(language.of(own if start == "own" else np.zeros_like(own)))
    known = to_numpy(language(np.arange(len(flix.TRAINED))))
    weights = flix.starts()[start]
    return np.stack(
        [
            sum(w * known[flix.TRAINED.index(k)] for k, w in weights[code].items())
            for code in flix.LANGUAGES
        ]
    )


def to_numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def give_new(model: Any, hyper: Hyper, languages: np.ndarray) -> None:
    """Makes the adapters of all pairs with new languages, by their embeddings."""
    if languages.shape != (len(flix.LANGUAGES), EMBEDDING):
        raise ValueError(
            "Every new language needs an embedding. Received: an array of shape "
            f"{languages.shape}. Pass one of {(len(flix.LANGUAGES), EMBEDDING)}."
        )
    ids = pairs(len(languages))
    made = hyper.network.made(
        hyper.network.task(ids[:, 0]),
        keras.ops.array(languages[ids[:, 1]].astype("float32")),
    )
    for variable, rows in zip(model.trainable_variables, made, strict=True):
        table = np.array(keras.ops.convert_to_numpy(variable))
        table[-len(ids) :] = to_numpy(rows)
        variable.assign(table)


def measure(kind: str, rate: float, seed: int) -> dict[str, Any]:
    """One training, scored with every start."""
    start_time = time.time()
    model, hyper = trained(kind, rate, seed)
    seconds = time.time() - start_time
    held_out = {
        (task, code): VALIDATION
        for task in cldr_mix.TASKS
        for code in flix.TRAINED
        if cldr_mix.kind_of(task, code) == "held_out"
    }
    data = cldr_mix.datasets(held_out, "validation", flix.BASE)
    validation = Mixture(data).inputs()
    hits, nats = scoring.measured(model, validation, ids_of(model, validation))
    result: dict[str, Any] = {
        "kind": kind,
        "rate": rate,
        "seed": seed,
        "trainable_parameters": hyper.network.count_params(),
        "train_seconds": round(seconds, 1),
        "validation": 100.0 * float(hits.mean()),
        "validation_nats": float(nats.mean()),
        "scores": {},
    }
    keras_flix.add_values(model, "cell", cells(flix.LANGUAGES), seed=seed)
    test = flix.new_examples("test", flix.TEST)
    for start in STARTS[kind]:
        give_new(model, hyper, new_embeddings(hyper, kind, start))
        hits, nats = scoring.measured(model, test, ids_of(model, test))
        result["scores"][start] = {
            "exact": scoring.by_cell(test["name"], 100.0 * hits),
            "nats": scoring.by_cell(test["name"], nats),
        }
        print(kind, rate, seed, start, hits.mean(), nats.mean(), flush=True)
    return result


def best_rate(trials: Sequence[dict[str, Any]], kind: str) -> float:
    """The rate with the fewest validation nats, with the first seed."""
    found = [t for t in trials if t["kind"] == kind and t["seed"] == 0]
    return float(min(found, key=lambda trial: trial["validation_nats"])["rate"])


def by_seed(trials: Sequence[dict[str, Any]], plain: Mapping[str, Any]) -> Any:
    """Rows by seed: `"FLix"`, without a language, and those of best rates."""
    kinds = {(kind, best_rate(trials, kind)) for kind in STARTS}
    seeds: dict[str, Any] = {}
    for trial in trials:
        if (trial["kind"], trial["rate"]) in kinds:
            row = seeds.setdefault(str(trial["seed"]), {})
            for start, scores in trial["scores"].items():
                row[f"{trial['kind']}, {start}"] = scores
    whole = {
        seed for seed in seeds if len(seeds[seed]) == sum(map(len, STARTS.values()))
    }
    return {seed: {"FLix": plain[seed]["absent"], **seeds[seed]} for seed in whole}


def table(trials: Sequence[dict[str, Any]], plain: Mapping[str, Any]) -> str:
    """Every start beside the mean of the same networks, as Markdown.

    Args:
        trials: What was measured.
        plain: The seeds of `new_languages`.
    """
    rows = [(("FLix", "absent"), "FLix", "FLix")]
    for kind, starts in STARTS.items():
        for start in starts:
            rows.append(((kind, start), f"{kind}, {start}", f"{kind}, mean"))
    labels = ("the network is told", "a new language has")
    return flix.table_of(by_seed(trials, plain), labels, "the mean", rows)


def searches(trials: Sequence[dict[str, Any]]) -> str:
    """Every training, as Markdown."""
    lines = [
        "| the network is told | rate | seed | exact match, held-out cells | nats, "
        "held-out cells | nats, new languages |  |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for trial in sorted(trials, key=lambda t: (t["kind"], t["rate"], t["seed"])):
        kind, rate = trial["kind"], trial["rate"]
        own = " / ".join(
            f"{scoring.mean_score(trial['scores'][start]['nats']):.2f}"
            for start in STARTS[kind]
        )
        best = "best" if rate == best_rate(trials, kind) else ""
        lines.append(
            f"| {kind} | {rate:g} | {trial['seed']} | {trial['validation']:.1f} | "
            f"{trial['validation_nats']:.3f} | {own} | {best} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    path = result_path("new_languages_hyper")
    trials = json.loads(path.read_text())["trials"] if path.exists() else []

    def run(kind: str, rate: float, seed: int) -> None:
        if (kind, rate, seed) not in {
            (t["kind"], t["rate"], t["seed"]) for t in trials
        }:
            trials.append(measure(kind, rate, seed))
            write_result(path, {"method": METHOD, "trials": trials})

    for rate in RATES:
        for kind in STARTS:
            run(kind, rate, 0)
    for seed in range(1, options.seeds):
        for kind in STARTS:
            run(kind, best_rate(trials, kind), seed)
    plain = json.loads(result_path("new_languages").read_text())["seeds"]
    print(table(trials, plain), searches(trials), sep="\n\n")


if __name__ == "__main__":
    main()
