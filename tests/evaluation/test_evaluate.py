"""`evaluate`, `Scores`, forced decoding and the comparison of two models."""

import json

import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize
from helpers.places import GUIDES
from helpers.tables import FORMS, columns_of

import keras_flix
from keras_flix.evaluation import (
    Comparison,
    Scores,
    evaluate,
    forced_exact_match,
    paired_bootstrap,
)
from keras_flix.mixtures import Dataset, Mixture
from keras_flix.text_metrics import exact_match, span_f1, token_f1

pytestmark = pytest.mark.eager

PRESET = GUIDES / "cldr_gemma"


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


# Scores. ---------------------------------------------------------------------


def make_scores(**metrics):
    # Cell (qa, en): 1 of 3, (qa, sw): 1 of 1, (parse, None): 0 of 2.
    return Scores(
        {
            "task": ["qa", "qa", "parse", "qa", "qa", "parse"],
            "language": ["en", "sw", None, "en", "en", None],
        },
        predictions=["a", "b", "c", "d", "e", "f"],
        references=["a", "b", "x", "x", ["x", "y"], "x"],
        metrics=metrics or {"exact_match": exact_match},
    )


def values(scores):
    return {key: score["exact_match"] for key, score in scores.items()}


def test_scores_of_groups():
    scores = make_scores()
    assert len(scores) == 6
    assert scores.overall() == {"exact_match": pytest.approx(100 / 3)}
    assert list(values(scores.by("task")).items()) == [("qa", 50.0), ("parse", 0.0)]
    assert values(scores.by("task", "language")) == {
        ("qa", "en"): pytest.approx(100 / 3),
        ("qa", "sw"): 100.0,
        ("parse", None): 0.0,
    }
    assert scores.counts("task", "language") == {
        ("qa", "en"): 3,
        ("qa", "sw"): 1,
        ("parse", None): 2,
    }
    assert list(scores.by("language", "task"))[0] == ("en", "qa")
    assert values(scores.by()) == {(): pytest.approx(100 / 3)}


def test_mean_over_groups_counts_groups():
    scores = make_scores()
    assert scores.mean_over("task") == {"exact_match": 25.0}
    cells = scores.mean_over("task", "language")
    assert cells == {"exact_match": pytest.approx((100 / 3 + 100 + 0) / 3)}


def test_metrics_see_whole_groups():
    seen = []

    def metric(predictions, references):
        seen.append((predictions, references))
        return len(predictions)

    scores = make_scores(size=metric)
    assert scores.by("task") == {"qa": {"size": 4.0}, "parse": {"size": 2.0}}
    assert seen[0] == (["a", "b", "d", "e"], ["a", "b", "x", ["x", "y"]])
    # Micro over the group: 2 * 1 / (2 + 4), where a mean of examples has 50.
    spans = Scores(
        {"task": ["ner", "ner"]},
        ["PER: A", "PER: B"],
        ["PER: A", "LOC: B $$ LOC: C $$ LOC: D"],
        {"span_f1": span_f1, "token_f1": token_f1},
    )
    assert spans.by("task")["ner"]["span_f1"] == pytest.approx(100 / 3)
    assert list(spans.overall()) == ["span_f1", "token_f1"]


def test_an_example_with_several_values_is_in_several_groups():
    scores = Scores(
        {"domain": [["web", "news"], ["web"], []]},
        ["a", "b", "c"],
        ["a", "x", "c"],
        {"exact_match": exact_match},
    )
    assert values(scores.by("domain")) == {"web": 50.0, "news": 100.0, None: 100.0}
    assert scores.counts("domain") == {"web": 2, "news": 1, None: 1}


def test_table():
    scores = make_scores(exact_match=exact_match, f1=token_f1)
    assert scores.table("task", "language") == (
        "task/language  examples  exact_match     f1\n"
        "qa/en                 3         33.3   33.3\n"
        "qa/sw                 1        100.0  100.0\n"
        "parse/(none)          2          0.0    0.0\n"
        "all                   6         33.3   33.3"
    )
    assert (
        make_scores().table()
        == "     examples  exact_match\nall         6         33.3"
    )
    assert str(scores) == scores.table("task") + "\n\n" + scores.table("language")
    assert "predictions" not in repr(scores)


