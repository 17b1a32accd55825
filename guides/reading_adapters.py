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
# # Reading the adapters
#
# Every task and every language has its own update of the model, so updates can be
# looked at and compared: which are large, which are alike, what each does to the loss.
# `keras_flix.analysis` computes this, `keras_flix.plots` draws it.
#
# What is read here are the adapters of a Gemma of 1.3 million parameters for ten tasks
# in 18 languages. Their languages come from seven families. Training was never told
# of families: does the file know about them?
#
# The stored run took 38 s of processor time on one core of a busy machine.
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
import time
from pathlib import Path

import cldr_adapters
import keras
import numpy as np

from keras_flix import analysis, plots

keras.utils.set_random_seed(0)

# The one thing to change for a real Gemma: "gemma3_270m" or "gemma3_1b".
PRESET = os.environ.get("FLIX_PRESET", cldr_adapters.SMALL)

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)

gemma = cldr_adapters.load_base(PRESET)
cldr_adapters.add_adapters(gemma, PRESET)
FAMILY = {
    language: family
    for family, languages in cldr_adapters.FAMILIES.items()
    for language in languages
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file that a notebook shows."""

    path: Path = dataclasses.field(repr=False)

    def _repr_png_(self):
        return self.path.read_bytes()


def show(figure, name):
    """Keeps a figure as a file."""
    picture = Picture(OUTPUT / f"{name}.png")
    figure.savefig(picture.path, dpi=80)
    return picture


# %% [markdown]
# ## How large is each update?
#
# The Frobenius norm of a value's update over all layers, and relative to the kernels of
# the base. (With another rank, scale or learning rate all norms are others: compare
# them within one model.)

# %%
norms = analysis.update_norms(gemma)
print(norms)

# %%
show(plots.plot_norms(norms, "task", relative=True), "reading_norms")

# %% [markdown]
# The six tasks about dates have the largest updates (12 to 17), amounts, lists and
# relative times the smallest (7 to 8). Beside the base's kernels they are 6 to 14 %:
# the base is a small one that has never met a task.
#
# ## Which values are alike?
#
# The cosine between the updates of two values, over all layers as one long vector.

# %%
languages = analysis.value_similarity(gemma, "language")
show(plots.plot_similarity(languages, FAMILY), "reading_languages")

# %% [markdown]
# Mind the scale: no two languages have a cosine beyond 0.05. The updates are nearly at
# right angles, which is no surprise: each language has an update of rank 1 in each
# layer, which started from random numbers of its own. But the tree puts the four Slavic
# languages together, three of the Romance ones, and the two Semitic ones.
#
# Does that mean anything? Let us see how often the nearest value is of the same family,
# and how often that happens if families are dealt at random.

# %%
values = list(languages.values)
cosines = np.array(languages.matrix)
np.fill_diagonal(cosines, -1.0)
nearest = [values[i] for i in cosines.argmax(axis=1)]
for value, other in zip(values, nearest):
    mark = "same family" if FAMILY[value] == FAMILY[other] else ""
    print(f"{value} -> {other}  {cosines[values.index(value)].max():.3f}  {mark}")


def hits(family):
    pairs = zip(values, nearest)
    return sum(family[value] == family[other] for value, other in pairs)


generator = np.random.default_rng(0)
shuffled = [
    hits(dict(zip(values, generator.permutation([FAMILY[v] for v in values]))))
    for _ in range(10_000)
]
print(f"{hits(FAMILY)} of {len(values)} nearest values are of the same family")
print(
    f"with families at random: {np.mean(shuffled):.1f} on average, and as many or more "
    f"in {sum(count >= hits(FAMILY) for count in shuffled)} of 10,000 draws"
)

# %% [markdown]
# So the cosines are tiny, and yet which of them is the largest follows the families far
# more than chance would: training has found some of it by itself. Not all: of the
# Germanic languages only Swedish has its nearest relative beside it, and the nearest of
# English is Hindi.
#
# ## What does each feature do to the loss?
#
# `feature_contributions` runs examples with and without each feature. Left out of the
# whole: how much worse is the loss without it? Alone on the base: how much better is it
# than the base? Below 0 the feature lowers the loss.

# %%
_, test, _ = cldr_adapters.mixtures(test_per_cell=1)
contributions = analysis.feature_contributions(gemma, test.inputs(), batch_size=72)
print(contributions)

# %%
show(
    plots.plot_contributions(contributions, "language", FAMILY), "reading_contributions"
)

# %% [markdown]
# Without the language, the loss of a token rises by 0.77 nats, without the task by
# 0.29, and without what is shared by 0.06 only, although alone on the base it is worth
# 0.78: the other features can stand in for most of it. Japanese needs its update most.
#
# ## How much of its rank does an update use?
#
# A value with little to say would use only a part of its rank; one whose rank is used
# up might do with more. Ranks here are 1 and 2, and nearly all of it is used: nothing
# can be saved, and more might help.

# %%
ranks = analysis.effective_rank(gemma)
print(ranks.table("task"))

# %% [markdown]
# ## All of it in one page
#
# `analyze` does the above for all features and writes an HTML page with all figures.

# %%
path = OUTPUT / "reading_adapters.html"
found = analysis.analyze(gemma, path, groups={"language": FAMILY})
print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")

# %% [markdown]
# What this says is about one small model and one training run. With larger ranks,
# another seed or a real Gemma it may look different: change `PRESET` and read again.

# %%
print(f"The whole guide took {time.process_time():.0f} s of processor time.")
