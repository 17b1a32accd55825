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
# # Quickstart: one Gemma, many tasks, many languages, one batch
#
# A training mixture has many datasets, and every dataset has *features*: its
# task, its language. With Featurized Low-rank Mixtures (FLix,
# [arXiv 2402.17934](https://arxiv.org/abs/2402.17934)), every feature *value* owns
# a small low-rank update of the model's weights. An example is computed with the
# frozen base model plus the sum of the updates of its own values. Batches mix
# examples freely, and a pair that was never seen together (this task in that
# language) works by adding up its two parts.
#
# This guide fine-tunes a small Gemma on ten tasks in 28 languages, made from the
# Unicode CLDR data that the `Babel` package ships, and then asks it for
# (task, language) pairs that it never saw in training. It takes a few minutes on
# two CPU cores.
#
# In Colab, put the address of the repository into the next cell and run it.
# In a checkout with
# `pip install ".[jax,guides]"`, there is nothing to do.

# %%
REPOSITORY = ""  # in Colab: the address that it is cloned from

if REPOSITORY:
    import os
    import subprocess
    import sys

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

import cldr_mixture
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np

import keras_flix

START = time.time()
keras.utils.set_random_seed(0)

# %% [markdown]
# ## The base model
#
# `cldr_gemma` is a true Gemma of 1.3 million parameters, which `guides/
# pretrain_cldr_gemma.py` trained on raw CLDR records. It knows how 28 languages
# write dates, amounts and lists, but it has never met a prompt, nor the name of a
# task. With access to the weights and a GPU, `PRESET = "gemma2_2b_en"` runs the
# same guide on the real Gemma 2.

# %%
HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
PRESET = os.environ.get("FLIX_PRESET", str(HERE / "cldr_gemma"))
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)

gemma = keras_hub.models.GemmaCausalLM.from_preset(PRESET)
if "cldr_gemma" not in PRESET:
    # The small preset knows how long examples are; others pad to 1024 tokens.
    gemma.preprocessor.sequence_length = 128

# %% [markdown]
# ## The mixture
#
# Ten tasks by 28 languages make 280 cells. Two cells of every language are held
# out: training shows no example of them. Prompts are neutral: a task tag, a
# language tag, and the input in ISO form.

# %%
mixture = cldr_mixture.build_mixture(
    seed=0, train_per_cell=60, test_per_cell=3, held_out_per_language=2
)
print(f"{len(mixture.train):,} training examples")
print(f"{len(mixture.held_out)} of 280 cells are never trained on")
for example in mixture.train[:6]:
    print(f"{example.prompt!r:48} -> {example.response!r}")

# %% [markdown]
# ## Adapters
#
# Two features, the task and the language, and one that is always active for what all
# cells have in common. `enable_flix` changes the model in place: it stays a
# `GemmaCausalLM`, everything but the adapters is frozen.

# %%
features = [
    keras_flix.Feature("task", cldr_mixture.TASKS),
    keras_flix.Feature("language", cldr_mixture.LANGUAGES),
    keras_flix.Feature("shared", always=True),
]
keras_flix.enable_flix(gemma, features, rank=4, targets="all-linear", seed=0)
summary = keras_flix.flix_summary(gemma)

# %% [markdown]
# ## Training
#
# From here on, the input dict has one more entry per feature. Strings or ids, one
# per example: a batch holds any mix of tasks and languages.

# %%
STEPS, BATCH_SIZE, LEARNING_RATE = 300, 32, 6e-3


def inputs_of(examples):
    """The inputs of `generate`; `fit` takes the responses besides."""
    return {
        "prompts": [example.prompt for example in examples],
        "task": [example.task for example in examples],
        "language": [example.language for example in examples],
    }


def training_inputs(examples):
    return {
        **inputs_of(examples),
        "responses": [example.response for example in examples],
    }


