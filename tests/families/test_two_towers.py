"""Models that compare images with texts, of which there may be other numbers."""

import numpy as np
import pytest
from families import vision
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix

CLIP = next(family for family in vision.FAMILIES if family.name == "CLIP")


@pytest.fixture(scope="module")
def clip():
    return randomize(keras_flix.enable_flix(CLIP.build(), FEATURES, rank=2))


def batch(images, texts):
    """So many images and texts."""
    of_images, of_texts = CLIP.inputs(images), CLIP.inputs(texts)
    return {"images": of_images["images"], "token_ids": of_texts["token_ids"]}


@pytest.mark.short("torch")
@pytest.mark.pairs
@pytest.mark.support(
    "Paths", "Unequal numbers of images and texts: one value per feature"
)
@pytest.mark.slow
@pytest.mark.parametrize("images, texts", [(1, 4), (2, 4), (4, 2), (3, 2)])
@pytest.mark.parametrize("form", ["scalar", "list of one"])
def test_one_value_holds_for_all_images_and_texts(clip, images, texts, form):
    combination = {"task": "parse", "language": "yo"}
    entries = {
        name: [value] if form == "list of one" else value
        for name, value in combination.items()
    }
    merged = keras_flix.merge_features(clip, combination)
    expected = to_numpy(merged(batch(images, texts))["vision_logits"])
    found = to_numpy(clip({**batch(images, texts), **entries})["vision_logits"])
    assert found.shape == (images, texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.short("torch")
@pytest.mark.pairs
@pytest.mark.support(
    "Paths", "Unequal numbers of images and texts: one entry per example", "refused"
)
@pytest.mark.parametrize("images, texts", [(2, 4), (4, 2), (3, 2), (1, 3)])
@pytest.mark.parametrize("of", ["images", "texts"])
def test_one_entry_per_example_needs_as_many_texts_as_images(clip, images, texts, of):
    """Two texts per image could be of either: their ids are not guessed."""
    count = images if of == "images" else texts
    ids = {name: np.arange(count, dtype="int32") % 3 for name in FEATURES}
    if count == 1:
        assert clip({**batch(images, texts), **ids})["text_logits"].shape == (3, 1)
        return
    with pytest.raises(ValueError) as error:
        clip({**batch(images, texts), **ids})
    lengths = sorted((images, texts))
    assert str(error.value) == (
        "Features with one entry per example need inputs of one batch length. "
        f"Received: inputs of the lengths {lengths}, and {count} entries of 'task'. "
        "Pass one value per feature, or equally many rows of every input."
    )


def test_rows_of_equal_numbers_go_by_their_own_ids(clip):
    ids = {"task": np.array([0, 2, -1]), "language": np.array([1, -1, 2])}
    mixed = to_numpy(clip({**batch(3, 3), **ids})["vision_logits"])
    for i in range(3):
        merged = keras_flix.merge_features(clip, {k: int(v[i]) for k, v in ids.items()})
        expected = to_numpy(merged(batch(3, 3))["vision_logits"])
        np.testing.assert_allclose(mixed[i, i], expected[i, i], atol=1e-5)
