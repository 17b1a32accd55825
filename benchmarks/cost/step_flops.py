"""What one training step computes: FLOPs and, where the compiler tells, bytes."""

from __future__ import annotations

import math
from typing import Any

import keras

from benchmarks.cost.arm import Arm
from benchmarks.cost.keras_arms import KerasArm

MIB = 1024**2
METHODS = {
    "jax": "XLA's cost analysis of the compiled step: `flops` of all operations, "
    "`bytes_accessed`, and the temporaries that it plans, in MiB.",
    "torch": "`torch.utils.flop_counter` over a step: `flops` of matrix products and "
    "attention only.",
    "tensorflow": "`flops` of the matrix products and einsums in the traced graph of "
    "a step, from their static shapes.",
}


def count(arm: Arm) -> dict[str, Any]:
    """What a step of `arm` costs on the current backend."""
    backend = keras.config.backend()
    if backend == "torch":
        return {"flops": torch_flops(arm)}
    assert isinstance(arm, KerasArm)
    if backend == "tensorflow":
        return {"flops": graph_flops(arm)}
    return xla_cost(arm)


def xla_cost(arm: KerasArm) -> dict[str, Any]:
    """FLOPs, bytes and temporary memory as XLA plans them."""
    import jax

    state = arm.model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    step = jax.jit(arm.model.train_step, donate_argnums=0)
    compiled = step.lower(state, (arm.x, arm.y, None)).compile()
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return {
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "xla_temporary": round(memory.temp_size_in_bytes / MIB, 1),
    }


def torch_flops(arm: Arm) -> float:
    """FLOPs of matrix products and attention in one eager step."""
    import torch
    from torch.utils import flop_counter

    # The counter knows the attention of GPUs, not that of CPUs.
    aten: Any = torch.ops.aten
    forward = aten._scaled_dot_product_flash_attention_for_cpu
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return flop_counter.sdpa_flop_count(q, k, v)

    def attention_gradient(
        grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any
    ) -> int:
        return flop_counter.sdpa_backward_flop_count(grad, q, k, v)

    arm.step()  # Keras' first one has another forward pass.
    with flop_counter.FlopCounterMode(
        display=False,
        custom_mapping={forward: attention, backward: attention_gradient},
    ) as counter:
        arm.step()
    return float(counter.get_total_flops())


def graph_flops(arm: KerasArm) -> float:
    """FLOPs of matrix products in the graph of one step."""
    import tensorflow as tf

    step = tf.function(lambda x, y: arm.model.train_step((x, y, None)))
    x, y = keras.tree.map_structure(tf.convert_to_tensor, (arm.x, arm.y))
    graph = step.get_concrete_function(x, y).graph
    # Gradients of frozen kernels are traced as well; nothing uses them, so none runs.
    found: set[Any] = set()
    wanted = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while wanted:
        op = wanted.pop()
        if op not in found:
            found.add(op)
            wanted += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return sum(product_flops(op) for op in found)


def product_flops(op: Any) -> float:
    """FLOPs of a product: 2 for each combination of all its axes."""
    if op.type in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
        flag = "transpose_a" if op.type == "MatMul" else "adj_x"
        contracted = op.inputs[0].shape[-2 if op.get_attr(flag) else -1]
        return 2.0 * contracted * math.prod(op.outputs[0].shape)
    if op.type != "Einsum":
        return 0.0
    terms = op.get_attr("equation").decode().split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, op.inputs):
        if "." in term:
            raise ValueError(f"An einsum without ellipses is needed. Received: {term}.")
        sizes.update(zip(term, operand.shape))
    return 2.0 * math.prod(sizes.values())
