"""The tables of the README, from the stored results."""

from __future__ import annotations

import pathlib
from typing import Any

from benchmarks.cost.stored_results import (
    BACKENDS,
    OPTIMIZER_TITLES,
    clock,
    in_order,
    load,
    load_one,
    on_cpu,
)

README = pathlib.Path(__file__).parent / "README.md"
END = "<!-- table: end -->\n"
FLOOR_GOAL, PEER_GOAL, VALUES_GOAL = 1.1, 1.0, 1.1
"""The highest medians that are no misses; that of values holds up to 512."""

PEER_COLUMNS = ["Step, s", "Tokens/s", "Over its floor", "FLix / arm"]
SERVED = {
    "values": "llama.cpp, a file per value",
    "merged": "llama.cpp, a merged model per combination",
}
VALUES = (2, 8, 64, 512, 1024, 4096)
FLOOR_OF = {"lora": "floor", "flix": "floor"}
KERNELS = (
    *("per_axis", "materialized", "grouped", "sorted_loop"),
    *("checked_one_combination", "one_combination"),
)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def ratio(ratios: dict[str, Any], name: str, goal: float | None = None) -> str:
    """A median and its quartiles, bold where it misses its goal, or a dash."""
    found = ratios.get(name)
    if found is None:
        return "–"
    low, high = found["quartiles"]
    median = f"{found['median']:.3f}"
    if goal is not None and found["median"] > goal:
        median = f"**{median}**"
    return f"{median} ({low:.2f}–{high:.2f})"


def training_step(result: dict[str, Any], footprint: dict[str, Any]) -> list[list[str]]:
    """A row per arm of one result."""
    time = result["time"][clock(result)]
    tokens = result["workload"]["batch"] * result["workload"]["length"]
    rows = []
    for name, facts in result["arms"].items():
        seconds, ratios = time["seconds"][name], time["ratios"]
        floor = FLOOR_OF.get(name, "hf_floor")
        over_floor = f"{name}_over_{floor}"
        over_arm = f"flix_over_{name}"
        goal = None if name.endswith("floor") else PEER_GOAL
        cost = footprint.get("arms", {}).get(name, {})
        rows.append(
            [
                facts["what"],
                f"{seconds:.3f}",
                f"{tokens / seconds:.0f}",
                ratio(ratios, over_floor, FLOOR_GOAL if name == "flix" else None),
                ratio(ratios, over_arm, goal),
                ratio(ratios, f"{over_arm}_over_floors", goal),
                f"{cost['step']:.0f}" if "step" in cost else "–",
                f"{cost['flops'] / 1e9:.1f}" if "flops" in cost else "–",
            ]
        )
    return rows


def training_steps(on_accelerator: bool) -> str:
    """All results of `train_step`, those of a CPU or the others."""
    head = ["Backend", "Arm", *PEER_COLUMNS, "the same, each over its floor"]
    head += ["Peak of a step, MiB", "GFLOP"]
    rows = []
    for result in load("train_step_*"):
        device = result["environment"].get("accelerator")
        if (device is not None) != on_accelerator:
            continue
        backend = result["environment"]["backend"]
        label = BACKENDS[backend]
        if device:
            label += f", {device}, {result['workload']['length']} tokens"
        name = result["file"].replace("train_step", "footprint").removesuffix(".json")
        footprint = load_one(name) or {}
        rows += [[label, *row] for row in training_step(result, footprint)]
    return table(head, rows) if rows else ""


def values() -> str:
    """All sweeps over the number of values."""
    rows: list[list[str]] = []
    for backend, title in BACKENDS.items():
        footprint = load_one(f"footprint_{backend}") or {"arms": {}}
        for result in in_order(on_cpu(load(f"values_{backend}_*"))):
            optimizer, held = result["optimizer"], footprint["arms"]
            counts = [int(name) for name in result["arms"]]
            cells = sweep(result["time"][clock(result)], counts)
            cells.append(memory(held, counts, optimizer))
            rows.append([title, OPTIMIZER_TITLES[optimizer], *cells])
            without = result["time"].get("cpu_without_optimizer")
            if without is not None:
                label = f"{OPTIMIZER_TITLES[optimizer]}, its own time left out"
                rows.append([title, label, *sweep(without, counts), "–"])
    head = ["Backend", "Optimizer", "2 values, s", *(f"{c} / 2" for c in VALUES[1:])]
    head.append("Peak of a step, MiB (values)")
    return table(head, rows) if rows else ""


