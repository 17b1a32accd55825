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

import dataclasses
from pathlib import Path

import cldr_mixture
import keras
import keras_hub
import score_map

import keras_flix
from keras_flix.evaluation import evaluate
from keras_flix.mixtures import Mixture

keras.utils.set_random_seed(0)

# %% [markdown]
# ## The base model
#
# `cldr_gemma` is a true Gemma of 1.3 million parameters, which `guides/
# pretrain_cldr_gemma.py` trained on raw CLDR records. It knows how 28 languages
# write dates, amounts and lists, but it has never met a prompt, nor the name of a
# task. With access to the weights, `PRESET = "gemma3_270m"` runs the same guide on a
# real Gemma 3, `"gemma3_1b"` on a larger one; a GPU helps. (That was not run here. How
# an instruction-tuned preset is prompted: [chat_template](chat_template.ipynb).)

# %%
HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
PRESET = os.environ.get("FLIX_PRESET", str(HERE / "cldr_gemma"))
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)

gemma = keras_hub.models.CausalLM.from_preset(PRESET)
if "cldr_gemma" not in PRESET:
    # The small preset knows how long examples are; others pad to 1024 tokens.
    gemma.preprocessor.sequence_length = 128

# %% [markdown]
# ## The mixture
#
# Ten tasks in 28 languages make 280 pairs. Two pairs of every language are held out:
# training shows no example of them. Prompts are neutral: a task tag, a language tag,
# and the input in ISO form.
#
# An example is a dict with a prompt, a response and a column per feature; a `Mixture`
# is made of them. (`Mixture.from_csv`, `from_jsonl`, `from_dataframe` and
# `from_dataset` read other tables, see
# [hugging_face_datasets](hugging_face_datasets.ipynb).)

# %%
data = cldr_mixture.build_mixture(
    seed=0, train_per_cell=60, test_per_cell=3, held_out_per_language=2
)


def mixture(examples):
    """A mixture of examples, which have a task, language, prompt and response."""
    records = [dataclasses.asdict(example) for example in examples]
    return Mixture.from_records(records, features=("task", "language"))


train, test_seen, test_unseen = map(
    mixture, (data.train, data.test_seen, data.test_unseen)
)
print(train)
print(f"{len(data.held_out)} of 280 pairs are never trained on")
print(dataclasses.asdict(data.train[0]))

# %% [markdown]
# ## Adapters
#
# Two features, the task and the language, and one that is always active for what all
# pairs have in common. `enable_flix` changes the model in place: it stays a
# `GemmaCausalLM`, everything but the adapters is frozen. (Which targets, rank, rate and
# dropout: [Settings to start with](does_flix_help.ipynb#settings-to-start-with).)

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
# From here on, the input dict has one more entry per feature. A batch holds any mix of
# tasks and languages; the mixture draws it. (The times in the stored output are of a
# machine that was busy with other work: on two free cores, a step takes 0.15 s.)

# %%
STEPS, BATCH_SIZE, LEARNING_RATE = 100, 32, 6e-3
print({name: column for name, column in train.sample(3).items()})

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
# One line for every 25 steps.
batches = train.batches(BATCH_SIZE, steps=25)
history = gemma.fit(batches, epochs=STEPS // 25, verbose=2)

# %% [markdown]
# ## How good is it?
#
# Exact match: the whole answer, character by character. *Seen* pairs are tested with
# inputs that were not in training; *unseen* pairs are those without a single training
# example.

# %%
seen = evaluate(gemma, test_seen, batch_size=112)
unseen = evaluate(gemma, test_unseen, batch_size=112)
for name, scores in (("seen", seen), ("unseen", unseen)):
    exact = scores.overall()["exact_match"]
    print(f"Exact match on {name} pairs: {exact:.1f} %")
print(f"\nunseen pairs by task:\n{unseen.table('task')}")

# %% [markdown]
# The map of all pairs. Framed ones were never trained on.

# %%
pairs = {**seen.by("task", "language"), **unseen.by("task", "language")}
figure = score_map.draw(
    pairs,
    cldr_mixture.TASKS,
    cldr_mixture.LANGUAGES,
    data.held_out,
    title="Exact match by task and language; red frames: never trained on",
)
figure.savefig(OUTPUT / "heatmap.png", dpi=120)

# %% [markdown]
# ## An unseen pair
#
# Features are strings here, and one of them is a scalar for the whole batch.

# %%
task, language = sorted(data.held_out)[0]
examples = [e for e in data.test_unseen if (e.task, e.language) == (task, language)]
inputs = {
    "prompts": [example.prompt for example in examples],
    "task": task,
    "language": [example.language for example in examples],
}
answers = gemma.generate(inputs, strip_prompt=True)
for example, answer in zip(examples, answers):
    mark = "ok" if answer == example.response else f"(CLDR: {example.response!r})"
    print(f"{example.prompt!r} -> {answer!r} {mark}")

# %% [markdown]
# ## Keep the adapters
#
# One file holds the adapter weights and the schema, and loads on every backend: onto a
# model that is adapted, or onto the plain base model, which it then adapts.

# %%
path = OUTPUT / "cldr.flix.safetensors"
keras_flix.save_adapters(gemma, path)
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

restored = keras_hub.models.CausalLM.from_preset(PRESET)
restored.preprocessor.sequence_length = gemma.preprocessor.sequence_length
keras_flix.load_adapters(restored, path)
assert restored.generate(inputs, strip_prompt=True) == answers

# %% [markdown]
# ## Or merge one combination
#
# For one pair, seen or not, base and updates add up to a plain Gemma: no
# `keras_flix` is needed to run it.

# %%
merged = keras_flix.merge_features(gemma, {"task": task, "language": language})
merged.compile(sampler="greedy")
merged.save_to_preset(str(OUTPUT / f"gemma_{task}_{language}"))
plain = keras_hub.models.CausalLM.from_preset(str(OUTPUT / f"gemma_{task}_{language}"))
print(type(plain).__name__, plain.generate(inputs["prompts"], strip_prompt=True))
assert plain.generate(inputs["prompts"], strip_prompt=True) == answers
