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
# # A mixture from Hugging Face datasets
#
# Your data is a dataset of the Hugging Face hub, or several, one per task. This guide
# makes one mixture of them:
#
# 1. one dataset with columns for task and language: `Mixture.from_dataset`;
# 2. several datasets, each a task with columns of its own;
# 3. checked before training: counts per pair, prompts that are too long;
# 4. temperature, held-out pairs, training, scores.
#
# It runs offline: the datasets are made in memory with the `datasets` library, and are
# what `load_dataset` would return.
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
import datasets
import keras

import keras_flix
from keras_flix.evaluation import evaluate
from keras_flix.mixtures import Mixture

keras.utils.set_random_seed(0)

# The one thing to change for a real Gemma: "gemma3_270m" or "gemma3_1b".
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)
SMALL = cldr_adapters.SMALL == PRESET

# %% [markdown]
# ## 1. One dataset that has it all
#
# A `DatasetDict` with two splits. Task and language are columns, here as class labels,
# which the hub's datasets often have: integers that stand for names.

# %%
TASKS, LANGUAGES = ("duration", "currency", "month"), ("en", "fr", "hi", "ja")


def rows(first, last):
    """Examples of all pairs, as rows."""
    for task in TASKS:
        for language in LANGUAGES:
            found = cldr_adapters.cell(task, language, last).columns
            for question, answer in list(zip(*found.values()))[first:last]:
                yield {
                    "question": question,
                    "answer": answer,
                    "task": task,
                    "lang": language,
                    "source": "cldr",
                }


kinds = datasets.Features(
    question=datasets.Value("string"),
    answer=datasets.Value("string"),
    task=datasets.ClassLabel(names=TASKS),
    lang=datasets.ClassLabel(names=LANGUAGES),
    source=datasets.Value("string"),
)
# In your code: hub = datasets.load_dataset("you/your-dataset")
hub = datasets.DatasetDict(
    train=datasets.Dataset.from_list(list(rows(0, 24)), features=kinds),
    test=datasets.Dataset.from_list(list(rows(24, 28)), features=kinds),
)
print(hub["train"])
print(hub["train"][0])

# %% [markdown]
# One line makes a mixture of it: which columns are features, which is the prompt, which
# the response. Labels become their names. Columns that are not named are left out
# (`keep=["source"]` would keep one).

# %%
columns = {"features": ["task", "lang"], "prompt": "question", "response": "answer"}
train = Mixture.from_dataset(hub, split="train", **columns)
test = Mixture.from_dataset(hub, split="test", **columns)
print(train)
print(train.sample(2))

# %% [markdown]
# A name that is wrong is refused, with those that there are:

# %%
for wrong in ({"prompt": "questions"}, {"features": ["task", "language"]}):
    try:
        Mixture.from_dataset(hub, split="train", **{**columns, **wrong})
    except ValueError as error:
        print(error, "\n")

# %% [markdown]
# `datasets` has the tools for what comes before: `filter`, `map`, `rename_column`,
# `shuffle`, `select`. A prompt from several columns is a `map`:

# %%
asked = hub["train"].map(
    lambda row: {"question": f"[{row['source']}] {row['question']}"}
)
print(Mixture.from_dataset(asked, **columns).sample(1)["prompts"])

# %% [markdown]
# ## 2. Several datasets, one task each
#
# More often each task is a dataset of its own, with columns of its own, and no column
# says which task it is. Name the columns alike, add what is missing, concatenate. A
# value that a dataset has no answer to is `None`: the feature is absent from these
# examples, and adds nothing to them.

# %%
weekdays = datasets.Dataset.from_dict(
    {"day": ["2024-07-24 3 = ", "2024-07-26 5 = "], "name": ["mercredi", "vendredi"]}
)
units = datasets.Dataset.from_dict(
    {
        "amount": ["3 day = ", "1 week = "],
        "text": ["3 days", "1 week"],
        "language": ["en", "en"],
    }
)
parts = [
    weekdays.rename_columns({"day": "prompt", "name": "response"})
    .add_column("task", ["weekday"] * 2)
    .add_column("language", [None] * 2),
    units.rename_columns({"amount": "prompt", "text": "response"}).add_column(
        "task", ["duration"] * 2
    ),
]
joined = datasets.concatenate_datasets(
    [part.cast_column("language", datasets.Value("string")) for part in parts]
)
several = Mixture.from_dataset(joined)  # task, language, prompt and response it expects
for dataset in several.datasets:
    print(dataset)

# %% [markdown]
# ## 3. Look before you train
#
# How many examples each pair has, and how often it will be drawn. With temperature 1
# that goes by size; higher ones draw small datasets more often than their size says.

# %%
uneven = hub["train"].filter(
    lambda row, i: row["lang"] == 0 or i % 3 == 0, with_indices=True
)
for temperature in (1.0, 3.0):
    mixed = Mixture.from_dataset(uneven, temperature=temperature, **columns)
    shown = zip(mixed.datasets[:2], mixed.probabilities)
    print(
        f"temperature {temperature:g}:",
        *(f"{d.features} {len(d)} examples, drawn {p:.1%}" for d, p in shown),
        sep="\n  ",
    )

# %% [markdown]
# Whatever is longer than `sequence_length` is cut, so count tokens first. The library
# says so, too, when it happens.

# %%
gemma = cldr_adapters.load_base(PRESET)
tokenizer = gemma.preprocessor.tokenizer
texts = train.inputs()
lengths = [
    len(tokenizer(prompt)) + len(tokenizer(response)) + 2  # start and end
    for prompt, response in zip(texts["prompts"], texts["responses"])
]
longest = max(lengths)
print(
    f"{longest} tokens at most; there is room for {gemma.preprocessor.sequence_length}"
)
assert longest <= gemma.preprocessor.sequence_length

# %% [markdown]
# ## 4. Train and score
#
# As in the [quickstart](quickstart.ipynb): features from what occurs in the mixture,
# with one pair held out, French durations. (`train.validation_split(0.1)` parts every
# pair, `train.hold_out(...)` chooses pairs to hold out.)

# %%
held_out = {"task": "duration", "lang": "fr"}
seen, _ = train.split(held_out)
schema = train.schema(rank={"task": 4, "lang": 2})
features = [*schema, keras_flix.Feature("shared", always=True, rank=4)]
keras_flix.enable_flix(gemma, features, targets="all-linear", seed=0)

STEPS = 80
cldr_adapters.compile_model(gemma, STEPS, learning_rate=6e-3 if SMALL else 1e-3)
history = gemma.fit(seen.batches(24, STEPS), verbose=0)
print(f"loss {history.history['loss'][0]:.3f}, the mean of {STEPS} steps")
scores = evaluate(gemma, test, batch_size=len(test))
print(scores.table("task", "lang"))

# %% [markdown]
# The pair that was held out, `duration/fr`, is the one with errors: it was answered by
# composition alone, after 80 steps. [Unseen pairs and few-shot
# languages](few_shot_languages.ipynb) measures such pairs.
#
# ## Too large for memory
#
# A `Mixture` holds its texts in memory, which for text is seldom a limit: a million
# examples of 500 characters are half a gigabyte. For what does not fit, an adapted
# model takes `tf.data`, PyTorch and `grain` pipelines of dicts, with one entry per
# feature.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
