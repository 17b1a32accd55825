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
# # Does FLix help?
#
# You fine-tune one model for many tasks and languages. Is it worth giving every task
# and every language its own low-rank update (FLix), or is one LoRA for all of them
# enough? This guide answers with a benchmark on a real mixture that anyone can rerun.
#
# **In short**, on this mixture and this small base:
#
# - FLix learns the whole mixture several times faster than a LoRA of the same compute,
#   of the same number of parameters, or of any other rank or targets that were tried.
# - That is on a base that has never seen a prompt. On the same base, taught to follow
#   prompts first, FLix is ahead of an equally tuned LoRA on what it has seen, most of
#   all where that is three examples, and level with it on unseen pairs.
# - Trained three times as long, a LoRA of all linear layers catches up on what it has
#   seen, and on unseen pairs of task and language FLix stays ahead by a few points (one
#   seed).
# - One more task costs LoRA, and does not cost FLix, which is what the paper says.
# - Which feature helps depends on what the base lacks. Where it knows all languages,
#   the task alone is as good as task and language. Where it does not know some of them,
#   the language more than doubles their scores.
# - Nothing here was run on a large model. What was not measured is at the end.
#
# In Colab, put the address of the repository into the next cell and run it.
# In a checkout with `pip install ".[jax,evidence]"`, there is nothing to do. Nothing is
# trained here: tables and figures are made from the stored results of
# [benchmarks/quality](../benchmarks/quality/README.md), which says how to train them
# anew.

# %%
# In Colab: the address that the repository is cloned from.
REPOSITORY = ""

import sys

if REPOSITORY and "google.colab" in sys.modules:
    import os
    import subprocess

    subprocess.run(["git", "clone", REPOSITORY, "keras_flix"], check=True)
    os.chdir("keras_flix/guides")
    install = [sys.executable, "-m", "pip", "install", "-q", "..[jax,evidence]"]
    subprocess.run(install, check=True)

# %%
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
OUTPUT = Path(os.environ.get("FLIX_OUTPUT", str(HERE / "output")))
OUTPUT.mkdir(parents=True, exist_ok=True)
# The benchmarks are not part of the installed package.
sys.path.insert(0, str(HERE.parent))

from benchmarks.quality import (
    evidence_figures,
    evidence_tables,
    figure_parts,
    plan,
    recipe_figures,
    recipe_tables,
)

SIZE, LONG = plan.SIZES["cpu"], plan.SIZES["cpu_long"]


def table(text):
    """Prints a table, with names for readers in place of the results' own."""
    print(figure_parts.readable(text), end="\n\n")


def show(name):
    """Draws a figure and keeps it as a file."""
    evidence_figures.FIGURES[name](SIZE).savefig(OUTPUT / f"{name}.png", dpi=110)


# %% [markdown]
# ## The experiment
#
# Eight tasks in forty languages, made from Unicode CLDR data: `[day_month] [fi]
# 2024-03-05 2 = ` asks for `5. maaliskuuta`. Every prompt says in text which task and
# which language it wants, whoever is trained, so a plain LoRA has all it needs. Five of
# a language's eight tasks have 20 training examples, one has 3, and two have none:
# those 68 *held-out pairs* ask whether what was learnt composes. Six more languages are
# never trained on.
#
# All adapt all linear layers of the same frozen base (a Gemma of 0.7 million
# parameters), see the same examples in the same order, and have the learning rate that
# was best on validation examples of seen pairs. Where nothing else is said, their
# active rank is 6, so an example costs the same. "LoRA" is one LoRA for all; one of
# them is on the attention projections alone, and rank 64 is nearest to FLix in
# parameters; PEFT's LoRA and Poly are Hugging Face's, on the same base. All differences
# in one column have the same baseline, the LoRA that was best in validation, and the
# same seeds. **One seed is a lead, not a result.** (The benchmark's page has its short
# names for all of these.)

# %%
table(evidence_tables.table(SIZE, "headline"))

# %%
show("headline")

# %% [markdown]
# The same on held-out pairs, as a difference from the best LoRA, with the 95 % interval
# of a bootstrap over pairs, and over seeds where there are several:

# %%
show("held_out")

# %% [markdown]
# What holds LoRA back shows in the tasks: four of the eight take a date, so only the
# tag tells which of them is asked. The base never saw a tag. FLix is told by the ids; a
# LoRA must first learn to read tags, and until a run has, it answers one date task with
# another's form. When that happens differs from seed to seed, so its scores scatter. Of
# the other ranks, 24 learns it soonest; 64, with most of FLix' parameters, does not, at
# any learning rate that was tried. PEFT's LoRA behaves as ours does, and its Poly gains
# for the same reason as FLix, being told the task.
#
# Two controls: with shuffled ids in training FLix is no better than a LoRA, and with
# random ids at test (below) its scores halve. It is the ids that help, not the
# parameters.
#
# One LoRA per pair learns its pairs, and has nothing for the others. Task and language
# adapters trained apart and added work, but not as well as trained together. **The task
# alone is as good as FLix here**: this base knows all these languages. Below is a
# mixture where it does not.
#
# ## Does the gap last?

