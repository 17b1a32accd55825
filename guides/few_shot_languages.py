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
# # Unseen pairs and languages with few examples
#
# Adapters of ten tasks in 18 languages are trained. What do they do where training had
# no examples, or hardly any?
#
# 1. **Unseen pairs**: a known task in a known language, never seen together.
# 2. **A new language, no examples**: the feature left out, a relative, a mixture of
#    two.
# 3. **A new language, 40 examples**: a blend of known languages, or an update of its
#    own.
#
# The new language is Galician, whose nearest relative is Portuguese. The base has never
# met a Galician text.
#
# The stored run took 86 s of processor time on one core of a busy machine, most of it
# compilation.
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

import time
from pathlib import Path

import cldr_adapters
import intervals
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_flix
from keras_flix.evaluation import forced_exact_match
from keras_flix.mixtures import Mixture

keras.utils.set_random_seed(0)

# The one thing to change for a real Gemma: "gemma3_270m" or "gemma3_1b".
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)

gemma = cldr_adapters.load_base(PRESET)
cldr_adapters.add_adapters(gemma, PRESET)


def right(inputs):
    """100 for each example whose greedy answer is right, else 0.

    One forward pass tells whether generation would give the whole answer.
    """
    x, y, sample_weight = gemma.preprocess_samples(inputs)
    return 100.0 * np.asarray(forced_exact_match(gemma, x, y, sample_weight, 40))


def score(inputs):
    """Exact match in %."""
    return float(right(inputs).mean())


# %% [markdown]
# ## 1. Unseen pairs
#
# Training left out two tasks of every language. Nothing needs to be done for such a
# pair: the update of its task and that of its language add up.

# %%
_, seen, unseen = cldr_adapters.mixtures(test_per_cell=3)
print(f"{score(seen.limit(1).inputs()):.1f} % on new examples of seen pairs")
print(f"{score(unseen.inputs()):.1f} % on pairs that were never seen")

# %% [markdown]
# Both updates are needed. A prompt such as `2024-07-24 3 = ` says neither task nor
# language, so without the one or the other much less is right:

# %%
for feature in ("task", "language"):
    inputs = {**unseen.inputs(), feature: None}
    print(f"{score(inputs):.1f} % on unseen pairs without {feature}")

# %% [markdown]
# ## 2. Galician without an example
#
# An entry of a feature may be a value, `None`, or weights by value: the updates are
# then added with these weights. Nothing is trained.

# %%
NEW, FEW = "gl", 4
cells = [cldr_adapters.cell(task, NEW, FEW + 16) for task in cldr_adapters.TASKS]
few = Mixture([cell.select(slice(FEW)) for cell in cells]).inputs()
test = Mixture([cell.select(slice(FEW, None)) for cell in cells]).inputs()
print(f"{len(test['prompts'])} test examples, such as")
for i in range(0, len(test["prompts"]), 48):
    print(f"{test['task'][i]:14} {test['prompts'][i]!r} -> {test['responses'][i]!r}")


def right_as(language):
    """Which test examples are answered right with this entry for the language."""
    return right({**test, "language": [language] * len(test["prompts"])})


results = {
    "language left out": right_as(None),
    "as Spanish": right_as("es"),
    "as Portuguese": right_as("pt"),
    "0.7 Portuguese + 0.3 Spanish": right_as({"pt": 0.7, "es": 0.3}),
}
for name, values in results.items():
    print(f"{values.mean():5.1f}  {name}")

# %% [markdown]
# ## 3. Galician with 40 examples
#
# Four examples of each task. `fit_blend` learns how much of each known language to
# take, one number each, and nothing else; the blend becomes a new value. Weights may
# be negative, and need not add up to one.

# %%
examples = {name: column for name, column in few.items() if name != "language"}
cldr_adapters.compile_model(gemma, steps=1)  # For its loss.
blend = keras_flix.fit_blend(
    gemma,
    "language",
    "gl_blend",
    examples,
    init={"pt": 0.7, "es": 0.3, "it": 0.0, "fr": 0.0},
    epochs=8,
)
print({value: round(weight, 2) for value, weight in blend.weights.items()})
print(f"loss {blend.losses[0]:.2f} -> {blend.losses[-1]:.2f}")

# %% [markdown]
# A blend can only say what known languages say. The words of Galician that none of them
# has need an update of their own. `add_values` adds one to the trained model, here as a
# copy of Portuguese with room for more (rank 4); without `init` it would start from
# nothing. `set_trainable` freezes all else.

# %%
keras_flix.add_values(gemma, "language", ["gl"], init="pt", rank=4)
keras_flix.set_trainable(gemma, {"language": ["gl"]})

EPOCHS, BATCH_SIZE = 25, 20
steps = EPOCHS * len(few["prompts"]) // BATCH_SIZE
cldr_adapters.compile_model(gemma, steps, learning_rate=1e-2)
before = right_as("pt")
history = gemma.fit(
    {**examples, "language": ["gl"] * len(few["prompts"])},
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    verbose=0,
)
print(f"loss {history.history['loss'][0]:.2f} -> {history.history['loss'][-1]:.2f}")
results["40 examples: fitted blend"] = right_as("gl_blend")
results["40 examples: update from Portuguese"] = right_as("gl")
for name, values in results.items():
    print(f"{values.mean():5.1f}  {name}")

# %% [markdown]
# All known languages are as they were, bit by bit: nothing is forgotten.

# %%
after = right_as("pt")
assert np.array_equal(before, after)
print(f"as Portuguese: {before.mean():.1f} % before, {after.mean():.1f} % after")

# %% [markdown]
# The whole comparison. Error bars are 95 % intervals by the bootstrap over test
# examples: how far the score might be another with other examples. Chance in training
# (one seed) is no part of them.

# %%
figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained", facecolor="white")
for row, (name, values) in enumerate(results.items()):
    mean, color = values.mean(), "C1" if "40 examples" in name else "C0"
    bar = intervals.error_bar(values)
    axes.barh(row, mean, color=color, xerr=bar, capsize=3, ecolor="#333333")
    axes.text(mean + bar[1][0] + 1, row, f"{mean:.0f}", va="center")
axes.set_yticks(range(len(results)), list(results))
axes.invert_yaxis()
axes.set_xlim(0, 100)
axes.set_xlabel("exact match in %, 160 Galician examples (bars: 95 % interval)")
axes.set_ylabel("entry for the language")
figure.savefig(OUTPUT / "few_shot_languages.png", dpi=110)

# %% [markdown]
# What this example says: without any example, a near relative is four times as good as
# no language (41 to 10 %). Other weights of known languages add next to nothing, also
# when 40 examples choose them: what Galician has of its own, the base has never seen.
# With an update of its own, the same 40 examples bring 66.2 %.
#
# The rates and numbers of steps were not searched for. `benchmarks/quality/few_shot.py`
# compares blends and own updates in three languages, with 4 to 64 examples: own updates
# win.
#
# What was tried may be removed again, and the rest kept. (The file grows beyond the
# 1.8 MB of before, as the adapter weights of all languages in a layer are as wide as
# the highest of their ranks.)

# %%
keras_flix.set_trainable(gemma, None)
keras_flix.remove_values(gemma, "language", ["gl_blend"])
path = OUTPUT / "with_galician.flix.safetensors"
keras_flix.save_adapters(gemma, path)
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
