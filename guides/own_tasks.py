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
# # Gemma on your own tasks and languages
#
# You have examples of several tasks in several languages, and want one Gemma for all of
# them. This guide goes from a file of examples to a trained, tested and saved model:
#
# 1. a file of prompts and responses, each with its task and language;
# 2. a mixture of them, with some pairs held out;
# 3. features with ranks and dropout;
# 4. training, and scores by task, by language and by pair;
# 5. generating, saving, loading.
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

import json
import time
from pathlib import Path

import cldr_adapters
import keras
import numpy as np
import score_map

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
# ## 1. Your examples
#
# One JSON object per line: a prompt, a response, and whatever is known of the example.
# Point `TRAIN` and `TEST` at your files, and skip the code after that, which writes two
# to stand in: four tasks in six languages, much of it English.

# %%
TRAIN, TEST = OUTPUT / "own_train.jsonl", OUTPUT / "own_test.jsonl"

# %%
lines = {TRAIN: [], TEST: []}
for task in ("long_date", "full_date", "relative_time", "currency"):
    for language in ("en", "de", "es", "ru", "hi", "ja"):
        count = 90 if language == "en" else 30
        columns = cldr_adapters.cell(task, language, count + 5).columns
        for i, (prompt, response) in enumerate(zip(*columns.values())):
            line = {
                "prompt": prompt,
                "response": response,
                "task": task,
                "language": language,
            }
            text = json.dumps(line, ensure_ascii=False) + "\n"
            lines[TRAIN if i < count else TEST].append(text)
for path, found in lines.items():
    path.write_text("".join(found), encoding="utf-8")