def test_rows_of_one_value_stand_together_in_a_table():
    tasks, languages = ["qa", "ner", "ner", "qa"], ["sw", "en", "sw", "en"]
    features = {"task": tasks, "language": languages}
    scores = Scores(features, ["a"] * 4, ["a"] * 4, {"exact_match": exact_match})
    rows = scores.table("task", "language").splitlines()[1:]
    cells = [row.split()[0] for row in rows]
    assert cells == ["qa/sw", "qa/en", "ner/sw", "ner/en", "all"]


def test_to_dict_is_json():
    scores = make_scores()
    result = scores.to_dict(examples=True)
    assert json.loads(json.dumps(result)) == result
    assert result["count"] == 6
    assert result["overall"] == scores.overall()
    assert values(result["by"]["language"]) == values(
        {key or "": score for key, score in scores.by("language").items()}
    )
    assert result["cells"][2] == {
        "features": {"task": "parse", "language": None},
        "count": 2,
        "scores": {"exact_match": 0.0},
    }
    assert result["examples"][4] == {
        "features": {"task": "qa", "language": "en"},
        "prediction": "e",
        "reference": ["x", "y"],
    }
    assert "examples" not in scores.to_dict()


def test_scores_refusals():
    assert refusal(lambda: make_scores().by("lang")) == (
        "Groups must name one of the features ['task', 'language']. Received: "
        "'lang'. The nearest is 'language'."
    )
    assert refusal(lambda: Scores({"task": ["qa"]}, ["a"], ["a"], {})) == (
        "Scores must have at least one metric. Received: metrics={}. Pass such as "
        '{"exact_match": keras_flix.text_metrics.exact_match}.'
    )
    metrics = {"exact_match": exact_match}
    for arguments in (({"task": ["qa"]}, ["a"], []), ({"task": []}, ["a"], ["a"])):
        lengths = {"task": len(arguments[0]["task"]), "references": len(arguments[2])}
        assert refusal(lambda a=arguments: Scores(*a, metrics)) == (
            "Every prediction must have a reference and an entry of every feature. "
            f"Received: 1 predictions, and {lengths}. Pass equally many."
        )


# Generation. -----------------------------------------------------------------


def make_mixture():
    def dataset(task, language, prompts):
        columns = {"prompts": prompts, "responses": [p.upper() for p in prompts]}
        return Dataset({"task": task, "language": language}, columns)

    return Mixture(
        [
            dataset("qa", "en", ["the quick", "dog"]),
            dataset("qa", "sw", ["fox"]),
            dataset("list", None, ["the lazy dog", "jumps"]),
        ]
    )


class Parrot:
    """A plain model that answers its prompt in capitals, and notes its batches."""

    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor.__new__(
        keras_hub.models.GemmaCausalLMPreprocessor
    )

    def __init__(self):
        self.batches = []

    def generate(self, inputs, max_length=None, strip_prompt=False):
        self.batches.append((inputs, max_length, strip_prompt))
        return [prompt.upper() for prompt in inputs]


def test_batches_have_one_size():
    parrot = Parrot()
    scores = evaluate(parrot, make_mixture(), batch_size=2, max_length=9)
    assert parrot.batches == [
        (["the quick", "dog"], 9, True),
        (["fox", "the lazy dog"], 9, True),
        (["jumps", "jumps"], 9, True),
    ]
    assert scores.predictions == ("THE QUICK", "DOG", "FOX", "THE LAZY DOG", "JUMPS")
    assert scores.references == scores.predictions
    assert scores.features["language"] == ("en", "en", "sw", None, None)
    assert scores.overall() == {"exact_match": 100.0}
    # Fewer prompts than a batch holds need no more than they are.
    evaluate(parrot, make_mixture())
    assert len(parrot.batches[-1][0]) == 5


def test_takes_datasets_and_metrics():
    mixture = make_mixture()
    scores = evaluate(Parrot(), list(mixture.datasets[1:]), {"f1": token_f1})
    assert scores.by("task") == {"qa": {"f1": 100.0}, "list": {"f1": 100.0}}
    assert len(evaluate(Parrot(), mixture.datasets[0])) == 2


