"""llama.cpp's server, in this process, and small random models for it."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import urllib.request
from pathlib import Path

import keras_hub
import numpy as np
import pytest
from helpers.gemma import to_numpy, train_tokenizer
from scipy.special import log_softmax

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

PROMPT = "the quick brown fox"
LENGTH = 4
"""How many tokens are generated."""
SPECIAL = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
MERGES = ["t h", "th e", "Ġ q", "u i", "Ġ b", "o w", "f o", "fo x", "Ġ fox"]
SIZES = {"num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}
GROUPED = {**SIZES, "num_query_heads": 4, "num_key_value_heads": 2}
# Of heads whose width is not the hidden one's; positions beyond the window.
GEMMA = {**GROUPED, "head_dim": 6}
SLIDING = {"use_sliding_window_attention": True, "sliding_window_size": 3}
NORMS = {"use_post_ffw_norm": True, "use_post_attention_norm": True}
OPTIONS = {
    "Llama": {**GROUPED, "layer_norm_epsilon": 0.1, "tie_word_embeddings": True},
    "Llama3": {
        **GROUPED,
        "hidden_dim": 32,
        "rope_max_wavelength": 500.0,
        "rope_frequency_adjustment_factor": 8.0,
        "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0,
        "rope_pretraining_sequence_length": 24,
    },
    # As many blocks as it takes for one to see all positions.
    "Gemma3": {
        **GEMMA,
        **SLIDING,
        **NORMS,
        "num_layers": 6,
        "image_size": 16,
        "use_query_key_norm": True,
        "global_rope_scaling_factor": 8.0,
    },
    "Gemma": GEMMA,
    "Gemma2": {
        **GEMMA,
        **SLIDING,
        **NORMS,
        "attention_logit_soft_cap": 2.0,
        "final_logit_soft_cap": 3.0,
    },
    "Qwen": {**GROUPED, "tie_word_embeddings": False, "rope_max_wavelength": 100.0},
    # KerasHub norms queries and keys with this epsilon, whatever the model's is.
    "Qwen3": {**GROUPED, "head_dim": 6, "layer_norm_epsilon": 1e-5},
    "Mistral": {**GROUPED, "head_dim": 6, "rope_scaling_factor": 2.0},
    "GPT2": {**SIZES, "num_heads": 4, "max_sequence_length": 64},
}
"""By family, the options of KerasHub's backbone."""


