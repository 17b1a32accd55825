"""A tiny Gemma 3 with random weights and Gemma's turns: no download, no GPU.

It stands in for an instruction-tuned preset where a guide or a test shows how one is
used: the same classes and the same tokens of turns, and nothing that it knows.
"""

import io
from collections.abc import Iterable

import keras
import keras_hub
import sentencepiece

TURNS = ("<start_of_turn>", "<end_of_turn>")


def tokenizer(texts: Iterable[str]) -> keras_hub.models.Gemma3Tokenizer:
    """Returns a tokenizer of these texts, in which turns and newlines are tokens.

    Args:
        texts: What to learn the pieces from; all others are spelt in bytes.
    """
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.split("\n")]),
        model_writer=proto,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        # As Gemma's: the text as it is.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=[*TURNS, "\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    return keras_hub.models.Gemma3Tokenizer(
        proto=proto.getvalue(), has_vision_tokens=False
    )


def causal_lm(
    texts: Iterable[str], sequence_length: int = 64, seed: int = 0
) -> keras_hub.models.Gemma3CausalLM:
    """Returns the model: two layers, built as the 270M one is, with random weights.

    Args:
        texts: For the tokenizer.
        sequence_length: Of the preprocessor, in tokens.
        seed: Of the weights.
    """
    pieces = tokenizer(texts)
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=pieces.vocabulary_size(),
        image_size=None,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=64,
        intermediate_dim=128,
        head_dim=16,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        use_sliding_window_attention=True,
        sliding_window_size=32,
    )
    # Else no answer could be certain: embeddings of a random model are small, and
    # the last norm decides how far logits can be apart.
    scale = backbone.get_layer("final_normalization").scale
    scale.assign(keras.ops.full(scale.shape, 4.0))
    return keras_hub.models.Gemma3CausalLM(
        backbone=backbone,
        preprocessor=keras_hub.models.Gemma3CausalLMPreprocessor(
            pieces, sequence_length=sequence_length
        ),
    )