TABLE = [
    {"prompts": "dog", "responses": "DOG", "task": "list", "language": None, "n": 2},
    {"prompts": "the quick", "responses": "no", "task": "qa", "language": "sw", "n": 1},
    {"prompts": "fox", "responses": "FOX", "task": "list", "language": None, "n": 1},
]


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_every_form(form):
    """For a plain model, all other columns are features to score by."""
    scores = evaluate(Parrot(), FORMS[form](TABLE))
    assert scores.predictions == ("DOG", "THE QUICK", "FOX")
    assert values(scores.by("task")) == {"list": 100.0, "qa": 0.0}
    assert values(scores.by("language")) == {None: 100.0, "sw": 0.0}
    assert values(scores.by("n")) == {2: 100.0, 1: 50.0}
    assert scores.table("n").splitlines()[1].split() == ["2", "1", "100.0"]
    assert scores.to_dict()["by"]["language"].keys() == {"", "sw"}
    one = {**columns_of(TABLE), "task": "qa"}
    assert values(evaluate(Parrot(), one).by("task")) == {"qa": pytest.approx(200 / 3)}


@pytest.mark.short("torch")
@pytest.mark.slow
def test_tables_of_an_adapted_model(gemma):
    randomize(keras_flix.enable_flix(gemma, FEATURES, rank=2), scale=0.8)
    gemma.compile(sampler="greedy")
    table = [{k: v for k, v in row.items() if k != "n"} for row in TABLE]
    scores = evaluate(gemma, table, max_length=16)
    asked = [{k: v for k, v in row.items() if k != "responses"} for row in table]
    expected = gemma.generate(asked, max_length=16, strip_prompt=True)
    assert list(scores.predictions) == expected
    assert scores.features["language"] == (None, "sw", None)
    unsaid = [{k: v for k, v in row.items() if k != "language"} for row in table]
    with keras_flix.use_features(gemma, language="sw"):
        stated = evaluate(gemma, unsaid, max_length=16)
    of_sw = [{**row, "language": "sw"} for row in table]
    assert stated.predictions == evaluate(gemma, of_sw, max_length=16).predictions
    assert stated.features["language"] == ("sw",) * 3
    mixture = Mixture(table, features=["task", "language"])
    again = evaluate(gemma, mixture, max_length=16)
    assert sorted(again.predictions) == sorted(scores.predictions)
    assert "Received: 'n'. Remove it." in refusal(lambda: evaluate(gemma, TABLE))
    table[1]["responses"] = None
    assert "column 'responses'. Received: None at row 1" in refusal(
        lambda: evaluate(gemma, table)
    )


def test_evaluate_refusals():
    assert refusal(lambda: evaluate(Parrot(), {"prompts": ["a"], "task": "qa"})) == (
        "Datasets to evaluate must have the columns 'prompts' and 'responses'. "
        "Received: columns ['prompts', 'task']. Add 'responses'."
    )
    assert refusal(lambda: evaluate(Parrot(), "a file.csv")).startswith(
        "A mixture must be of Dataset, or of a table. Received: 'a file.csv'."
    )
    bare = Dataset({"task": "qa"}, {"prompts": ["a"], "text": ["b"]})
    assert refusal(lambda: evaluate(Parrot(), bare)) == (
        "Datasets to evaluate must have the columns 'prompts' and 'responses'. "
        "Received: columns ['prompts', 'text']. Add 'responses'."
    )
    parrot = Parrot()
    parrot.preprocessor = None
    assert refusal(lambda: evaluate(parrot, make_mixture())) == (
        "A model to evaluate must take strings. Received: a Parrot without a "
        "preprocessor. Attach one, or use `forced_exact_match` on tokens."
    )
    # Before anything is generated.
    parrot = Parrot()
    assert refusal(lambda: evaluate(parrot, make_mixture(), metrics={})).startswith(
        "Scores must have at least one metric."
    )
    assert parrot.batches == []
    assert refusal(lambda: evaluate(Parrot(), make_mixture(), batch_size=0)) == (
        "A batch must have at least one prompt. Received: batch_size=0. Pass a "
        "positive number."
    )


