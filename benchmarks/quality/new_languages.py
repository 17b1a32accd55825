"""What a language that was never trained may start as: languages near it, or nothing.

OMP_NUM_THREADS=1 KERAS_BACKEND=torch python -m benchmarks.quality.new_languages

FLix of task, language and a shared part (2 active ranks each) on the base that follows
its prompts, trained as `recipes` begins its search, without ten languages: five that
the base knows, from other tasks, and five that it does not. Each then starts in several
ways, with no examples and with one of each task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix
from benchmarks.quality import cldr_mix, scoring, training
from benchmarks.quality.hierarchical import Scores, compare
from benchmarks.quality.trial import compile_for_scoring
from benchmarks.shared.environment import result_path, write_result
from keras_flix.mixtures import Mixture

BASE, RANK, RATE, STEPS, BATCH = "base_instructed", 2, 6e-3, 120, 32
NEW = {
    "known to the base": ("it", "sv", "uk", "fi", "he"),
    "new to the base": ("gl", "af", "sl", "is", "cy"),
}
LANGUAGES = tuple(code for codes in NEW.values() for code in codes)
TRAINED = tuple(code for code in cldr_mix.LANGUAGES if code not in LANGUAGES)
OWN_RATE, OWN_STEPS = 1e-2, 10
TEST, NEAREST = 3, 3
ZERO = ("absent", "mean", "nearest", "weighted", "nearest 3", "to rank", "factors")
TYPOLOGY = ("typology nearest", "typology", "typology nearest 3")
STARTS = ("fresh", "nearest", "weighted", "typology nearest", "typology")
OWN = "8 examples, "
METHOD = (
    "Exact match in % and nats per answer of new languages that adapters never met, "
    f"{TEST} examples of each of 8 tasks and 10 languages. Without examples: `absent`, "
    "no language; `mean` of all that were trained; `nearest` by Glottolog's tree; "
    "`weighted`: `language_weights` of all related, the exact sum; `nearest 3`: of "
    "three; `to rank`: `weighted` at the rank of a value, as `add_values` starts it; "
    "`factors`: `weighted` averages of A and of B; `typology`: `weighted` by URIEL's "
    "features, and its nearest. With one example of each task: an "
    "update of its own with that start, all else frozen, 10 steps of all examples, at "
    "the rate that was the better one for languages with few examples (`few_shot`)."
)


def trained(seed: int) -> keras_hub.models.GemmaCausalLM:
    """The adapted base, which met no new language."""
    keras.utils.set_random_seed(seed)
    model = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(BASE), dtype="float32"
    )
    features = [
        keras_flix.Feature("task", cldr_mix.TASKS),
        keras_flix.Feature("language", TRAINED),
        keras_flix.Feature("shared", always=True),
    ]
    keras_flix.enable_flix(model, features, rank=RANK, targets="all-linear", seed=seed)
    examples = training_examples(seed)
    fit(model, examples, examples["language"], RATE, STEPS, BATCH)
    return model


def training_examples(seed: int) -> dict[str, Any]:
    """What is trained on, in this order."""
    counts = {"seen": 20, "few_shot": 3}
    cells = {
        (task, language): counts[kind]
        for task in cldr_mix.TASKS
        for language in TRAINED
        if (kind := cldr_mix.kind_of(task, language)) in counts
    }
    mixture = Mixture(cldr_mix.datasets(cells, "train", BASE), temperature=2.0)
    return mixture.sample(STEPS * BATCH, seed=seed)


def fit(
    model: Any, examples: Any, languages: Any, rate: float, steps: int, batch: int
) -> None:
    """Trains once over the examples, as all trials of this room do."""
    model.preprocessor, preprocessor = None, model.preprocessor
    model.compile(
        optimizer=training.optimizer(rate, steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ids = encoded(model, examples["task"], languages)
    x, y, weight = scoring.inputs(examples, ids)
    model.fit(x, y, sample_weight=weight, batch_size=batch, shuffle=False, verbose=0)
    model.preprocessor = preprocessor
    # Of this room's optimizer no second one can be made, as for new values.
    compile_for_scoring(model)


def encoded(model: Any, tasks: Any, languages: Any) -> dict[str, Any]:
    """Entries of features as the model's input takes them."""
    schema = keras_flix.schema_of(model)
    return schema.encode({"task": list(tasks), "language": list(languages)})


def new_examples(part: str, count: int) -> dict[str, Any]:
    """Examples of all tasks in all new languages, equally many of each."""
    cells = {(task, code): count for task in cldr_mix.TASKS for code in LANGUAGES}
    examples = Mixture(cldr_mix.datasets(cells, part, BASE)).inputs()
    # Of some, the mixture says that no training has them.
    examples["language"] = [name.split("/")[1] for name in examples["name"]]
    return examples


def starts() -> dict[str, dict[str, dict[str, float]]]:
    """Weights of known languages, by start and new language."""
    weights = keras_flix.language_weights
    return {
        "mean": {code: dict.fromkeys(TRAINED, 1 / len(TRAINED)) for code in LANGUAGES},
        "nearest": weights(LANGUAGES, TRAINED, nearest=1),
        "weighted": weights(LANGUAGES, TRAINED),
        f"nearest {NEAREST}": weights(LANGUAGES, TRAINED, nearest=NEAREST),
        **{
            name: weights(LANGUAGES, TRAINED, nearest=nearest, kind="typology")
            for name, nearest in zip(TYPOLOGY, (1, None, NEAREST))
        },
    }


