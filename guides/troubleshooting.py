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
# # Troubleshooting
#
# Symptom, cause, remedy: what goes wrong most often, each with code that shows the
# library's own message. A message says what is required, what was received, and what to
# do. If yours is not here, search this page for a word of it, then the reference.
#
# All of it runs in seconds, most on a model of two layers.
#
# In Colab, put the address of the repository into the next cell and run it.
# In a checkout with `pip install ".[jax,guides]"`, there is nothing to do.

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

import tempfile
import warnings
from pathlib import Path

import cldr_adapters
import keras
import numpy as np

import keras_flix
from keras_flix.evaluation import evaluate
from keras_flix.mixtures import Mixture

keras.utils.set_random_seed(0)
FOLDER = Path(tempfile.mkdtemp())


def shows(call):
    """Prints the message of the error that a call ends with."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        print(f"{type(error).__name__}: {error}".replace(str(FOLDER), "FOLDER"))
    else:
        raise AssertionError("there was no error")


def small(features=None, targets=("hidden",)):
    """A plain model of two layers; adapted, if there are features."""
    inputs = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = keras.Model({"x": inputs}, keras.layers.Dense(4, name="head")(hidden))
    if features is not None:
        keras_flix.enable_flix(model, features, targets=list(targets), seed=0)
    return model


FEATURES = {"task": ["qa", "parse"], "language": ["en", "sw", "yo"]}
x = np.ones((2, 8), "float32")
model = small(FEATURES)

# %% [markdown]
# ## The inputs
#
# ### An entry is missing
#
# - **Symptom.** `fit`, `generate` or `model(...)` says that a feature has no entry.
# - **Cause.** Every call must say for every feature what its examples are. Nothing is
#   guessed, since a model without its updates answers too, and worse.
# - **Remedy.** State it, per example or once for all; `None` (or the id -1) says that
#   there is none.

# %%
shows(lambda: model({"x": x, "task": "qa"}))
outputs = model({"x": x, "task": "qa", "language": ["sw", None]})

# %% [markdown]
# ### A value is not known
#
# - **Symptom.** An error names the value and those that are near.
# - **Cause.** A slip of the pen, or a value that was not there in training.
# - **Remedy.** Correct it; or grow the model with `add_values`; or encode with
#   `unknown="absent"`, where such examples should do without the feature.

# %%
shows(lambda: model({"x": x, "task": "qa", "language": ["sw", "yor"]}))
schema = keras_flix.FeatureSchema(FEATURES)
ids = schema.encode({"task": ["qa"] * 2, "language": ["sw", "yor"]}, unknown="absent")
print({name: entries.tolist() for name, entries in ids.items()})
outputs = model({"x": x, **ids})

# %% [markdown]
# ### Too few or too many entries
#
# - **Symptom.** The lengths of two entries differ.
# - **Cause.** One entry per example, or one scalar for all of the batch.
# - **Remedy.** Write a scalar, or a list as long as the batch.

# %%
shows(lambda: model({"x": x, "task": ["qa"] * 3, "language": "sw"}))
outputs = model({"x": x, "task": "qa", "language": "sw"})

# %% [markdown]
# ### A column of a table is missing
#
# - **Symptom.** `Mixture.from_...` does not find a column.
# - **Cause.** Prompts and responses have other names in your table.
# - **Remedy.** Say which: `prompt=`, `response=`, `features=`.

# %%
rows = [{"question": "2 + 2 = ", "answer": "4", "task": "sum"}]
shows(lambda: Mixture.from_records(rows, features=["task"]))
print(
    Mixture.from_records(rows, features=["task"], prompt="question", response="answer")
)

# %% [markdown]
# ## Adapting a model
#
# ### A target matches nothing
#
# - **Symptom.** `enable_flix` says that a target matches no layer.
# - **Cause.** Targets are names of Keras' layers, or regexes that match the *whole*
#   path of a layer; Hugging Face's names are others.
# - **Remedy.** Take a name from the message, or `"all-linear"`.

# %%
shows(lambda: small(FEATURES, targets=["q_proj"]))
adapted = small(FEATURES, targets=["hid.*"])
print(*keras_flix.flix_summary(adapted, print_fn=None).layers)

# %% [markdown]
# ### Adapted twice, or next to a LoRA
#
# - **Symptom.** `enable_flix` refuses a model that it has adapted, or that has a LoRA.
# - **Cause.** A second call would leave two sets of adapters, of which one would be
#   lost when saved. In notebooks it is a cell that ran twice.
# - **Remedy.** Load the base again; `disable_flix` takes adapters off; new values and
#   features come with `add_values` and `add_feature`.

# %%
shows(lambda: keras_flix.enable_flix(model, FEATURES, targets=["hidden"]))
with_lora = small()
with_lora.get_layer("hidden").enable_lora(2)
shows(lambda: keras_flix.enable_flix(with_lora, FEATURES, targets=["hidden"]))

# %% [markdown]
# ### Training says nothing, and nothing is learnt
#
# - **Symptom.** The loss stays where it is.
# - **Cause.** Mostly the learning rate: adapters want 10 to 100 times that of full
#   fine-tuning. Or the model was compiled *before* it was adapted and trained on: the
#   optimizer then holds none of the new variables, which Keras says itself.
# - **Remedy.** Compile after `enable_flix`. For the rate: [Settings to start
#   with](does_flix_help.ipynb#settings-to-start-with).

# %%
late = small()
late.compile("adam", "mse")
late.fit({"x": x}, np.zeros((2, 4)), verbose=0)
keras_flix.enable_flix(late, FEATURES, targets=["hidden"], seed=0)
batch = {"x": x, "task": "qa", "language": ["sw", "yo"]}
shows(lambda: late.train_on_batch({**batch, "task": ["qa"] * 2}, np.zeros((2, 4))))
late.compile(keras.optimizers.Adam(1e-2), "mse")
loss = late.train_on_batch({**batch, "task": ["qa"] * 2}, np.zeros((2, 4)))

# %% [markdown]
# ## Texts
#
# ### Prompts or answers are cut
#
# - **Symptom.** A warning counts texts that are longer than the sequence; or answers
#   stop in the middle, and exact match is low.
# - **Cause.** `sequence_length` is that of prompt *and* response together, in tokens.
# - **Remedy.** A longer one (a step costs in proportion), or shorter texts.

# %%
gemma = cldr_adapters.load_base(cldr_adapters.SMALL)
keras_flix.load_adapters(gemma, cldr_adapters.FILE)
long = {
    "prompts": ["2024-07-24 3 = "],
    "responses": ["woensdag 24 juli 2024"],
    "task": "full_date",
    "language": "nl",
}
gemma.compile(
    keras.optimizers.SGD(0.0),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    # Nothing to wait for: a step of one example.
    run_eagerly=True,
)
gemma.preprocessor.sequence_length = 20
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    gemma.fit(long, verbose=0)
for warning in caught:
    if "keras_flix" in warning.filename or "sequence_length" in str(warning.message):
        print(f"{warning.category.__name__}: {warning.message}")
gemma.preprocessor.sequence_length = 40

# %% [markdown]
# ### There is nothing to compare answers with
#
# - **Symptom.** `evaluate` misses a column.
# - **Cause.** It reads `prompts` and `responses`.
# - **Remedy.** Name them when you make the mixture.

# %%
questions = [{"prompts": "2024-07-24 3 = ", "task": "month", "language": "en"}]
shows(lambda: evaluate(gemma, Mixture(questions, features=["task", "language"])))

# %% [markdown]
# ## Files
#
# ### Adapters of another base
#
# - **Symptom.** `load_adapters` says that base weights differ.
# - **Cause.** Adapters are updates *of* certain weights. On others, such as the
#   instruction-tuned sister of a preset, they mean nothing, and no shape would tell.
# - **Remedy.** Load the base they were trained on. If it is the same in another dtype
#   or quantized, nothing needs to be done.

# %%
keras_flix.save_adapters(small(FEATURES), FOLDER / "mine.flix.safetensors")
shows(lambda: keras_flix.load_adapters(small(), FOLDER / "mine.flix.safetensors"))

# %% [markdown]
# ### Adapters of other features
#
# - **Symptom.** A model that is adapted refuses a file.
# - **Cause.** Its features, values or ranks are others than those of the file.
# - **Remedy.** Load the file onto the plain base, which it then adapts; `update_from`
#   takes single values over.

# %%
base = small()
twin = keras.models.clone_model(base)
twin.set_weights(base.get_weights())
keras_flix.enable_flix(base, FEATURES, targets=["hidden"], seed=0)
keras_flix.save_adapters(base, FOLDER / "own.flix.safetensors")
keras_flix.enable_flix(twin, {"task": ["qa", "sum"]}, targets=["hidden"], seed=0)
shows(lambda: keras_flix.load_adapters(twin, FOLDER / "own.flix.safetensors"))

# %% [markdown]
# ### A name that no file of adapters has
#
# - **Symptom.** `save_adapters` does not like the path.
# - **Cause.** The name's end tells others what is inside.
# - **Remedy.** `.flix.safetensors`.

# %%
shows(lambda: keras_flix.save_adapters(model, FOLDER / "adapters.safetensors"))

# %% [markdown]
# ## Merging and exporting
#
# ### A combination is not complete
#
# - **Symptom.** `merge_features` or an export asks for a feature.
# - **Cause.** A merged model is of one combination, with a value or `None` per feature.
# - **Remedy.** Name them all.

# %%
shows(lambda: keras_flix.merge_features(gemma, {"task": "month"}))
merged = keras_flix.merge_features(gemma, {"task": "month", "language": None})

# %% [markdown]
# ### A quantized base cannot be merged
#
# - **Symptom.** `merge_features` refuses an int8 or int4 base.
# - **Cause.** The sum would have to be rounded to 8 or 4 bits again.
# - **Remedy.** Load the adapters onto the base in floating point, merge, then quantize.

# %%
inputs = keras.Input((8,), name="x")
rounded = keras.Model({"x": inputs}, keras.layers.Dense(16, name="hidden")(inputs))
rounded.get_layer("hidden").quantize("int8")
keras_flix.enable_flix(rounded, FEATURES, targets=["hidden"], seed=0)
shows(lambda: keras_flix.merge_features(rounded, {"task": "qa", "language": "sw"}))

# %% [markdown]
# ### An export does not know the model
#
# - **Symptom.** `export_lora` names the families that it knows.
# - **Cause.** Each family of models has other names in transformers, and other layouts.
# - **Remedy.** `merge_features` works for all; [support](support.md) says what else
#   does.

# %%
shows(
    lambda: keras_flix.export_lora(
        model, {"task": "qa", "language": "sw"}, FOLDER / "lora"
    )
)

# %% [markdown]
# ## Growing
#
# ### A value is there, or is not
#
# - **Symptom.** `add_values`, `remove_values` or `set_trainable` names a value.
# - **Cause.** Adding what there is would begin it anew; freezing what there is not
#   would freeze nothing.
# - **Remedy.** Correct the name; the message has the nearest.

# %%
shows(lambda: keras_flix.add_values(model, "language", ["sw"]))
shows(lambda: keras_flix.set_trainable(model, {"language": ["swa"]}))

# %% [markdown]
# ## Nothing of this?
#
# - **Out of memory.** A smaller batch, a shorter `sequence_length`, `dtype="bfloat16"`,
#   a [quantized](quantized.ipynb) base. With thousands of values, `LazyAdam` keeps
#   moments only where it steps.
# - **Slow first step.** JAX and TensorFlow compile once per shape: pad to one length
#   (as preprocessors do) and keep one batch size.
# - **Other numbers on another machine.** Fix `keras.utils.set_random_seed` and the
#   `seed` of `enable_flix`; the last digits differ between backends all the same.
# - **Good on seen pairs, poor on unseen ones.** A lower rate first; see
#   [does_flix_help](does_flix_help.ipynb).
#
# Still stuck? `keras_flix.flix_summary(model)` says what was adapted and what trains:
# send it along with the message.