@pytest.fixture
def gemma(make_gemma):
    model = make_gemma()
    # Embeddings of unit size let the next token depend on more than the last.
    embedding = model.backbone.token_embedding.embeddings
    generator = np.random.default_rng(1)
    embedding.assign(generator.normal(size=embedding.shape) * 0.3)
    model.compile(sampler="greedy")
    return model


@pytest.mark.short("torch")
@pytest.mark.slow
def test_features_reach_the_model(gemma):
    """Answers are those of `generate`, example by example, and depend on features."""
    mixture = make_mixture()
    plain = evaluate(gemma, mixture, batch_size=3, max_length=16)
    # In another order, with other neighbours.
    inputs = mixture.inputs()
    inputs.pop("responses")
    groups = [[4, 2, 0], [3, 1, 1]]
    order = [4, 2, 0, 3, 1]

    def generate(rows, names):
        batch = {name: [inputs[name][i] for i in rows] for name in names}
        batch = batch if len(batch) > 1 else batch["prompts"]
        return gemma.generate(batch, max_length=16, strip_prompt=True)

    expected = [a for rows in groups for a in generate(rows, ["prompts"])][:5]
    assert [plain.predictions[i] for i in order] == expected

    randomize(keras_flix.enable_flix(gemma, FEATURES, rank=2), scale=0.8)
    gemma.compile(sampler="greedy")
    adapted = evaluate(gemma, mixture, batch_size=3, max_length=16)
    expected = [a for rows in groups for a in generate(rows, inputs)][:5]
    assert [adapted.predictions[i] for i in order] == expected
    assert adapted.predictions != plain.predictions
    with keras_flix.adapters_disabled(gemma):
        disabled = evaluate(gemma, mixture, batch_size=3, max_length=16)
    assert disabled.predictions == plain.predictions


@pytest.mark.short("torch")
@pytest.mark.slow
def test_axes_of_another_model_are_left_out(gemma):
    """A LoRA, or a model of fewer axes, takes the same mixture."""
    features = [
        keras_flix.Feature("task", FEATURES["task"]),
        keras_flix.Feature("shared", always=True),
    ]
    randomize(keras_flix.enable_flix(gemma, features, rank=2), scale=0.8)
    mixture = make_mixture()
    scores = evaluate(gemma, mixture, batch_size=5, max_length=16)
    own = {name: mixture.inputs()[name] for name in ("prompts", "task")}
    expected = gemma.generate(own, max_length=16, strip_prompt=True)
    assert list(scores.predictions) == expected
    few = Mixture([Dataset({"language": "en"}, mixture.datasets[0].columns)])
    with pytest.raises(ValueError, match="no entry 'task'"):
        evaluate(gemma, few, max_length=16)


@pytest.mark.parametrize(
    "features, columns, message",
    [
        ({"language": "xx"}, {}, "Received: language='xx'"),
        ({}, {"prompts": ["a", None]}, "'prompts'. Received: None at row 3"),
        ({}, {"responses": [None, "b"]}, "'responses'. Received: None at row 2"),
    ],
)
def test_mistakes_in_a_mixture_are_told_before_the_first_answer(
    make_gemma, features, columns, message, monkeypatch
):
    model = keras_flix.enable_flix(make_gemma(), FEATURES)
    monkeypatch.setattr(model, "generate", None)
    good = {"prompts": ["a", "b"], "responses": ["c", "d"]}
    wrong = Dataset({"task": "qa", "language": "sw", **features}, {**good, **columns})
    data = Mixture([Dataset({"task": "qa", "language": "en"}, good), wrong])
    with pytest.raises(ValueError, match=message):
        evaluate(model, data, max_length=8)


# Forced decoding. ------------------------------------------------------------


class Table:
    """A model whose next token is looked up by the last one."""

    def __init__(self, next_tokens):
        self.logits = np.eye(len(next_tokens), dtype="float32")[next_tokens]
        self.batches = []

    def predict_on_batch(self, x):
        self.batches.append(x)
        return self.logits[x["token_ids"]]


