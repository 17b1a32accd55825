"""Small random language models: one with a tied output head, one without."""

import keras
import keras_hub
from helpers.gemma import make_backbone


def gemma(seed=0):
    keras.utils.set_random_seed(seed)
    backbone = make_backbone(num_layers=1)
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


def llama(seed=0):
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=40,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        tie_word_embeddings=False,
    )
    return keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None)
