"""Trains an adapted Gemma on two virtual CPUs, and prints the numbers.

    python on_tensorflow.py

Prints one JSON object: for one device; for a `MirroredStrategy` over two,
without feature dropout and with it; for both a small model trained by `LazyAdam`;
and what `enable_flix` says of a model made out of the strategy's scope.
"""

import json
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import tensorflow as tf
from gemma import (
    FEATURES,
    base_of,
    draw,
    fit,
    generate,
    listed,
    make_gemma,
    predict,
    values,
)
from lazy import train_lazily

import keras_flix


def adapt(model, dropout=0.0):
    keras_flix.enable_flix(model, FEATURES, rank=2, dropout=dropout, seed=3)
    draw(model.trainable_variables)


def tables(model):
    """The tables, and those of each replica."""
    local = model.distribute_strategy.experimental_local_results
    return {
        "trained": values(model.trainable_variables),
        "copies": {
            v.path: [listed(x) for x in local(v.value)]
            for v in model.trainable_variables
        },
    }


def run(model):
    before = base_of(model)
    result = {"losses": fit(model), "base stayed": base_of(model) == before}
    return {**result, **tables(model)}


def main():
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {}
    single = make_gemma()
    try:
        with strategy.scope():
            adapt(single)
    except ValueError as error:
        results["made out of the scope"] = str(error)
    adapt(single)
    with strategy.scope():
        dropping, mirrored = make_gemma(), make_gemma()
    adapt(dropping, dropout=0.25)
    adapt(mirrored)
    models = {"single": single, "mirrored": mirrored, "dropout": dropping}
    for case, model in models.items():
        results[case] = run(model)
    results["lazy single"] = tables(train_lazily())
    with strategy.scope():
        results["lazy mirrored"] = tables(train_lazily())
    for case in ("single", "mirrored"):
        results[case]["predicted"] = listed(predict(models[case]))
        results[case]["greedy"] = generate(models[case])
    return results


if __name__ == "__main__":
    print(json.dumps(main()))
