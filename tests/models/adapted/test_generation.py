"""`generate` on an adapted model equals that of the merged one, for all samplers."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix.models.adapted.generation import _concatenate, _python_strings

PROMPTS = ["the quick", "dog", "fox jumps over"]
TASKS = ["qa", None, "list"]
LANGUAGES = ["sw", "yo", "en"]
SAMPLERS = {
    "greedy": lambda: "greedy",
    "top_k": lambda: keras_hub.samplers.TopKSampler(k=3, seed=1),
    "top_p": lambda: keras_hub.samplers.TopPSampler(p=0.6, seed=1),
    "beam": lambda: keras_hub.samplers.BeamSampler(num_beams=3),
    "contrastive": lambda: keras_hub.samplers.ContrastiveSampler(k=2, alpha=0.3),
}
DETERMINISTIC = ["greedy", "beam", "contrastive"]


def rows(names):
    """Parameters that prove a row of the support table each."""

    def mark(name):
        row = pytest.mark.support("Paths", f"`generate`, {name} sampler")
        marks = [row] + [pytest.mark.slow] * (name != "beam")
        if name not in ("greedy", "beam"):
            # KerasHub's code, which goes through the same calls.
            marks.append(pytest.mark.short("torch"))
        return pytest.param(name, marks=marks)

    return [mark(name) for name in names]


def adapted(make_gemma):
    model = make_gemma()
    # Embeddings of unit size let the next token depend on more than the last.
    embedding = model.backbone.token_embedding.embeddings
    generator = np.random.default_rng(1)
    embedding.assign(generator.normal(size=embedding.shape) * 0.3)
    return randomize(keras_flix.enable_flix(model, FEATURES, rank=2), scale=0.8)


@pytest.fixture
def model(make_gemma):
    return adapted(make_gemma)


@pytest.fixture
def compiled(make_gemma):
    """Not one for the module: tests compile other samplers."""
    return adapted(make_gemma)


def generate(model, tasks=TASKS, languages=LANGUAGES, prompts=PROMPTS, **kwargs):
    inputs = {"prompts": list(prompts), "task": tasks, "language": languages}
    return model.generate(inputs, max_length=20, **kwargs)


def merged_generate(model, sampler, tasks=TASKS, languages=LANGUAGES):
    """Each example by its merged model, in the same batch.

    KerasHub's beam search depends on the other prompts' lengths, adapted or not.
    """
    outputs = []
    for i, (task, language) in enumerate(zip(tasks, languages)):
        merged = keras_flix.merge_features(model, {"task": task, "language": language})
        merged.compile(sampler=sampler)
        outputs.append(merged.generate(list(PROMPTS), max_length=20)[i])
    return outputs


@pytest.mark.pairs("samplers")
@pytest.mark.parametrize("name", rows(DETERMINISTIC))
def test_equals_merged_models(model, name):
    model.compile(sampler=SAMPLERS[name]())
    found = generate(model)
    assert found == merged_generate(model, SAMPLERS[name]())
    with keras_flix.adapters_disabled(model):
        assert found != generate(model)


@pytest.mark.pairs("samplers")
@pytest.mark.parametrize("name", rows(SAMPLERS))
def test_no_stale_ids(model, name):
    """A second call with other ids, and back: nothing is baked in."""
    one, other = (["qa"] * 3, ["sw"] * 3), (["list"] * 3, ["yo"] * 3)

    model.compile(sampler=SAMPLERS[name]())
    start = [to_numpy(v) for v in model.sampler.variables]

    def fresh(features):
        # Samplers keep the state of their seed from call to call.
        for variable, value in zip(model.sampler.variables, start):
            variable.assign(value)
        return generate(model, *features)

    first, second = fresh(one), fresh(other)
    assert first != second
    assert fresh(one) == first
    assert fresh(other) == second


@pytest.mark.slow
@pytest.mark.support("Paths", "`generate`, ragged prompts, features per example")
def test_inputs_of_all_forms(compiled):
    expected = generate(compiled)
    ids = {"task": np.array([0, -1, 2]), "language": np.array([1, 2, 0])}
    assert generate(compiled, ids["task"], ids["language"]) == expected
    inputs = {"text": PROMPTS, "task": TASKS, "language": LANGUAGES}
    assert compiled.generate(inputs, max_length=20) == expected
    # One prompt, whichever key comes last in the dict.
    for order in (["prompts", "task", "language"], ["task", "language", "prompts"]):
        one = {"prompts": PROMPTS[0], "task": "qa", "language": "sw"}
        one = {key: one[key] for key in order}
        before = dict(one)
        assert compiled.generate(one, max_length=20) == expected[0]
        assert one == before
    assert generate(compiled, "qa", "sw") == generate(compiled, ["qa"] * 3, ["sw"] * 3)


@pytest.mark.slow
@pytest.mark.short("torch")
@pytest.mark.eager
@pytest.mark.support("Paths", "`generate`, missing values in columns")
def test_missing_values_are_absent(compiled):
    expected = generate(compiled)
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    gap = float("nan")
    for tasks in (
        ["qa", gap, "list"],
        ["qa", pd.NA, "list"],
        np.array(["qa", gap, "list"], object),
        np.ma.masked_array(["qa", "parse", "list"], [False, True, False]),
        np.ma.masked_array([0, 1, 2], [False, True, False]),
        np.array([0.0, gap, 2.0]),
        pd.Series(["qa", None, "list"], dtype="string"),
    ):
        assert generate(compiled, tasks) == expected
    frame = pd.DataFrame({"prompts": PROMPTS, "task": TASKS, "language": LANGUAGES})
    assert compiled.generate(frame, max_length=20) == expected
    assert compiled.generate(frame.to_dict("records"), max_length=20) == expected
    one = {"prompts": PROMPTS[1], "language": "yo"}
    alone = compiled.generate({**one, "task": None}, max_length=20)
    for task in (gap, pd.NA, np.ma.masked):
        assert compiled.generate({**one, "task": task}, max_length=20) == alone


@pytest.mark.short("torch", "tensorflow")
@pytest.mark.slow
@pytest.mark.support("Paths", "`generate` from a `tf.data.Dataset`")
def test_tf_dataset(compiled):
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    features = {"task": ["qa", "", "list"], "language": LANGUAGES}
    features["task"][1] = "parse"
    data = {"prompts": PROMPTS, **features}
    expected = compiled.generate(dict(data), max_length=20)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(2)
    assert compiled.generate(batches, max_length=20) == expected


@pytest.mark.short("torch")
def test_answers_of_several_batches_are_one_after_the_other():
    batches = [{"token_ids": np.full((n, 3), n), "text": ["x"] * n} for n in (2, 1)]
    found = _concatenate(batches)
    assert found["token_ids"].tolist() == [[2] * 3, [2] * 3, [1] * 3]
    assert found["text"] == ["x"] * 3


def test_prompts_of_a_numpy_iterator_become_python_strings():
    images = np.zeros((), "float32")
    batch = {"prompts": np.array([b"the", "dö".encode()], object), "images": images}
    found = _python_strings(batch)
    assert found == {"prompts": ["the", "dö"], "images": images}
    assert found["images"] is images and isinstance(batch["prompts"], np.ndarray)
    assert _python_strings(np.array([b"the"])) == ["the"]


def test_without_preprocessor(compiled, monkeypatch):
    expected = generate(compiled)
    preprocessor = compiled.preprocessor
    tokens = preprocessor.generate_preprocess(PROMPTS, sequence_length=20)
    monkeypatch.setattr(compiled, "preprocessor", None)
    outputs = compiled.generate(
        {**tokens, "task": TASKS, "language": LANGUAGES},
        stop_token_ids=(preprocessor.tokenizer.end_token_id,),
    )
    assert preprocessor.generate_postprocess(outputs) == expected


def test_strip_prompt(compiled):
    stripped = generate(compiled, strip_prompt=True)
    assert [p + s for p, s in zip(PROMPTS, stripped)] == generate(compiled)


def test_refusals(compiled):
    with pytest.raises(ValueError, match="no entry 'language'"):
        compiled.generate({"prompts": PROMPTS, "task": TASKS}, max_length=20)
    with pytest.raises(ValueError, match="no entry 'task'"):
        compiled.generate(PROMPTS, max_length=20)
    with pytest.raises(ValueError, match="nearest known value is 'sw'"):
        generate(compiled, languages="swa")
    with pytest.raises(ValueError, match="2 entries of 'task' for a batch of 3"):
        generate(compiled, tasks=["qa", "qa"])
    with pytest.raises(ValueError, match=r"must be in \[0, 3\)"):
        generate(compiled, tasks=np.array([0, 3, 0]))


@pytest.mark.short("torch", "jax")
@pytest.mark.slow
def test_generates_after_training(model):
    before = generate(model)
    inputs = {"prompts": PROMPTS, "responses": ["fox"] * 3}
    model.compile(optimizer=keras.optimizers.Adam(0.1), sampler="greedy")
    model.fit({**inputs, "task": TASKS, "language": LANGUAGES}, epochs=5, verbose=0)
    assert generate(model) == merged_generate(model, "greedy") != before
