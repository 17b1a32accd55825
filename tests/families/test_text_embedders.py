"""Embedders of texts take the features of each text, or those that are stated."""

import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize

import keras_flix

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "dog"]
TEXTS = ["the dog", "quick"]
IDS = {"task": ["qa", None], "language": ["sw", "yo"]}


@pytest.mark.short("torch")
@pytest.mark.support("Paths", "`encode_text` and `encode_documents` of text embedders")
def test_texts_are_encoded_by_their_features():
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        max_sequence_length=8,
    )
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=VOCABULARY)
    preprocessor = keras_hub.models.BertTextEmbedderPreprocessor(
        tokenizer, sequence_length=8
    )
    model = keras_hub.models.BertTextEmbedder(backbone, preprocessor)
    randomize(keras_flix.enable_flix(model, FEATURES, rank=2), scale=0.8)
    mixed = model.encode_documents({"text": TEXTS, **IDS}, verbose=0)
    for i, text in enumerate(TEXTS):
        combination = {name: values[i] for name, values in IDS.items()}
        merged = keras_flix.merge_features(model, combination)
        with keras_flix.use_features(model, combination):
            for one in (model, merged):
                found = one.encode_text(text, verbose=0)
                np.testing.assert_allclose(found[0], mixed[i], atol=1e-5)
    with pytest.raises(ValueError, match="no entry 'task'"):
        model.encode_text("the dog", verbose=0)
