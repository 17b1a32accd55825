"""Every example in a docstring runs; after `>>>`, it prints what it says."""

import doctest
import importlib
import pkgutil
import re
import textwrap

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES

import keras_flix
from keras_flix.mixtures import Dataset, Mixture

MODULES = [
    "keras_flix",
    *(m.name for m in pkgutil.walk_packages(keras_flix.__path__, "keras_flix.")),
]


def examples(name):
    module = importlib.import_module(name)
    public = {
        exported: getattr(keras_flix, exported) for exported in keras_flix.__all__
    }
    names = {"keras": keras, "np": np, **public, **vars(module)}
    found = doctest.DocTestFinder().find(module, name, globs=names)
    return [test for test in found if test.examples]


# The examples of one module read the trees of all languages.
SLOW = "keras_flix.features.languages"


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=[pytest.mark.slow] * (m == SLOW)) for m in MODULES],
)
def test_examples_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    reports = []
    for test in examples(name):
        runner.run(test, out=reports.append)
    assert runner.failures == 0, "".join(reports)


@pytest.mark.parametrize(
    "name",
    [
        "keras_flix.layers.einsum_split",
        "keras_flix.features.feature",
        "keras_flix.features.schema",
        "keras_flix.layers.dense",
        "keras_flix.layers.einsum_dense",
        "keras_flix.models.enable",
    ],
)
def test_there_are_examples(name):
    assert examples(name)


FENCED = re.compile(r"^ *```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NEEDS_A_HUB = 'from_preset("gemma2_2b_en")'


def fenced_examples():
    for name in MODULES:
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder(exclude_empty=False).find(module, name):
            for block in FENCED.findall(test.docstring):
                if NEEDS_A_HUB not in block:
                    yield pytest.param(textwrap.dedent(block), id=test.name)


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "torch", reason="once is enough")
@pytest.mark.parametrize("example", fenced_examples())
def test_examples_with_models_run(example, make_gemma, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gemma = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    gemma.compile(optimizer="adam", loss=gemma.loss, sampler="greedy")
    columns = {"prompts": ["the quick", "the lazy"], "responses": ["fox", "dog"]}
    mixture = Mixture(
        Dataset({"task": task, "language": language}, columns)
        for task in ("qa", "parse")
        for language in ("en", "sw")
    )
    names = {
        "BackupAndRestore": keras_flix.callbacks.BackupAndRestore,
        "FeatureScores": keras_flix.callbacks.FeatureScores,
        "FeatureTensorBoard": keras_flix.callbacks.FeatureTensorBoard,
        "feature_contributions": keras_flix.analysis.feature_contributions,
        "evaluate": keras_flix.evaluation.evaluate,
        "forced_exact_match": keras_flix.evaluation.forced_exact_match,
        "gemma": gemma,
        "inputs": {"text": ["the dog", "fox"]},
        "keras": keras,
        "keras_flix": keras_flix,
        "mixture": mixture,
        "model": gemma,
        "train": mixture.inputs(),
        "unseen": mixture,
        "validation": mixture,
    }
    exec(compile(example, "docstring", "exec"), names)


def test_examples_with_models_are_found():
    assert len(list(fenced_examples())) >= 6
