"""What the command line trains and asks in tests: a small Gemma and a few examples."""

import json

from helpers.gemma import randomize
from helpers.places import GUIDES

import keras_flix

PRESET = str(GUIDES / "cldr_gemma")
TASKS, LANGUAGES = ("month", "weekday"), ("de", "en")
SCHEMA = {"task": list(TASKS), "language": list(LANGUAGES)}
MONTHS = {"de": ("März", "Mai", "Juni"), "en": ("March", "May", "June")}


def examples(count=3):
    """Rows of two tasks in two languages."""
    return [
        {
            "task": task,
            "language": language,
            "prompt": f"2024-0{3 + i}-05 {i} = ",
            "response": MONTHS[language][i % 3],
        }
        for task in TASKS
        for language in LANGUAGES
        for i in range(count)
    ]


def write_lines(path, rows=None):
    """A JSON-lines file; returns its name."""
    rows = examples() if rows is None else rows
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_adapters(folder, model, seed=0, **options):
    """Adapts a model with random tables, and saves them; returns the file's name."""
    keras_flix.enable_flix(model, SCHEMA, rank=2, targets=["query"], **options)
    path = folder / "adapters.flix.safetensors"
    keras_flix.save_adapters(randomize(model, seed=seed), path)
    return str(path)