@functools.cache
def spm_proto(family) -> bytes:
    """Of merges, and text as it is, as all published ones; Gemma's adds no space."""
    options = {
        "model_type": "bpe",
        "vocab_size": 310,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    if family in ("Gemma", "Gemma3"):
        return train_tokenizer(**options, add_dummy_prefix=False)
    return train_tokenizer(**options, bos_piece="<s>", eos_piece="</s>")


def make_tokenizer(family):
    """One of a few words, and the size of its vocabulary."""
    cls = getattr(keras_hub.models, f"{family}Tokenizer")
    if issubclass(cls, keras_hub.tokenizers.SentencePieceTokenizer):
        options = {"has_vision_tokens": False} if family == "Gemma3" else {}
        tokenizer = cls(proto=spm_proto(family), **options)
        return tokenizer, tokenizer.vocabulary_size()
    letters = [*"abcdefghijklmnopqrstuvwxyzĠ"]
    tokens = [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return cls(vocabulary, MERGES), len(vocabulary)


def make_task(family, dtype="float32", **options):
    """A random `CausalLM` with a tokenizer; the vocabulary has rows to spare."""
    name = {"Gemma2": "Gemma"}.get(family, family)
    tokenizer, size = make_tokenizer(name)
    cls = getattr(keras_hub.models, f"{name}CausalLMPreprocessor")
    preprocessor = cls(tokenizer, sequence_length=32)
    cls = getattr(keras_hub.models, f"{name}Backbone")
    options = {**OPTIONS[family], **options}
    backbone = cls(vocabulary_size=size + 3, dtype=dtype, **options)
    generator = np.random.default_rng(0)
    for variable in backbone.weights:
        spread = generator.normal(size=variable.shape) * 0.2
        variable.assign(to_numpy(variable) + spread)
    cls = getattr(keras_hub.models, f"{name}CausalLM")
    return cls(backbone=backbone, preprocessor=preprocessor)


def prompt_tokens(task, prompt=PROMPT) -> list[int]:
    x = task.preprocessor.generate_preprocess(prompt, sequence_length=32)
    length = int(to_numpy(x["padding_mask"]).sum())
    return to_numpy(x["token_ids"])[:length].tolist()


def silent_tokens(task) -> list[int]:
    """Tokens that are no text by themselves, for which the server reports nothing."""
    tokenizer = task.preprocessor.tokenizer
    words = tokenizer.get_vocabulary()
    silent = [i for i, word in enumerate(words) if word.startswith("<")]
    return [*silent, *range(len(words), task.backbone.vocabulary_size)]


def log_probabilities(model, tokens, features=None) -> np.ndarray:
    """Those of a model after each token, `(batch, length, vocabulary)`."""
    tokens = np.asarray(tokens, "int32")
    x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    x |= features or {}
    return log_softmax(to_numpy(model(x)).astype("float64"), axis=-1)


class Server:
    """A server of one base.

    Args:
        base: A GGUF file.
        adapters: GGUF files of LoRAs, all of them at scale 0.
        slots: How many requests are computed at a time.
        cache_ram: Mebibytes of its cache of prompts; `None` is its own default.
    """

    def __init__(self, base: Path, adapters=(), slots=8, cache_ram=None):
        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.lora_adapters = [
            xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters
        ]
        # As exact as ours: without being asked it keeps float16.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        flash = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = flash
        params.n_ctx, params.n_parallel = 512, slots
        if cache_ram is not None:
            params.cache_ram_mib = cache_ram
        params.cpuparams.n_threads = 1
        params.warmup = False
        params.verbosity = 0
        self._server = xllamacpp.Server(params)

    def post(self, path: str, **body):
        request = urllib.request.Request(
            f"{self._server.listening_address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def answer(self, task, request, prompt=None):
        """Greedy tokens after `PROMPT`, and the log-probabilities of each step."""
        size = task.backbone.vocabulary_size
        answer = self.post(
            "completion",
            prompt=prompt or prompt_tokens(task),
            n_predict=LENGTH,
            n_probs=size,
            temperature=0.0,
            # They are left out of what is taken, not of the probabilities.
            logit_bias=[[token, False] for token in silent_tokens(task)],
            **request,
        )
        steps = answer["completion_probabilities"]
        table = np.full((LENGTH, size), np.nan)
        for row, step in zip(table, steps, strict=True):
            for entry in step["top_logprobs"]:
                row[entry["id"]] = entry["logprob"]
        return [step["id"] for step in steps], table

    def answers(self, task, requests):
        """The answers to many requests at a time."""
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: self.answer(task, request), requests))


def assert_same(task, answers, tolerance, features=None):
    """The server's answers to `PROMPT` are the model's, for a batch of combinations."""
    prompt = prompt_tokens(task)
    tokens = np.array([[*prompt, *answer] for answer, _ in answers])
    ours = log_probabilities(task, tokens, features)[:, len(prompt) - 1 : -1]
    theirs = np.stack([table for _, table in answers])
    np.testing.assert_allclose(theirs, ours, atol=tolerance)
    # Greedy: the best of ours, up to ties.
    taken = np.take_along_axis(ours, tokens[:, len(prompt) :, None], -1)[..., 0]
    best = np.delete(ours, silent_tokens(task), axis=-1).max(-1)
    assert np.all(best - taken <= 2 * tolerance)
    return ours[:, 0]
