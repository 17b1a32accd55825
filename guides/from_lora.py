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
# # From LoRA to FLix
#
# You fine-tune with a LoRA today, by KerasHub's `enable_lora` or by Hugging Face PEFT.
# This guide goes through your code line by line: what changes, and what stays.
#
# **In short**: a LoRA is FLix with one feature that every example has. That is no
# likeness but the same formula, and this guide checks it: the same factors give the
# same outputs and take the same training step, bit by bit, and PEFT computes what the
# Keras model does. So a first step costs nothing: write your LoRA as `Feature("shared",
# always=True)`, see the numbers that you know, then add the task and the language as
# features.
#
# In Colab, put the address of the repository into the next cell and run it.
# In a checkout with `pip install ".[jax,torch,guides,evidence]"`, there is nothing to
# do. (PyTorch, transformers and PEFT are for the comparison with PEFT alone.)

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

# "jax", "tensorflow" or "torch": the guide is the same on all three.
os.environ.setdefault("KERAS_BACKEND", "jax")

import shutil
import time
import warnings
from pathlib import Path

import cldr_adapters
import keras
import numpy as np

import keras_flix

keras.utils.set_random_seed(0)

# The one thing to change for a real Gemma: "gemma3_270m" or "gemma3_1b".
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
# What the guide writes, anew.
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output"))) / "from_lora"
shutil.rmtree(OUTPUT, ignore_errors=True)
OUTPUT.mkdir(parents=True)
SMALL = cldr_adapters.SMALL == PRESET

# %% [markdown]
# ## 1. Line by line, from KerasHub
#
# | | LoRA in KerasHub | FLix |
# | --- | --- | --- |
# | adapt | `gemma.backbone.enable_lora(rank=4)` | `keras_flix.enable_flix(gemma, features, rank=4)` |
# | which layers | `target_layer_names=[...]`, by default `["query", "value"]` | `targets=["query", "value"]`, a regex, or `"all-linear"`; by default all attention projections |
# | compile | after `enable_lora` | after `enable_flix`, the same line |
# | an example | a text; with Gemma 3 `prompts`, `responses` | `prompts`, `responses` (or `text`), and one entry per feature: `task`, `language` |
# | the loss counts | the whole text; with Gemma 3 the response | the response (of a `text` all of it) |
# | train | `gemma.fit(data)` | `gemma.fit(data)` |
# | ask | `gemma.generate(prompts)` | `gemma.generate({"prompts": prompts, "task": "qa", "language": "sw"})` |
# | save | `gemma.backbone.save_lora_weights("x.lora.h5")` | `keras_flix.save_adapters(gemma, "x.flix.safetensors")` |
# | load | `enable_lora`, then `load_lora_weights` | `keras_flix.load_adapters(gemma, "x.flix.safetensors")`, onto a plain base, too |
# | merge | `gemma.save(...)` merges | `keras_flix.merge_features(gemma, {"task": "qa", "language": "sw"})`; `save` keeps the adapters |
#
# What is the same: the base is frozen and its weights stay as they are, `B` begins at
# zero, so the model begins as the base; the scale is `alpha / rank`, and 1 if you say
# nothing; optimizer, loss, callbacks and data pipelines are those that you have.
#
# What is not:
#
# - Keras trains the biases of the layers that it adapts. FLix freezes them, unless
#   `train=` names the layers. (Gemma has none.)
# - `save_lora_weights` counts layers, a FLix file names them. It holds features and
#   ranks as well, so that loading needs no arguments.
# - In attention layers Keras factors something else; see below.
#
# As code, on a small Gemma. First the LoRA that you have:

# %%
lora = cldr_adapters.load_base(PRESET)
lora.backbone.enable_lora(rank=4)
count = sum(int(np.prod(v.shape)) for v in lora.trainable_variables)
print(f"KerasHub's LoRA: {count:,} trained parameters")

# %% [markdown]
# The same idea in this library is one feature that all examples have. Nothing is added
# to the inputs:

# %%
one = cldr_adapters.load_base(PRESET)
shared = keras_flix.Feature("shared", always=True)
keras_flix.enable_flix(one, [shared], rank=4, targets=["query", "value"], seed=0)
print(f"FLix as a LoRA: {keras_flix.flix_summary(one, print_fn=None).trainable:,}")

# %% [markdown]
# And this is FLix: features with values, of which every example states its own.

# %%
flix = cldr_adapters.load_base(PRESET)
features = [
    keras_flix.Feature("task", ["duration", "currency"]),
    keras_flix.Feature("language", ["en", "fr", "hi"]),
    shared,
]
keras_flix.enable_flix(flix, features, rank=4, targets=["query", "value"], seed=0)
print(f"FLix: {keras_flix.flix_summary(flix, print_fn=None).trainable:,}")

