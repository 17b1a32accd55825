"""Gemma 3 with images, and Gemma 4 with images and sound, beside features."""

import numpy as np
import pytest
from families import media
from families.family import Family
from families.test_families import FEATURES, IDS, Adapted, check_mixed_batch
from helpers.gemma import randomize, to_numpy
from keras_hub.models import Gemma3CausalLM, Gemma4CausalLM

import keras_flix

# Nothing here depends on a backend that the families' own tests do not.
pytestmark = [pytest.mark.short("torch"), pytest.mark.slow]

GEMMA3 = Family("Gemma3", media.gemma3, lambda size: media.gemma3_inputs(size, 2))
GEMMA4 = Family("Gemma4", media.gemma4, media.gemma4_inputs)
TASKS = {"Gemma3": Gemma3CausalLM, "Gemma4": Gemma4CausalLM}
ENCODERS = {
    "Gemma3": ["query_proj", "value_proj"],
    "Gemma4": ["conformer_0_attention_attn_v_proj_dense", "vision_input_projection"],
}
"""Of what reads images and sound, next to the decoder's."""


def support(family, what):
    row = pytest.mark.support("Tasks", f"{family.name} with {what}")
    return pytest.param(family, id=family.name, marks=row)


BOTH = [support(GEMMA3, "images"), support(GEMMA4, "images and sound")]


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("where", ["all-linear", "encoders"])
def test_mixed_batch_equals_single_examples_and_merged_models(family, where):
    names = [*ENCODERS[family.name], "query"]
    own = family.inputs(3)
    adapted = Adapted.make(
        family, family.build(), own, names if where == "encoders" else where
    )
    encoder = adapted.model.vision_encoder
    of_encoder = {id(layer) for layer in encoder._flatten_layers()}
    found = [id(layer) in of_encoder for layer in adapted.layers.values()]
    assert any(found) == (where == "encoders")
    check_mixed_batch(adapted)
    # The media do matter.
    before = adapted.adapted_outputs()[0]
    for name in ("images", "pixel_values", "audio_mel"):
        if name in own:
            changed = {**own, name: 2 * own[name] + 1}
            assert (
                np.abs(adapted.outputs(own=changed, ids=IDS)[0] - before) > 1e-3
            ).any()


@pytest.mark.parametrize("family", BOTH)
def test_generate_equals_merged_models(family):
    model = TASKS[family.name](backbone=family.build(), preprocessor=None)
    keras_flix.enable_flix(model, FEATURES, rank=2, seed=0)
    randomize(model, scale=0.8)
    model.compile(sampler="greedy")
    own = family.inputs(3)
    # Room for new tokens.
    own["padding_mask"][:, -3:] = 0

    def generate(model, **ids):
        found = model.generate({**own, **ids}, stop_token_ids=None)
        return to_numpy(found["token_ids"])

    mixed = generate(model, **IDS)
    for i in range(3):
        combination = {name: int(ids[i]) for name, ids in IDS.items()}
        merged = keras_flix.merge_features(model, combination)
        merged.compile(sampler="greedy")
        np.testing.assert_array_equal(mixed[i], generate(merged)[i])
        with keras_flix.use_features(model, combination):
            np.testing.assert_array_equal(mixed[i], generate(model)[i])
    with keras_flix.adapters_disabled(model):
        assert (generate(model) != mixed).any()