def average_factors(model: Any, weights: Mapping[str, Mapping[str, float]]) -> None:
    """Makes the tables of new languages weighted averages of `A` and of `B`."""
    values = keras_flix.schema_of(model)["language"]
    for variable in model.trainable_variables:
        if "flix_language_" not in variable.path:
            continue
        table = np.array(keras.ops.convert_to_numpy(variable))
        for code, row in weights.items():
            table[values.id_of(code)] = sum(
                weight * table[values.id_of(other)] for other, weight in row.items()
            )
        variable.assign(table)


def measure(
    seed: int, stored: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Exact match and nats by start and cell, after each start that was scored.

    Args:
        seed: Of training.
        stored: What was measured with this seed. It holds if the model that is trained
            now answers as that one did, and is measured again if not.
    """
    model = trained(seed)
    test, few = new_examples("test", TEST), new_examples("train", 1)
    result: dict[str, Any] = {}

    def score(name: str, entries: Sequence[Any]) -> dict[str, Any]:
        hits, nats = answered(model, test, entries)
        names = test["name"]
        result[name] = {
            "exact": scoring.by_cell(names, 100.0 * hits),
            "nats": scoring.by_cell(names, nats),
        }
        print(seed, name, hits.mean(), nats.mean(), flush=True)
        return result

    own, weights = test["language"], starts()
    score("absent", [None] * len(own))
    if stored and stored["absent"] == result["absent"]:
        result |= stored
    yield result
    for name, rows in weights.items():
        if name not in result:
            yield score(name, [rows[code] for code in own])
    for name in STARTS:
        if rows_of(name) <= result.keys():
            continue
        add(model, weights.get(name), seed)
        if name == "weighted":
            yield score("to rank", own)
        train_own(model, few)
        yield score(f"{OWN}{name}", own)
        if name == "weighted":
            average_factors(model, weights[name])
            yield score("factors", own)
        keras_flix.remove_values(model, "language", LANGUAGES)


def rows_of(start: str) -> set[str]:
    """What is measured of new languages that were added with a start."""
    besides = {"to rank", "factors"} if start == "weighted" else set()
    return {f"{OWN}{start}", *besides}


def answered(model: Any, examples: Any, entries: Any) -> tuple[np.ndarray, np.ndarray]:
    """Exact match and nats of examples whose language is stated as `entries`."""
    return scoring.measured(model, examples, encoded(model, examples["task"], entries))


def add(model: Any, weights: Mapping[str, Any] | None, seed: int) -> None:
    """Gives a model the new languages, which start with these weights of others."""
    keras_flix.add_values(model, "language", LANGUAGES, init=weights, seed=seed)


def train_own(model: Any, few: dict[str, Any]) -> None:
    """Trains the new languages alone.

    All at once, in batches of all examples: each one's weights see only its own.
    """
    keras_flix.set_trainable(model, {"language": LANGUAGES})
    again = {k: np.concatenate([np.asarray(v)] * OWN_STEPS) for k, v in few.items()}
    fit(model, again, again["language"], OWN_RATE, OWN_STEPS, len(few["name"]))
    keras_flix.set_trainable(model, None)


ROWS = (*ZERO, *TYPOLOGY, *(f"{OWN}{name}" for name in STARTS))


def table(seeds: Mapping[str, Any]) -> str:
    """Means over cells and seeds, and differences from the first start, as Markdown."""
    rows = []
    for row in ROWS:
        few = row.startswith(OWN)
        labels = ("8" if few else "none", row.removeprefix(OWN))
        rows.append((labels, row, f"{OWN}fresh" if few else "absent"))
    return table_of(seeds, ("examples", "start"), "the first", rows)


def table_of(
    seeds: Mapping[str, Any],
    labels: Sequence[str],
    minus: str,
    rows: Sequence[tuple[Sequence[str], str, str]],
) -> str:
    """A table of some rows.

    Args:
        seeds: What was measured, by seed and row.
        labels: The heads of columns that name the rows.
        minus: What is subtracted.
        rows: Of each, its labels, its name, and that of the row that is subtracted.
    """
    head = [
        f"{what}, {group}"
        for group in NEW
        for what in ("exact match", "nats", f"nats, minus {minus}")
    ]
    lines = [
        "| " + " | ".join([*labels, *head]) + " |",
        "|" + " --- |" * (len(labels) + len(head)),
    ]
    for own, row, first in rows:
        cells = list(own)
        for codes in NEW.values():
            nats = by_seed(seeds, row, "nats", codes)
            to_first = compare(nats, by_seed(seeds, first, "nats", codes))
            interval = f"[{to_first.low:+.2f}, {to_first.high:+.2f}]"
            cells += [
                f"{mean(by_seed(seeds, row, 'exact', codes)):.1f}",
                f"{mean(nats):.2f}",
                "" if row == first else f"{to_first.difference:+.2f} {interval}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_seed(
    seeds: Mapping[str, Any], row: str, kind: str, codes: Sequence[str]
) -> Scores:
    """The cells of some languages."""
    return {
        int(seed): {
            cell: score
            for cell, score in result[row][kind].items()
            if cell.split("/")[1] in codes
        }
        for seed, result in seeds.items()
    }


def mean(scores: Scores) -> float:
    """Over seeds and cells."""
    return float(np.mean([scoring.mean_score(dict(c)) for c in scores.values()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    path = result_path("new_languages")
    seeds = json.loads(path.read_text())["seeds"] if path.exists() else {}
    for seed in range(options.seeds):
        # A run that was stopped begins with the first seed that is not whole.
        stored = seeds.get(str(seed), {})
        if set(ROWS) <= stored.keys():
            continue
        for found in measure(seed, stored):
            seeds[str(seed)] = found
            write_result(path, {"method": METHOD, "seeds": seeds})
    print(table(seeds))


if __name__ == "__main__":
    main()
