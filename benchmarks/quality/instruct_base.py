"""Makes the base that follows its prompts: instruction tuning of the small Gemma.

    KERAS_BACKEND=jax python -m benchmarks.quality.instruct_base

All weights of `base` train on prompts of the form that the mixture has, but on none of
its cells:

- *other tasks*, in all forty languages: full dates, months, short and medium dates,
  short durations, other lists, names of amounts, tomorrow's weekday. So the base reads
  what a prompt asks for, and in which language, and forgets nothing of any language;
- *the mixture's tasks in the six languages outside of it*: so it has met their tags.

What comes out, `base_instructed`, is written with a record of how it was made: seed,
steps, rates, digests of both weights, and the answers it gives untrained.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras  # noqa: E402
import keras_hub  # noqa: E402
import numpy as np  # noqa: E402
from babel.dates import format_date  # noqa: E402
from babel.lists import format_list  # noqa: E402
from babel.numbers import format_currency  # noqa: E402
from babel.units import format_unit  # noqa: E402

from benchmarks.quality import cldr_mix, scoring, training  # noqa: E402
from benchmarks.quality.cldr_mix import cldr_mixture  # noqa: E402
from benchmarks.shared.environment import write_result  # noqa: E402
from keras_flix.models.adapted.prompts import preprocess_prompts  # noqa: E402

FROM, TO = "base", "base_instructed"
RECORD = "instructed.json"
Example = cldr_mixture.Example


def _day(neutral: str) -> datetime.date:
    return datetime.date.fromisoformat(neutral.split()[0])


def _tomorrow(neutral: str, language: str) -> str:
    return format_date(_day(neutral) + datetime.timedelta(days=1), "cccc", language)


def _short_duration(neutral: str, language: str) -> str:
    count, unit = neutral.split()
    return format_unit(int(count), f"duration-{unit}", length="short", locale=language)


def _amount_name(neutral: str, language: str) -> str:
    number, currency = neutral.split()
    return format_currency(number, currency, locale=language, format_type="name")


OTHER_TASKS: dict[str, tuple[str, Callable[[str, str], str]]] = {
    "full_date": ("date", lambda n, code: cldr_mixture.answer("full_date", code, n)),
    "month": ("date", lambda n, code: cldr_mixture.answer("month", code, n)),
    "short": ("date", lambda n, code: format_date(_day(n), "short", code)),
    "medium": ("date", lambda n, code: format_date(_day(n), "medium", code)),
    "tomorrow": ("date", _tomorrow),
    "brief": ("quantity", _short_duration),
    "sum": ("amount", _amount_name),
    "or": ("items", lambda n, code: format_list(n.split(";"), "or", code)),
}
"""By name: the kind of input, and the answer. No task of the mixture is among them."""

LANGUAGES = (*cldr_mix.LANGUAGES, *cldr_mix.NEW_LANGUAGES)


def cells() -> list[tuple[str, str]]:
    """The (task, language) pairs of instruction tuning: none trains or is held out."""
    return [
        *((task, language) for task in OTHER_TASKS for language in LANGUAGES),
        *(
            (task, language)
            for task in cldr_mix.TASKS
            for language in cldr_mix.NEW_LANGUAGES
        ),
    ]


def example(task: str, language: str, rng: random.Random) -> Any:
    """A prompt with its answer."""
    if task not in OTHER_TASKS:
        return cldr_mixture.cell_examples(task, language, 1, rng)[0]
    family, answer = OTHER_TASKS[task]
    neutral = cldr_mixture.sample_neutral(family, rng)
    prompt = cldr_mixture.make_prompt(task, language, neutral)
    return Example(task, language, prompt, answer(neutral, language))


def examples(count: int, seed: int) -> list[Any]:
    """Examples of all cells, the mixture's tasks and the others in equal parts."""
    rng = random.Random(f"instruct/{seed}")
    other = [cell for cell in cells() if cell[0] in OTHER_TASKS]
    own = [cell for cell in cells() if cell[0] not in OTHER_TASKS]
    return [
        example(*rng.choice(other if rng.random() < 0.5 else own), rng)
        for _ in range(count)
    ]


def arrays(chosen: Sequence[Any]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """`(x, y, sample_weight)`, without the few that are too long."""
    texts = {
        "prompts": [e.prompt for e in chosen],
        "responses": [e.response for e in chosen],
    }
    x, y, weight = preprocess_prompts(cldr_mix.preprocessor(FROM), texts)
    mask = np.asarray(x["padding_mask"])
    whole = mask[:, -1] == 0
    x = {
        "token_ids": np.asarray(x["token_ids"])[whole],
        "padding_mask": mask[whole].astype("int32"),
    }
    return x, np.asarray(y)[whole], np.asarray(weight, "float32")[whole]


def digest(base: str) -> str:
    """SHA-256 of a base's weights, as arrays: HDF5 files differ by their dates."""
    model = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(base), dtype="float32"
    )
    found = hashlib.sha256()
    for variable in sorted(model.backbone.weights, key=lambda v: v.path):
        found.update(variable.path.encode())
        found.update(keras.ops.convert_to_numpy(variable).tobytes())
    return found.hexdigest()


def untrained(base: str) -> dict[str, dict[str, float]]:
    """Exact match and nats per answer of a base on the mixture, by kind of cell."""
    model = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(base), dtype="float32"
    )
    test = cldr_mix.test_examples(cldr_mix.Data(), base)
    hits, nats = scoring.measured(model, test, {})
    kinds = np.array([cldr_mix.kind_of(*n.split("/")) for n in test["name"]])
    return {
        kind: {
            "exact_match": round(100.0 * float(hits[kinds == kind].mean()), 2),
            "nats": round(float(nats[kinds == kind].mean()), 3),
        }
        for kind in cldr_mix.KINDS
    }


def main() -> None:
    """Trains, saves, and records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=cldr_mix.base_folder(TO))
    options = parser.parse_args()

    keras.utils.set_random_seed(options.seed)
    model = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(FROM), dtype="float32"
    )
    # A few more, as some are too long.
    count = options.steps * options.batch_size
    x, y, weight = arrays(examples(count + count // 20 + 32, options.seed))
    if len(y) < count:
        raise ValueError(f"Only {len(y)} of {count} examples are short enough.")
    x = {name: value[:count] for name, value in x.items()}
    trainer = keras.Model(model.input, model.output)
    trainer.compile(
        optimizer=training.optimizer(options.peak, options.steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = training.LossesOfSteps()
    trainer.fit(
        x,
        y[:count],
        sample_weight=weight[:count],
        batch_size=options.batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[losses],
    )
    model.save_to_preset(str(options.output))
    record = {
        "made_of": {"base": FROM, "sha256": digest(FROM)},
        "sha256": digest(str(options.output)),
        "steps": options.steps,
        "batch_size": options.batch_size,
        "peak": options.peak,
        "seed": options.seed,
        "loss": losses.at_end(),
        "untrained": {
            FROM: untrained(FROM),
            TO: untrained(str(options.output)),
        },
    }
    write_result(options.output / RECORD, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
