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
# # Serving: merge, PEFT, vLLM, llama.cpp
#
# Adapters of many tasks and languages are trained. How do others run them, who may
# not have `keras_flix`, or not even Keras? Four ways, from the simplest:
#
# 1. `merge_features`: one combination of values as a plain KerasHub model;
# 2. `export_lora`: one combination as a Hugging Face LoRA, for transformers with PEFT;
# 3. `export_loras`: many of them with an index, for servers of many LoRAs such as vLLM;
# 4. `export_values`: one file per *value*; llama.cpp's server adds them up per request.
#
# A combination need not have been seen in training: any task in any language can be
# merged or exported.
#
# The stored run took 67 s of processor time on one core of a busy machine. vLLM was not
# run for it: its command line is shown as text.
#
# In Colab, put the address of the repository into the next cell and run it.
# In a checkout with
# `pip install ".[jax,torch,guides,evidence,gguf]" xllamacpp`, there is nothing to do.
# (PyTorch, transformers and PEFT are for the second way alone; Colab has them. `gguf`
# and `xllamacpp`, llama.cpp with its server as a Python package, are for the fourth.)

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

import importlib.util
import json
import shutil
import time
import urllib.request
import warnings
from pathlib import Path

import cldr_adapters
import keras
import keras_hub
import numpy as np

import keras_flix
from keras_flix.mixtures import Mixture

keras.utils.set_random_seed(0)

# The one thing to change for a real Gemma: "gemma3_270m" or "gemma3_1b".
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
# What the guide writes, anew.
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output"))) / "serving"
shutil.rmtree(OUTPUT, ignore_errors=True)
OUTPUT.mkdir(parents=True)
SMALL = cldr_adapters.SMALL == PRESET
HUGGING_FACE = all(
    importlib.util.find_spec(name) for name in ("torch", "transformers", "peft")
)

# %% [markdown]
# ## Training
#
# A Gemma of 1.3 million parameters with adapters for ten tasks in 18 languages; both
# lie beside this guide. A prompt says neither task nor language, the features do. A
# language joins here: Galician, which starts as a copy of Portuguese and is trained
# alone, on four examples of each task. That is few: some words stay Portuguese.

# %%
gemma = cldr_adapters.load_base(PRESET)
cldr_adapters.add_adapters(gemma, PRESET)

examples = Mixture([cldr_adapters.cell(task, "gl", 4) for task in cldr_adapters.TASKS])
keras_flix.add_values(gemma, "language", ["gl"], init="pt", rank=4)
keras_flix.set_trainable(gemma, {"language": ["gl"]})
cldr_adapters.compile_model(gemma, steps=50, learning_rate=1e-2)
history = gemma.fit(examples, batch_size=20, epochs=25, verbose=0)
print(f"loss {history.history['loss'][0]:.2f} -> {history.history['loss'][-1]:.2f}")

# %% [markdown]
# Three combinations: one that training has shown, one that it has not, and one of the
# new language.

# %%
SEEN = {"task": "full_date", "language": "fr"}
UNSEEN = {"task": "weekday", "language": "it"}
NEW = {"task": "full_date", "language": "gl"}
ALL = (SEEN, UNSEEN, NEW)
assert tuple(UNSEEN.values()) in cldr_adapters.HELD_OUT
PROMPTS = ["2024-07-24 3 = ", "2031-12-05 5 = "]
answers = gemma.generate(
    {
        "prompts": PROMPTS * len(ALL),
        "task": [c["task"] for c in ALL for _ in PROMPTS],
        "language": [c["language"] for c in ALL for _ in PROMPTS],
    }
)
print(*answers, sep="\n")

# %% [markdown]
# ## 1. A plain KerasHub model
#
# The updates of the combination are added to the kernels. What comes out is of the
# class `GemmaCausalLM`, needs no `keras_flix`, no features and no more compute than
# the base, and is saved and loaded as any preset. One model per combination: that is
# for a few combinations.

# %%
merged = keras_flix.merge_features(gemma, SEEN)
merged.save_to_preset(str(OUTPUT / "gemma_full_date_fr"))
plain = keras_hub.models.CausalLM.from_preset(str(OUTPUT / "gemma_full_date_fr"))
plain.compile(sampler="greedy")
print(plain.generate(PROMPTS))
assert plain.generate(PROMPTS) == answers[:2]

