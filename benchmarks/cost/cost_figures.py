"""Draws the results of `train_step`, `values` and `generation` into `figures/`."""

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

FIGURES = pathlib.Path(__file__).parent / "figures"
COLORS = {
    "none": "tab:gray",
    "sgd": "tab:green",
    "lazy_sgd": "tab:olive",
    "lazy_adam": "tab:blue",
    "adam": "tab:orange",
}
LINE = {"color": "#666666", "linestyle": "--", "linewidth": 1}
PEER_RATIOS = {
    "flix_over_floor": "frozen base",
    "flix_over_lora": "KerasHub LoRA",
    "flix_over_peft_lora_over_floors": "PEFT LoRA, over frozen bases",
    "flix_over_peft_poly_over_floors": "PEFT Poly, over frozen bases",
    "flix_over_adapters_multitask_over_floors": "AdapterHub MultiTask, over bases",
    "flix_over_adapters_mtl_lora_over_floors": "AdapterHub MTL-LoRA, over bases",
    "flix_over_peft_lora": "PEFT LoRA",
    "flix_over_peft_poly": "PEFT Poly",
    "flix_over_adapters_multitask": "AdapterHub MultiTask",
    "flix_over_adapters_mtl_lora": "AdapterHub MTL-LoRA",
}


def draw() -> list[pathlib.Path]:
    """All figures for which there are results."""
    drawn = [draw_values(), draw_training_step(), draw_generation()]
    return [path for path in drawn if path is not None]


def error_bars(ratio: dict[str, Any]) -> list[list[float]]:
    """From the median to the quartiles, as matplotlib takes them."""
    (low, high), median = ratio["quartiles"], ratio["median"]
    return [[median - low], [high - median]]


def draw_values() -> pathlib.Path | None:
    """Step time by the number of values, over that of the lowest number."""
    found = {b: on_cpu(load(f"values_{b}_*")) for b in BACKENDS}
    found = {backend: in_order(rs) for backend, rs in found.items() if rs}
    if not found:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(found), figsize=(4 * len(found), 3.6), sharey=True, squeeze=False
    )
    for ax, (backend, results) in zip(axes[0], found.items()):
        for result in results:
            first, *counts = [int(name) for name in result["arms"]]
            ratios = [
                result["time"][clock(result)]["ratios"][f"{count}_over_{first}"]
                for count in counts
            ]
            bars = [error_bars(ratio) for ratio in ratios]
            ax.errorbar(
                [first, *counts],
                [1.0, *(ratio["median"] for ratio in ratios)],
                yerr=[
                    [0.0, *(low[0] for low, _ in bars)],
                    [0.0, *(high[0] for _, high in bars)],
                ],
                marker="o",
                markersize=4,
                capsize=3,
                label=OPTIMIZER_TITLES[result["optimizer"]].strip("`"),
                color=COLORS[result["optimizer"]],
            )
        ax.hlines(1.1, 2, 512, **LINE, label="10 % more")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_xticks([2, 8, 64, 512, 1024, 4096], [2, 8, 64, 512, "", 4096])
        ax.set_yticks([1, 1.1, 1.5, 2, 3, 4], [1, 1.1, 1.5, 2, 3, 4])
        ax.minorticks_off()
        ax.set_title(BACKENDS[backend])
        ax.set_xlabel("values per feature")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel(
        "CPU time of a step over that of\n2 values: median, quartiles"
    )
    axes[0, 0].legend(fontsize=8)
    return save(figure, "values.png")


def draw_training_step() -> pathlib.Path | None:
    """FLix over the frozen base and its peers, by backend."""
    found = {b: load_one(f"train_step_{b}") for b in BACKENDS}
    rows = [
        (f"{BACKENDS[backend]}: {label}", ratios[name], name)
        for backend, result in found.items()
        if result is not None
        for ratios in [result["time"][clock(result)]["ratios"]]
        for name, label in PEER_RATIOS.items()
        if name in ratios
    ]
    if not rows:
        return None
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(8, 0.35 * len(rows) + 1.2))
    for index, (_, ratio, name) in enumerate(rows):
        color = "tab:gray" if name == "flix_over_floor" else "tab:blue"
        bars = error_bars(ratio)
        ax.errorbar(ratio["median"], index, xerr=bars, fmt="o", capsize=3, color=color)
    ax.axvline(1.0, **LINE)
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(
        "CPU time of a step, FLix over the other: median, quartiles.\n"
        "Left of the line FLix is faster. Grey: over a step that trains\n"
        "nothing; over (frozen) bases: each by that of its own library first"
    )
    ax.grid(axis="x", alpha=0.3)
    return save(figure, "train_step.png")


def draw_generation() -> pathlib.Path | None:
    """Cost over each library's own merged model, by the number of combinations."""
    found = {b: load_one(f"generation_{b}") for b in BACKENDS}
    if not any(found.values()):
        return None
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(6, 3.8))
    for index, (backend, result) in enumerate(found.items()):
        ratios = result[clock(result)]["ratios"] if result else {}
        for arm, floor, line in (("flix", "merged", "-"), ("peft", "hf_merged", "--")):
            points = {
                int(name.split("_")[1].split()[0]): ratio
                for name, ratio in ratios.items()
                if name.startswith(f"{arm}_") and name.endswith(f" / {floor}")
            }
            if not points:
                continue
            bars = [error_bars(ratio) for ratio in points.values()]
            name = "FLix" if arm == "flix" else "PEFT, over transformers' merged model"
            ax.errorbar(
                # Side by side, where bars of equal numbers would cover each other.
                [n * 1.05 ** (index - 1) for n in points],
                [ratio["median"] for ratio in points.values()],
                yerr=[[low[0] for low, _ in bars], [high[0] for _, high in bars]],
                fmt=f"o{line}",
                markersize=4,
                capsize=3,
                color="tab:red" if arm == "peft" else f"C{index}",
                label=f"{name}, {BACKENDS[backend]}",
            )
    ax.axhline(1.1, **LINE, label="10 % more")
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, 4, 32], [1, 4, 32])
    ax.minorticks_off()
    ax.set_xlabel("distinct combinations in a batch of 32")
    ax.set_ylabel("CPU time over the merged model's:\nmedian, quartiles")
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return save(figure, "generation.png")


def pyplot() -> Any:
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, name: str) -> pathlib.Path:
    """Writes a figure."""
    FIGURES.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(
        FIGURES / name, dpi=130, facecolor="white", metadata={"Software": None}
    )
    pyplot().close(figure)
    return FIGURES / name
