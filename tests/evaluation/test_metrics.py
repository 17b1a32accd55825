"""Metrics of groups of texts: hand-computed values, and sacreBLEU's own."""

import sys
import unicodedata

import pytest

from keras_flix.text_metrics import chrf, exact_match, span_f1, token_f1

METRICS = [exact_match, token_f1, span_f1, chrf]


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        (["a", "b", "c", "d"], ["a", "b", "c", "x"], 75.0),
        (["a "], ["a"], 0.0),
        (["A"], ["a"], 0.0),
        (["b"], [["a", "b"]], 100.0),
        (["b"], [("a", "c")], 0.0),
        # A prediction is a whole text, not a part of the reference.
        (["b"], ["abc"], 0.0),
        ([""], [""], 100.0),
    ],
)
def test_exact_match(predictions, references, expected):
    assert exact_match(predictions, references) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat", "A cat!", 100.0),
        # 2 of 3 predicted, 2 of 2 wanted: 2 * 2 / (3 + 2).
        ("cat sat down", "cat sat", 80.0),
        # Repeated words count as often as in both: 2 * 1 / (2 + 1).
        ("cat cat", "cat", 200 / 3),
        ("cat", "dog", 0.0),
        ("", "", 100.0),
        ("the", "", 100.0),
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("  cat \n sat ", "cat sat", 100.0),
        ("$5+", "5", 100.0),
        # Articles go as words, not as parts of them.
        ("theatre an", "theatre", 100.0),
        ("theatre", "atre", 0.0),
        # Punctuation and cases of other scripts.
        ("ÉCOLE", "école", 100.0),
        ("दिल्ली।", "दिल्ली", 100.0),
        ("«Москва»", "москва", 100.0),
        ("北京。", "北京", 100.0),
        (unicodedata.normalize("NFD", "école"), "école", 100.0),
        # The best of several references.
        ("cat sat", ["dog", "cat", "a bird"], 200 / 3),
    ],
)
def test_token_f1_of_one_example(prediction, reference, expected):
    assert token_f1([prediction], [reference]) == pytest.approx(expected, abs=1e-12)


def test_token_f1_is_a_mean_over_examples():
    # 100 and 2 * 1 / (1 + 3): a micro average would be 2 * 2 / (2 + 4).
    assert token_f1(["x", "p"], ["x", "p q r"]) == 75.0


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        (["PER: Ada $$ LOC: Rome"], ["LOC: Rome $$ PER: Ada"], 100.0),
        (["PER:Ada$$LOC:  Rome "], ["PER: Ada $$ LOC: Rome"], 100.0),
        (["LOC: Ada"], ["PER: Ada"], 0.0),
        (["PER: ada"], ["PER: Ada"], 0.0),
        # Found 1, predicted 3, wanted 1.
        (["PER: Ada $$ PER: Ada $$ PER: Ada"], ["PER: Ada"], 50.0),
        # Found 2, predicted 2, wanted 3.
        (["PER: Ada $$ PER: Ada"], ["PER: Ada $$ PER: Ada $$ PER: Ada"], 80.0),
        # Micro: found 1 + 0, predicted 1 + 1, wanted 1 + 3.
        (["PER: A", "PER: B"], ["PER: A", "LOC: B $$ LOC: C $$ LOC: D"], 100 / 3),
        # An entity belongs to its own example.
        (["PER: A", ""], ["", "PER: A"], 0.0),
        ([""], [""], 100.0),
        (["", "$$"], ["", " "], 100.0),
        ([""], ["PER: A"], 0.0),
        (["PER: A"], [""], 0.0),
        # The first colon ends the label.
        (["TIME: 10:30"], ["TIME: 10:30"], 100.0),
        # Something without a label is a wrong entity: found 1, predicted 2.
        (["PER: Ada $$ Rome"], ["PER: Ada"], 200 / 3),
        (["Rome"], ["LOC: Rome"], 0.0),
    ],
)
def test_span_f1(predictions, references, expected):
    assert span_f1(predictions, references) == pytest.approx(expected, abs=1e-12)


def test_chrf_is_sacrebleus():
    import sacrebleu

    predictions = ["habari ya asubuhi", "the cat sat", "北京"]
    references = ["habari za asubuhi", "a cat sat down", "北京市"]
    expected = sacrebleu.corpus_chrf(predictions, [references]).score
    assert 0 < expected < 100
    assert chrf(predictions, references) == expected
    # Of the corpus: not the mean of sentences.
    sentences = [chrf([p], [r]) for p, r in zip(predictions, references)]
    assert chrf(predictions, references) != pytest.approx(sum(sentences) / 3)


def test_chrf_with_several_references():
    import sacrebleu

    predictions = ["habari ya asubuhi", "the cat sat"]
    references = [["x", "habari ya asubuhi"], ["the cat sat"]]
    assert chrf(predictions, references) == 100.0
    full = [["x", "habari ya"], ["the cat", "a dog"]]
    streams = [["x", "the cat"], ["habari ya", "a dog"]]
    expected = sacrebleu.corpus_chrf(predictions, streams).score
    assert chrf(predictions, full) == expected < 100


def test_chrf_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError) as error:
        chrf(["a"], ["a"])
    assert str(error.value) == (
        "`chrf` needs the package sacrebleu, which is not installed. Install it "
        "with: pip install 'keras-flix[evaluation]'"
    )


@pytest.mark.parametrize("metric", METRICS)
def test_refusals(metric):
    def refusal(predictions, references):
        with pytest.raises(ValueError) as error:
            metric(predictions, references)
        return str(error.value)

    assert refusal(["a", "b"], ["a"]) == (
        "Every prediction must have a reference. Received: 2 predictions and 1 "
        "references. Pass equally many; several references of one prediction form "
        "a list."
    )
    assert refusal([], []) == (
        "A metric must have at least one prediction. Received: predictions=[]. "
        "Leave the group out."
    )
    assert refusal("ab", ["a", "b"]) == (
        "`predictions` must be a list of texts. Received: predictions='ab', a single "
        "one. Write ['ab']."
    )
    assert refusal(["a"], "a").startswith("`references` must be a list of texts.")
    assert refusal(["a", "b"], ["a", []]) == (
        "Every prediction must have a reference. Received: references[1]=[]. Leave "
        "the example out, or write '' for an empty text."
    )


def test_span_f1_refuses_several_references():
    with pytest.raises(ValueError) as error:
        span_f1(["PER: A"], [["PER: A", "PER: B"]])
    assert str(error.value) == (
        "`span_f1` takes one reference per prediction, since it counts entities over "
        "all of them. Received: ['PER: A', 'PER: B']. Choose one."
    )