train, _ = cldr_adapters.grid(("duration", "currency"), ("en", "fr", "hi"), 16)
examples = train.sample(64)
texts = [p + r for p, r in zip(examples["prompts"], examples["responses"])]
for name, model, data in (
    ("KerasHub's LoRA", lora, texts),
    ("FLix as a LoRA", one, {"text": texts}),
    ("FLix", flix, examples),
):
    cldr_adapters.compile_model(model, steps=4)
    history = model.fit(data, batch_size=16, shuffle=False, verbose=0)
    print(f"{name}: loss {history.history['loss'][0]:.3f}")
print("entries:", *examples)

# %% [markdown]
# (The first two count the whole text, the third the response alone, which nobody knows
# at first. Four steps say nothing about which is better.
# [does_flix_help](does_flix_help.ipynb) does, and has the [Settings to start
# with](does_flix_help.ipynb#settings-to-start-with): a rate below that of your LoRA,
# since an example has several updates now.)
#
# ## 2. Is a LoRA the special case, exactly?
#
# One dense layer, adapted by Keras and by FLix with the same factors `A` and `B`. All
# numbers are small multiples of powers of two, which `float32` holds without rounding,
# also in sums and products. So what is equal must be equal bit by bit, in whatever
# order it is computed: the outputs, and both factors after a step of SGD.

# %%
generator = np.random.default_rng(0)


def whole(*shape, unit=1.0):
    """Random multiples of `unit`, of either sign."""
    return generator.integers(-2, 3, shape).astype("float32") * unit


x, target = whole(8, 16), whole(8, 8)
kernel, a, b = whole(16, 8), whole(16, 4), whole(4, 8, unit=0.25)


def dense():
    """A model of one dense layer."""
    inputs = keras.Input((16,), name="x")
    layer = keras.layers.Dense(8, use_bias=False, name="dense")
    model = keras.Model({"x": inputs}, layer(inputs))
    layer.kernel.assign(kernel)
    return model, layer


by_keras, layer = dense()
layer.enable_lora(4, lora_alpha=8)
by_flix, _ = dense()
keras_flix.enable_flix(by_flix, [shared], rank=4, alpha=8, targets=["dense"])

after = []
for model in (by_keras, by_flix):
    # FLix keeps one A and one B per value; the first axis says which.
    for variable, factor in zip(model.trainable_variables, (a, b)):
        variable.assign(factor.reshape(variable.shape))
    outputs = np.asarray(model.predict_on_batch({"x": x}))
    model.compile(optimizer=keras.optimizers.SGD(2.0**-6), loss="mse")
    model.train_on_batch({"x": x}, target)
    stepped = map(keras.ops.convert_to_numpy, model.trainable_variables)
    after.append(
        [outputs, *(factor.reshape(-1, factor.shape[-1]) for factor in stepped)]
    )

for name, keras_has, flix_has in zip(("outputs", "A", "B"), *after):
    assert np.array_equal(keras_has, flix_has)
    print(f"{name}: {keras_has.size} numbers, all equal; largest {keras_has.max():g}")
assert not np.array_equal(after[0][1], a)
print(f"A moved by up to {np.abs(after[0][1] - a).max():g}")

# %% [markdown]
# ## 3. What Keras' LoRA does in attention layers
#
# A query's kernel in Gemma has three axes, `(heads, in, head_dim)`. Keras factors its
# last one: `A` is `(heads, in, rank)`, so heads have an `A` each and share `B`. FLix
# multiplies the heads out, as PEFT does: one matrix `(in, heads * head_dim)` of rank
# `r`. That has fewer parameters, and is what other libraries call a LoRA, so it can be
# exported to them. On a `Dense` kernel both are the same, as above.

# %%
for name, model in (("Keras", lora), ("FLix", one)):
    query = model.backbone.get_layer("decoder_block_0").attention.query_dense
    shapes = [tuple(variable.shape) for variable in query.trainable_variables]
    print(f"{name}: kernel {tuple(query.kernel.shape)}, A and B {shapes}")

