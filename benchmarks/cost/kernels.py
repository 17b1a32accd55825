"""Times ways to compute the update of a mixed batch, forward and backward.

Run from the repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 python -m benchmarks.cost.kernels

One layer's update of two axes, without its base kernel. `gathered` is what the library
does. The others are here to be compared; none of them is in the library.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.cost.timing import paired, quartiles
from benchmarks.shared.environment import accelerator, result_path, write_result
from keras_flix.layers.low_rank_update import (
    ActiveValues,
    FeatureTables,
    low_rank_update,
)

AXES = ("task", "language")
Tensor = Any
Tables = list[tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One batch.

    Attributes:
        batch: Examples.
        length: Positions of each; 1 is a step of generation.
        combinations: Different pairs of values in the batch.
        values: Values per feature.
        rank: Of each axis.
    """

    batch: int = 32
    length: int = 128
    combinations: int = 32
    values: int = 64
    rank: int = 4
    d_in: int = 512
    d_out: int = 512
    dtype: str = "float32"

    def inputs(self) -> tuple[Tensor, Tables, list[Tensor]]:
        """Activations, tables of both features, ids of both features."""
        generator = np.random.default_rng(0)

        def normal(*shape: int) -> Tensor:
            return ops.convert_to_tensor(generator.normal(size=shape), self.dtype)

        tables = [
            (
                normal(self.values, self.d_in, self.rank),
                normal(self.values, self.rank, self.d_out),
            )
            for _ in AXES
        ]
        which = np.arange(self.batch) % self.combinations
        ids = [which % self.values, (7 * which + 3) % self.values]
        return (
            normal(self.batch, self.length, self.d_in),
            tables,
            [ops.convert_to_tensor(i, "int32") for i in ids],
        )

    def flops(self) -> dict[str, int]:
        """Of the low-rank products of all examples."""
        one_way = 2 * self.length * len(AXES) * self.rank * (self.d_in + self.d_out)
        return {"forward": one_way * self.batch, "backward": 3 * one_way * self.batch}

    def bytes_moved(self) -> dict[str, int]:
        """At the least: each operand and result once, looked-up rows per example."""
        size = 4 if self.dtype == "float32" else 2
        activations = self.length * (self.d_in + self.d_out)
        rows = len(AXES) * self.rank * (self.d_in + self.d_out)
        forward = self.batch * (activations + rows) * size
        # Reads x, the rows and the output's gradient; writes the others' gradients.
        backward = self.batch * (2 * self.length * self.d_in + activations) * size
        backward += 2 * self.batch * rows * size
        return {"forward": forward, "backward": forward + backward}


def gathered(x: Tensor, tables: Tables, ids: list[Tensor]) -> Tensor:
    """Rows looked up per example, ranks of all features side by side, batched."""
    count = tables[0][0].shape[0]
    active = {n: ActiveValues.from_ids(i, count) for n, i in zip(AXES, ids)}
    named = [FeatureTables(name, a, b) for name, (a, b) in zip(AXES, tables)]
    return low_rank_update(x, named, active)


def per_axis(x: Tensor, tables: Tables, ids: list[Tensor]) -> Tensor:
    """Rows looked up per example, a pair of batched products for each feature."""
    deltas = [
        ops.matmul(ops.matmul(x, ops.take(a, i, axis=0)), ops.take(b, i, axis=0))
        for (a, b), i in zip(tables, ids)
    ]
    return sum(deltas[1:], deltas[0])


def materialized(x: Tensor, tables: Tables, ids: list[Tensor]) -> Tensor:
    """The update of the kernel of each example, as Keras' LoRA makes one for all."""
    kernels = [
        ops.matmul(ops.take(a, i, axis=0), ops.take(b, i, axis=0))
        for (a, b), i in zip(tables, ids)
    ]
    return ops.matmul(x, sum(kernels[1:], kernels[0]))


def grouped(x: Tensor, tables: Tables, ids: list[Tensor]) -> Tensor:
    """Examples sorted by value, then one grouped product of all positions."""
    product = grouped_product()
    batch, length, _ = x.shape
    total = 0.0
    for (a, b), i in zip(tables, ids):
        order = ops.argsort(i)
        rows = ops.reshape(ops.take(x, order, axis=0), (batch * length, -1))
        sizes = length * ops.segment_sum(ops.ones_like(i), i, num_segments=a.shape[0])
        out = product(product(rows, a, sizes), b, sizes)
        out = ops.reshape(out, (batch, length, -1))
        total = total + ops.take(out, ops.argsort(order), axis=0)
    return total


