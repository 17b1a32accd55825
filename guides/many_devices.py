# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many devices
#
# On JAX, an adapted model is distributed with `keras.distribution`, as any Keras model:
#
# - `DataParallel`: every device has the whole model and a part of the batch;
# - `ModelParallel`: kernels are cut in parts, and the adapter weights with them.
#
# This guide trains the same model three ways, on one device and on eight, and compares
# losses and weights. The eight devices are virtual ones on a single CPU: that shows
# where everything lies and that the numbers are right. It says nothing about speed:
# eight virtual devices on one core are slower than one.
#
# The stored run took 49 s of processor time on one core of a busy machine, most of it
# compilation.
#
# TensorFlow and PyTorch have their own ways, which are at the end as text.
#
# In Colab, put the address of the repository into the next cell and run it.
# In a checkout with
# `pip install ".[jax,guides]"`, there is nothing to do.

# %%
# In Colab: the address that the repository is cloned from.
REPOSITORY = ""

import sys

if REPOSITORY and "google.colab" in sys.modules:
    import os
    import subprocess

    subprocess.run(["git", "clone", REPOSITORY, "keras_flix"], check=True)
    os.chdir("keras_flix/guides")
    install = [sys.executable, "-m", "pip", "install", "-q", "..[jax,guides]"]
    subprocess.run(install, check=True)

# %%
import os

# `keras.distribution` is carried out by JAX; by PyTorch, from Keras 3.16 on in part.
os.environ["KERAS_BACKEND"] = "jax"
# Eight devices out of one CPU; where there are accelerators, JAX takes those. The other
# two flags compile quickly rather than well: leave them out for real work.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import contextlib
import time
from pathlib import Path

import cldr_adapters
import jax
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np

import keras_flix

# The one thing to change for a real Gemma: "gemma2_2b_en". (KerasHub has no layout map
# for Gemma 3 yet, which ModelParallel needs; DataParallel works with any.)
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)
SMALL = cldr_adapters.SMALL == PRESET
print(len(jax.devices()), "devices of kind", jax.devices()[0].device_kind)

# %% [markdown]
# ## A model and a few steps
#
# Whatever the distribution, this code is the same: load, adapt, train. One thing is
# new: `add_adapter_rules`, which only `ModelParallel` needs. (With the small Gemma,
# adapters that are trained already go on for five steps: losses are small from the
# start, and need not fall.)

# %%
STEPS, BATCH_SIZE = 5, 16
EXAMPLES = cldr_adapters.mixtures()[0].sample(STEPS * BATCH_SIZE, seed=1)


class Losses(keras.callbacks.Callback):
    """Keeps the mean loss up to every step."""

    def on_train_begin(self, logs=None):
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(float(logs["loss"]))


def run(layout_map=None):
    """Trains an adapted model; returns it with its losses and the rules."""
    keras.utils.set_random_seed(0)
    gemma = cldr_adapters.load_base(PRESET)
    rules = None
    if layout_map is not None:
        rules = keras_flix.add_adapter_rules(layout_map, gemma)
    if SMALL:
        keras_flix.load_adapters(gemma, cldr_adapters.FILE)
    else:
        features = cldr_adapters.features()
        keras_flix.enable_flix(gemma, features, targets="all-linear", seed=0)
    gemma.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )
    losses = Losses()
    gemma.fit(
        EXAMPLES, batch_size=BATCH_SIZE, shuffle=False, verbose=0, callbacks=[losses]
    )
    return gemma, losses.found, rules


# %% [markdown]
# ## One device

# %%
results, models = {}, {}


def note(name, distribution=None, layout_map=None):
    start = time.process_time()
    with distribution.scope() if distribution else contextlib.nullcontext():
        models[name], results[name], rules = run(layout_map)
    texts = ", ".join(f"{loss:.6f}" for loss in results[name])
    print(
        f"{name}: losses {texts}; {time.process_time() - start:.0f} s with compilation"
    )
    return rules


note("one device")

# %% [markdown]
# ## DataParallel
#
# Set the distribution before the model is built, and adapt the model under it. (Here
# as a scope, since there is more to come; `keras.distribution.set_distribution` sets
# it for good.)

# %%
note("DataParallel", keras.distribution.DataParallel())

# %% [markdown]
# ## ModelParallel
#
# KerasHub has the layout map of Gemma's kernels. `add_adapter_rules` adds rules for the
# adapter weights, so that they are cut as their kernel is. Without rules, every device
# would hold them whole: just as exact, and more memory.
#
# The mesh must divide the model: the small Gemma has two key-value heads, so its axis
# "model" can be two long. Gemma 2 with 2 billion parameters has four.