# %% [markdown]
# `export_merged(gemma, SEEN, folder)` writes the same as a plain model of transformers,
# and checks it. It goes through KerasHub's export, which gets some architectures wrong.
# Those it refuses: Gemma 2, for its soft caps, and the small Gemma, for its two
# key-value heads.

# %%
if SMALL:
    try:
        keras_flix.export_merged(gemma, SEEN, OUTPUT / "merged")
    except ValueError as error:
        print(error)

# %% [markdown]
# ## 2. One combination as a LoRA
#
# A sum of low-rank updates is one low-rank update, so a combination is an ordinary
# LoRA. Its rank is the sum of the ranks of its values (here 2 + 1 + 2), padded with
# zeros to one that vLLM has room for.

# %%
keras_flix.export_lora(gemma, UNSEEN, OUTPUT / "weekday_it")
for path in sorted((OUTPUT / "weekday_it").iterdir()):
    print(f"{path.name}: {path.stat().st_size / 1e3:.1f} kB")
config = json.loads((OUTPUT / "weekday_it" / "adapter_config.json").read_text())
print({key: config[key] for key in ("r", "lora_alpha", "target_modules")})

# %% [markdown]
# It belongs on the base *of transformers*. For a real Gemma that is what the Hugging
# Face hub has. The small one is on no hub, so it is converted here, once.

# %%
BASE = str(OUTPUT / "base") if SMALL else "google/gemma-3-270m"
if HUGGING_FACE and SMALL:
    cldr_adapters.save_for_transformers(cldr_adapters.load_base(PRESET), BASE)

# %% [markdown]
# Then plain transformers and PEFT. The logits of a prompt are compared with those of
# the adapted Keras model. Greedy generation gives the same answers. (Tokens come from
# the Keras preprocessor, so that only the models are compared.)

