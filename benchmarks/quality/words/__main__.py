"""Builds the mixture of real words, prints what it holds and saves it.

python -m benchmarks.quality.words
python -m benchmarks.quality.words --output words.json --show emoji
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import Counter

from benchmarks.quality.words import summary
from benchmarks.quality.words.drawing import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=60, help="of a seen cell")
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--languages", type=int, default=24)
    parser.add_argument("--show", metavar="TASK", help="some examples of a task")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
    chosen = parser.parse_args()
    mix = build(chosen.seed, chosen.examples, chosen.tasks, chosen.languages)
    print(summary.grid(mix))
    print(summary.table(mix))
    print({split: len(examples) for split, examples in mix.splits.items()})
    print(dict(Counter(mix.cells.values())))
    print(mix.versions, mix.digest)
    if chosen.show:
        print(summary.samples(mix, chosen.show))
    if chosen.output:
        content = {"digest": mix.digest, "versions": mix.versions, "splits": mix.splits}
        text = json.dumps(content, default=vars, ensure_ascii=False, indent=1)
        chosen.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
