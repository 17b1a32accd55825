"""Makes one table of the evidence: runs the trials it lacks, and prints it.

    python -m benchmarks.quality.evidence headline
    python -m benchmarks.quality.evidence dropout --size gpu --workers 1
    python -m benchmarks.quality.evidence --report

A run that was interrupted goes on where it stopped. `--results FOLDER` starts anew in
another folder, instead of completing what the repository holds; it takes the learning
rates that the repository's results found, unless `--search` looks for them anew.
A folder whose results are of another Babel than the installed one takes no more.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from benchmarks.quality import (  # noqa: E402
    cldr_mix,
    evidence_figures,
    evidence_page,
    evidence_tables,
    plan,
    recipe_figures,
    scheduler,
    store,
)

TABLES = ("headline", *plan.variants(plan.SIZES["cpu"]))


def table_name(name: str) -> str:
    """Checks the name of a table."""
    if name not in TABLES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(TABLES)}")
    return name


def main() -> None:
    """Runs what is missing, then prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    # `choices` would refuse an empty list.
    parser.add_argument("tables", nargs="*", type=table_name, help=", ".join(TABLES))
    parser.add_argument("--size", default="cpu", choices=plan.SIZES)
    parser.add_argument("--seeds", type=int, default=1, help="of the headline arms")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--results", help="another folder of results")
    parser.add_argument("--search", action="store_true", help="learning rates too")
    parser.add_argument(
        "--report",
        action="store_true",
        help="writes the tables and figures of the docs anew",
    )
    options = parser.parse_args()
    if options.results:
        store.use(options.results)
    if options.search:
        store.search_anew()
    size = plan.SIZES[options.size]
    for table in options.tables:
        while trials := plan.missing_trials(size, table, options.seeds):
            cldr_mix.check_babel(size.name)
            print(f"{table}: {len(trials)} trials", flush=True)
            scheduler.run_all(trials, size.name, options.workers)
        print(evidence_tables.table(size, table))
    if options.report:
        evidence_page.write()
        evidence_figures.write(plan.SIZES["cpu"])
        recipe_figures.write()


if __name__ == "__main__":
    main()
