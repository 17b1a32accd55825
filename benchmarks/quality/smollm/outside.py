"""Prompts outside the mixture, and what the base answers them: what may be forgotten.

    KERAS_BACKEND=torch python -m benchmarks.quality.smollm.outside

writes the answers anew. Trials score them as they score the mixture.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks.quality.smollm.sequences import as_prompt
from benchmarks.shared import smollm

FILE = pathlib.Path(__file__).with_name("outside.json")
LONGEST = 20
"""How many tokens of an answer count."""

OTHER = "de"
"""A language of the mixture, which the prompts are not in: a value given by mistake."""

PROMPTS = (
    "Name three fruits.",
    "What is the capital of France?",
    "How many days does a week have?",
    "Write one sentence about the sea.",
    "Which animal says meow?",
    "What do bees make?",
    "Give me a word that rhymes with light.",
    "Why is the sky blue? Answer in one sentence.",
    "What is 7 plus 5?",
    "List the primary colors.",
    "Who wrote Romeo and Juliet?",
    "What should I wear when it rains?",
    "Suggest a name for a grey cat.",
    "What is the opposite of cold?",
    "Tell me what a bicycle is.",
    "What comes after Monday?",
    "Name a planet that has rings.",
    "Is a tomato a fruit or a vegetable?",
    "What is water made of?",
    "Give one reason to read books.",
    "How do I boil an egg?",
    "What is a synonym of happy?",
    "Name two musical instruments.",
    "Which ocean lies between Europe and America?",
    "What is the largest animal on Earth?",
    "Complete the sentence: Once upon a time",
    "Write a greeting for a birthday card.",
    "What does a doctor do?",
    "How many legs does a spider have?",
    "What is the freezing point of water in Celsius?",
    "Name a famous painter.",
    "What is the plural of mouse?",
    "Explain gravity to a child in one sentence.",
    "Give three adjectives for a forest.",
    "What do plants need to grow?",
    "Which month has the fewest days?",
    "Write a question about history.",
    "What is a noun?",
    "Name something that is made of glass.",
    "Say thank you in a polite way.",
)


def columns(answers: Sequence[str]) -> dict[str, list[Any]]:
    """The prompts with the base's answers, twice: without values, and as German."""
    count = len(PROMPTS)
    return {
        "prompts": [as_prompt(prompt) for prompt in PROMPTS] * 2,
        "responses": list(answers) * 2,
        "task": [None] * 2 * count,
        "language": [None] * count + [OTHER] * count,
        "family": [None] * 2 * count,
        "cell": ["outside/none"] * count + [f"outside/{OTHER}"] * count,
    }


def answers_of(folder: pathlib.Path) -> list[str]:
    """What the base was found to answer.

    Raises:
        ValueError: If the answers are of another base.
    """
    stored = json.loads(FILE.read_text())
    own = smollm.source_of(folder)["weights_sha256"]
    if stored["weights_sha256"] != own or [*stored["answers"]] != [*PROMPTS]:
        raise ValueError(
            "The answers must be those of the base to PROMPTS. Received: answers of "
            f"{stored['weights_sha256'][:12]}, where the base is {own[:12]}. Run: "
            "python -m benchmarks.quality.smollm.outside"
        )
    return list(stored["answers"].values())


def main() -> None:
    """Lets the base answer."""
    folder = smollm.default_folder()
    model = smollm.load(folder)
    model.compile(sampler="greedy")
    answers = {}
    tokenizer = model.preprocessor.tokenizer
    for prompt in PROMPTS:
        text = as_prompt(prompt)
        length = len(tokenizer(text)) + 1
        whole = model.generate(text, max_length=length + LONGEST, strip_prompt=True)
        answers[prompt] = whole
        print(repr(prompt), repr(whole), flush=True)
    stored = {
        "weights_sha256": smollm.source_of(folder)["weights_sha256"],
        "answers": answers,
    }
    FILE.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
