"""Memory of a base and of a training step, by how the base is quantized.

OMP_NUM_THREADS=1 KERAS_BACKEND=torch python -m benchmarks.cost.quantized
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
from typing import Any

import keras

import keras_flix
from benchmarks.cost.keras_arms import KerasArm
from benchmarks.cost.memory import METHODS, last_line_of, measure_memory
from benchmarks.cost.workload import AXES, Workload
from benchmarks.shared.environment import result_path, write_result

BASES = ("float32", "bfloat16", "int8", "int4")
METHOD = (
    "`base`, `adapters`: bytes of the variables, in MB. The other figures are MiB: "
    f"{METHODS['torch']}"
)


def measure(base: str, workload: Workload, warm_up: int) -> dict[str, Any]:
    """Memory of one base with adapters on all linear layers, in this process."""
    model = workload.model()
    if base == "bfloat16":
        model = as_bfloat16(model, workload)
    elif base != "float32":
        gc.freeze()  # Keras collects garbage for every kernel.
        model.quantize(
            base, filters=lambda layer: not isinstance(layer, keras.layers.Embedding)
        )
        gc.unfreeze()
    keras_flix.enable_flix(
        model,
        workload.features(workload.values),
        rank=workload.rank // len(AXES),
        targets="all-linear",
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    summary = keras_flix.flix_summary(model, print_fn=None)
    arm = KerasArm(base, model, *workload.data(workload.values))
    return {
        "base": round(summary.base_bytes / 1e6, 2),
        "adapters": round(summary.adapter_bytes / 1e6, 2),
        **measure_memory(arm, warm_up),
    }


def as_bfloat16(model: Any, workload: Workload) -> Any:
    """The same sizes, in bfloat16 throughout."""
    keras.config.set_dtype_policy("bfloat16")
    config = {**model.backbone.get_config(), "dtype": "bfloat16"}
    backbone = type(model.backbone).from_config(config)
    return type(model)(backbone=backbone, preprocessor=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", choices=BASES, help="measure one, in this process")
    parser.add_argument("--warm-up", type=int, default=2)
    Workload.add_arguments(parser)
    options = parser.parse_args()
    workload = Workload.from_arguments(options)
    if options.base:
        print(json.dumps(measure(options.base, workload, options.warm_up)))
        return
    results = {}
    for base in BASES:
        command = [*(sys.executable, "-m", "benchmarks.cost.quantized", "--base", base)]
        command += ["--warm-up", str(options.warm_up), *workload.as_arguments()]
        results[base] = last_line_of(command)
        print(base, results[base], flush=True)
    write_result(
        result_path("quantized"),
        {
            "workload": dataclasses.asdict(workload),
            "method": METHOD,
            "memory": results,
        },
    )


if __name__ == "__main__":
    main()
