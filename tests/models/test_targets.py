"""Which layers `targets` selects, and what it refuses."""

import keras
import keras_hub
import pytest
from helpers.gemma import make_backbone
from helpers.models import make_bypassing, make_gemma4, make_mlp

import keras_flix
from keras_flix.models.targets import find_targets, keyed_layers

ATTENTION = ["query", "key", "value", "attention_output"]
FFW = ["ffw_gating", "ffw_gating_2", "ffw_linear"]


def names(model, targets):
    """Layer names below each block, with the number of blocks they are in."""
    found = [path.rpartition("/")[2] for path in find_targets(model, targets)]
    return {name: found.count(name) for name in found}


def refusal(model, targets):
    with pytest.raises(ValueError) as error:
        find_targets(model, targets)
    return str(error.value)


@pytest.fixture(scope="module")
def gemma():
    return make_backbone()


@pytest.fixture(scope="module")
def bert():
    return keras_hub.models.BertTextClassifier(
        keras_hub.models.BertBackbone(
            vocabulary_size=40,
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
        ),
        num_classes=2,
    )


def test_default_targets_are_attention_projections(gemma, bert):
    assert names(gemma, None) == dict.fromkeys(ATTENTION, 2)
    assert names(bert, None) == dict.fromkeys(ATTENTION, 2)


def test_all_linear_leaves_embeddings_and_heads_out(gemma, bert):
    assert names(gemma, "all-linear") == dict.fromkeys(ATTENTION + FFW, 2)
    dense = ["feedforward_intermediate_dense", "feedforward_output_dense"]
    found = find_targets(bert, "all-linear")
    assert {p.rpartition("/")[2] for p in found} >= {*ATTENTION, *dense}
    assert not [path for path in found if "logits" in path]
    inside = {layer.path for layer in bert.backbone._flatten_layers()}
    assert set(found) <= inside


def test_all_linear_leaves_out_heads_whatever_they_are_called():
    options = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    backbone = keras_hub.models.RobertaBackbone(
        vocabulary_size=40, intermediate_dim=16, **options
    )
    task = keras_hub.models.RobertaTextClassifier(backbone, num_classes=2)
    assert task.get_layer("pooled_dense") not in backbone._flatten_layers()
    assert names(task, "all-linear") == names(backbone, "all-linear")
    assert names(task, ["pooled_dense"]) == {"pooled_dense": 1}


def test_the_head_of_a_task_may_be_named(bert):
    assert list(find_targets(bert, ["logits"])) == ["logits"]


def test_names_and_full_match_regexes(gemma):
    assert names(gemma, ["query"]) == {"query": 2}
    assert names(gemma, ["query", "value", ".*ffw_linear"]) == {
        "query": 2,
        "value": 2,
        "ffw_linear": 2,
    }
    assert list(find_targets(gemma, ["decoder_block_1/attention/(query|key)"])) == [
        "decoder_block_1/attention/query",
        "decoder_block_1/attention/key",
    ]
    # A tuple is a list, and overlaps count once.
    assert names(gemma, ("query", ".*query")) == {"query": 2}


def test_paths_map_to_the_layers_themselves(gemma):
    found = find_targets(gemma, ["query"])
    for path, layer in found.items():
        assert layer.path == path and isinstance(layer, keras.layers.EinsumDense)


def test_a_path_that_no_other_layer_has_is_left_as_it_is():
    x = keras.Input((4,))
    inner = keras.Model(x, keras.layers.Dense(4, name="one")(x), name="inner")
    ((key, layer),) = keyed_layers(keras.Model(x, inner(x)))
    assert layer is inner.get_layer("one")
    assert key == layer.path == "one"


def two_towers():
    x = keras.Input((4,))
    towers = [
        keras.Model(x, keras.layers.Dense(4, name="one")(x), name=name)
        for name in ("left", "right")
    ]
    return keras.Model(x, [tower(x) for tower in towers]), towers


def test_towers_with_the_same_paths_are_told_apart():
    model, towers = two_towers()
    assert [(key, id(layer)) for key, layer in keyed_layers(model)] == [
        (f"{tower.name}/one", id(tower.get_layer("one"))) for tower in towers
    ]


def test_what_reads_images_is_left_out_unless_it_is_a_tower_beside_one_of_text():
    model, (left, right) = two_towers()
    model.vision_encoder = right
    assert list(find_targets(model, "all-linear")) == ["left/one"]
    model.text_encoder = left
    # Called as the attributes are, on every backend.
    found = list(find_targets(model, "all-linear"))
    assert found == ["text_encoder/one", "vision_encoder/one"]


def test_all_linear_leaves_layers_out_by_their_names():
    x = keras.Input((4,))
    layers = [keras.layers.Dense(4, name=name) for name in ("one", "router")]
    model = keras.Model(x, [layer(x) for layer in layers])
    assert list(find_targets(model, "all-linear")) == ["one"]