def grouped_product() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The backend's own product of groups of rows with a matrix each."""
    if keras.config.backend() == "jax":
        import jax

        if jax.default_backend() == "cpu":
            # All cases with it did not end within five minutes.
            raise NotImplementedError("jax.lax.ragged_dot takes minutes on a CPU")
        return lambda rows, table, sizes: jax.lax.ragged_dot(
            rows, table, sizes.astype("int32")
        )
    if keras.config.backend() == "torch":
        import torch

        def product(rows: Tensor, table: Tensor, sizes: Tensor) -> Tensor:
            return torch._grouped_mm(rows, table, offs=sizes.cumsum(0).to(torch.int32))

        return product
    raise NotImplementedError("TensorFlow has no grouped product")


def sorted_loop(x: Tensor, tables: Tables, ids: list[Tensor]) -> Tensor:
    """A product per value that occurs; of backends that run eagerly."""
    if keras.config.backend() != "torch":
        raise NotImplementedError("compiled code has no loop over what occurs")
    total = x.new_zeros((*x.shape[:2], tables[0][1].shape[-1]))
    for (a, b), i in zip(tables, ids):
        for value in i.unique().tolist():
            rows = (i == value).nonzero()[:, 0]
            total = total.index_add(0, rows, (x[rows] @ a[value]) @ b[value])
    return total


def one_combination(x: Tensor, tables: Tables, ids: list[Tensor]) -> Tensor:
    """What could be done if it were known that all examples share their values."""
    a = ops.concatenate([a[i[0]] for (a, _), i in zip(tables, ids)], axis=-1)
    b = ops.concatenate([b[i[0]] for (_, b), i in zip(tables, ids)], axis=0)
    return ops.matmul(ops.matmul(x, a), b)


def checked_one_combination(x: Tensor, tables: Tables, ids: list[Tensor]) -> Tensor:
    """The same behind a test of the ids, as a mixed batch would need it."""
    same = ops.all(ops.stack([ops.all(ops.equal(i, i[0])) for i in ids]))
    return ops.cond(
        same,
        lambda: one_combination(x, tables, ids),
        lambda: gathered(x, tables, ids),
    )


KERNELS: dict[str, Callable[..., Tensor]] = {
    "gathered": gathered,
    "per_axis": per_axis,
    "materialized": materialized,
    "grouped": grouped,
    "sorted_loop": sorted_loop,
    "checked_one_combination": checked_one_combination,
    "one_combination": one_combination,
}


AT_ONCE = 20
"""Calls between two looks at the clock, where calls return before they are done."""


def ready(x: Tensor) -> Tensor:
    """Waits for a tensor of JAX."""
    return x.block_until_ready() if hasattr(x, "block_until_ready") else x


def passes(kernel: Callable[..., Tensor], case: Case) -> dict[str, Callable[[], Any]]:
    """A forward pass, and one with the gradients of activations and tables."""
    x, tables, ids = case.inputs()
    backend = keras.config.backend()

    def loss(x: Tensor, tables: Tables) -> Tensor:
        return ops.sum(ops.square(kernel(x, tables, ids)))

    if backend == "jax":
        import jax

        forward = jax.jit(lambda x, tables: kernel(x, tables, ids))
        both = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return {
            "forward": lambda: jax.block_until_ready(forward(x, tables)),
            "backward": lambda: jax.block_until_ready(both(x, tables)),
        }
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def graph_forward() -> Tensor:
            return kernel(x, tables, ids)

        @tf.function
        def graph_both() -> Any:
            with tf.GradientTape() as tape:
                tape.watch([x, tables])
                value = loss(x, tables)
            gradients = tape.gradient(value, [x, tables])
            return tf.nest.map_structure(tf.convert_to_tensor, gradients)

        return {"forward": graph_forward, "backward": graph_both}
    import torch

    leaves = [
        x.requires_grad_(),
        *(t.requires_grad_() for pair in tables for t in pair),
    ]

    def eager_forward() -> Tensor:
        with torch.no_grad():
            return kernel(x, tables, ids)

    return {
        "forward": eager_forward,
        "backward": lambda: torch.autograd.grad(loss(x, tables), leaves),
    }


def check(name: str, case: Case) -> None:
    """Raises unless a kernel computes the same update."""
    if name == "one_combination" and case.combinations > 1:
        raise NotImplementedError("only for batches of one combination")
    x, tables, ids = case.inputs()
    expected = ops.convert_to_numpy(ops.cast(per_axis(x, tables, ids), "float32"))
    found = ops.cast(KERNELS[name](x, tables, ids), "float32")
    found = ops.convert_to_numpy(found)
    exact = keras.backend.standardize_dtype(x.dtype) == "float32"
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    if not error < (1e-4 if exact else 2e-2):
        raise ValueError(f"Kernel {name!r} has a relative error of {error:.2g}.")


