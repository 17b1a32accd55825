"""Rematerialized layers on TensorFlow: what its graph optimizer leaves of them."""

import keras
import numpy as np
import pytest

import keras_flix
from keras_flix._compat import rematerialization

READS = ("ReadVariableOp", "ResourceGather")


def optimized(step):
    """The largest graph that TensorFlow runs in a step, as its optimizer left it."""
    from tensorflow.python.eager import context

    context.context().enable_graph_collection()
    try:
        step()
        graphs = context.context().export_run_metadata().function_graphs
    finally:
        context.context().disable_graph_collection()
    return max((g.post_optimization_graph for g in graphs), key=lambda g: len(g.node))


def not_in_order(graph):
    """Reads of variables that may come before or after the update, as it happens."""
    inputs = {
        n.name: [i.lstrip("^").split(":")[0] for i in n.input] for n in graph.node
    }

    def before(name):
        found, left = set(), [*inputs[name]]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += inputs[one]
        return found

    reads = {n.name: n.input[0] for n in graph.node if n.op in READS}
    updates = [n for n in graph.node if n.op.startswith("Assign")]
    assert reads and updates
    return [
        (read, update.name)
        for update in updates
        for earlier in [before(update.name)]
        for read, variable in reads.items()
        if variable == update.input[0]
        and read not in earlier
        and update.name not in before(read)
    ]


def trained_once(mode="full"):
    """A function that trains an adapted model for a step."""
    keras.utils.set_random_seed(0)
    with keras.RematScope(mode=mode, layer_names=["hidden"]):
        x = keras.Input((6,), name="x")
        hidden = keras.layers.Dense(5, name="hidden")(x)
        model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(hidden))
    features = {"language": ["en", "sw", "yo"]}
    keras_flix.enable_flix(model, features, targets="all-linear", rank=2, seed=0)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    rows = {"x": np.ones((3, 6)), "language": ["en", None, "yo"]}
    return lambda: model.train_on_batch(rows, np.ones((3, 4)))


needs_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="of TensorFlow's graphs"
)


@needs_tensorflow
@pytest.mark.parametrize("mode", ["full", "list_of_layers"])
def test_no_update_comes_before_what_is_computed_again(mode, monkeypatch):
    """Gradients were those of weights that other threads had updated by then."""
    assert not not_in_order(optimized(trained_once(mode)))
    # TensorFlow has mended it, and this need not be taken care of, once this fails.
    monkeypatch.setattr(rematerialization, "_updates_may_overtake", lambda: False)
    assert not_in_order(optimized(trained_once(mode)))


@needs_tensorflow
def test_no_update_comes_before_in_a_gemma_either(make_gemma):
    """Its blocks are layers of a base that does not train, with tables inside."""
    with keras.RematScope(mode="full"):
        model = make_gemma(preprocessor=False)
    keras_flix.enable_flix(model, {"language": ["en", "sw"]}, rank=2, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss=loss)
    tokens = np.ones((2, 4), "int32")
    rows = {"token_ids": tokens, "padding_mask": tokens, "language": ["en", "sw"]}
    assert not not_in_order(optimized(lambda: model.train_on_batch(rows, tokens)))


@needs_tensorflow
def test_gradients_of_frozen_kernels_are_not_computed(monkeypatch):
    def products(graph):
        return sum(n.op in ("MatMul", "BatchMatMulV2") for n in graph.node)

    found = products(optimized(trained_once()))
    monkeypatch.setattr(rematerialization, "_updates_may_overtake", lambda: False)
    assert found <= products(optimized(trained_once())) + 2  # Of the model's input.