print(*lines[TRAIN][:: len(lines[TRAIN]) // 7], sep="", end="")

# %% [markdown]
# ## 2. A mixture
#
# One line makes a mixture of a file. (Names other than these: `prompt=`, `response=`,
# `features=`. [Hugging Face datasets](hugging_face_datasets.ipynb), CSV and DataFrames
# have constructors, too.) Examples with the same features become one dataset of it. The
# temperature sets how often each is drawn: 1 goes by size, so English three times as
# often as any other language here; higher ones are more even.

# %%
everything = Mixture.from_jsonl(TRAIN, temperature=3.0)
test = Mixture.from_jsonl(TEST)
print(everything)
for dataset, share in zip(everything.datasets[:3], everything.probabilities):
    print(dict(dataset.features), f"{len(dataset)} examples, drawn {share:.1%}")

# %% [markdown]
# Does it work for pairs that you have no examples of? Hold some out, and see. Their
# task must occur in other languages, and their language in other tasks.

# %%
PAIRS = [
    {"task": "full_date", "language": "es"},
    {"task": "relative_time", "language": "de"},
    {"task": "currency", "language": "ru"},
    {"task": "long_date", "language": "hi"},
]
train, _ = everything.split(*PAIRS)
print(f"{len(train)} examples of {len(train.datasets)} pairs to train on")

# %% [markdown]
# ## 3. Features
#
# `everything.schema()` lists the values that occur. Ranks are by feature, or by value:
# here the tasks get more than the languages, and English, which the base of most
# projects knows well, the least. With dropout, a feature is left out of some training
# examples, so the others learn to stand alone. `shared` is active in every example.
# None of these numbers was searched for: they are small so that the guide is quick. For
# yours: [Settings to start with](does_flix_help.ipynb#settings-to-start-with).

# %%
schema = everything.schema(
    rank={"task": 4, "language": {"en": 1, "*": 2}}, dropout={"language": 0.1}
)
features = [*schema, keras_flix.Feature("shared", always=True, rank=4)]

# `CausalLM.from_preset`, in bfloat16 and for 128 tokens if it is no small one.
gemma = cldr_adapters.load_base(PRESET)
keras_flix.enable_flix(gemma, features, targets="all-linear", seed=0)
lines = []
keras_flix.flix_summary(gemma, print_fn=lines.append)
print(lines[0], *lines[-5:], sep="\n")

# %% [markdown]
# ## 4. Training and scores
#
# `fit` takes strings: prompts, responses, and one entry per feature. A batch holds any
# mix of tasks and languages. The learning rate matters most: try several on a real
# mixture.

# %%
STEPS, BATCH_SIZE = 125, 24
gemma.compile(
    optimizer=keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            warmup_target=6e-3 if SMALL else 1e-3,
            warmup_steps=STEPS // 10,
            decay_steps=STEPS - STEPS // 10,
        ),
        global_clipnorm=1.0,
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    sampler="greedy",
)
# One long epoch. `train.batches(BATCH_SIZE, STEPS)` draws anew in every epoch.
inputs = train.sample(STEPS * BATCH_SIZE)
print({name: column[:2] for name, column in inputs.items()})
history = gemma.fit(inputs, batch_size=BATCH_SIZE, shuffle=False, verbose=0)
print(f"loss {history.history['loss'][-1]:.3f}, the mean of all steps")

# %% [markdown]
# `evaluate` generates an answer for every test example, those of the held-out pairs
# too.

# %%
scores = evaluate(gemma, test, batch_size=len(test))
print(scores.table("task"))
print(scores.table("language"))
both = {pair: s["exact_match"] for pair, s in scores.by("task", "language").items()}
held_out = [tuple(pair.values()) for pair in PAIRS]
for name, pairs in (("seen", both.keys() - held_out), ("held-out", held_out)):
    print(f"{np.mean([both[pair] for pair in pairs]):.1f} % on {name} pairs")

# %%
figure = score_map.draw(
    scores.by("task", "language"),
    schema["task"].values,
    schema["language"].values,
    held_out,
    title="Exact match; red frames: never trained on",
)
figure.savefig(OUTPUT / "own_tasks.png", dpi=110)

# %% [markdown]
# Held-out pairs are far from solved here: four tasks in six languages are a small grid
# to learn from, and each test has five examples only. With ten tasks in 18 languages,
# 82 % of the answers to unseen pairs are right (`few_shot_languages`).
#
# What went wrong says more than a number:

# %%
rows = zip(
    scores.predictions,
    scores.references,
    scores.features["task"],
    scores.features["language"],
)
wrong = [row for row in rows if row[0] != row[1]]
print(f"{len(wrong)} wrong answers, such as")
for answer, reference, task, language in wrong[:: max(1, len(wrong) // 6)][:6]:
    print(f"{task:14} {language}  {answer!r} should be {reference!r}")

# %% [markdown]
# ## 5. Use it
#
# Per example, or one value for the whole batch. `None` says that an example has no
# value of a feature. (`with keras_flix.adapters_disabled(gemma):` gives the base model
# for the length of a block.)

# %%
questions = {
    "prompts": ["2024-07-24 3 = "] * 4,
    "task": "full_date",
    "language": ["en", "de", "ru", None],
}
print(gemma.generate(questions, strip_prompt=True))

# %% [markdown]
# Mistakes are refused, with the nearest right name:

# %%
for entries in ({"task": "full_dates", "language": "en"}, {"task": "full_date"}):
    try:
        gemma.generate({"prompts": questions["prompts"], **entries})
    except ValueError as error:
        print(error, "\n")

# %% [markdown]
# One file keeps adapters and features. It loads onto the plain base, on every backend.

# %%
path = OUTPUT / "own_tasks.flix.safetensors"
keras_flix.save_adapters(gemma, path)
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
restored = keras_flix.load_adapters(cldr_adapters.load_base(PRESET), path)
for kept, loaded in zip(gemma.trainable_variables, restored.trainable_variables):
    assert np.array_equal(*map(keras.ops.convert_to_numpy, (kept, loaded)))

print(f"The whole guide took {time.process_time():.0f} s of processor time.")