def seconds(run: Callable[[], Any]) -> float:
    """Of one call, by the clock; on PyTorch's GPU the mean of several at once."""
    if keras.config.backend() != "torch" or accelerator() is None:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(AT_ONCE):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / AT_ONCE


def peak(dtype: str) -> dict[str, float]:
    """What this machine reaches: FLOP/s of a product, bytes/s of a copy."""
    if accelerator() is not None:
        size, count = 8192, 2**28
        one = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(size, size)))
        one, source = ops.cast(one, dtype), ops.ones((count,), "float32")
        product = min(seconds(lambda: ready(ops.matmul(one, one))) for _ in range(20))
        copy = min(seconds(lambda: ready(ops.negative(source))) for _ in range(10))
        return {"flops": 2 * size**3 / product, "bytes": 8 * count / copy}
    size = 1024
    one = np.random.default_rng(0).normal(size=(size, size)).astype("float32")
    source, target = np.ones(2**25, "float32"), np.ones(2**25, "float32")
    product = min(seconds(lambda: one @ one) for _ in range(20))
    copy = min(seconds(lambda: np.copyto(target, source)) for _ in range(10))
    return {"flops": 2 * size**3 / product, "bytes": 2 * source.nbytes / copy}


def measure(case: Case, rounds: int, limits: dict[str, float]) -> dict[str, Any]:
    """Times of all kernels that can do a case, and how far from the roofline."""
    runs, refused = {}, {}
    for name, kernel in KERNELS.items():
        try:
            check(name, case)
            runs[name] = passes(kernel, case)
            for run in runs[name].values():
                run()
        except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
            runs.pop(name, None)
            refused[name] = (str(error).splitlines() or [type(error).__name__])[0]
    result: dict[str, Any] = {"case": dataclasses.asdict(case), "refused": refused}
    for direction in ("forward", "backward"):
        times: dict[str, list] = {name: [] for name in runs}
        for index in range(rounds):
            for name in list(runs)[:: 1 if index % 2 == 0 else -1]:
                times[name].append(seconds(runs[name][direction]))
        flops, moved = case.flops()[direction], case.bytes_moved()[direction]
        bound = max(flops / limits["flops"], moved / limits["bytes"])
        median = {name: float(np.median(t)) for name, t in times.items()}
        result[direction] = {
            "milliseconds": {n: round(1e3 * t, 4) for n, t in median.items()},
            "over_gathered": {
                name: quartiles(paired(times, (name,), ("gathered",)))
                for name in times
                if name != "gathered"
            },
            "flops_per_example": flops // case.batch,
            "bytes_per_example": moved // case.batch,
            "roofline_milliseconds": round(1e3 * bound, 4),
            "roofline_share": {n: round(bound / t, 3) for n, t in median.items()},
        }
    return result


def main() -> None:
    """Measures all cases on the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--combinations", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--values", type=int, nargs="+", default=[64])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--label", help="part of the result file's name")
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    limits = peak(options.dtype)
    cases = [
        Case(
            batch=options.batch,
            length=length,
            combinations=combinations,
            values=values,
            d_in=options.width,
            d_out=options.width,
            dtype=options.dtype,
        )
        for length, values, combinations in itertools.product(
            options.lengths, options.values, options.combinations
        )
    ]
    result = {
        "method": (
            "Kernels in turn, every other round in reverse order; medians, and medians "
            "of paired ratios with quartiles. The roofline is the larger of FLOPs and "
            "bytes over what a product of 1024 x 1024 matrices and a copy of 128 MiB "
            "reach in NumPy on the same cores, or of 8192 x 8192 and 1 GiB on a GPU. "
            "`backward` holds the forward pass."
        ),
        "limits": {k: float(f"{v:.4g}") for k, v in limits.items()},
        "rounds": options.rounds,
        "cases": [measure(case, options.rounds, limits) for case in cases],
    }
    write_result(options.output or result_path("kernels", options.label), result)
    for case in result["cases"]:
        print(json.dumps({k: case[k] for k in ("case", "refused")}))
        for direction in ("forward", "backward"):
            shown = case[direction]
            print(direction, json.dumps(shown["milliseconds"]), end=" ")
            print("share of roofline", json.dumps(shown["roofline_share"]))


if __name__ == "__main__":
    main()
