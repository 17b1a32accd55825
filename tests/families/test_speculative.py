"""Gemma 4 whose tokens an assistant drafts: the same answers, whoever is adapted."""

import contextlib
import copy

import keras
import keras_hub
import numpy as np
import pytest
from families import media
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix

pytestmark = pytest.mark.slow

IDS = {"task": ["qa", None, "list"], "language": ["sw", "yo", None]}
OWN = media.texts(3)
# Room for new tokens.
OWN["padding_mask"][:, -4:] = 0


def make_plain():
    backbone = media.gemma4(media=False)
    model = keras_hub.models.Gemma4CausalLM(backbone=backbone, preprocessor=None)
    model.compile(sampler="greedy")
    return model


def make_target(features=FEATURES, model=None):
    model = make_plain() if model is None else model
    keras_flix.enable_flix(model, features, rank=2, seed=0)
    model.compile(sampler="greedy")
    return randomize(model, scale=0.8)


def make_assistant(seed=1):
    keras.utils.set_random_seed(seed)
    sizes = {**media.SIZES, "hidden_dim": 8, "intermediate_dim": 12}
    backbone = keras_hub.models.Gemma4Backbone(
        **sizes, layer_types=media.KINDS, num_kv_shared_layers=2
    )
    return keras_hub.models.Gemma4AssistantCausalLM(
        backbone=backbone,
        backbone_hidden_size=16,
        num_centroids=4,
        centroid_intermediate_top_k=2,
        use_ordered_embeddings=False,
        num_speculative_tokens=2,
    )


def adapted_assistant(schema, seed=3):
    assistant = make_assistant()
    keras_flix.enable_flix(assistant, schema, seed=0)
    return randomize(assistant, scale=0.8, seed=seed)


def generate(model, assistant=None, **ids):
    options = {} if assistant is None else {"assistant_model": assistant}
    found = model.generate({**OWN, **ids}, stop_token_ids=None, **options)
    return to_numpy(found["token_ids"])


def untraced():
    """Where JAX compiles nothing, loops included."""
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.disable_jit()


@pytest.mark.short("torch", "jax")
@pytest.mark.support("Tasks", "Gemma 4 with an assistant that drafts")
def test_greedy_answers_are_those_without_an_assistant():
    model, plain = make_target(), make_assistant()
    expected = generate(model, **IDS)
    other = generate(model, task="parse", language="en")
    assert (expected != other).any()
    adapted = adapted_assistant(keras_flix.schema_of(model))
    for assistant in (plain, adapted):
        np.testing.assert_array_equal(generate(model, assistant, **IDS), expected)
        # Compiled once: nothing of the first features stays.
        found = generate(model, assistant, task="parse", language="en")
        np.testing.assert_array_equal(found, other)
    with keras_flix.use_features(model, task="parse", language="en"):
        np.testing.assert_array_equal(generate(model, plain), other)


@pytest.mark.short("torch", "jax")
def test_an_assistant_is_no_part_of_the_model_that_it_drafted_for(tmp_path):
    model = make_target()
    expected, before = generate(model, **IDS), list(model.variables)
    trained = list(model.trainable_variables)
    for assistant in (make_assistant(), adapted_assistant(keras_flix.schema_of(model))):
        for _ in range(2):
            generate(model, assistant, **IDS)
            assert list(map(id, model.variables)) == list(map(id, before))
            assert list(map(id, model.trainable_variables)) == list(map(id, trained))
    # So it does not go where the model's own weights go.
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(model, path)
    fresh = keras_flix.load_adapters(make_target(), path)
    for one in (fresh, copy.deepcopy(model)):
        np.testing.assert_array_equal(generate(one, **IDS), expected)
    keras_flix.merge_features(model, {"task": "qa", "language": "sw"})


