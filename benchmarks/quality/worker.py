"""Runs trials that arrive as lines of JSON, and answers each with a line."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from typing import Any

from benchmarks.quality import hyper_trial, peft_trial, store, trial as trials
from benchmarks.shared.environment import write_result

RUNNERS: dict[str | None, Any] = {None: trials, "hyper": hyper_trial}
"""By what an arm trains; PEFT's where not listed."""


def answer(line: str) -> dict[str, Any]:
    """Runs one trial and stores its result."""
    message = json.loads(line)
    trial = trials.Trial.from_config(message["trial"])
    # Libraries print; the answers have the standard output to themselves.
    with contextlib.redirect_stdout(sys.stderr):
        result = RUNNERS.get(trial.arm.outside, peft_trial).run(trial)
        write_result(store.path(message["size"], trial.key), result)
    return {"key": trial.key, "validation": result["validation"]}


def main() -> None:
    """Answers until the input ends."""
    for line in sys.stdin:
        try:
            reply = answer(line)
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
