"""What 0.1 called otherwise still works, and warns whoever wrote it."""

import ast
import warnings

import keras
import numpy as np
import pytest
from helpers.gemma import randomize
from helpers.models import make_mlp
from helpers.places import ROOT

import keras_flix
from keras_flix import analysis, plots
from keras_flix._utils.lazy_names import lazy_names
from keras_flix._utils.renamed import renamed_keyword
from keras_flix.files import read_adapters
from keras_flix.files.saving import adapters_of

FEATURES = {"task": ["qa", "parse"], "language": ["en", "sw"]}
CONTRIBUTIONS = analysis.FeatureContributions(
    full=np.array([1.0, 2.0]),
    base=np.array([3.0, 3.0]),
    without={"task": np.array([1.5, 2.5])},
    alone={"task": np.array([2.0, 1.0])},
    values={"task": ("qa", "parse")},
)


def adapted():
    keras.utils.set_random_seed(0)
    model = keras_flix.enable_flix(make_mlp(), FEATURES, targets="all-linear", seed=0)
    return randomize(model)


def values(model):
    return model._adaptation.schema["task"].values


def drawn(figure):
    return [text.get_text() for text in figure.texts], [
        [label.get_text() for label in one.get_yticklabels()] for one in figure.axes
    ]


CASES = {
    "add_values": lambda **word: values(
        keras_flix.add_values(adapted(), **word, values=["ner"])
    ),
    "remove_values": lambda **word: values(
        keras_flix.remove_values(adapted(), **word, values=["qa"])
    ),
    "rename_value": lambda **word: values(
        keras_flix.rename_value(adapted(), **word, old="qa", new="q")
    ),
    "Adapters.pair": lambda **word: [
        x.tolist() for x in adapters_of(adapted()).pair("head", **word)
    ],
    "value_similarity": lambda **word: str(
        analysis.value_similarity(adapted(), **word, layers=["head"])
    ),
    "ByFeature.table": lambda **word: analysis.update_norms(adapted()).table(**word),
    "FeatureContributions.table": lambda **word: CONTRIBUTIONS.table(**word),
    "FeatureContributions.by_value": lambda **word: CONTRIBUTIONS.by_value(**word),
    "plot_norms": lambda **word: drawn(
        plots.plot_norms(analysis.update_norms(adapted()), **word)
    ),
    "plot_ranks": lambda **word: drawn(
        plots.plot_ranks(analysis.effective_rank(adapted()), **word)
    ),
    "plot_contributions": lambda **word: drawn(
        plots.plot_contributions(CONTRIBUTIONS, **word)
    ),
}
"""By name, what shows the result of a call with the keyword `word`."""


def decorated():
    """The names of all functions and methods that have a renamed keyword."""
    for path in sorted((ROOT / "keras_flix").rglob("*.py")):
        tree = ast.parse(path.read_text())
        owners = {
            id(node): f"{owner.name}."
            for owner in ast.walk(tree)
            if isinstance(owner, ast.ClassDef)
            for node in owner.body
        }
        for node in ast.walk(tree):
            for mark in getattr(node, "decorator_list", ()):
                if ast.unparse(mark) == "renamed_keyword('axis', 'feature')":
                    yield owners.get(id(node), "") + node.name


def test_every_renamed_keyword_is_called_here():
    assert sorted(decorated()) == sorted(CASES)


@pytest.mark.short("torch")
@pytest.mark.parametrize("name", CASES)
def test_axis_is_feature_now(name):
    if name.startswith("plot"):
        pytest.importorskip("matplotlib", reason="extra `plots`")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        # Of others: numpy's, over what torch's tensors take.
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
        expected = CASES[name](feature="task")
    with pytest.warns(DeprecationWarning, match="`axis=`") as found:
        assert CASES[name](axis="task") == expected
    (warning,) = (w for w in found if "`axis=`" in str(w.message))
    function = name.rpartition(".")[2]
    assert str(warning.message) == f"`axis=` of `{function}` is called `feature=` now."
    # Where the old word stands, so that it is found.
    assert warning.filename == __file__


def test_both_words_at_once_are_refused():
    with pytest.raises(TypeError, match="takes `feature` once. Received: `axis=`"):
        CONTRIBUTIONS.by_value(feature="task", axis="task")


def test_renamed_keywords_keep_name_and_signature():
    @renamed_keyword("axis", "feature")
    def shown(feature, more=1):
        """What it does."""
        return feature, more

    assert shown.__doc__ == "What it does." and shown.__name__ == "shown"
    assert shown("task") == shown(feature="task") == ("task", 1)


@pytest.mark.parametrize(
    "old, new",
    [
        ("AxisContributions", "FeatureContributions"),
        ("axis_contributions", "feature_contributions"),
    ],
)
def test_former_names_of_the_analysis(old, new):
    text = f"`keras_flix.analysis.{old}` is called `{new}` now."
    with pytest.warns(DeprecationWarning) as found:
        assert getattr(analysis, old) is getattr(analysis, new)
    (warning,) = found
    assert str(warning.message) == text and warning.filename == __file__
    assert new in dir(analysis) and old not in dir(analysis)
    assert old not in analysis.__all__


def test_the_former_attribute_of_a_similarity(tmp_path):
    path = tmp_path / "adapters.flix.safetensors"
    keras_flix.save_adapters(adapted(), path)
    found = analysis.value_similarity(read_adapters(path), "language")
    assert found.feature == "language"
    text = "`ValueSimilarity.axis` is called `feature` now."
    with pytest.warns(DeprecationWarning, match=text) as warned:
        assert found.axis == "language"
    assert warned[0].filename == __file__
    # Programs read this.
    assert list(found.to_dict()) == ["axis", "values", "layers", "matrix"]


def test_unknown_names_are_still_unknown():
    get, names = lazy_names("keras_flix.analysis", {}, {"old": "new"})
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        get("other")
    assert names() == []