def values_on_accelerator() -> str:
    """All sweeps over the number of values that ran on a GPU."""
    rows, head = [], ["Backend", "Optimizer", "Time"]
    results = load("values_*_gpu")
    counts = [int(name) for name in results[0]["arms"]] if results else [0]
    for result in results:
        environment, time = result["environment"], result["time"]
        label = f"{BACKENDS[environment['backend']]}, {environment['accelerator']}"
        for name, title in (("wall", "by the clock"), ("cpu", "of the host's CPU")):
            first = time[name]["seconds"][str(counts[0])]
            cells = [
                ratio(time[name]["ratios"], f"{count}_over_{counts[0]}")
                for count in counts[1:]
            ]
            optimizer = OPTIMIZER_TITLES[result["optimizer"]]
            rows.append([label, optimizer, title, f"{1e3 * first:.1f}", *cells])
    head += [f"{counts[0]} values, ms", *(f"{c} / {counts[0]}" for c in counts[1:])]
    return table(head, rows) if rows else ""


def many_values() -> str:
    """What a step and a prediction cost with many values, over few."""
    rows: list[list[str]] = []
    for result in load("many_values_*"):
        environment = result["environment"]
        label = BACKENDS[environment["backend"]]
        if environment.get("accelerator"):
            label += f", {environment['accelerator']}"
        sizes = result["sizes"]
        size = f"{sizes['width']} wide, {sizes['length']} long"
        for found in result["cases"].values():
            few, many = found.get("counts", result["counts"])
            cells = [
                ratio({"": found[name]["ratio"]}, "", VALUES_GOAL)
                for name in ("step", "predict")
            ]
            first = f"{found['step']['milliseconds'][str(few)]:.1f}"
            counts = f"{many:,} / {few}"
            rows.append([label, size, found["what"], counts, first, *cells])
    head = ["Backend", "Layers", "Batch and model", "Values", "Step of the few, ms"]
    return table([*head, "many / few, step", "predict"], rows) if rows else ""


def many_tables() -> str:
    """What a step of LazyAdam costs over one of Adam, with very many small tables."""
    rows = [
        [
            BACKENDS[result["environment"]["backend"]],
            f"{result['tables']}",
            found["what"],
            f"{found['milliseconds']['adam']:.1f}",
            ratio(found, "ratio", VALUES_GOAL),
        ]
        for result in load("many_tables_*")
        for found in result["cases"].values()
    ]
    head = ["Backend", "Tables", "Model", "Step of Adam, ms", "`LazyAdam` / Adam"]
    return table(head, rows) if rows else ""


def many_users() -> str:
    """What an update of one user's adapter costs, mixed in one run and one by one."""
    rows: list[list[str]] = []
    for result in load("many_users_*"):
        for name, what in result["arms"].items():
            cells = []
            for found in result["by_examples"].values():
                cells.append(f"{found['milliseconds'][name]:.2f}")
                cells.append(ratio(found["over_flix"], name, None))
            label = BACKENDS[result["environment"]["backend"]]
            rows.append([label, f"{result['users']:,}", what, *cells])
    head = ["Backend", "Users", "Arm", "User-step of 1 example, ms", "over FLix"]
    head += ["of 4 examples, ms", "over FLix"]
    return table(head, rows) if rows else "Not measured yet.\n"


OPTIONS = {
    "layer_ranks_over_plain": "`layer_ranks`: 2 and 6 by layer / 4 in both",
    "embedding_over_plain": "the token embedding adapted, too / not",
    "trainable_tokens_over_plain": "8 `trainable_tokens` / none",
    "whole_layer_over_plain": "`train=` a feed-forward kernel of a block / none",
    "rates_over_plain": "`set_learning_rates` by value, feature and `B` / none",
    "lazy_rates_over_lazy": "`set_learning_rates` with `LazyAdam` / none",
    "lazy_by_value_over_lazy": '`LazyAdam(step_counts="value")` / `LazyAdam()`',
    "shared_over_attention": '`experts="shared"` / attention alone',
    "each_over_shared": '`experts="each"` / `"shared"`',
}
"""What is compared by `options`."""


def options() -> str:
    """What options add to a step."""
    results = load("options_*")
    rows = [
        [what, *(ratio(result["ratios"], name, None) for result in results)]
        for name, what in OPTIONS.items()
    ]
    heads = [BACKENDS[result["environment"]["backend"]] for result in results]
    return table(["Step / step", *heads], rows) if results else "Not measured yet.\n"


def sweep(time: dict[str, Any], counts: list[int]) -> list[str]:
    """Seconds of the lowest number of values, and the others over it."""
    first = counts[0]
    cells = [f"{time['seconds'][str(first)]:.3f}"]
    for count in VALUES[1:]:
        goal = VALUES_GOAL if count <= 512 else None
        cells.append(ratio(time["ratios"], f"{count}_over_{first}", goal))
    return cells


