"""What the adapters compute, counted rather than timed: it must not grow.

The adapted model's cost minus its base's is the adapters' share. It is held against
what the formula needs (the roofline): `2 * tokens * ranks * (d_in + d_out)` FLOPs for
the two products of a layer, and three times that in a training step.
"""

import dataclasses
import functools
import types

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from benchmarks.cost import step_flops
from benchmarks.cost.arm import ArmSpec
from benchmarks.cost.keras_arms import keras_arm
from benchmarks.cost.workload import AXES, Workload
from keras_flix.layers import low_rank_kernel, low_rank_update

BACKEND = keras.config.backend()
pytestmark = pytest.mark.short("jax", "tensorflow", "torch")
WORKLOAD = Workload(
    layers=1,
    width=64,
    heads=4,
    head_dim=16,
    intermediate=64,
    vocabulary=32,
    batch=4,
    length=16,
    rank=8,
    values=8,
)
QUERY, VALUE = (64, 64), (64, 16)
"""`(d_in, d_out)` of the adapted layers."""

# Times what is needed, or a count of operations. Measured with JAX 0.10.2, TensorFlow
# 2.21 and PyTorch 2.13, with a tenth to spare where compilers have their own ways:
# FLOPs 1.07 and bytes 2.01 of a step, 1.23 and 2.88 of generation, see `jax`.
BOUNDS = {
    "jax": {
        "training": {"flops": 1.18, "bytes": 2.2},
        "decoding": {"flops": 1.36, "bytes": 3.2},
    },
    "tensorflow": {
        "training": {"flops": 1.0, "operations": 500},  # 452
        "decoding": {"operations": 20},  # 18
    },
    "torch": {
        "training": {"flops": 1.0, "operations": 231},  # 210
        "decoding": {"flops": 1.0, "operations": 33},  # 30
    },
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call costs; `None` where the backend does not tell.

    Attributes:
        flops: Of all operations with XLA, of matrix products elsewhere (not in the
            loops of TensorFlow).
        bytes: That XLA's operations read and write.
        operations: Nodes of TensorFlow's graph, operations that PyTorch dispatches.
    """

    flops: float | None
    bytes: float | None = None
    operations: int | None = None

    def __sub__(self, other):
        return Cost(
            *(
                None if mine is None else mine - theirs
                for mine, theirs in zip(
                    dataclasses.astuple(self), dataclasses.astuple(other)
                )
            )
        )


def needed(tokens, shapes):
    """The FLOPs and bytes that the update of `tokens` per example needs at least.

    Activations, products and each example's tables are read or written once.
    """
    batch, rank = WORKLOAD.batch, WORKLOAD.rank
    products = sum(2 * batch * tokens * rank * (i + o) for i, o in shapes)
    numbers = sum(
        batch * (tokens * (i + 2 * rank + o) + rank * (i + o)) for i, o in shapes
    )
    return Cost(products, 4 * numbers)


def training_cost(arm):
    """Loss and all gradients; without the optimizer, whose cost is by table size."""
    model, x, y = arm.model, arm.x, arm.y
    if BACKEND == "torch":
        return torch_cost(arm.step)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def step(x, y):
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x, y, model(x, training=True))
            return tape.gradient(loss, [v.value for v in model.trainable_variables])

        return graph_cost(step, x, y)
    import jax

    def loss(trainable, others, x, y):
        outputs, _ = model.stateless_call(trainable, others, x, training=True)
        return model.compute_loss(x, y, outputs)

    values = [
        [v.value for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    return xla_cost(jax.grad(loss), *values, x, y)


def xla_cost(function, *args):
    """XLA's own count of the compiled function; a loop's body counts once."""
    import jax

    cost = jax.jit(function).lower(*args).compile().cost_analysis()
    return Cost(cost["flops"], cost["bytes accessed"])


def graph_cost(function, *args):
    """Of the traced graph; what its loops run is in functions of their own."""
    graph = traced(function, *args)
    nodes = graph.get_operations()
    return Cost(sum(map(step_flops.product_flops, nodes)), operations=len(nodes))


def traced(function, *args):
    import tensorflow as tf

    tensors = keras.tree.map_structure(tf.convert_to_tensor, args)
    return tf.function(function).get_concrete_function(*tensors).graph


def torch_cost(function):
    """Operations that PyTorch dispatches, gradients included."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.operations += 1
            return func(*args, **(kwargs or {}))

    function()  # What is made once, such as an attention mask, is made now.
    with Counter() as counter:
        function()
    counted = types.SimpleNamespace(step=function)
    return Cost(step_flops.torch_flops(counted), operations=counter.operations)


def decoding_cost(arm):
    """JAX: the prompt's pass and one more token; else one more token alone."""
    model, features = arm.model, {k: arm.x[k] for k in AXES if k in arm.x}
    shape = (WORKLOAD.batch, WORKLOAD.length)

    def inputs(prompt):
        mask = np.broadcast_to(np.arange(shape[1]) < prompt, shape).astype("int32")
        tokens = {"token_ids": np.ones(shape, "int32"), "padding_mask": mask}
        return {**tokens, **features}

    if BACKEND == "torch":

        def cost(prompt):
            generate = model.make_generate_function()
            batch = keras.tree.map_structure(ops.convert_to_tensor, inputs(prompt))
            return torch_cost(lambda: generate(batch))

        return cost(shape[1] - 3) - cost(shape[1] - 2)
    if BACKEND == "tensorflow":
        graph = traced(model.generate_step, inputs(4)).as_graph_def()
        bodies = [f for f in graph.library.function if "body" in f.signature.name]
        assert bodies
        return Cost(None, operations=sum(len(body.node_def) for body in bodies))

    variables = model.variables

    def step(values, inputs):
        with keras.StatelessScope(zip(variables, values)):
            return model.generate_step(inputs)["token_ids"]

    return xla_cost(step, [v.value for v in variables], inputs(4))


def arm(name, values=None):
    found = keras_arm(ArmSpec(name, values, "none"), WORKLOAD)
    # As in the floor: the backward pass runs through the whole model.
    norm = found.model.backbone.transformer_layers[0].pre_attention_norm
    norm.scale.trainable = True
    found.model.sampler = keras_hub.samplers.GreedySampler()
    return found


def share(cost, values=None):
    """The adapters' part of a cost."""
    tested = low_rank_kernel.low_rank_update, low_rank_kernel.gather_tables
    return cost_of(cost, "flix", values, *tested) - cost_of(cost, "floor")


@functools.cache
def cost_of(cost, name, values=None, *tested):
    """Counted once, as compiling takes long: for each of the functions tested."""
    return cost(arm(name, values))


def training_share(values=None):
    least = [needed(WORKLOAD.length, [QUERY, VALUE])] * 3  # Forward, inputs, tables.
    return share(training_cost, values), total(least)


def decoding_share(values=None):
    one = needed(1, [QUERY, VALUE])
    if BACKEND == "jax":
        # The last layer's queries for the prompt change no key and no value.
        one = total([one, needed(WORKLOAD.length, [VALUE])])
    return share(decoding_cost, values), one


SHARES = {"training": training_share, "decoding": decoding_share}


def total(costs):
    return Cost(sum(c.flops for c in costs), sum(c.bytes for c in costs))


def exceeded(kind):
    """Which bounds the adapters' share of a training or decoding step exceeds."""
    found, least = SHARES[kind]()
    counted = dataclasses.asdict(found)
    for name in ("flops", "bytes"):
        if counted[name] is not None:
            counted[name] /= getattr(least, name)
    if counted["flops"] is not None:
        assert counted["flops"] >= 1.0, "The products were not counted."
    bounds = BOUNDS[BACKEND][kind]
    assert set(bounds) == {n for n, count in counted.items() if count is not None}
    return {n: counted[n] for n, bound in bounds.items() if counted[n] > bound}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_the_share_of_the_adapters_does_not_grow(kind):
    assert exceeded(kind) == {}


def test_the_guard_sees_a_kernel_per_example(monkeypatch):
    def materialized(x, tables, active, gathered=None, row_scope=None, product=None):
        a, b = gathered or low_rank_update.gather_tables(tables, active, x.dtype)
        return ops.matmul(x, ops.matmul(a, b))

    monkeypatch.setattr(low_rank_kernel, "low_rank_update", materialized)
    assert exceeded("training")["flops"] > 4


@pytest.mark.skipif(BACKEND == "jax", reason="XLA moves look-ups out of the loop")
def test_the_guard_sees_look_ups_for_every_token(monkeypatch):
    monkeypatch.setattr(low_rank_kernel, "gather_tables", lambda *_: None)
    assert exceeded("decoding")["operations"] > 60


def test_products_do_not_depend_on_the_number_of_values():
    assert WORKLOAD.values == 8
    few, many = (share(training_cost, values) for values in (None, 512))
    assert few.flops == many.flops
    assert few.operations == many.operations