def test_forced_exact_match_of_a_table():
    model = Table([1, 2, 3, 0])
    token_ids = np.array([[0, 1, 2], [0, 1, 2], [1, 1, 2], [1, 1, 0], [0, 1, 2]])
    y = np.array([[1, 2, 3], [1, 2, 0], [1, 2, 3], [1, 2, 0], [1, 2, 3]])
    weights = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0.5, 0], [0, 0, 0]])
    x = {"token_ids": token_ids, "task": list("abcde"), "language": "sw"}
    hits = forced_exact_match(model, x, y, weights, batch_size=2)
    # Right; wrong at the end; wrong where it does not count, twice; cut off.
    assert hits.tolist() == [True, False, True, True, False]
    assert hits.dtype == "bool"
    assert [batch["token_ids"].shape for batch in model.batches] == [(2, 3)] * 3
    assert [batch["task"] for batch in model.batches] == [
        ["a", "b"],
        ["c", "d"],
        ["e", "e"],
    ]
    assert all(batch["language"] == "sw" for batch in model.batches)
    for size in (1, 3, 5, 9):
        again = forced_exact_match(model, x, y, weights, batch_size=size)
        np.testing.assert_array_equal(again, hits)


def test_forced_exact_match_refuses_other_shapes():
    x, y = {"token_ids": np.zeros((2, 3), "int32")}, np.zeros((2, 3), "int32")
    assert refusal(lambda: forced_exact_match(Table([0]), x, y, np.ones(2))) == (
        "`y` and `sample_weight` must have the shape (examples, length). Received: y "
        "of shape (2, 3) and sample_weight of shape (2,). Pass what the preprocessor "
        "returned."
    )


@pytest.mark.short("torch")
@pytest.mark.slow
def test_forced_is_greedy_exact_match():
    """On a trained Gemma that answers some prompts right, and others not."""
    gemma = keras_hub.models.GemmaCausalLM.from_preset(str(PRESET))
    gemma.preprocessor.sequence_length = 24
    features = {"task": ["date", "list"], "language": ["en", "sw"]}
    keras_flix.enable_flix(gemma, features, targets="all-linear", seed=0)
    randomize(gemma, scale=0.02)
    gemma.compile(sampler="greedy")
    prompts = ["5", "12 Jan", "mon", "a, b", "3.5", "sw", "2024", "1, 2, 3"]
    entries = {"task": ["date", "list"] * 4, "language": ["en", "en", "sw", None] * 2}

    def datasets(responses):
        return [
            Dataset(
                {name: entries[name][i] for name in entries},
                {"prompts": [prompt], "responses": [response]},
            )
            for i, (prompt, response) in enumerate(zip(prompts, responses))
        ]

    # The model's own answers, of which every other is spoiled.
    answers = evaluate(gemma, datasets([""] * 8), batch_size=4).predictions
    spoiled = [a if i % 2 else a[:-1] + "@" for i, a in enumerate(answers)]
    scores = evaluate(gemma, datasets(spoiled), batch_size=4)
    expected = [p == r for p, r in zip(scores.predictions, scores.references)]
    assert expected == [False, True] * 4
    inputs = Mixture(datasets(spoiled)).inputs()
    x, y, sample_weight = gemma.preprocess_samples(inputs)
    found = forced_exact_match(gemma, x, y, sample_weight, batch_size=3)
    # Where the sequence has room for the end of the text.
    ends = ~np.asarray(x["padding_mask"])[:, -1]
    assert ends.sum() >= 5
    assert found[ends].tolist() == np.array(expected)[ends].tolist()
    assert set(found[ends]) == {True, False}
    # Values are encoded as anywhere, and adapters may be off.
    named = forced_exact_match(gemma, {**x, **entries}, y, sample_weight, 3)
    np.testing.assert_array_equal(named, found)
    with keras_flix.adapters_disabled(gemma):
        off = forced_exact_match(gemma, {**x, **entries}, y, sample_weight, 3)
    assert off.tolist() != found.tolist()


# Comparison. -----------------------------------------------------------------

CELLS = {("qa", "en"): 60.0, ("qa", "sw"): 40.0, ("parse", "en"): 80.0}


def test_equal_scores_do_not_differ():
    assert paired_bootstrap(CELLS, dict(CELLS)) == Comparison(0.0, 0.0, 0.0)