# %%
count = len(jax.devices())
heads = 2 if SMALL else 4
mesh = keras.distribution.DeviceMesh((count // heads, heads), ("batch", "model"))
layout_map = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
rules = note(
    "ModelParallel",
    keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch"),
    layout_map,
)
for pattern, axes in rules.items():
    print(pattern, axes)

# %% [markdown]
# ## The same numbers
#
# Sums are taken in another order, so the last digits may differ.


# %%
def weights(model):
    return {v.path: np.asarray(v.value) for v in model.trainable_variables}


expected = weights(models["one device"])
for name in ("DataParallel", "ModelParallel"):
    pairs = zip(results["one device"], results[name])
    loss = max(abs(a - b) for a, b in pairs)
    found = weights(models[name])
    weight = max(np.abs(found[path] - expected[path]).max() for path in expected)
    print(f"{name}: losses differ by up to {loss:.0e}, weights by up to {weight:.0e}")

# %% [markdown]
# Generation works as before, on a model that is spread over eight devices too.

# %%
answers = models["ModelParallel"].generate(
    {
        "prompts": ["2024-07-24 3 = "] * 8,
        "task": "full_date",
        "language": ["en", "sv", "es", "fr", "ru", "bg", "hi", "ar"],
    },
    strip_prompt=True,
)
print(*answers, sep="\n")

# %% [markdown]
# ## What lies where
#
# The weights `B` of a query layer: 18 languages, 128 outputs; the shape of the whole
# and of the part that one device holds. Then the memory of one device.


# %%
def part(variable):
    return variable.value.addressable_shards[0].data


first = "/query/flix_language_b"
memory = {}
for name, model in models.items():
    one = next(v for v in model.trainable_variables if v.path.endswith(first))
    print(f"{name}: {tuple(one.shape)}, a device holds {part(one).shape}")
    adapters = {id(v) for v in model.trainable_variables}
    memory[name] = [
        sum(part(v).nbytes for v in model.weights if (id(v) in adapters) is wanted)
        for wanted in (False, True)
    ]

# %%
figure, axes = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
base, adapters = np.array(list(memory.values())).T / 1e6
axes.barh(list(memory), base, label="base")
axes.barh(list(memory), adapters, left=base, label="adapters")
for row, total in enumerate(base + adapters):
    axes.text(total, row, f" {base[row]:.2f} + {adapters[row]:.2f}", va="center")
axes.set_xlim(0, 1.25 * (base + adapters).max())
axes.set_xlabel("weights on one device in MB")
axes.set_ylabel("distribution")
axes.invert_yaxis()
axes.legend(loc="lower right")
figure.savefig(OUTPUT / "many_devices.png", dpi=110)

# %% [markdown]
# Adapter files know nothing of devices: what `save_adapters` writes under one
# distribution loads under any other, or without one.

# %%
path = OUTPUT / "from_eight_devices.flix.safetensors"
keras_flix.save_adapters(models["ModelParallel"], path)
loaded = keras_flix.load_adapters(cldr_adapters.load_base(PRESET), path)
expected = weights(models["ModelParallel"])
found = weights(loaded)
print(all(np.array_equal(found[path], expected[path]) for path in expected))

# %% [markdown]
# ## Mistakes that are refused
#
# A model that was built before the distribution was set would stay on one device.

# %%
early = cldr_adapters.load_base(PRESET)
with keras.distribution.DataParallel().scope():
    try:
        keras_flix.enable_flix(early, {"task": ["qa"]})
    except ValueError as error:
        print(error)

# %% [markdown]
# Keras ignores a `keras.distribution` on TensorFlow, and before 3.16 on PyTorch,
# without a word; `enable_flix` refuses it there too.
#
# ## TensorFlow and PyTorch
#
# Not run here; the tests of the repository run both on two virtual devices
# (`tests/models/adapted/on_devices`).
#
# TensorFlow: everything in the scope of a `MirroredStrategy`.
#
# ```python
# strategy = tf.distribute.MirroredStrategy()
# with strategy.scope():
#     gemma = keras_hub.models.CausalLM.from_preset("gemma3_1b")
#     keras_flix.enable_flix(gemma, {"task": ["qa", "parse"]})
#     gemma.compile(optimizer=keras.optimizers.Adam(1e-3))
# gemma.fit(...)
# ```
#
# PyTorch: `DistributedDataParallel` in a training loop of your own. Only adapter
# weights require gradients, so only they are exchanged, and `find_unused_parameters` is
# not needed.
#
# ```python
# keras_flix.enable_flix(gemma, {"task": ["qa", "parse"]})
# ddp = torch.nn.parallel.DistributedDataParallel(gemma)
# optimizer = torch.optim.Adam([p for p in ddp.parameters() if p.requires_grad])
# logits = ddp({"token_ids": ..., "padding_mask": ..., "task": [...]}, training=True)
# ```
#
# Each of their devices draws its own feature dropout, so with dropout the numbers are
# others than those of one device.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
