"""Spreads trials over worker processes, one core each."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.trial import Trial
from benchmarks.shared.places import REPOSITORY

LOG = Path(tempfile.gettempdir(), "flix_evidence.log")
"""What the workers print."""


class TrialError(RuntimeError):
    """A trial raised; its traceback is the message."""


def run_all(trials: Sequence[Trial], size: str, workers: int) -> None:
    """Runs trials side by side; each writes its own result.

    Stopped at any time, a later run does only what is missing.
    """
    waiting: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in trials:
        waiting.put(trial)
    errors: list[str] = []
    start, done = time.time(), 0

    def work(core: int) -> None:
        nonlocal done
        process = _start(core)
        while not errors:
            try:
                trial = waiting.get_nowait()
            except queue.Empty:
                break
            message = {"size": size, "trial": trial.config()}
            reply = _ask(process, message)
            if "error" in reply:
                errors.append(f"{trial.key}: {reply['error']}")
                break
            done += 1
            print(
                f"{done}/{len(trials)} {reply['key']} lr {trial.learning_rate:g} "
                f"seed {trial.seed}: validation {reply['validation']:.1f} "
                f"({time.time() - start:.0f} s)",
                flush=True,
            )
        process.communicate()

    cores = sorted(os.sched_getaffinity(0))
    threads = [
        threading.Thread(target=work, args=(cores[i % len(cores)],))
        for i in range(min(workers, len(trials)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise TrialError("\n".join(errors))


def _ask(process: subprocess.Popen[str], message: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    return json.loads(line) if line else {"error": f"its worker died, see {LOG}"}


def _start(core: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.quality.worker"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=LOG.open("a"),
        text=True,
        # XLA's threads follow the affinity that the process starts with.
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