def test_a_model_with_paths_of_one_part():
    assert list(find_targets(make_mlp(), "all-linear")) == ["hidden", "head"]


def test_no_match_names_the_nearest(gemma):
    assert refusal(gemma, ["attention_outputs"]) == (
        "A target must match a layer's name, or its whole path as a regex. Received: "
        "'attention_outputs', which matches nothing. The nearest are "
        "['attention_output', 'decoder_block_1/attention/attention_output', "
        "'decoder_block_0/attention/attention_output']; paths look like "
        "['decoder_block_0/attention/query', 'decoder_block_0/attention/key', "
        "'decoder_block_0/attention/value']."
    )


def test_one_target_of_several_that_matches_nothing_raises(gemma):
    assert "'vlaue', which matches nothing. The nearest are ['value'" in refusal(
        gemma, ["query", "vlaue"]
    )


def test_a_regex_must_match_the_whole_path(gemma):
    assert "'decoder_block_0', which matches" in refusal(gemma, ["decoder_block_0"])
    assert "'attention/quer', which matches nothing" in refusal(
        gemma, ["attention/quer"]
    )


def test_other_layers_are_no_targets(gemma):
    assert refusal(gemma, ["final_normalization"]) == (
        "A target must be a built, stock EinsumDense or Dense layer, or an Embedding "
        "or ReversibleEmbedding. Received: 'final_normalization', which matches "
        "'final_normalization' of type RMSNormalization. Name the linear layers "
        "instead: ['decoder_block_0/attention/query', 'decoder_block_0/attention/key', "
        "'decoder_block_0/attention/value']."
    )


def test_refuses_an_empty_list(gemma):
    assert refusal(gemma, []) == (
        "`targets` must name at least one layer. Received: targets=[]. Pass layer "
        "names, or None for the attention projections."
    )


def test_refuses_a_single_string(gemma):
    assert refusal(gemma, "query") == (
        "`targets` must be None, 'all-linear' or a list of layer names or regexes. "
        "Received: targets='query'. Write ['query'] to name one layer."
    )
    assert "targets='all_linear'. The nearest is 'all-linear'." in refusal(
        gemma, "all_linear"
    )


@pytest.mark.parametrize("target", ["(query", 3, None])
def test_refuses_what_is_no_regex(gemma, target):
    text = refusal(gemma, [target])
    assert text.startswith(
        "A target must be a layer name or a regular expression. Received: "
        f"{target!r}, which does not compile ("
    )
    assert text.endswith("). Correct it, or escape it with re.escape.")


def test_default_targets_need_attention():
    assert refusal(make_mlp(), None) == (
        "Without `targets`, the model must have attention projections. Received: "
        "targets=None for a Functional with the linear layers ['hidden', 'head']. "
        "Pass targets='all-linear' or a list of layer names."
    )


def test_refuses_models_without_linear_layers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Flatten()])
    assert refusal(model, "all-linear") == (
        "The model must hold built EinsumDense or Dense layers. Received: a "
        "Sequential without any. Build the model first, by calling it on a batch."
    )


def test_refuses_equations_without_a_low_rank_form():
    x = keras.Input((4, 6))
    y = keras.layers.EinsumDense("btd,td->btd", (4, 6), name="scale")(x)
    text = refusal(keras.Model(x, y), ["scale"])
    assert "A low-rank update needs kernel axes that are either contracted" in text
    assert "equation='btd,td->btd'" in text


def test_refuses_two_targets_of_one_path():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.first = keras.layers.Dense(8, name="same")
            self.second = keras.layers.Dense(8, name="same")

        def call(self, inputs):
            return self.second(self.first(inputs))

    x = keras.Input((8,))
    model = keras.Model(x, Block()(x))
    assert refusal(model, "all-linear") == (
        "Every target must have a path of its own, by which its adapters are saved. "
        "Received: two layers at 'block/same'. Give them different names, or leave "
        "them out of `targets`."
    )


IDLE = (
    "Every target must be a layer that runs in the model's forward pass. Received: "
    "{}, which the model never calls (it may read their kernels directly). Leave them "
    "out of `targets`, as in targets={}."
)


def test_a_layer_that_never_runs_is_refused():
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(make_bypassing(), {"task": ["qa"]}, targets="all-linear")
    assert str(error.value) == IDLE.format("['block/gating']", "['linear']")


def test_the_gates_that_gemma4_bypasses_run_in_its_blocks():
    model = make_gemma4()
    gates = ["decoder_block_0/ffw_gating", "decoder_block_0/ffw_gating_2"]
    keras_flix.enable_flix(model, {"task": ["qa"]}, rank=2, targets=[".*gating.*"])
    assert list(model._adaptation.layers) == gates
    assert model._adaptation.verified
    model = make_gemma4()
    keras_flix.enable_flix(model, {"task": ["qa"]}, rank=2)
    assert [path.rpartition("/")[2] for path in model._adaptation.layers] == ATTENTION
