"""The page on memory says what is computed, and that is what a small Gemma 3 takes."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_flix
from benchmarks.cost import gemma3_memory

if keras.config.backend() != "torch":
    pytest.skip("it counts what PyTorch keeps", allow_module_level=True)
pytestmark = pytest.mark.short("torch")

TINY = gemma3_memory.Gemma3(2, 56, 88, 4, 2, 16, 1009)
ROWS, LENGTH, RANK = 5, 24, 3


@pytest.fixture
def backbone():
    return keras_hub.models.Gemma3Backbone(
        vocabulary_size=TINY.vocabulary_size,
        image_size=None,
        num_layers=TINY.num_layers,
        num_query_heads=TINY.num_query_heads,
        num_key_value_heads=TINY.num_key_value_heads,
        hidden_dim=TINY.hidden_dim,
        intermediate_dim=TINY.intermediate_dim,
        head_dim=TINY.head_dim,
        use_query_key_norm=True,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        dtype="bfloat16",
    )


def kept(model, inputs):
    """Bytes that PyTorch keeps for the backward pass, besides the model's weights."""
    import torch

    storages = {}
    weights = {v.value.untyped_storage().data_ptr() for v in model.weights}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(inputs["token_ids"], model(inputs, training=True))
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", gemma3_memory.SIZES)
def test_parameters_are_those_of_the_preset(name):
    for kind in ("gemma3", "gemma3_instruct"):
        preset = keras_hub.models.Gemma3Backbone.presets[f"{kind}_{name}"]
        expected = preset["metadata"]["params"]
        assert gemma3_memory.SIZES[name].parameters == expected


@pytest.mark.slow
def test_a_step_keeps_what_is_computed(backbone):
    assert backbone.count_params() == TINY.parameters
    model = keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=None)
    features = {"task": ["qa", "parse"], "language": ["en", "sw", "yo"]}
    keras_flix.enable_flix(model, features, rank=RANK, targets="all-linear")
    summary = keras_flix.flix_summary(model, print_fn=None)
    assert summary.base_bytes == TINY.weight_bytes("bfloat16")
    assert summary.adapter_bytes == TINY.adapter_bytes(values=5, rank=RANK)
    ones = np.ones((ROWS, LENGTH), "int32")
    inputs = {"token_ids": ones, "padding_mask": ones}
    found = kept(model, {**inputs, "task": ["qa"] * ROWS, "language": ["sw"] * ROWS})
    computed = TINY.kept_bytes(LENGTH, ROWS, rank=2 * RANK)
    assert found == pytest.approx(computed, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantized_weights_take_what_is_computed(backbone, dtype):
    kernels = lambda layer: not isinstance(layer, keras.layers.Embedding)  # noqa: E731
    backbone.quantize(dtype, filters=kernels)
    keras_flix.enable_flix(backbone, {"task": ["qa", "parse"]})
    summary = keras_flix.flix_summary(backbone, print_fn=None)
    assert summary.base_bytes == TINY.weight_bytes(dtype)


def test_the_page_has_the_table_that_is_computed_now():
    text = gemma3_memory.PAGE.read_text(encoding="utf-8")
    assert gemma3_memory.page() == text
    assert gemma3_memory.table() in text