# %%
if HUGGING_FACE:
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(BASE).float().eval()
    served = peft.PeftModel.from_pretrained(base, OUTPUT / "weekday_it").eval()

    inputs = gemma.preprocessor.generate_preprocess(PROMPTS[:1])
    length = int(np.asarray(inputs["padding_mask"]).sum())
    tokens = np.asarray(inputs["token_ids"])[:, :length]
    mask = np.ones_like(tokens)
    with torch.no_grad():
        theirs = served(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        with served.disable_adapter():
            alone = served(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    ours = gemma({"token_ids": tokens, "padding_mask": mask, **UNSEEN})
    ours = keras.ops.convert_to_numpy(keras.ops.cast(ours, "float32"))
    print(f"largest logit: {np.abs(ours).max():.1f}")
    print(f"Keras and PEFT differ by {np.abs(ours - theirs).max():.0e}")
    print(f"without the LoRA they would differ by {np.abs(ours - alone).max():.1f}")

    tokenizer = gemma.preprocessor.tokenizer
    found = served.generate(
        input_ids=torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(mask),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=tokenizer.end_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = [int(i) for i in found[0] if int(i) != tokenizer.end_token_id]
    text = tokenizer.detokenize(new).removeprefix("<bos>")
    print([text])
    if SMALL:
        assert np.abs(ours - theirs).max() < 1e-3
        assert text.strip() == answers[2].strip()
else:
    print("not run: PyTorch, transformers and PEFT are not all installed")

# %% [markdown]
# ## 3. Many combinations, and vLLM
#
# vLLM serves one base with many LoRAs, one per request. `export_loras` writes one
# folder per combination, all of one rank, and an index that finds a folder by its
# features. With `None` instead of a list it writes all 190 combinations.

# %%
chosen = [
    {"task": task, "language": language}
    for task in ("full_date", "duration")
    for language in ("en", "fr", "hi")
]
keras_flix.export_loras(gemma, chosen, OUTPUT / "loras", base_model=BASE)
index = json.loads((OUTPUT / "loras" / "index.json").read_text())
print({key: index[key] for key in ("format", "version", "max_lora_rank")})
print(*index["adapters"], sep="\n")

# %% [markdown]
# The command line is made from the index. **It was not run here**: the small Gemma has
# no tokenizer of transformers. A test of the repository serves such folders by vLLM on
# a CPU, for Gemma, Llama, Mistral and Qwen3: a batch of several combinations has the
# log-probabilities of KerasHub's models, to 1e-3. Without `--max-loras`, vLLM computes
# requests of one LoRA at a time.

# %%
modules = " \\\n  ".join(
    f"{a['directory']}=loras/{a['directory']}" for a in index["adapters"]
)
print(
    "vllm serve google/gemma-3-270m --enable-lora "
    f"--max-lora-rank {index['max_lora_rank']} --max-loras {len(chosen)} \\\n"
    f"  --lora-modules \\\n  {modules}"
)

# %% [markdown]
# A client then names the LoRA as the model of its request. `keras_flix.serving`, which
# needs no Keras, turns features into that name, and refuses what was not exported:

# %%
loras = keras_flix.serving.read_index(OUTPUT / "loras")
request = {
    **loras.request({"task": "duration", "language": "hi"}),
    "prompt": "12 day = ",
    "max_tokens": 20,
    "temperature": 0,
}
print(f"curl localhost:8000/v1/completions -d '{json.dumps(request)}'")
try:
    loras.request(UNSEEN)
except ValueError as error:
    print(error)

# %% [markdown]
# ## 4. One file per value, and llama.cpp
#
# A grid of ten tasks and 19 languages is 190 folders. llama.cpp's server adds up any of
# the LoRAs that it has loaded, anew for each request: so one file per value is enough,
# and what nobody exported is served, too. `export_base` writes the base,
# `export_values` the values with their index. (A tokenizer like the small Gemma's is
# not quite the same in llama.cpp, which the export says.)

# %%
LLAMA_CPP = all(importlib.util.find_spec(name) for name in ("gguf", "xllamacpp"))

if LLAMA_CPP:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        keras_flix.export_base(gemma, OUTPUT / "base.gguf")
    print(*(w.message for w in caught if "llama.cpp" in str(w.message)), sep="\n")
    keras_flix.export_values(gemma, OUTPUT / "values", format="gguf")
    values = keras_flix.serving.read_index(OUTPUT / "values")
    sizes = [(values.directory / a["file"]).stat().st_size for a in values.adapters]
    print(f"{len(sizes)} files of {sum(sizes) / 1e6:.1f} MB, such as", end=" ")
    print(*(adapter["file"] for adapter in values.adapters[:3]), sep=", ")
else:
    print("not run: gguf and xllamacpp are not both installed")

# %% [markdown]
# The server starts with all files at scale 0. On the command line that is
# `llama-server --model base.gguf` with `values.server_arguments()`; here it runs inside
# of this process, on a free port.

# %%
if LLAMA_CPP:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(OUTPUT / "base.gguf")
    params.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(str(values.directory / adapter["file"]), 0.0)
        for adapter in values.adapters
    ]
    params.n_ctx = 512
    params.verbosity = 0
    server = xllamacpp.Server(params)

# %% [markdown]
# A request has the features in it: `values.request` says which files it takes, and how
# much of each. A value that the adapters do not know is refused before the server is
# asked. The answers are those of the adapted Keras model, for the pair that training
# has not shown and for the new language, too; a blend of two languages is a request
# like any other. (Tokens come from the Keras preprocessor, as above; `"prompt"` may be
# text, too.)


# %%
def complete(prompt, **features):
    inputs = gemma.preprocessor.generate_preprocess(prompt)
    length = int(np.asarray(inputs["padding_mask"]).sum())
    body = {
        "prompt": np.asarray(inputs["token_ids"])[:length].tolist(),
        "n_predict": 20,
        "temperature": 0,
        **values.request(features),
    }
    call = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call) as response:
        return prompt + json.load(response)["content"]


if LLAMA_CPP:
    print(values.request(UNSEEN))
    served = [complete(p, **c) for c in ALL for p in PROMPTS]
    print(*served, sep="\n")
    if SMALL:
        assert [text.strip() for text in served] == [text.strip() for text in answers]
    blend = {"it": 0.5, "fr": 0.5}
    print(complete(PROMPTS[0], task="full_date", language=blend))
    try:
        complete(PROMPTS[0], task="full_date", language="tlh")
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Which one?
#
# | | needs | combinations | mixed batches |
# | --- | --- | --- | --- |
# | `gemma.generate` | KerasHub and `keras_flix` | all | yes |
# | `merge_features` | KerasHub | one per model | no |
# | `export_merged` | transformers, vLLM and others | one per model | no |
# | `export_lora` | transformers with PEFT | one per folder | no |
# | `export_loras` | vLLM or another server of LoRAs | one per folder | yes |
# | `export_values` | llama.cpp's server | all | by turns |
#
# vLLM computes requests of many LoRAs in one batch, on GPUs, and knows the combinations
# that were exported. llama.cpp runs on nearly anything, and makes every combination of
# one file per value; it computes requests of one combination together, and those of
# different ones by turns.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