# %% [markdown]
# So a LoRA of KerasHub in attention layers does not turn into a FLix file of the same
# rank. Train it anew, or keep it merged into the base: `enable_flix` on the merged
# model goes on from there.
#
# ## 4. Line by line, from PEFT
#
# | `LoraConfig` | `enable_flix` |
# | --- | --- |
# | `r=8` | `rank=8`; by feature `{"task": 8, "language": 2}`, by value `{"language": {"en": 2, "*": 4}}` |
# | `lora_alpha=16` | `alpha=16`. PEFT's default is 8 for any `r`; here `alpha=None` is a scale of 1 |
# | `use_rslora=True` | `scale="sqrt"` |
# | `target_modules=["q_proj", "v_proj"]` | `targets=["query", "value"]`: Keras' names |
# | `target_modules="all-linear"` | `targets="all-linear"` |
# | `lora_dropout=0.1` (of activations) | no such thing: `dropout=` drops *features* of an example |
# | `modules_to_save=["score"]` | `train=["score"]`; heads of classifiers train anyway |
# | `trainable_token_indices=[5]` | `trainable_tokens=[5]` |
# | `init_lora_weights`: `A` uniform, `B` zero | `A` normal with `in ** -0.5`, `B` zero |
# | one adapter per task, `set_adapter` | one model: the task of an example is an entry of its inputs |
# | `add_weighted_adapter` | an entry of weights, `{"es": 0.5, "pt": 0.5}`; `keras_flix.fit_blend` learns them |
# | `merge_and_unload()` | `keras_flix.merge_features(gemma, combination)` |
#
# A batch of PEFT has one adapter in training, and may mix several in inference
# (`adapter_names`). Here each example has its own combination, in training as well.
#
# The numbers: the LoRA of above, on all linear layers, goes to PEFT and back to logits.
# (Tokens come from the Keras preprocessor, so only the models are compared.)

# %%
gemma = cldr_adapters.load_base(PRESET)
keras_flix.enable_flix(gemma, [shared], rank=4, alpha=8, targets="all-linear", seed=0)
for variable in gemma.trainable_variables:
    # As if trained: B would be zero.
    variable.assign(generator.normal(size=variable.shape) * 0.05)
keras_flix.export_lora(gemma, {}, OUTPUT / "lora")

tokens = gemma.preprocessor.generate_preprocess(["2024-07-24 3 = "])
length = int(np.asarray(tokens["padding_mask"]).sum())
ids = np.asarray(tokens["token_ids"])[:, :length]
ours = gemma({"token_ids": ids, "padding_mask": np.ones_like(ids)})
ours = keras.ops.convert_to_numpy(keras.ops.cast(ours, "float32"))

# %%
if SMALL:
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        print(f"not run: {error}")
    else:
        base = str(OUTPUT / "base")
        cldr_adapters.save_for_transformers(cldr_adapters.load_base(PRESET), base)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(base).float().eval()
        # PEFT's own, to count what it would train.
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        counted = peft.get_peft_model(theirs, config)
        trained = sum(p.numel() for p in counted.parameters() if p.requires_grad)
        own = keras_flix.flix_summary(gemma, print_fn=None).trainable
        print(f"trained parameters: PEFT {trained:,}, FLix {own:,}")
        assert trained == own
        # The exported one, on the base without the other.
        loaded = peft.PeftModel.from_pretrained(
            counted.unload(), OUTPUT / "lora"
        ).eval()
        with torch.no_grad():
            logits = loaded(torch.tensor(ids, dtype=torch.long)).logits.numpy()
            with loaded.disable_adapter():
                without = loaded(torch.tensor(ids, dtype=torch.long)).logits.numpy()
        print(f"Keras and PEFT differ by {np.abs(ours - logits).max():.0e}")
        print(f"without the LoRA by {np.abs(ours - without).max():.1f}")
        assert np.abs(ours - logits).max() < 1e-3 < np.abs(ours - without).max()

# %% [markdown]
# ## 5. What FLix adds is a LoRA again, per combination
#
# An example of `{"task": "duration", "language": "hi"}` gets the sum of three updates,
# here of rank 4 each: a LoRA of rank 12, which no other example has to share. It can be
# merged or exported like any LoRA, pairs that training never saw as well.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras_flix.export_lora(
        flix, {"task": "duration", "language": "hi"}, OUTPUT / "duration_hi"
    )
print(*sorted(path.name for path in (OUTPUT / "duration_hi").iterdir()))
merged = keras_flix.merge_features(flix, {"task": "duration", "language": "hi"})
summary = keras_flix.flix_summary(flix, print_fn=None)
assert merged.count_params() == summary.total - summary.trainable
print(f"{type(merged).__name__}, with the {merged.count_params():,} of the base")

# %% [markdown]
# ## When a LoRA is enough
#
# One task, one language; or many where the base follows its prompts and you have plenty
# of examples for all. Then keep `Feature("shared", always=True)` alone. For the rest,
# [does_flix_help](does_flix_help.ipynb) has numbers, with their intervals.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