def memory(arms: dict[str, Any], counts: list[int], optimizer: str) -> str:
    """Peak memory for the numbers of values that were measured."""
    found = {count: arms.get(f"flix:{count}:{optimizer}") for count in counts}
    if optimizer == "adam":
        found[8] = found.get(8) or arms.get("flix")
    cells = [f"{arm['step']:.0f} ({count})" for count, arm in found.items() if arm]
    return ", ".join(cells) or "–"


def generation() -> str:
    """All arms of `generation`, over their merged models and PEFT over FLix."""
    rows: list[list[str]] = []
    for backend, title in BACKENDS.items():
        result = load_one(f"generation_{backend}")
        found = result[clock(result)] if result else {"tokens_per_second": {}}
        for name, speed in found["tokens_per_second"].items():
            arm, _, count = name.partition("_")
            floor = "hf_merged" if arm == "peft" else "merged"
            # JAX is where the goal is; a second merged model has none.
            goal = FLOOR_GOAL if (backend, arm) == ("jax", "flix") else None
            over_merged = ratio(found["ratios"], f"{name} / {floor}", goal)
            over_flix = ratio(found["ratios"], f"{name} / flix_{count}")
            rows.append([f"{title} `{name}`", f"{speed:.0f}", over_merged, over_flix])
    head = ["Arm", "tokens per second", "time over its merged model", "time over FLix"]
    return table(head, rows) if rows else ""


def kernels() -> str:
    """All kernels, relative to the library's own."""
    rows: list[list[str]] = []
    for backend, title in BACKENDS.items():
        result = load_one(f"kernels_{backend}") or {"cases": []}
        for measured in result["cases"]:
            case = measured["case"]
            for direction in ("forward", "backward"):
                found = measured[direction]
                cells = [
                    ratio(found["over_gathered"], kernel, None) for kernel in KERNELS
                ]
                own = f"{found['milliseconds']['gathered']:.2f}"
                share = f"{100 * found['roofline_share']['gathered']:.0f} %"
                shape = f"{case['length']} × {case['combinations']}"
                rows.append([title, shape, direction, own, share, *cells])
    head = ["Backend", "Positions × combinations", "Pass", "`gathered`, ms", "roofline"]
    return table(head + [f"`{name}`" for name in KERNELS], rows) if rows else ""


def serving() -> str:
    """Servers and `generate`, by the number of combinations."""
    rows: list[list[str]] = []
    for backend, title in BACKENDS.items():
        result = load_one(f"serving_{backend}") or {"cases": []}
        for case in result["cases"]:
            for name, speed in case["requests_per_second"].items():
                arm = f"{title} `generate`" if name == "keras" else SERVED[name]
                first = [
                    f"{1000 * case[key][name]:.0f}" if name in case[key] else "–"
                    for key in ("first_token_alone", "first_token")
                ]
                memory = case["mebibytes"].get(name)
                rows.append(
                    [
                        f"{case['combinations']}",
                        arm,
                        f"{speed:.2f}",
                        ratio(case["ratios"], f"values / {name}"),
                        *first,
                        "–" if memory is None else f"{memory}",
                    ]
                )
    head = ["Combinations", "Arm", "requests per second", "time of files / arm"]
    head += ["first token alone, ms", "under load, ms", "MiB"]
    return table(head, rows) if rows else ""


def environments() -> str:
    """One line per result on what it was measured with."""
    lines = []
    names = ("train_step_*", "values_*", "many_values_*", "many_tables_*")
    names += ("many_users_*", "options_*", "footprint_*", "generation_*", "kernels_*")
    names += ("serving_*",)
    for result in (r for name in names for r in load(name)):
        header = result["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in header["versions"].items())
        lines.append(
            f"- `{result['file']}`: {header['date'][:10]}, commit {header['commit']}, "
            f"{header.get('accelerator') or header['cpu']}, "
            f"{len(header['cores_used'])} of {header['cores']} cores, "
            f"load {header['load_average'][0]}, {versions}\n"
        )
    return "".join(lines)


TABLES = {
    "train_step": lambda: training_steps(on_accelerator=False),
    "values": values,
    "generation": generation,
    "kernels": kernels,
    "many_values": many_values,
    "many_tables": many_tables,
    "many_users": many_users,
    "options": options,
    "serving": serving,
    "values_gpu": values_on_accelerator,
    "gpu": lambda: (
        training_steps(on_accelerator=True) or "Not run: no GPU was at hand.\n"
    ),
    "environments": environments,
}


def write() -> None:
    """Writes the tables between the README's markers."""
    text = README.read_text()
    for name, make in TABLES.items():
        before, marker, rest = text.partition(f"<!-- table: {name} -->\n")
        if not marker:
            continue  # The page does without it.
        _, _, after = rest.partition(END)
        text = before + marker + make() + END + after
    README.write_text(text)