# %%
table(evidence_tables.table(LONG, "headline"))

# %% [markdown]
# On what it has seen, LoRA catches up with three times the training. On held-out pairs
# FLix stays ahead, by less. (One seed; a LoRA of the attention projections was not
# trained for as long.)
#
# The rate matters more than it seems: with 900 steps and a rate of 6e-3 instead of
# 1.5e-3 or 3e-3, FLix had 98 % on seen pairs as before, and 81 % instead of 91 to 92 %
# on held-out ones. **Too high a rate costs unseen pairs first**, and validation on seen
# pairs does not show it. When two rates are close, take the lower one.
#
# ## On a base that follows its prompts
#
# A real base reads its prompts, so a LoRA on it need not learn that first. The same
# Gemma was therefore tuned on *other* tasks in all languages, and on these tasks in six
# other languages, before any adapter. What it answers untrained:

# %%
table(recipe_tables.base())

# %% [markdown]
# Each has six trials, over targets, learning rate and rank; the setting counts that is
# best on validation examples of seen pairs, in nats per answer. 120 steps:

# %%
table(recipe_tables.arms())

# %%
figure = recipe_figures.differences()
figure.savefig(OUTPUT / "standin.png", dpi=110)

# %% [markdown]
# **This is the comparison to believe if your base follows instructions.** Over three
# seeds, FLix is ahead of the best LoRA on what it was shown, most of all in pairs with
# three examples. On held-out pairs both are level: the gap above was LoRA's trouble
# with tags. Settings matter more there than the method: twice the rate cost FLix five
# points on held-out pairs, and four times the rank is better at half of the rate only.
# Seeds of one setting differ by up to 0.2 nats, so a recipe needs several to show.
#
# On a real base, SmolLM2-135M-Instruct with twelve tasks of real words in 24 languages,
# three seeds say the same: FLix is ahead on seen pairs and level on held-out ones
# ([the evidence](evidence.md)).
#
# ## What a more diverse mixture costs, and languages that the base lacks

# %%
table(evidence_tables.table(SIZE, "mixture"))
show("mixture")

# %%
table(evidence_tables.table(SIZE, "growth"))
show("growth")

# %%
table(evidence_tables.table(SIZE, "unknown"))
table(evidence_tables.table(LONG, "unknown"))
show("unknown")

# %% [markdown]
# The first table trains four of the tasks one by one. Alone, LoRA is near FLix on seen
# pairs; in the mixture of eight tasks it loses what it could do alone, and FLix does
# not.
#
# The second table follows one task while the mixture grows around it (scores of the one
# task, or the four languages, that all mixtures have): FLix gets better, the
# compute-matched LoRA is good up to four tasks and loses with eight. That is what the
# paper's Figure 2 shows. More languages help both.
#
# The last two tables and the figure add eight languages that pretraining never showed:
# Welsh, Vietnamese, Icelandic and others must be learnt from 20 examples in each of
# five tasks. Here the language matters: with the task alone, less than half as much of
# them is learnt. And LoRA loses the *known* languages too, while FLix keeps them. With
# 900 steps (second table) a LoRA of rank 24 has caught up on the unknown languages, but
# not on held-out pairs of the known ones. Held-out pairs of unknown languages stay
# below 15 % for all: nobody has told the model the Welsh word for a week.
#
# ## Feature dropout

# %%
table(evidence_tables.table(SIZE, "dropout"))
show("dropout")

# %% [markdown]
# Dropping features did not help here, at any rate: this was no mixture to overfit.
# Where it is used, drop per example and do not rescale what is kept: with half of the
# features dropped, that is 87 % on held-out pairs, against 81 % with rescaling and 83 %
# with one draw per batch. (One seed each, and the learning rate without dropout; the
# paper reports gains from dropout.) So the library's default is none, and `dropout=0.5`
# drops per example without rescaling.
#
# ## Ranks and targets

# %%
table(evidence_tables.table(SIZE, "ranks"))
show("ranks")

# %%
table(evidence_tables.table(SIZE, "targets"))
show("targets")

# %% [markdown]
# Splits are named task, language, shared. They differ by little on seen pairs; a
# language of high rank and a task of rank 1 is the one that composes worse. Rank on the
# task composes a little better here. Equal ranks are a good start, hence one `rank` for
# all in `enable_flix`.
#
# Attention projections alone (the library's default, and what LoRA usually adapts) lose
# FLix one or two points against all linear layers, with less than half of the
# parameters. For LoRA they look better than all linear layers with this one seed, and
# were not with three: the first table has that LoRA with a rate of its own. On the base
# that follows its prompts, all linear layers are better for all.
#
# ## Scale and initial values

