"""What a mixture holds, as text."""

from __future__ import annotations

import random

from benchmarks.quality.words.drawing import Example, Mix

LETTERS = {"seen": "S", "few_shot": "f", "held_out": "H", "new_language": "n"}


def grid(mix: Mix) -> str:
    """Groups of all cells: tasks down, languages across."""
    languages = (*mix.languages, *mix.new_languages)
    looked_at = {(e.task, e.language) for e in mix.splits["validation_held_out"]}
    lines = [f"{'':16}" + " ".join(languages)]
    for task in mix.tasks:
        marks = []
        for language in languages:
            cell = (task, language)
            mark = LETTERS[mix.cells[cell]] if cell in mix.cells else "."
            marks.append("v " if cell in looked_at else f"{mark} ")
        lines.append(f"{task:16}" + " ".join(marks))
    lines.append("S seen, f few-shot, H held out, v held out for validation, n new")
    return "\n".join(lines)


def is_copied(example: Example) -> bool:
    """Whether the answer stands in the prompt."""
    return example.response.casefold() in example.prompt.casefold()


def table(mix: Mix) -> str:
    """Per task: cells, copied answers, lengths."""
    lines = [
        "| task | languages | answers copied, % | prompt, characters (95 %) "
        "| answer, characters (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task in mix.tasks:
        own = [e for split in mix.splits.values() for e in split if e.task == task]
        languages = {example.language for example in own}
        copied = 100 * sum(map(is_copied, own)) / len(own)
        prompts, answers = (
            sorted(len(getattr(example, name)) for example in own)
            for name in ("prompt", "response")
        )
        most = int(0.95 * len(own))
        lines.append(
            f"| `{task}` | {len(languages)} | {copied:.1f} | {prompts[most]} "
            f"| {answers[most]} |"
        )
    return "\n".join(lines)


def samples(mix: Mix, task: str, count: int = 6) -> str:
    """Some examples of a task in every language."""
    lines = []
    chance = random.Random(0)
    for language in (*mix.languages, *mix.new_languages):
        own = [
            example
            for split in mix.splits.values()
            for example in split
            if (example.task, example.language) == (task, language)
        ]
        for example in chance.sample(own, min(count, len(own))):
            lines.append(f"{language}  {example.prompt} -> {example.response}")
    return "\n".join(lines)
