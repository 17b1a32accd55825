"""Runs the trials on the real base, one after the other, each into a JSON file.

    python -m benchmarks.quality.smollm.real_evidence --list
    python -m benchmarks.quality.smollm.real_evidence --only lora_12 flix_shared

Stopped at any time, it goes on with what is missing; within a trial, from the last
sixth of its steps.
"""

from __future__ import annotations

import argparse
import gc
import pathlib
import time
from typing import Any

import torch

from benchmarks.quality import store
from benchmarks.quality.smollm import real_plan as plan
from benchmarks.quality.smollm.real_settings import Trial
from benchmarks.quality.smollm.real_trial import mix_of, run
from benchmarks.shared import smollm
from benchmarks.shared.environment import write_result


def load(trial: Trial) -> dict[str, Any] | None:
    """A stored result."""
    return store.load(plan.SIZE, trial.key)


def run_and_store(trial: Trial, folder: pathlib.Path) -> dict[str, Any]:
    """Runs a trial and writes its result."""
    saved = smollm.default_folder().parent / "smollm_trials" / f"{trial.key}.pt"
    result = run(trial, folder, saved)
    write_result(store.path(plan.SIZE, trial.key), result)
    return result


def check_same(trial: Trial, result: dict[str, Any], folder: pathlib.Path) -> None:
    """Raises where a stored result is of another base or mixture than runs now."""
    mix = mix_of(trial.tasks, trial.languages, trial.examples)
    for name, own, stored in (
        ("mixture", mix.digest, result["mixture"]["digest"]),
        (
            "base",
            smollm.source_of(folder)["weights_sha256"],
            result["base"]["weights_sha256"],
        ),
    ):
        if own != stored:
            raise ValueError(
                f"All trials of a folder must have the same {name}. Received: "
                f"{trial.key} of {name} {stored[:12]}, where this one is {own[:12]}. "
                "Install the package versions that it names, or pass --results with "
                "another folder."
            )


def told(trial: Trial, result: dict[str, Any] | None) -> str:
    """A line about a trial."""
    found = "missing" if result is None else f"{result['validation']:.3f} nats"
    name = f"{trial.arm.name} rate {trial.learning_rate:g} seed {trial.seed}"
    return f"{trial.key}: {name}: {found}"


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="arms, with or without @targets")
    parser.add_argument("--seeds", type=int, default=3, help="of the main arms")
    parser.add_argument("--base", type=pathlib.Path, default=smollm.default_folder())
    parser.add_argument("--results", help="another folder of results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, help="how many trials to run at most")
    parser.add_argument("--list", action="store_true", help="tell, and run nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.results:
        store.use(options.results)
    done = 0
    for trial in plan.in_order(load, options.seeds):
        name = trial.arm.name
        if options.only and not {name, name.split("@")[0]} & set(options.only):
            continue
        result = load(trial)
        if options.list:
            print(told(trial, result))
        elif result is not None:
            check_same(trial, result, options.base)
        elif done != options.count:
            begin = time.time()
            print(told(trial, None), flush=True)
            result = run_and_store(trial, options.base)
            print(f"{told(trial, result)} ({time.time() - begin:.0f} s)", flush=True)
            done += 1
            gc.collect()


if __name__ == "__main__":
    main()
