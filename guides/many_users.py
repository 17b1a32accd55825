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
# # 1,000 users in one run
#
# Each user has an adapter of their own, and all train in one `fit`, mixed in its
# batches: each at their own place in the schedule of the learning rate. Some join while
# it runs, and whoever is done is saved and rests while the others go on.
#
# The users of this guide differ in the language that they want to be answered in, which
# their prompts do not say (`2024-07-24 3 = `). A handful of examples per user does.
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

import random
import time
from pathlib import Path

import cldr_adapters
import keras
import numpy as np

import keras_flix
from keras_flix.callbacks import SaveFinished
from keras_flix.evaluation import forced_exact_match

keras.utils.set_random_seed(0)
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", "output"))
OUTPUT.mkdir(parents=True, exist_ok=True)
# "gemma3_270m" or another Gemma 3 needs access to its weights, and a GPU helps; the
# adapters are then trained first.
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

# %% [markdown]
# ## 1. The users and their examples
#
# Each has between 4 and 10 examples of four tasks, in one of 18 languages.

# %%
TASKS = ("weekday", "long_date", "relative_time", "currency")
rng = random.Random(0)
pool = {
    (task, language): cldr_adapters.cell(task, language, 40, seed=1).columns
    for task in TASKS
    for language in cldr_adapters.LANGUAGES
}
USERS = [f"user_{i:04d}" for i in range(1000)]
language_of = {user: rng.choice(cldr_adapters.LANGUAGES) for user in USERS}


def example(user, index):
    """An example of a user's: by turns of each task."""
    task = TASKS[index % len(TASKS)]
    columns = pool[task, language_of[user]]
    row = rng.randrange(30)
    return task, columns["prompts"][row], columns["responses"][row]


examples = {
    user: [example(user, i) for i in range(rng.randint(4, 10))] for user in USERS
}
print(f"{len(USERS)} users, {sum(map(len, examples.values()))} examples")

# %% [markdown]
# ## 2. An adapter for each
#
# The base has adapters for tasks and languages, which stay as they are. The feature
# `user` joins them: 900 users now, and 100 later. `set_trainable` lets only users
# train.
#
# `LazyAdam` updates the users of a batch, and with `step_counts="value"` counts the
# updates of each: the decay of the learning rate goes by these, so that whoever comes
# late begins at its beginning. One user in ten shall learn half as fast. `limit_steps`
# says when each is done: here, when all of their examples were seen.

# %%
gemma = cldr_adapters.load_base(PRESET)
if PRESET == cldr_adapters.SMALL:
    gemma.preprocessor.sequence_length = 28  # The longest example has 26 tokens.
cldr_adapters.add_adapters(gemma, PRESET)
early, late = USERS[:900], USERS[900:]
keras_flix.add_feature(gemma, keras_flix.Feature("user", early, rank=2))
keras_flix.set_trainable(gemma, {"user": early})

