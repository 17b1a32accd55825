"""The file of examples that README trains on.

    python guides/cldr_examples.py  # writes guides/cldr_examples.jsonl

Five tasks of `cldr_mixture` in six languages, sixteen examples of each pair, one JSON
object per line. The prompts say neither task nor language: the features alone do.
"""

import json
import random
from pathlib import Path

import cldr_mixture

FILE = Path(__file__).parent / "cldr_examples.jsonl"
TASKS = ("weekday", "long_date", "full_date", "relative_time", "currency")
LANGUAGES = ("de", "en", "es", "fr", "ja", "tr")
PER_PAIR = 16


def lines() -> list[str]:
    """The lines of the file, in random order."""
    found = []
    for task in TASKS:
        for language in LANGUAGES:
            rng = random.Random(f"examples/{task}/{language}")
            tags = cldr_mixture.task_tag(task) + cldr_mixture.language_tag(language)
            for example in cldr_mixture.cell_examples(task, language, PER_PAIR, rng):
                line = {
                    "task": task,
                    "language": language,
                    "prompt": example.prompt.removeprefix(tags),
                    "response": example.response,
                }
                found.append(json.dumps(line, ensure_ascii=False))
    random.Random(0).shuffle(found)
    return found


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
