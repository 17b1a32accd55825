"""The search for a recipe, on a small base that follows its prompts.

python -m benchmarks.quality.recipe_search            # runs what is missing
python -m benchmarks.quality.recipe_search --seeds 3  # more seeds of the finalists
python -m benchmarks.quality.recipe_search --arms lora flix_shared task_shared

Stored searches are of Babel 2.18, recipes and what they are compared with of 2.19. So a
run completes the one (`--recipe-seeds 0`) or the other (`--arms` whose search is over),
or all of it in a folder of its own (`--results`).
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from benchmarks.quality import (  # noqa: E402
    cldr_mix,
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
    while found := recipes.missing(*limits):
        size = found[0][0]
        cldr_mix.check_babel(size)
        trials = [trial for place, trial in found if place == size]
        scheduler.run_all(trials[: options.workers], size, options.workers)
    for table in recipe_tables.TABLES.values():
        print(table())


if __name__ == "__main__":
    main()
