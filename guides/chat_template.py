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
# # Instruction-tuned Gemma 3 with a chat template
#
# The instruction-tuned Gemma 3 presets expect turns: who speaks is said by tokens of
# their own. This guide spells them out, trains adapters on data in that form, and asks
# the model, in one turn and in several.
#
# **What was run.** No weights of Gemma 3 could be reached where this guide was written.
# Unless you set `PRESET`, it uses a Gemma 3 of the same classes with two layers, random
# weights and a tokenizer that has the same turn tokens. It learns nine short answers by
# heart, which shows that every line works, and nothing about quality.
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

import keras
import keras_hub
import numpy as np
import tiny_gemma3

import keras_flix
from keras_flix.evaluation import evaluate
from keras_flix.mixtures import Mixture
from keras_flix.text_metrics import exact_match

keras.utils.set_random_seed(0)

# The one thing to change: "gemma3_instruct_270m", or "gemma3_instruct_1b".
PRESET = os.environ.get("FLIX_PRESET", "")

# %% [markdown]
# ## 1. The presets
#
# KerasHub has them under these names; the ones without `instruct` are not tuned to
# follow turns. To download one, accept Gemma's licence on Kaggle once, and set
# `KAGGLE_USERNAME` and `KAGGLE_KEY`.

# %%
known = keras_hub.models.Gemma3CausalLM.presets
for size in ("270m", "1b", "4b_text", "12b_text"):
    base, tuned = f"gemma3_{size}", f"gemma3_instruct_{size}"
    count = known[tuned]["metadata"]["params"]
    assert base in known
    print(f"{base:16} {tuned:25} {count / 1e6:7,.0f} million parameters")

# %% [markdown]
# 270M is enough to set all up, on a laptop too; 1B is a good size to train on one GPU.
# The library treats them alike. `_text` are the larger ones without their image
# encoder.
#
# ## 2. Turns
#
# A conversation of Gemma 3 is text in this form:
#
# ```text
# <start_of_turn>user
# How do I say thanks?<end_of_turn>
# <start_of_turn>model
# Asante.<end_of_turn>
# ```
#
# - There are two roles, `user` and `model`, and none for a system. What you would say
#   there opens the first turn of the user, followed by a blank line.
# - A prompt ends with the line that opens the model's turn. What follows is the answer,
#   which ends with `<end_of_turn>`.
# - `<bos>` comes before all. KerasHub's preprocessor adds it: do not write it.
#
# That is what `tokenizer.apply_chat_template` of transformers writes, and all there is
# to it:


# %%
def turn(role, text):
    """One turn, closed."""
    return f"<start_of_turn>{role}\n{text.strip()}<end_of_turn>\n"


def as_prompt(question, history=(), system=""):
    """What the model is asked: past turns, the question, the opened turn of the model.

    Args:
        question: Of the user.
        history: Pairs of earlier questions and answers.
        system: What holds for the whole conversation.
    """
    asked = [question for question, _ in history] + [question]
    asked[0] = f"{system.strip()}\n\n{asked[0]}" if system else asked[0]
    said = [answer for _, answer in history]
    turns = [turn("user", asked[0])]
    for answer, following in zip(said, asked[1:]):
        turns += [turn("model", answer), turn("user", following)]
    return "".join(turns) + "<start_of_turn>model\n"


def as_response(answer):
    """What the model is to say: the answer, and that it ends there."""
    return f"{answer.strip()}<end_of_turn>"


print(as_prompt("And goodbye?", [("How do I say thanks?", "Asante.")], "Be brief."))

# %% [markdown]
# ## 3. Data
#
# Three tasks in three languages. The question says neither: the features do. (With a
# real base, say in the prompt what you would say to a person, and state the features
# besides.)

# %%
ANSWERS = {
    "hello": {"en": "Hello!", "de": "Guten Tag!", "sw": "Habari!"},
    "thanks": {"en": "Thank you.", "de": "Vielen Dank.", "sw": "Asante."},
    "bye": {"en": "Goodbye.", "de": "Auf Wiedersehen.", "sw": "Kwa heri."},
}
QUESTIONS = (
    "What do I say to Ana?",
    "What do I say to my neighbour?",
    "To a friend, please.",
    "And to my teacher?",
)
records = [
    {
        "prompt": as_prompt(question),
        "response": as_response(answer),
        "task": task,
        "language": language,
    }
    for task, answers in ANSWERS.items()
    for language, answer in answers.items()
    for question in QUESTIONS
]
mixture = Mixture.from_records(records, features=("task", "language"))
print(mixture)

# %% [markdown]
# ## 4. The model
#
# `dtype="bfloat16"` halves what a real base takes. `sequence_length` is that of prompt
# and answer together, in tokens; a preset comes with 1,024, and a step costs in
# proportion, so set it to what your examples need.

