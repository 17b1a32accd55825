"""Changes the library's sources at random places: does a test fail each time?

    python tests/tools/mutation.py --output FILE.json               # the nearest tests
    python tests/tools/mutation.py --output FILE.json --stage room  # those of the room
    python tests/tools/mutation.py --output FILE.json --stage rooms # then of the others
    python tests/tools/mutation.py --output FILE.json --stage fast  # then the fast ones
    python tests/tools/mutation.py --output FILE.json --stage full  # then all tests
    python tests/tools/mutation.py --output FILE.json --report      # prints Markdown

mutmut and cosmic-ray start a process per mutant, which imports Keras, KerasHub and
PyTorch for longer than most mutants live; here they are imported once, and forked.

A mutant is written to a copy of the project, so the processes that tests start see it
too. It meets the tests that reach the mutated statement: a run without mutants has
noted what each test reaches. What runs on import meets the tests that enter a function
of its file, or of a file that imports from it. The first stage runs the file of tests
that mirrors the mutant's, or those of the files that import from it, see `near_tests`.
All stages but `full` run what the daily loop does, without tests marked `slow`. A
later stage takes what has survived the one before; a second call goes on where the
first was ended.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = {
    "KERAS_BACKEND": "torch",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
os.environ.update(ENVIRONMENT)
# Each process would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from mutation_report import report  # noqa: E402
from mutation_session import Session  # noqa: E402

STAGES = ("near", "room", "rooms", "fast", "full")
PRELOADED = (
    *("torch", "tensorflow", "keras", "keras_hub", "hypothesis", "sentencepiece"),
    *("h5py", "matplotlib.pyplot", "peft", "sacrebleu", "safetensors.torch"),
    *("scipy.stats", "transformers.models.auto.modeling_auto"),
)
"""What tests import, but for the package; what is not installed is left out."""


def preload() -> None:
    """Imports what the forked processes need, and starts no threads."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="results, as JSON")
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, default="near", help="the last one")
    parser.add_argument(
        "--again", action="store_true", help="run the survivors anew, with new tests"
    )
    parser.add_argument("--report", action="store_true", help="print Markdown only")
    options = parser.parse_args()
    output = options.output.resolve()
    if options.report:
        print(report(json.loads(output.read_text())), end="")
        return
    preload()
    # So that no process is left when this one is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        session = Session(output, options.count, options.seed, Path(folder).resolve())
        if options.again:
            for result in session.results["mutants"]:
                result["survived"] = []
        for stage in STAGES[: STAGES.index(options.stage) + 1]:
            session.stage(stage)
    print(report(session.results), end="")


if __name__ == "__main__":
    main()