schedule = keras.optimizers.schedules.CosineDecay(2e-2, decay_steps=10, alpha=0.1)
gemma.compile(
    optimizer=keras_flix.LazyAdam(schedule, step_counts="value"),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
keras_flix.set_learning_rates(gemma, {"user": dict.fromkeys(early[::10], 0.5)})
keras_flix.limit_steps(gemma, {"user": {u: len(examples[u]) for u in early}})
users = keras_flix.schema_of(gemma)["user"]
print(f"{len(users.values)} users of rank {max(users.ranks)}")

# %% [markdown]
# ## 3. One run
#
# Each batch holds an example of each of 64 users, drawn among 128: once one of these
# has none left, the next in the row takes the place. A `PyDataset` makes the batch when
# it is needed, so users may join meanwhile: after the 50th batch, a callback adds 100.
# The step is compiled anew for them, once.
#
# `SaveFinished` looks for users who are done, and writes a file for each.

# %%
BATCH_SIZE = 64


class Stream(keras.utils.PyDataset):
    """Batches of users who have examples left; of others, to fill the last ones."""

    def __init__(self):
        super().__init__(workers=0)
        count = sum(map(len, examples.values()))
        self.batches = count // BATCH_SIZE + 10

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        if index == 0:
            # Keras looks at the first batch, too, before it trains on it.
            self.left = {user: list(examples[user]) for user in early}
        left = self.left
        waiting = [user for user, own in left.items() if own]
        active = waiting[: 2 * BATCH_SIZE]
        chosen = rng.sample(active, min(BATCH_SIZE, len(active)))
        done = [user for user in left if user not in chosen]
        rows = [(user, *left[user].pop()) for user in chosen]
        # Users who are done rest, whatever they are shown.
        rows += [(user, *examples[user][0]) for user in done[: BATCH_SIZE - len(rows)]]
        names = ("user", "task", "prompts", "responses")
        return {
            **dict(zip(names, map(list, zip(*rows)))),
            "language": [None] * len(rows),
        }


stream = Stream()


class Join(keras.callbacks.Callback):
    """Lets the late users join."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 50:
            keras_flix.add_values(self.model, "user", late)
            keras_flix.set_trainable(self.model, {"user": USERS})
            limits = {user: len(examples[user]) for user in late}
            keras_flix.limit_steps(self.model, {"user": limits})
            joined = {user: list(examples[user]) for user in late}
            stream.left = stream.left | joined
            print(f"after batch {batch}: {len(late)} users join")


class Report(keras.callbacks.Callback):
    """Says how far the users are."""

    def on_train_batch_end(self, batch, logs=None):
        if batch % 25 == 24:
            counts = keras_flix.step_counts(self.model, "user")
            print(
                f"batch {batch + 1:3}: loss {logs['loss']:.2f}, "
                f"{len(finished.saved)} users are done, "
                f"{sum(n == 0 for n in counts.values())} have not begun"
            )


finished = SaveFinished(OUTPUT / "users", "user", others=False, every=5)
start = time.process_time()
gemma.fit(stream, shuffle=False, verbose=0, callbacks=[finished, Join(), Report()])
seconds = time.process_time() - start
updates = sum(keras_flix.step_counts(gemma, "user").values())
print(f"{updates} updates of {len(finished.saved)} users in {seconds:.0f} s")

# %% [markdown]
# ## 4. Does it help?
#
# New examples test 225 of those who were there from the start, and all who came late:
# with their own adapters, with none (the base and its adapters stay as they were), and
# with that of another user, whose language is mostly another.

# %%
TESTED = {"from the start": early[::4], "late": late}
asked = [user for group in TESTED.values() for user in group]
tasks = [TASKS[i % len(TASKS)] for i in range(len(asked))]
# Training takes the first 30 of each task and language.
rows = [
    {
        name: column[30 + i % 10]
        for name, column in pool[task, language_of[user]].items()
    }
    for i, (user, task) in enumerate(zip(asked, tasks))
]


def score(users):
    """Whether each answer is right, with the adapters of these users."""
    x, y, weights = gemma.preprocess_samples(
        {
            "prompts": [row["prompts"] for row in rows],
            "responses": [row["responses"] for row in rows],
            "task": tasks,
            "language": [None] * len(rows),
            "user": users,
        }
    )
    return forced_exact_match(gemma, x, y, weights, batch_size=65)


right = {
    "no user": score([None] * len(asked)),
    "another user": score(asked[1:] + asked[:1]),
    "their own": score(asked),
}
print(f"{'right with the adapter of':26}" + "".join(f"{name:>16}" for name in TESTED))
cut = len(TESTED["from the start"])
for name, found in right.items():
    means = [100 * np.mean(part) for part in (found[:cut], found[cut:])]
    print(f"{name:26}" + "".join(f"{mean:14.1f} %" for mean in means))

# %% [markdown]
# ## 5. A file for each
#
# The files hold one user each, and nothing of the others. `update_from` takes them into
# a model that has the feature, such as one that serves; `export_values` makes LoRAs for
# PEFT, vLLM and llama.cpp of all users at once.

# %%
path = finished.saved["user_0007"]
print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
print(keras_flix.files.read_adapters(path).schema["user"].values)

server = cldr_adapters.load_base(PRESET)
cldr_adapters.add_adapters(server, PRESET)
keras_flix.add_feature(server, keras_flix.Feature("user", ["nobody"], rank=2))
keras_flix.update_from(server, path, {"user": ["user_0007"]})
combination = {"task": None, "language": None, "user": "user_0007"}
for model in (gemma, server):
    layer = model.backbone.get_layer("decoder_block_0").attention.query_dense
    delta = keras.ops.convert_to_numpy(layer.kernel_delta(combination))
    print(f"largest entry of the first update of user_0007: {np.abs(delta).max():.6f}")

# %% [markdown]
# What such an update costs, compared with a run of each user's own, is measured in
# `benchmarks/cost/README.md`, "Many users": the fewer examples each has in a batch, the
# more is gained by mixing.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