def take(examples, count, seed=0):
    """`count` examples in random order, as often as it takes."""
    generator = np.random.default_rng(seed)
    rounds = [
        generator.permutation(len(examples)) for _ in range(-(-count // len(examples)))
    ]
    return [examples[i] for i in np.concatenate(rounds)[:count]]


schedule = keras.optimizers.schedules.CosineDecay(
    initial_learning_rate=0.0,
    warmup_target=LEARNING_RATE,
    warmup_steps=STEPS // 10,
    decay_steps=STEPS - STEPS // 10,
)
gemma.compile(
    optimizer=keras.optimizers.Adam(schedule, global_clipnorm=1.0),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    sampler="greedy",
)
training_set = take(mixture.train, STEPS * BATCH_SIZE)
history = gemma.fit(training_inputs(training_set), batch_size=BATCH_SIZE, shuffle=False)

# %% [markdown]
# ## How good is it?
#
# Exact match: the whole answer, character by character. *Seen* cells are tested
# with inputs that were not in training; *unseen* cells are (task, language) pairs
# without a single training example.


# %%
def exact_match(examples, batch_size=112):
    """Whether each example is answered exactly."""
    hits = []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        # Batches of one size are compiled once.
        padded = part + part[:1] * (batch_size - len(part))
        answers = gemma.generate(inputs_of(padded), strip_prompt=True)
        hits += [a == e.response for a, e in zip(answers, part)]
    return np.array(hits)


seen, unseen = exact_match(mixture.test_seen), exact_match(mixture.test_unseen)


def mean(hits, examples, **where):
    """Percentage of hits among the examples that fit, or None."""
    chosen = [
        hit
        for hit, example in zip(hits, examples)
        if all(getattr(example, key) == value for key, value in where.items())
    ]
    return 100 * float(np.mean(chosen)) if chosen else None


def table(title, key, values):
    print(f"\n{title:16} {'seen':>6} {'unseen':>7}")
    for value in values:
        cells = (
            mean(seen, mixture.test_seen, **{key: value}),
            mean(unseen, mixture.test_unseen, **{key: value}),
        )
        texts = ["-" if cell is None else f"{cell:.0f}" for cell in cells]
        print(f"{value:16} {texts[0]:>6} {texts[1]:>7}")


table("task", "task", cldr_mixture.TASKS)
table("language", "language", cldr_mixture.LANGUAGES)
print(f"\nExact match on seen cells:   {100 * seen.mean():.1f} %")
print(f"Exact match on unseen cells: {100 * unseen.mean():.1f} %")

# %% [markdown]
# The map of all cells. Framed ones were never trained on.

# %%
grid = np.array(
    [
        [
            mean(unseen, mixture.test_unseen, task=task, language=language)
            if (task, language) in mixture.held_out
            else mean(seen, mixture.test_seen, task=task, language=language)
            for language in cldr_mixture.LANGUAGES
        ]
        for task in cldr_mixture.TASKS
    ],
    dtype=float,
)
figure, axes = plt.subplots(figsize=(11, 4.6), layout="constrained")
image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=100, aspect="auto")
for row, task in enumerate(cldr_mixture.TASKS):
    for column, language in enumerate(cldr_mixture.LANGUAGES):
        if (task, language) in mixture.held_out:
            frame = plt.Rectangle(
                (column - 0.42, row - 0.42),
                0.84,
                0.84,
                fill=False,
                edgecolor="red",
                linewidth=1.8,
            )
            axes.add_patch(frame)
axes.set_xticks(range(len(cldr_mixture.LANGUAGES)), cldr_mixture.LANGUAGES)
axes.set_yticks(range(len(cldr_mixture.TASKS)), cldr_mixture.TASKS)
axes.set_title(
    f"Exact match in %: {100 * seen.mean():.0f} on seen cells, "
    f"{100 * unseen.mean():.0f} on unseen cells (red frames)"
)
figure.colorbar(image, ax=axes, pad=0.01)
figure.savefig(OUTPUT / "heatmap.png", dpi=120)

# %% [markdown]
# ## An unseen pair
#
# Features are strings here, and one of them is a scalar for the whole batch.

# %%
pairs = sorted(mixture.held_out)[:: max(1, len(mixture.held_out) // 6)][:6]
examples = [
    next(e for e in mixture.test_unseen if (e.task, e.language) == pair)
    for pair in pairs
]
answers = gemma.generate(inputs_of(examples), strip_prompt=True)
for example, answer in zip(examples, answers):
    mark = "ok" if answer == example.response else f"(CLDR: {example.response!r})"
    print(f"{example.prompt!r:48} -> {answer!r} {mark}")

task, language = pairs[0]
prompts = [e.prompt for e in mixture.test_unseen if (e.task, e.language) == pairs[0]]
print(gemma.generate({"prompts": prompts, "task": task, "language": language}))

# %% [markdown]
# ## Keep the adapters
#
# One file holds the adapter weights and the schema, and loads on every backend: onto a
# model that is adapted, or onto the plain base model, which it then adapts.

# %%
path = OUTPUT / "cldr.flix.safetensors"
keras_flix.save_adapters(gemma, path)
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

restored = keras_hub.models.GemmaCausalLM.from_preset(PRESET)
restored.preprocessor.sequence_length = gemma.preprocessor.sequence_length
keras_flix.load_adapters(restored, path)
assert restored.generate(inputs_of(examples), strip_prompt=True) == answers

# %% [markdown]
# ## Or merge one combination
#
# For one pair, seen or not, base and updates add up to a plain Gemma: no
# `keras_flix` is needed to run it.

# %%
merged = keras_flix.merge_features(gemma, {"task": task, "language": language})
merged.compile(sampler="greedy")
merged.save_to_preset(str(OUTPUT / f"gemma_{task}_{language}"))
plain = keras_hub.models.GemmaCausalLM.from_preset(
    str(OUTPUT / f"gemma_{task}_{language}")
)
print(type(plain).__name__, plain.generate(prompts))
expected = gemma.generate({"prompts": prompts, "task": task, "language": language})
assert plain.generate(prompts) == expected

print(f"\nThe whole guide took {time.time() - START:.0f} s.")