def test_a_constant_shift_is_certain():
    """Cells are paired: how much they differ among themselves does not matter."""
    better = {cell: score + 3 for cell, score in CELLS.items()}
    assert paired_bootstrap(better, CELLS) == Comparison(3.0, 3.0, 3.0)
    assert paired_bootstrap(CELLS, better) == Comparison(-3.0, -3.0, -3.0)
    reordered = dict(reversed(CELLS.items()))
    assert paired_bootstrap(better, reordered) == Comparison(3.0, 3.0, 3.0)


def test_two_cells():
    """Differences 0 and 4 give 0, 2 and 4 with odds of 1 to 2 to 1."""
    first, second = {"a": 1.0, "b": 5.0}, {"a": 1.0, "b": 1.0}
    assert paired_bootstrap(first, second) == Comparison(2.0, 0.0, 4.0)
    assert paired_bootstrap(first, second, confidence=0.4) == Comparison(2.0, 2.0, 2.0)
    assert paired_bootstrap(first, second, confidence=0.6) == Comparison(2.0, 0.0, 4.0)
    assert str(paired_bootstrap(first, second)) == "+2.0 [+0.0, +4.0]"


def test_seeds_are_averaged_in_their_cell():
    first = {"a": [0.0, 2.0, 4.0], "b": np.array([5.0, 7.0])}
    expected = paired_bootstrap({"a": 2.0, "b": 6.0}, {"a": 1.0, "b": 1.0})
    assert paired_bootstrap(first, {"a": 1.0, "b": [1.0]}) == expected


def test_the_seed_determines_the_interval(monkeypatch):
    generator = np.random.default_rng(0)
    first = dict(enumerate(generator.normal(size=50)))
    second = dict.fromkeys(range(50), 0.0)
    one = paired_bootstrap(first, second, samples=500)
    assert paired_bootstrap(first, second, samples=500) == one
    other = paired_bootstrap(first, second, samples=500, seed=1)
    assert other != one and other.difference == one.difference
    # However many are drawn at once.
    monkeypatch.setattr("keras_flix.evaluation.bootstrap.CHUNK", 50 * 7)
    assert paired_bootstrap(first, second, samples=500) == one


def test_intervals_cover_the_truth():
    """95 of 100 in the long run; percentile intervals of 40 cells a little less."""
    generator = np.random.default_rng(0)
    zeros = dict.fromkeys(range(40), 0.0)
    covered = 0
    for _ in range(300):
        first = dict(enumerate(generator.normal(loc=2.0, scale=5.0, size=40)))
        found = paired_bootstrap(first, zeros, samples=400)
        covered += found.low <= 2.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_bootstrap_refusals():
    assert refusal(lambda: paired_bootstrap({"sw": 1.0, "yo": 2.0}, {"sw": 1.0})) == (
        "Two models must be compared in the same cells, at least one. Received: 2 "
        "cells and 1 cells, where 'yo' is only in the first. Evaluate both on the same "
        "datasets."
    )
    assert "'swa' is only in the first; the other's nearest is 'sw'. Eval" in refusal(
        lambda: paired_bootstrap({"swa": 1.0}, {"sw": 1.0})
    )
    assert "'yo' is only in the second" in refusal(
        lambda: paired_bootstrap({"sw": 1.0}, {"sw": 1.0, "yo": 2.0})
    )
    assert "Received: 0 cells and 0 cells." in refusal(lambda: paired_bootstrap({}, {}))
    for score in ([], float("nan"), [1.0, float("inf")], {"exact_match": 1.0}, "text"):
        for pair in (({"sw": score}, {"sw": 1.0}), ({"sw": 1.0}, {"sw": score})):
            assert refusal(lambda p=pair: paired_bootstrap(*p)) == (
                "The score of a cell must be a finite number, or a list of those with "
                f"several seeds. Received: {score!r} for 'sw'. Choose one metric, and "
                "leave cells without a score out of both models."
            )
    for options in ({"samples": 0}, {"confidence": 1.0}, {"confidence": 0}):
        text = refusal(lambda o=options: paired_bootstrap(CELLS, CELLS, **o))
        assert text.startswith("`samples` must be at least 1, and `confidence` betw")