# %%
table(evidence_tables.table(SIZE, "scale"))
show("scale")

# %% [markdown]
# A smaller `A` to begin with changes little, a larger one composes worse. The scale
# `alpha / rank` was not varied alone: under Adam it does what the learning rate does,
# which was searched.
#
# ## What each feature contributes

# %%
table(evidence_tables.table(SIZE, "axes"))
show("axes")

# %% [markdown]
# The task carries most. Leaving the language out at test costs nothing in held-out
# pairs: what the language adds on languages that the base knows, it adds to the pairs
# that it was trained on. On languages that the base does not know it is another matter,
# see above.
#
# ## Quality against cost

# %%
table(evidence_tables.table(SIZE, "cost"))
show("cost")

# %% [markdown]
# FLix with 75 steps is about where the LoRA of the same layers is with 900. In
# parameters, LoRA is the smaller one by far, but more rank did not buy it what the
# features buy.
#
# The answers that `generate` gives, scored with chrF (sacreBLEU) besides exact match:

# %%
table(evidence_tables.table(SIZE, "chrf"))

# %% [markdown]
# ## What to do with your own mixture
#
# - **several tasks whose inputs look alike**: FLix with the task as a feature: the
#   largest gain here, in steps, and on unseen pairs where the base cannot tell the
#   tasks apart by itself
# - **few examples of many pairs**: FLix: it gained most in pairs with three examples
# - **languages that the base knows poorly**: add the language; a shared feature for
#   what all have in common
# - **new (task, language) pairs will come**: either; the lower of two learning rates
#   matters more
# - **languages without any training data**: the language family can stand in; here it
#   gained a point or less
# - **one task, or unseen pairs alone on a base that follows instructions**: a plain
#   LoRA: `Feature("shared", always=True)` alone
# - **few steps to spend**: FLix
# - **parameters or file size count most**: LoRA: an update per value costs in
#   proportion to the values
#
# ## Settings to start with
#
# For a base that was pretrained, such as `gemma3_270m` or `gemma3_1b`. The other guides
# use these where they do not say otherwise.
#
# | | start with | then try |
# | --- | --- | --- |
# | features | those that your examples have, and `Feature("shared", always=True)` | without the language, where the base knows all of them |
# | `targets` | `"all-linear"` | `None`, the attention projections, where the file size counts |
# | `rank` | 4 for every feature | four times the rank at half of the rate |
# | `dropout` | 0 | nothing: no rate helped, on either base |
# | `alpha` | `None`, a scale of 1 | nothing: under Adam it does what the rate does |
# | learning rate | Adam with 1e-3, up in a tenth of the steps, down as a cosine, `global_clipnorm=1.0` | half and double; of two that are close, the lower |
# | batch, epochs | 16 examples, 3 times as many as there are | more steps before more rank |
#
# What is behind it: features, targets, ranks, dropout and scale are from the tables
# above; batch and epochs are what is usual. The rates that were best here, 1.5e-3 to
# 6e-3, belong to bases of 0.7 million parameters. On the one of 135 million, over 300
# steps, 2e-3 was the best of 1e-3, 2e-3 and 4e-3; **1e-3 for larger ones is a first
# guess**, a quarter to a half of what you would give a LoRA of the same active rank.
#
# ## What decided the library's defaults
#
# - `dropout=0.0`: none of the rates of feature dropout helped
# - **dropout per example, not rescaled**: both alternatives were worse on held-out pairs
# - one `rank` for all features: equal ranks were as good as any split
# - `targets=None`, the attention projections: one or two points below all linear layers,
#   less than half the size; `"all-linear"` where that counts
# - `alpha=None`, a scale of 1; `A` normal with `d_in ** -0.5`: other initial scales
#   were no better (table above); scale and learning rate do the same under Adam, so the
#   scale stays and the rate is searched
#
# ## What was not measured
#
# - No large model, and nothing was trained on a GPU: both bases here have 0.7 million
#   parameters, and the one that follows prompts reads tags, not natural instructions.
#   On a base of 135 million, three seeds say the same ([evidence](evidence.md)). The benchmark's `--size gpu` is there for whoever has
#   one, and `guides/xtreme_up` for the paper's own data.
# - The tables say how many seeds; where they do not, it is one: a lead. Runs of LoRA
#   scatter by ten points and more around the time when they learn to read tags.
# - Variants keep the learning rate of what they vary, except LoRA in mixtures of other
#   lengths.
# - Words that pretraining showed are most of what the tasks ask for. This is a
#   benchmark of routing and composition, not of knowledge.
