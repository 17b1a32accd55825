"""Texts that look the same are the same value, however Unicode writes them."""

import unicodedata

import pytest

from keras_flix import Feature, FeatureSchema

COMPOSED, APART = (unicodedata.normalize(form, "français") for form in ("NFC", "NFD"))
FORMS = {"composed": COMPOSED, "apart": APART}


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize("asked", FORMS)
@pytest.mark.parametrize("declared", FORMS)
def test_either_form_finds_the_value(declared, asked):
    feature = Feature(
        "language", ["en", FORMS[declared]], rank={FORMS[asked]: 2, "*": 4}
    )
    assert feature.values == ("en", COMPOSED)
    assert feature.ranks == (4, 2)
    assert feature.id_of(FORMS[asked]) == 1
    schema = FeatureSchema([feature])
    text = FORMS[asked]
    for entry in ([text, "en"], [text.encode(), b"en"], [{text: 1.0}, {"en": 1.0}]):
        assert schema.encode({"language": entry})["language"].ravel()[0] == 1
    absent = schema.encode({"language": text}, unknown="absent")
    assert absent["language"].tolist() == [1]
    again = FeatureSchema.from_config(schema.get_config())
    assert again == schema


def test_two_forms_of_one_text_are_refused():
    assert refusal(lambda: Feature("language", [COMPOSED, "en", APART])) == (
        "The values of feature 'language' must not look the same. Received: "
        "'franc\\u0327ais' and 'fran\\xe7ais', two ways in which Unicode writes "
        "'français'. Keep one of them: inputs may be written either way."
    )
    assert "'en'] occur more than once" in refusal(
        lambda: Feature("language", [COMPOSED, "en", "en"])
    )


def test_what_stands_for_all_others_is_no_value():
    assert refusal(lambda: Feature("user", ["ann", "*"])) == (
        "The values of feature 'user' must not contain '*', which stands for all "
        "others where ranks, rates and limits go by value. Received: "
        "values=['ann', '*']. Give the value another name."
    )


def test_what_differs_otherwise_are_two_values():
    # As in style guides, or codes: case, width and blanks may be meant.
    assert len(Feature("unit", ["k", "K", "Ｋ", " k"]).values) == 4


@pytest.mark.parametrize(
    "asked, near",
    [
        ("DE", "'de'"),
        ("De ", "'de'"),
        ("ｄｅ", "'de'"),
        ("german", "'German'"),
        ("Türkçe", None),
        ("EN", None),
    ],
)
def test_hints_are_near_or_none(asked, near):
    feature = Feature("language", ["tr", "de", "German"])
    text = refusal(lambda: feature.id_of(asked))
    if near is None:
        assert "nearest" not in text
    else:
        assert f" The nearest known value is {near}. Known values: 'tr', 'de'" in text


def test_far_names_are_no_hints():
    feature = Feature("language", ["en", "tr"])
    for asked in ("German", "DE"):
        assert "nearest" not in refusal(lambda asked=asked: feature.id_of(asked))
