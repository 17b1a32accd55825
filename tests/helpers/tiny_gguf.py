"""A tiny Llama with random weights as a GGUF file, of which every byte is a token."""

from __future__ import annotations

import pathlib

import numpy as np

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADS, KEY_HEADS, HEAD_DIM, INNER, BLOCKS = 4, 2, 8, 40, 2
WIDTH = HEADS * HEAD_DIM


def byte_tokens() -> list[str]:
    """The letters that stand for bytes in byte-level BPE, by byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def write(file: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Writes the file.

    Args:
        file: Its path.
        seed: Of the weights.
    """
    import gguf

    tokens = [*SPECIAL, *byte_tokens(), "th", "er"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * 258)
    writer.add_token_merges(["t h", "e r"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
        weights = scale * (random.normal(size=shape) * 0.5 + (len(shape) == 1))
        writer.add_tensor(f"{name}.weight", weights.astype("float32"))

    add("token_embd", len(tokens), WIDTH)
    add("output_norm", WIDTH)
    for i in range(BLOCKS):
        for name, *shape in (
            ("attn_norm", WIDTH),
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", KEY_HEADS * HEAD_DIM, WIDTH),
            ("attn_v", KEY_HEADS * HEAD_DIM, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_norm", WIDTH),
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            add(f"blk.{i}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
