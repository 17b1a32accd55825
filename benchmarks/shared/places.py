"""Where the repository is, and the results that are stored in it."""

from __future__ import annotations

import pathlib

REPOSITORY = pathlib.Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
GUIDES = REPOSITORY / "guides"