@pytest.mark.short("jax")
def test_an_assistant_of_the_plain_model_is_no_part_of_the_adapted_one():
    fresh, model = make_target(), make_plain()
    generate(model, make_assistant())
    # On TensorFlow, a plain model drafts with the assistant that it was compiled with.
    model._cached_spec_sampler = None
    # An error leaves KerasHub with the assistant.
    with pytest.raises(ValueError, match="features"):
        generate(model, adapted_assistant(FEATURES))
    make_target(model=model)
    paths = [variable.path for variable in model.variables]
    assert paths == [variable.path for variable in fresh.variables]
    model.set_weights(fresh.get_weights())
    np.testing.assert_array_equal(generate(model, **IDS), generate(fresh, **IDS))


@pytest.mark.short("jax")
@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="it compiles nothing for an assistant"
)
def test_each_assistant_drafts_by_a_function_of_its_own(monkeypatch):
    model = make_target()
    traced = []
    cls = keras_hub.models.Gemma4AssistantCausalLM
    call = cls.call_with_cache

    def noted(self, *args, **kwargs):
        traced.append(self)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(cls, "call_with_cache", noted)
    first, second = make_assistant(1), make_assistant(2)
    for assistant in (first, second, first, second):
        generate(model, assistant, **IDS)
        assert {id(one) for one in traced} == {id(assistant)}
        # The same one again compiles nothing.
        traced.clear()
        generate(model, assistant, **IDS)
        assert not traced


@pytest.mark.short("jax")
def test_what_drafting_compiled_does_not_outlive_a_change():
    # No ids among the inputs, by which a compiled function could tell.
    model = make_target([keras_flix.Feature("all", always=True)])
    assistant = make_assistant()
    expected = generate(model)
    np.testing.assert_array_equal(generate(model, assistant), expected)
    with keras_flix.adapters_disabled(model):
        base = generate(model)
        np.testing.assert_array_equal(generate(model, assistant), base)
    assert (base != expected).any()
    np.testing.assert_array_equal(generate(model, assistant), expected)


@pytest.mark.short("torch")
@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="its loop is a graph, in which a draft cannot be read; answers are compared",
)
def test_an_adapted_assistant_drafts_by_each_prompts_features(monkeypatch):
    model = make_target()
    adapted = adapted_assistant(keras_flix.schema_of(model))

    def first_draft(assistant):
        drafts = []
        call = type(assistant).call_with_cache

        def noted(self, *args, **kwargs):
            outputs = call(self, *args, **kwargs)
            drafts.append(to_numpy(outputs[0]))
            return outputs

        monkeypatch.setattr(type(assistant), "call_with_cache", noted)
        # Numbers, not what a backend traces.
        with untraced():
            generate(model, assistant, **IDS)
        monkeypatch.undo()
        return drafts[0]

    mixed = first_draft(adapted)
    for i in range(3):
        combination = {name: values[i] for name, values in IDS.items()}
        merged = keras_flix.merge_features(adapted, combination)
        expected = first_draft(merged)[i]
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-4, atol=1e-5)
    base = first_draft(make_assistant())
    assert (np.abs(base - mixed).max(axis=(1, 2)) > 1e-3).all()
    with keras_flix.adapters_disabled(adapted):
        np.testing.assert_allclose(first_draft(adapted), base, atol=1e-6)


@pytest.mark.short("torch")
@pytest.mark.support("Tasks", "An assistant of other features", "refused")
def test_an_assistant_of_other_features_is_refused():
    model = make_target()
    other = adapted_assistant({"task": ["qa"]})
    with pytest.raises(ValueError, match=r"enable_flix\(assistant, schema_of\(model\)"):
        generate(model, other, **IDS)
    plain = keras_hub.models.Gemma4CausalLM(
        backbone=media.gemma4(media=False), preprocessor=None
    )
    plain.compile(sampler="greedy")
    with pytest.raises(ValueError, match=r"must know the features \['task'\]"):
        generate(plain, other)
    # What is written of it is that of a plain assistant.
    merged = keras_flix.merge_features(other, {"task": "qa"})
    np.testing.assert_array_equal(generate(plain, merged), generate(plain))