# %%
if PRESET:
    gemma = keras_hub.models.Gemma3CausalLM.from_preset(PRESET, dtype="bfloat16")
else:
    gemma = tiny_gemma3.causal_lm([r["prompt"] + r["response"] for r in records])
gemma.preprocessor.sequence_length = 64
print(type(gemma).__name__, f"with {gemma.count_params():,} parameters")

# %% [markdown]
# Each of the turn tokens must be *one* token. A base that spells `<start_of_turn>` in
# letters is another model, or has another tokenizer: nothing would say so, and
# answers would be poor.

# %%
tokenizer = gemma.preprocessor.tokenizer
for word in ("<start_of_turn>", "<end_of_turn>"):
    assert np.asarray(tokenizer(word)).tolist() == [tokenizer.token_to_id(word)], word
first = mixture.sample(1)
x, y, weights = gemma.preprocess_samples({**first, "task": "hello", "language": "en"})
pieces = [tokenizer.id_to_token(int(i)) for i in np.asarray(x["token_ids"])[0]]
length = int(np.asarray(x["padding_mask"]).sum())
print(pieces[:length])

# %% [markdown]
# The loss counts the response alone, up to its end:

# %%
counted = np.asarray(weights)[0] != 0
print([tokenizer.id_to_token(int(i)) for i in np.asarray(y)[0][counted]])

# %% [markdown]
# ## 5. Adapters, and training
#
# As for any base. Ranks, rate and so on: [Settings to start
# with](does_flix_help.ipynb#settings-to-start-with). (Random weights want a higher rate
# than a trained base.)

# %%
features = [*mixture.schema(), keras_flix.Feature("shared", always=True)]
keras_flix.enable_flix(gemma, features, rank=4, targets="all-linear", seed=0)
gemma.compile(
    optimizer=keras.optimizers.Adam(1e-3 if PRESET else 1e-2, global_clipnorm=1.0),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    sampler="greedy",
)
history = gemma.fit(mixture.inputs(), batch_size=12, epochs=20, verbose=0)
print(f"loss {history.history['loss'][0]:.3f} -> {history.history['loss'][-1]:.3f}")

# %% [markdown]
# ## 6. Ask
#
# Generation stops at `<end_of_turn>`, as Gemma 3's `generate` knows by itself. The
# answer still has it at its end:

# %%
asked = {
    "prompts": [as_prompt(QUESTIONS[0])] * 3,
    "task": ["hello", "thanks", "bye"],
    "language": ["de", "sw", "en"],
}
answers = gemma.generate(asked, strip_prompt=True)
print(answers)


# %% [markdown]
# A conversation keeps what was said and asks with all of it. The features may change
# from turn to turn. (A chat loop that knows no features asks within
# `with keras_flix.use_features(gemma, task="bye", language="sw"):`.)


# %%
def without_end(text):
    """An answer as people read it."""
    return text.split("<end_of_turn>")[0].strip()


said = []
for question, task in ((QUESTIONS[0], "hello"), (QUESTIONS[3], "bye")):
    prompt = as_prompt(question, history=said[-1:])
    answer = gemma.generate(
        {"prompts": [prompt], "task": task, "language": "sw"}, strip_prompt=True
    )
    said.append((question, without_end(answer[0])))
    print(*said[-1], sep="\n    ")

# %% [markdown]
# ## 7. Score
#
# Responses in the mixture end with `<end_of_turn>`, and so do answers: exact match
# compares like with like. For a metric that reads the text, such as chrF, take the end
# off both:


# %%
def chrf(predictions, references):
    """chrF of the answers as people read them."""
    from keras_flix.text_metrics import chrf

    return chrf(
        [without_end(text) for text in predictions],
        [without_end(text) for text in references],
    )


scores = evaluate(
    gemma, mixture, metrics={"exact_match": exact_match, "chrf": chrf}, batch_size=36
)
print(scores.table("task"))

# %% [markdown]
# ## And then
#
# - Adapters of an instruction-tuned base belong to it, not to the base without
#   `instruct`: `load_adapters` compares, and refuses the other one.
# - Whoever serves an exported LoRA ([serving](serving.ipynb)) sends the same turns.
#   vLLM and transformers apply the template themselves where they are given messages
#   instead of text.
# - On the command line, `keras-flix chat` and `keras-flix train` write one turn each
#   with `--template gemma`.
# - Gemma 4 has other turns (`<|turn>user`, closed by `<turn|>`) and one for a system:
#   [the reference](reference/adapting.md#embedders-images-sound-and-drafts) spells them
#   out. All else is as here; `--template gemma4` writes them.
# - A mixture may have turns of several rounds: `as_prompt` with a history makes the
#   prompt, and the last answer is the response.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
