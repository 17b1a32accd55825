"""The base as GGUF: llama.cpp computes what the Keras model does, or it is refused."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, to_numpy, train_tokenizer
from helpers.llama_cpp import (
    Server,
    assert_same,
    gguf,
    make_task,
    prompt_tokens,
)

import keras_flix
from keras_flix import export_base
from keras_flix.exports import gguf_base

if keras.config.backend() != "torch":
    reason = "what is exported does not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

OTHER_OPTIONS = [
    ("Llama", {"tie_word_embeddings": False, "rope_max_wavelength": 300.0}),
    ("Qwen", {"rope_scaling_factor": 2.0, "tie_word_embeddings": True}),
    ("Qwen3", {"tie_word_embeddings": False}),
    # Fewer positions than the model has.
    ("GPT2", {"context_length": 20}),
]


def read(path):
    """The metadata and the tensors of a file."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.slow
@pytest.mark.parametrize("family, options", OTHER_OPTIONS)
def test_a_model_that_is_not_adapted(family, options, tmp_path):
    options = dict(options)
    length = options.pop("context_length", None)
    task = make_task(family, **options)
    export_base(task, tmp_path / "base.gguf", context_length=length)
    server = Server(tmp_path / "base.gguf")
    tolerance = 8e-3 if family == "GPT2" else 1e-4
    assert_same(task, [server.answer(task, {})], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, kind", [("float16", "F16"), ("bfloat16", "BF16")])
def test_half_precision(dtype, kind, tmp_path):
    task = make_task("Llama", dtype=dtype)
    export_base(task, tmp_path / "base.gguf")
    _, tensors = read(tmp_path / "base.gguf")
    assert tensors["blk.1.ffn_down.weight"].tensor_type.name == kind
    assert tensors["blk.1.ffn_norm.weight"].tensor_type.name == "F32"
    # The same weights, with which the server computes in float32.
    exact = make_task("Llama")
    exact.set_weights([np.asarray(w, "float32") for w in task.get_weights()])
    server = Server(tmp_path / "base.gguf")
    assert_same(exact, [server.answer(exact, {})], 0.02)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_read_back(dtype, tmp_path):
    task = make_task("Llama", dtype=dtype)
    export_base(task, tmp_path / "base.gguf")
    _, tensors = read(tmp_path / "base.gguf")
    norm = task.backbone.get_layer("sequence_output_layernorm").scale
    rows = task.backbone.token_embedding.embeddings
    for name, weight in (("output_norm", norm), ("token_embd", rows)):
        found = tensors[f"{name}.weight"].data
        np.testing.assert_array_equal(found, to_numpy(weight), err_msg=name)


def test_the_file_holds_the_base_and_nothing_of_the_adapters(tmp_path):
    task = make_task("Llama3")
    export_base(task, tmp_path / "plain.gguf")
    keras_flix.enable_flix(task, FEATURES, targets="all-linear")
    export_base(task, tmp_path / "adapted.gguf")
    plain, adapted = (
        (tmp_path / f"{n}.gguf").read_bytes() for n in ("plain", "adapted")
    )
    assert plain == adapted
    fields, tensors = read(tmp_path / "plain.gguf")
    assert fields["general.architecture"] == "llama"
    assert fields["llama.context_length"] == 8192
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"
    assert len(fields["tokenizer.ggml.tokens"]) == task.backbone.vocabulary_size
    shape = tuple(tensors["blk.0.attn_k.weight"].shape)
    assert shape == (32, 16)


def test_the_file_is_whole_before_it_takes_its_place(tmp_path, monkeypatch):
    usual, found = gguf_base.whole_file, []

    @contextlib.contextmanager
    def looked_at(path):
        with usual(path) as temporary:
            yield temporary
            found.append(Path(temporary).read_bytes())

    monkeypatch.setattr(gguf_base, "whole_file", looked_at)
    export_base(make_task("Llama3"), tmp_path / "base.gguf")
    assert found == [(tmp_path / "base.gguf").read_bytes()]


def test_the_context_is_no_longer_than_what_is_computed_alike(tmp_path):
    def length(family, asked=None, **options):
        task = make_task(family, num_layers=1, **options)
        export_base(task, tmp_path / "base.gguf", context_length=asked)
        fields, _ = read(tmp_path / "base.gguf")
        (found,) = (v for k, v in fields.items() if k.endswith(".context_length"))
        return found

    assert length("Mistral", sliding_window=256) == 256
    assert length("Mistral", 100, sliding_window=256) == 100
    assert length("Mistral", sliding_window=None) == 32768
    assert length("Qwen3", sliding_window_size=300) == 300
    assert length("GPT2", 100) == 64
    assert length("Gemma", 100) == 100
    for asked in (0, -1, 2.5, "all"):
        with pytest.raises(ValueError, match="must be a positive number of tokens"):
            length("Gemma", asked)


REFUSED = [
    ("Gemma", {"final_logit_soft_cap": 1.0}, "only with final_logit_soft_cap=None"),
    ("Gemma", {"use_post_attention_norm": True}, "use_post_attention_norm=False"),
    ("Gemma", {"use_sliding_window_attention": True}, "use_sliding_window_attention"),
    ("Gemma", {"layer_norm_epsilon": 0.1}, "only with layer_norm_epsilon=1e-06"),
    ("Gemma2", {"attention_logit_soft_cap": None}, "a number as attention_logit_soft"),
    ("Gemma2", {"use_sliding_window_attention": False}, "use_sliding_window_attention"),
    ("Gemma3", {"use_query_key_norm": False}, "only with use_query_key_norm=True"),
    ("Gemma3", {"local_rope_scaling_factor": 2.0}, "local_rope_scaling_factor=1.0"),
    ("Gemma3", {"final_logit_soft_cap": 1.0}, "only with final_logit_soft_cap=None"),
    ("Llama", {"rope_position_scaling_factor": 2.0}, "rope_position_scaling_factor"),
    ("Qwen", {"use_sliding_window_attention": True}, "use_sliding_window_attention"),
]


@pytest.mark.parametrize("family, options, text", REFUSED)
def test_options_that_llama_cpp_does_not_know(family, options, text, tmp_path):
    task = make_task(family, **{"num_layers": 1, **options})
    with pytest.raises(ValueError, match=f"llama.cpp computes what a .*{text}"):
        export_base(task, tmp_path / "base.gguf")
    assert list(tmp_path.iterdir()) == []


def test_heads_that_llama_cpp_would_scale_by_another_width(tmp_path):
    task = make_task("Gemma2", num_layers=2)
    # As the 27B model, which it knows by its 46 blocks.
    task.backbone.num_layers = 46
    with pytest.raises(ValueError, match="only with head_dim=4. Received: head_dim=6"):
        export_base(task, tmp_path / "base.gguf")


def test_what_is_no_model_for_it(tmp_path, monkeypatch):
    task = make_task("GPT2", num_layers=1)
    path = tmp_path / "base.gguf"
    with pytest.raises(ValueError, match="must be 'gguf'. Received: format='onnx'"):
        export_base(task, path, format="onnx")
    with pytest.raises(ValueError, match="must be a CausalLM. Received: a GPT2Back"):
        export_base(task.backbone, path)
    with pytest.raises(ValueError, match="'GPT2Backbone'.*Received: a Sequential"):
        export_base(keras.Sequential([keras.layers.Dense(2)]), path)
    plain = keras_hub.models.GPT2CausalLM(backbone=task.backbone, preprocessor=None)
    with pytest.raises(ValueError, match="Received: a NoneType. Give the model its"):
        export_base(plain, path)
    with pytest.raises(FileNotFoundError, match="must be in an existing folder"):
        export_base(task, tmp_path / "none" / "base.gguf")
    task.backbone.vocabulary_size = 10
    with pytest.raises(ValueError, match="Received: 10 rows and .* tokens"):
        export_base(task, path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install 'keras-flix.gguf.'"):
        export_base(task, path)
    assert list(tmp_path.iterdir()) == []


def test_quantized_weights_are_refused_and_nothing_is_changed(tmp_path):
    path = tmp_path / "base.gguf"
    task = make_task("Llama", num_layers=1)
    export_base(task, path)
    before = path.read_bytes()
    task.backbone.transformer_layers[0]._feedforward_output_dense.quantize("int8")
    with pytest.raises(ValueError, match="floating-point.*quantization_mode='int8'"):
        export_base(task, path)
    assert [p.name for p in tmp_path.iterdir()] == ["base.gguf"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "options, name",
    [
        ({"train": [".*/feedforward_output_dense"]}, "output_dense/kernel"),
        ({"train": ["layer_norm"]}, "layer_norm/gamma"),
        ({"trainable_tokens": [7]}, "token_embedding/"),
    ],
)
def test_a_base_that_has_trained_is_refused(options, name, tmp_path):
    """It would be neither the base nor the model."""
    path = tmp_path / "base.gguf"
    task = make_task("GPT2", num_layers=1)
    keras_flix.enable_flix(task, FEATURES, targets=["query"], **options)
    text = f"writes the base alone. Received: a model in which .*{name}.* trained"
    with pytest.raises(ValueError, match=text):
        export_base(task, path)
    assert list(tmp_path.iterdir()) == []
    merged = keras_flix.merge_features(task, {"task": "qa", "language": None})
    export_base(merged, path)
    assert path.is_file()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_file_that_is_not_finished_is_not_there(stop, tmp_path, monkeypatch):
    path = tmp_path / "base.gguf"
    path.write_bytes(b"an earlier one")
    original = gguf.GGUFWriter.write_tensor_data
    written = []

    def write(self, *arguments):
        original(self, *arguments)
        written.append(self)
        if len(written) == 3:
            raise stop

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", write)
    with pytest.raises(stop):
        export_base(make_task("GPT2", num_layers=1), path)
    assert [p.name for p in tmp_path.iterdir()] == ["base.gguf"]
    assert path.read_bytes() == b"an earlier one"


def with_tokenizer(**options):
    task = make_task("Gemma", num_layers=1)
    tokenizer = keras_hub.models.GemmaTokenizer(proto=train_tokenizer(**options))
    task.preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer)
    return task


def test_a_tokenizer_that_llama_cpp_does_not_have(tmp_path):
    task = with_tokenizer(model_type="char", byte_fallback=False)
    text = r"types \['BPE', 'UNIGRAM'\], which llama.cpp has. Received: 'CHAR'"
    with pytest.raises(ValueError, match=text):
        export_base(task, tmp_path / "base.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_texts_that_llama_cpp_reads_otherwise_are_named(tmp_path):
    task = with_tokenizer(model_type="bpe", vocab_size=310)
    text = (
        "where it has spaces at its ends or several in a row, or what 'nmt_nfkc' norm"
    )
    with pytest.warns(UserWarning, match=text):
        export_base(task, tmp_path / "base.gguf")
    task = with_tokenizer()
    with pytest.warns(
        UserWarning, match="where it has characters that are in no piece"
    ):
        export_base(task, tmp_path / "base.gguf")
    server = Server(tmp_path / "base.gguf")
    for prompt, same in (("the  lazy dog ", True), ("日本", False)):
        found = server.post("tokenize", content=prompt, add_special=True)["tokens"]
        assert (found == prompt_tokens(task, prompt)) is same
