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
# # Adapters on a quantized base
#
# A base that takes part in no training can be kept in 8 or 4 bits: with adapters in
# floating point on top, this is the counterpart of QLoRA. The order is *quantize, then
# adapt*. This guide measures what it saves and what it costs, trains adapters on a
# 4-bit base, and shows the two things that are refused.
#
# The stored run took 73 s of processor time on one core of a busy machine, a good part
# of it compilation.
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

# "jax", "tensorflow" or "torch": the guide is the same on all three.
os.environ.setdefault("KERAS_BACKEND", "jax")

import gc
import time
import warnings
from pathlib import Path

import cldr_adapters
import intervals
import keras
import matplotlib.pyplot as plt

import keras_flix
from keras_flix.evaluation import evaluate

keras.utils.set_random_seed(0)

# The one thing to change for a real Gemma: "gemma3_270m" or "gemma3_1b".
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Adapters to start from
#
# `cldr_gemma` is a true Gemma of 1.3 million parameters that lies beside this guide.
# So does a file of adapters that were trained on it in floating point:
# `cldr_adapters.py` says how. They know ten tasks in 18 languages. A prompt says
# neither: `2024-07-24 3 = ` is a date, and the features decide what is made of it.
#
# Training left out two tasks of every language. The other pairs are solved nearly
# always, so the ones left out, *unseen*, show better what a change of the base costs.
#
# With another preset, `add_adapters` trains them first.


# %%
*_, unseen = cldr_adapters.mixtures(test_per_cell=2)
gemma = cldr_adapters.load_base(PRESET)
cldr_adapters.add_adapters(gemma, PRESET)
path = OUTPUT / "before_quantization.flix.safetensors"
keras_flix.save_adapters(gemma, path)

results = {}


def note(name, model):
    """Keeps the size of a model's base, and which of its answers are right."""
    size = keras_flix.flix_summary(model, print_fn=None).base_bytes / 1e6
    scores = evaluate(model, unseen, batch_size=72)
    both = zip(scores.predictions, scores.references)
    results[name] = size, [100.0 * (answer == wanted) for answer, wanted in both]
    exact = scores.overall()["exact_match"]
    print(f"{name}: {size:.2f} MB of base weights, {exact:.1f} % exact match")
    return scores


scores = note("floating point", gemma)
for i in range(0, len(unseen), 12):
    task, language = (scores.features[name][i] for name in ("task", "language"))
    print(f"{task:14} {language}  {scores.predictions[i]}")

# %% [markdown]
# ## Quantize, then load the adapters
#
# The filter matters. Keras' quantized embeddings round what they turn into logits, and
# no proper gradient comes back through that. Leave them in floating point.
#
# It is the backbone that is quantized: a whole task has a tokenizer too, and Keras may
# try to quantize that.


# %%
def no_embeddings(layer):
    return not isinstance(layer, keras.layers.Embedding)


# Keras collects garbage for every kernel that it replaces: let it look at less. And
# it warns about layers that have nothing to quantize.
gc.freeze()
warnings.filterwarnings("ignore", message=".* does not have a `quantize` method")


for mode in ("int8", "int4"):
    quantized = cldr_adapters.load_base(PRESET)
    quantized.backbone.quantize(mode, filters=no_embeddings)
    keras_flix.load_adapters(quantized, path)
    quantized.compile(sampler="greedy")
    note(mode, quantized)

# %% [markdown]
# The adapters were trained on the base in floating point, and the rounded one is not
# quite that base. What rounding costs is the difference between the lines above: with
# this model nothing that 72 examples would show. A large model was not measured.
#
# ## Train on the 4-bit base
#
# The last model is still there: a 4-bit base with the adapters of the file. Now it gets
# examples of the pairs that were left out. Only the adapters train, on top of the
# kernels as they were rounded. To adapt a quantized base from the beginning, call
# `enable_flix` after `quantize` instead of `load_adapters`; `fit` is the same.

# %%
pairs = [{"task": task, "language": lang} for task, lang in cldr_adapters.HELD_OUT]
_, late = cldr_adapters.grid()[0].split(*pairs)
STEPS, BATCH_SIZE = 30, 32
cldr_adapters.compile_model(quantized, STEPS, learning_rate=3e-3)
inputs = late.sample(STEPS * BATCH_SIZE)
quantized.fit(inputs, batch_size=BATCH_SIZE, shuffle=False, verbose=0)
note("int4, trained on", quantized)
summary = keras_flix.flix_summary(quantized, print_fn=None)
print(f"{summary.trainable:,} parameters train.")

# %% [markdown]
# In one picture. (After the training, "unseen" is no longer true of the pairs, only of
# the examples.) The embeddings stay as they are, and they are a large part of a model
# this small. Error bars are 95 % intervals by the bootstrap over the 72 examples: they
# show what other examples might do to a score. All four models answer the same ones.

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(7.2, 2.8), sharey=True, layout="constrained", facecolor="white"
)
for row, (size, values) in enumerate(results.values()):
    left.barh(row, size, color="C0")
    left.text(size, row, f" {size:.1f}", va="center")
    mean = sum(values) / len(values)
    right.errorbar(
        mean, row, xerr=intervals.error_bar(values), fmt="o", color="C1", capsize=3
    )
    right.text(mean, row - 0.15, f"{mean:.0f}", ha="center", va="bottom")
left.set_yticks(range(len(results)), list(results))
left.set_ylim(len(results) - 0.5, -0.6)
left.set_xlim(0, 1.2 * max(size for size, _ in results.values()))
left.set_ylabel("kernels of the base")
left.set_xlabel("base weights in MB")
right.set_xlim(0, 105)
right.set_xlabel("exact match in % (bars: 95 % interval)")
right.grid(axis="x", alpha=0.3)
figure.savefig(OUTPUT / "quantized.png", dpi=110)

# %% [markdown]
# ## What is refused
#
# Training with quantized embeddings, because it would go wrong in silence. Generating
# with such a model works.

# %%
everything = cldr_adapters.load_base(PRESET)
everything.backbone.quantize("int8")
keras_flix.load_adapters(everything, path)
try:
    cldr_adapters.compile_model(everything, steps=1)
    everything.fit(late.sample(8), verbose=0)
except ValueError as error:
    print(error)

# %% [markdown]
# And merging into a quantized base, because the sum would have to be rounded once more.

# %%
combination = {"task": "full_date", "language": "en"}
try:
    keras_flix.merge_features(quantized, combination)
except ValueError as error:
    print(error)

# %% [markdown]
# Load the adapters into a base in floating point instead. The adapters were trained to
# fit the rounded one, but the difference is small. What comes out is a plain Gemma,
# which may be quantized like any other.

# %%
trained = OUTPUT / "int4.flix.safetensors"
keras_flix.save_adapters(quantized, trained)
gemma = keras_flix.load_adapters(cldr_adapters.load_base(PRESET), trained)
merged = keras_flix.merge_features(gemma, combination)
print(f"{merged.count_params():,} parameters, {type(merged).__name__}")

# %% [markdown]
# ## Also good to know
#
# - `int8`, `int4`, GPTQ and AWQ work on all three backends; the
#   [support table](support.md) has the line of each. `float8` is refused.
# - Quantization saves memory of weights. A training step makes kernels floating-point
#   for a while, so its peak does not go down: see `benchmarks/cost/quantized.py`.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
