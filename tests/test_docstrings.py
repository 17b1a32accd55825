"""Every `>>>` example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest

import keras_flix

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


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    reports = []
    for test in examples(name):
        runner.run(test, out=reports.append)
    assert runner.failures == 0, "".join(reports)


@pytest.mark.parametrize(
    "name",
    [
        "keras_flix.equations",
        "keras_flix.feature",
        "keras_flix.features",
        "keras_flix.layers.flix_dense",
        "keras_flix.layers.flix_einsum_dense",
        "keras_flix.surgery",
    ],
)
def test_there_are_examples(name):
    assert examples(name)
