"""Handles of adapters on hubs: what they are, and what they must not be."""

import pytest

from keras_flix.files.hub_handles import Handle, parse_handle

FILE = "adapters.flix.safetensors"


@pytest.mark.parametrize(
    "handle", ["hf://", "hf://me", "http://me/cldr", "kaggle://me/cldr/keras", "://a/b"]
)
def test_other_forms_of_handles(handle):
    with pytest.raises(ValueError) as error:
        parse_handle(handle)
    assert str(error.value) == (
        "A handle must be 'hf://owner/name' or 'kaggle://owner/model/framework/"
        f"variation', and may go on with '/file'. Received: {handle!r}. Write it "
        "like that."
    )


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", ".git", "a..b", "a b", "~", "c:", "a\\b", "a\nb", "%2e%2e", "ä"],
)
def test_names_that_could_lead_elsewhere(name):
    for handle in (
        f"hf://{name}/cldr",
        f"hf://me/{name}/{FILE}",
        f"hf://me/cldr@{name}",
        f"hf://me/cldr/{name}/{FILE}",
        f"kaggle://me/cldr/keras/{name}/{FILE}",
    ):
        with pytest.raises(ValueError, match="Names in a handle must consist of"):
            parse_handle(handle)


def test_handles_are_written_as_they_are_read():
    for text in (
        "hf://me/cldr",
        f"hf://me/cldr@v2/{FILE}",
        f"kaggle://me/cldr/keras/small/3/inner/{FILE}",
    ):
        assert str(parse_handle(text)) == text
    assert parse_handle("hf://me/cldr") == Handle("hf", "me/cldr")
