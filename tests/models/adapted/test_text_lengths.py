"""Which texts a preprocessor has cut, for all kinds of preprocessors."""

import keras_hub
import numpy as np
import pytest
from helpers.gemma import to_numpy

from keras_flix.models.adapted.text_lengths import columns_of, cut_rows

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "fox"]


def cut(preprocessor, own, texts, x, responses=None, labels=True):
    columns = columns_of(preprocessor, own, x)
    masks = {c.kind: to_numpy(x[c.mask]) != 0 for c in columns}
    found = cut_rows(preprocessor, columns, texts, masks, responses, labels=labels)
    return {kind: rows.tolist() for kind, rows in found.items()}


@pytest.mark.parametrize("length, expected", [(4, True), (5, False), (6, False)])
def test_texts_of_a_classifier(length, expected):
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(WORDS), sequence_length=length
    )
    texts = ["the", "the dog fox"]
    found = cut(preprocessor, texts, {"texts": texts}, preprocessor(texts))
    assert found == {"texts": [False, expected]}


@pytest.mark.parametrize("length, expected", [(6, True), (7, False)])
def test_pairs_of_texts(length, expected):
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(WORDS), sequence_length=length
    )
    pair = (["the", "the dog"], ["dog", "fox the"])
    found = cut(preprocessor, pair, {"texts": pair}, preprocessor(pair, y=None))
    assert found == {"texts": [False, expected]}


def test_both_sides_of_an_encoder_and_decoder(spm_proto):
    preprocessor = keras_hub.models.Seq2SeqLMPreprocessor(
        keras_hub.models.GemmaTokenizer(proto=spm_proto),
        encoder_sequence_length=8,
        decoder_sequence_length=8,
    )
    tokenizer = preprocessor.tokenizer
    one, two = "the", "the the the the the the"
    assert len(tokenizer(one)) < 6 < 8 < len(tokenizer(two))
    own = {"encoder_text": [one, two, one], "decoder_text": [two, one, one]}
    texts = {
        "encoder texts": own["encoder_text"],
        "decoder texts": own["decoder_text"],
    }
    x, _, _ = preprocessor(own)
    assert cut(preprocessor, own, texts, x) == {
        "encoder texts": [False, True, False],
        "decoder texts": [True, False, False],
    }
    x = preprocessor.generate_preprocess(own)
    assert cut(preprocessor, own, texts, x, labels=False) == {
        "encoder texts": [False, True, False],
        "decoder texts": [True, False, False],
    }


def test_what_reads_no_texts_has_no_columns():
    assert columns_of(None, {"images": np.zeros(2)}, {"images": np.zeros(2)}) == []
    assert columns_of(object(), np.zeros(2), np.zeros(2)) == []
