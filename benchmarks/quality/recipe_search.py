"""The search for a recipe, on a small base that follows its prompts.

python -m benchmarks.quality.recipe_search            # runs what is missing
python -m benchmarks.quality.recipe_search --seeds 3  # more seeds of the finalists
python -m benchmarks.quality.recipe_search --arms lora flix_shared task_shared
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from benchmarks.quality import (  # noqa: E402
    recipe_tables,
    recipes,
    scheduler,
    store,
)


def main() -> None:
    """Runs what is missing, then prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="of the finalists")
    parser.add_argument("--recipe-seeds", type=int, default=1, help="0: no recipes")
    parser.add_argument(
        "--arms", nargs="+", choices=recipes.RANKS, default=list(recipes.RANKS)
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--results", help="another folder of results")
    options = parser.parse_args()
    if options.results:
        store.use(options.results)
    limits = (options.seeds, options.recipe_seeds, options.arms)
    while trials := recipes.missing(*limits):
        scheduler.run_all(trials[: options.workers], recipes.SIZE, options.workers)
    for table in recipe_tables.TABLES.values():
        print(table())


if __name__ == "__main__":
    main()
