"""Runs the core tests on the next Keras and KerasHub: what their main branches hold.

    python tests/tools/next_versions.py                  # on all backends
    python tests/tools/next_versions.py --backends torch

In a virtual environment of its own, in a temporary folder. What fails and is not in
`next_versions.toml`, with a reason and a link, fails the run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import core_tests
import known_failures

NEXT = {"keras": "keras-nightly", "keras-hub": "keras-hub-nightly"}
BACKENDS = ("torch", "jax", "tensorflow")
NEEDED = ("jax", "tensorflow", "tensorflow-text")
NEW = {
    "torch": (
        "tests/families",
        "tests/_compat",
        "tests/layers",
        "-k",
        "DiffusionGemma or EmbeddingGemma2 or ModernBert or every_backbone"
        " or blocks_of_text or processes or quantized",
    ),
    "jax": ("tests/_compat", "tests/models", "-k", "processes or devices"),
}
"""Tests of what is new or made anew there, slow ones too: backbones, quantized bases,
and `keras.distribution`."""
KNOWN = Path(__file__).with_suffix(".toml")
NOTHING_FAILED = 0


def main() -> int:
    """Installs the versions and runs the tests; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    options = parser.parse_args()
    # Wrong entries show before ten minutes of tests, not after them.
    print(f"{len(known_failures.read(KNOWN))} known reasons for failures", flush=True)
    with core_tests.environment(NEEDED, list(NEXT.items())) as python:
        shown = core_tests.versions(python, [*NEXT.values(), *BACKENDS, "numpy"])
        statuses = {}
        for backend in options.backends:
            print(f"Core tests on {backend} with {shown}", flush=True)
            statuses[backend] = core_tests.run(python, backend, KNOWN)
            if backend in NEW:
                new = core_tests.run(python, backend, KNOWN, NEW[backend])
                statuses[backend] = statuses[backend] or new
    failed = [name for name, status in statuses.items() if status != NOTHING_FAILED]
    for name in failed:
        print(
            f"FAILED on {name}: mend it, or list it in {KNOWN.name} with a reason and "
            "a link."
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
