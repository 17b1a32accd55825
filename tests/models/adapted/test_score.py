"""`score` of an adapted causal LM."""

import keras_hub
import numpy as np
import pytest
from helpers.gemma import make_backbone, randomize, to_numpy

import keras_flix

TASK = ["qa", None, "parse"]
IDS = np.array([[2, 5, 6, 7], [2, 8, 9, 4], [2, 7, 7, 0]])
TOKENS = {"token_ids": IDS, "padding_mask": (IDS > 0).astype("int32")}


@pytest.fixture(scope="module")
def model():
    model = keras_hub.models.GemmaCausalLM(make_backbone(), preprocessor=None)
    keras_flix.enable_flix(model, {"task": ["qa", "parse"]}, rank=2, seed=0)
    return randomize(model)


def test_each_example_scores_as_by_its_merged_model(model):
    logits = to_numpy(model.score({**TOKENS, "task": TASK}))
    targets = np.roll(IDS, -1, axis=1)
    loss = model.score(
        {**TOKENS, "task": TASK}, scoring_mode="loss", target_ids=targets
    )
    for i, value in enumerate(TASK):
        merged = keras_flix.merge_features(model, {"task": value})
        one = {name: x[i : i + 1] for name, x in TOKENS.items()}
        np.testing.assert_allclose(
            logits[i : i + 1], to_numpy(merged.score(**one)), atol=1e-4
        )
        expected = merged.score(
            **one, scoring_mode="loss", target_ids=targets[i : i + 1]
        )
        np.testing.assert_allclose(
            to_numpy(loss)[i : i + 1], to_numpy(expected), atol=1e-4
        )


def test_refusals(model):
    with pytest.raises(ValueError, match="'task'"):
        model.score(IDS, TOKENS["padding_mask"])
    for given, kwargs in (
        ({"padding_mask": IDS, "task": "qa"}, {}),
        ({**TOKENS, "segments": IDS, "task": "qa"}, {}),
        ({**TOKENS, "task": "qa"}, {"padding_mask": IDS}),
    ):
        with pytest.raises(ValueError, match="A dict for `score` must hold"):
            model.score(given, **kwargs)
    with pytest.raises(ValueError, match="1 arguments by position"):
        model.score({**TOKENS, "task": "qa"}, "loss")


def test_only_models_that_score_have_it():
    backbone = keras_flix.enable_flix(make_backbone(), {"task": ["qa"]})
    assert not hasattr(backbone, "score")
