"""Trains adapted models in two processes: on JAX, of several devices each.

    python two_processes.py FOLDER PORT RANK

Each writes what it found into `FOLDER/RANK.json`, and both into files there. With
`rank=None`, the functions do the same in one process, on one device.
"""

import json
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
from gemma import LABELS, OWN, draw, make_gemma
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix._compat import to_host

FEATURES = {"task": ["qa", "parse", "list"], "language": ["en", "sw"]}
COMBINATION = {"task": "qa", "language": "sw"}
TARGETS = ["query", "ffw_linear"]


def make_dense(optimizer):
    model = keras_flix.enable_flix(make_mlp(), FEATURES, rank=2, targets="all-linear")
    draw(model.trainable_variables)
    model.compile(optimizer, loss="mse")
    return model


def train_dense(model, rank=None, tasks=("qa", "parse", "list", None), callbacks=()):
    """Losses of two epochs of a step on eight rows, of which a process has half."""
    x = {**rows(8), "task": [*tasks] * 2, "language": ["en", "en", "sw", "sw"] * 2}
    mine = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    history = model.fit(
        {name: value[mine] for name, value in x.items()},
        np.ones((8, 4), "float32")[mine],
        batch_size=8,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
    )
    return history.history["loss"]


def train_and_grow(rank=None, callbacks=()):
    """Losses before and after the model has one more value, and the model."""
    # A larger epsilon than usual: rounding is not to decide on a step's direction.
    model = make_dense(keras.optimizers.Adam(0.01, epsilon=1e-3))
    losses = train_dense(model, rank, callbacks=callbacks)
    keras_flix.add_values(model, "task", ["sum"], init="qa")
    losses += train_dense(model, rank, tasks=("qa", "sum", "list", "sum"))
    return losses, model


def train_lazily(rank=None):
    model = make_dense(keras_flix.LazyAdam(0.01, epsilon=1e-3))
    return train_dense(model, rank), model


def train_adapted(model, rank=None):
    """The loss of a step on a batch of eight, of which a process has half."""
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = {
        **OWN,
        "task": ["qa", "parse", "list", None] * 2,
        "language": ["en", "en", "sw", "sw"] * 2,
    }
    mine = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    history = model.fit(
        {name: value[mine] for name, value in x.items()},
        LABELS[mine],
        batch_size=8,
        shuffle=False,
        verbose=0,
    )
    return history.history["loss"]


def make_adapted(layout_map=None):
    """An adapted Gemma, whose tables follow a layout map if there is one."""
    model = make_gemma()
    if layout_map is not None:
        keras_flix.add_adapter_rules(layout_map, model)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=TARGETS, seed=3)
    draw(model.trainable_variables)
    return model


def change(model):
    """Gives a model new values, by all kinds of starts, and takes one."""
    keras_flix.add_values(model, "task", ["copy"], init="qa")
    keras_flix.add_values(model, "task", ["sum"], init={"qa": 0.5, "list": 0.5})
    keras_flix.add_values(model, "language", ["rw"], rank=3)
    keras_flix.remove_values(model, "task", ["parse"])
    return model


def build_optimizer(model):
    """An optimizer whose state tells the variables' rows apart."""
    model.compile(keras.optimizers.Adam(0.01))
    model.optimizer.build(model.trainable_variables)
    draw([v for v in model.optimizer.variables if v.shape], seed=7)


def error_of(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def data_parallel(rank, folder):
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    with distribution.scope():
        backup = keras_flix.callbacks.BackupAndRestore(folder / "backup")
        losses, model = train_and_grow(rank, [backup])
        lazy_losses, lazy = train_lazily(rank)
        # A model that every process holds whole can be saved by one.
        keras_flix.save_adapters(model, folder / f"data-{rank}.flix.safetensors")
        if rank == 1:
            keras_flix.save_adapters(lazy, folder / "lazy.flix.safetensors")
    return {"losses": losses, "lazy": lazy_losses}


def model_parallel(rank, folder):
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    layout_map = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
    distribution = keras.distribution.ModelParallel(
        layout_map=layout_map, auto_shard_dataset=False
    )
    found = {}
    with distribution.scope():
        model = make_adapted(layout_map)
        assert not model.trainable_variables[0].value.is_fully_replicated
        found["fingerprint"] = keras_flix.base_fingerprint(model).digest
        path = folder / "model.flix.safetensors"
        keras_flix.save_adapters(model, path)
        keras_flix.export_lora(model, COMBINATION, folder / "lora")
        keras_flix.export_loras(model, None, folder / "loras")
        # Found by the first process alone, and raised by both.
        found["no folder"] = error_of(
            keras_flix.save_adapters, model, folder / "no" / "x.flix.safetensors"
        )
        found["full"] = error_of(
            keras_flix.export_lora, model, COMBINATION, folder / "lora"
        )
        found["hub"] = error_of(keras_flix.push_adapters, model, "hf://owner/name")
        for name, other in [("adapted", make_adapted()), ("plain", make_gemma())]:
            for variable in other.trainable_variables if name == "adapted" else ():
                variable.assign(keras.ops.zeros(variable.shape))
            keras_flix.load_adapters(other, path)
            keras_flix.save_adapters(other, folder / f"{name}.flix.safetensors")
        norms = keras_flix.analysis.update_norms(model)
        found["norms"] = norms.norms["task"].tolist()
        build_optimizer(model)
        change(model)
        keras_flix.save_adapters(model, folder / "changed.flix.safetensors")
        found["slots"] = [to_host(v).tolist() for v in model.optimizer.variables]
        keras_flix.update_from(model, path, {"task": ["qa", "parse"]})
        keras_flix.save_adapters(model, folder / "updated.flix.safetensors")
        trained = make_adapted()
        found["losses"] = train_adapted(trained, rank)
        keras_flix.save_adapters(trained, folder / "trained.flix.safetensors")
    return found


def adapted_before_model_parallel(rank):
    """Losses of a model that is whole in both processes, which share its batches."""
    model = make_dense(keras.optimizers.SGD(0.1))
    mesh = keras.distribution.DeviceMesh((2, 1), ("batch", "model"))
    distribution = keras.distribution.ModelParallel(
        layout_map=keras.distribution.LayoutMap(mesh), auto_shard_dataset=False
    )
    with distribution.scope():
        return train_dense(model, rank)


def refused_model_parallel():
    """What `enable_flix` says of a model in parts, where adapters cannot follow."""
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"))
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map["hidden/kernel"] = (None, "model")
    with keras.distribution.ModelParallel(layout_map=layout_map).scope():
        model = make_mlp()
        return error_of(keras_flix.enable_flix, model, FEATURES, targets="all-linear")


def main(folder, port, rank):
    on_jax = keras.config.backend() == "jax"
    if on_jax:
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Before anything asks for a device.
    keras.distribution.initialize(f"127.0.0.1:{port}", 2, rank)
    found = {"data": data_parallel(rank, folder)}
    if on_jax:
        found["model"] = model_parallel(rank, folder)
    else:
        found["whole"] = adapted_before_model_parallel(rank)
        found["refused"] = refused_model_parallel()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
