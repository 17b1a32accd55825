"""Models that read images or sound beside features: Gemma 3, Gemma 4 and its kin."""

import keras
import keras_hub
import numpy as np
import pytest
from families import media
from families.family import Family, has_backbone
from families.test_families import FEATURES, IDS, Adapted, check_mixed_batch
from helpers.gemma import randomize, to_numpy, train_tokenizer
from keras_hub.models import Gemma3CausalLM, Gemma4CausalLM

import keras_flix
from keras_flix.command_line.templates import TEMPLATES

# Nothing here depends on a backend that the families' own tests do not.
pytestmark = [pytest.mark.short("torch"), pytest.mark.slow]

GEMMA3 = Family("Gemma3", media.gemma3, lambda size: media.gemma3_inputs(size, 2))
GEMMA4 = Family("Gemma4", media.gemma4, media.gemma4_inputs)
EMBEDDING_GEMMA2 = Family(
    "EmbeddingGemma2", media.embedding_gemma2, media.embedding_gemma2_inputs
)
DIFFUSION_GEMMA = Family(
    "DiffusionGemma", media.diffusion_gemma, media.diffusion_gemma_inputs
)
TASKS = {"Gemma3": Gemma3CausalLM, "Gemma4": Gemma4CausalLM}
ENCODERS = {
    "Gemma3": ["query_proj", "value_proj"],
    "Gemma4": ["conformer_0_attention_attn_v_proj_dense", "vision_input_projection"],
    "EmbeddingGemma2": [
        "conformer_0_attention_attn_v_proj_dense",
        "vision_input_projection",
    ],
    "DiffusionGemma": ["vision_input_projection"],
}
"""Of what reads images and sound, next to the decoder's."""


def support(family, what):
    row = pytest.mark.support("Tasks", f"{family.name} with {what}")
    return pytest.param(family, id=family.name, marks=row)


BOTH = [support(GEMMA3, "images"), support(GEMMA4, "images and sound")]
NEXT = [
    support(family, what)
    for family, what in (
        (EMBEDDING_GEMMA2, "images and sound"),
        (DIFFUSION_GEMMA, "images"),
    )
    if has_backbone(family.name)
]


@pytest.mark.parametrize("family", [*BOTH, *NEXT])
@pytest.mark.parametrize("where", ["all-linear", "encoders"])
def test_mixed_batch_equals_single_examples_and_merged_models(family, where):
    names = [*ENCODERS[family.name], "query"]
    own = family.inputs(3)
    adapted = Adapted.make(
        family, family.build(), own, names if where == "encoders" else where
    )
    encoder = adapted.model.vision_encoder
    of_encoder = {id(layer) for layer in encoder._flatten_layers()}
    found = [id(layer) in of_encoder for layer in adapted.layers.values()]
    assert any(found) == (where == "encoders")
    check_mixed_batch(adapted)
    # The media do matter.
    before = adapted.adapted_outputs()[0]
    for name in ("images", "pixel_values", "audio_mel"):
        if name in own:
            changed = {**own, name: 2 * own[name] + 1}
            assert (
                np.abs(adapted.outputs(own=changed, ids=IDS)[0] - before) > 1e-3
            ).any()


@pytest.mark.parametrize("family", [*BOTH, *NEXT])
def test_files(family, tmp_path):
    """Written, compared with the base, and loaded."""
    path = tmp_path / "one.flix.safetensors"
    names = ENCODERS[family.name]
    model = keras_flix.enable_flix(family.build(), FEATURES, targets=names, rank=2)
    x = {**family.inputs(3), **IDS}
    keras_flix.save_adapters(randomize(model), path)
    expected = to_numpy(model(x))
    found = keras_flix.load_adapters(family.build(), path)
    np.testing.assert_array_equal(to_numpy(found(x)), expected)


@pytest.mark.parametrize("family", BOTH)
def test_generate_equals_merged_models(family):
    model = TASKS[family.name](backbone=family.build(), preprocessor=None)
    keras_flix.enable_flix(model, FEATURES, rank=2, seed=0)
    randomize(model, scale=0.8)
    model.compile(sampler="greedy")
    own = family.inputs(3)
    # Room for new tokens.
    own["padding_mask"][:, -3:] = 0

    def generate(model, **ids):
        found = model.generate({**own, **ids}, stop_token_ids=None)
        return to_numpy(found["token_ids"])

    mixed = generate(model, **IDS)
    for i in range(3):
        combination = {name: int(ids[i]) for name, ids in IDS.items()}
        merged = keras_flix.merge_features(model, combination)
        merged.compile(sampler="greedy")
        np.testing.assert_array_equal(mixed[i], generate(merged)[i])
        with keras_flix.use_features(model, combination):
            np.testing.assert_array_equal(mixed[i], generate(model)[i])
    with keras_flix.adapters_disabled(model):
        assert (generate(model) != mixed).any()


def gemma3_texts():
    """A Gemma 3 that takes prompts and images."""
    tokens = "<start_of_turn>,<end_of_turn>,<start_of_image>,<end_of_image>,<img>"
    tokenizer = keras_hub.models.Gemma3Tokenizer(
        proto=train_tokenizer(user_defined_symbols=tokens)
    )
    preprocessor = keras_hub.models.Gemma3CausalLMPreprocessor(
        tokenizer,
        image_converter=keras_hub.layers.Gemma3ImageConverter(image_size=(16, 16)),
        sequence_length=32,
        max_images_per_prompt=1,
        num_vision_tokens_per_image=media.IMAGE_TOKENS,
    )
    backbone = media.gemma3(vocabulary_size=tokenizer.vocabulary_size())
    return Gemma3CausalLM(backbone=backbone, preprocessor=preprocessor)


def gemma4_texts():
    """A Gemma 4 that takes prompts, images and sound."""
    kinds = ("image", "audio", "video")
    tokens = [f"<|{kind}>,<{kind}|>,<|{kind}|>" for kind in kinds]
    proto = train_tokenizer(user_defined_symbols=",".join([*tokens, "<|turn>,<turn|>"]))
    tokenizer = keras_hub.models.Gemma4Tokenizer(
        proto=proto, has_vision_tokens=True, has_audio_tokens=True
    )
    preprocessor = keras_hub.models.Gemma4CausalLMPreprocessor(
        tokenizer,
        image_converter=keras_hub.layers.Gemma4ImageConverter(
            patch_size=4, max_soft_tokens=media.IMAGE_TOKENS, pooling_kernel_size=2
        ),
        audio_converter=keras_hub.layers.Gemma4AudioConverter(
            num_mels=8,
            num_fft_bins=32,
            stride=10,
            frame_length=20,
            sampling_rate=80,
            max_audio_length=1,
            max_frequency=40.0,
        ),
        sequence_length=32,
        max_images_per_prompt=1,
        num_vision_tokens_per_image=media.IMAGE_TOKENS,
        num_audio_tokens_per_clip=media.AUDIO_TOKENS,
        audio_input_feat_size=8,
    )
    backbone = media.gemma4(vocabulary_size=tokenizer.vocabulary_size())
    return Gemma4CausalLM(backbone=backbone, preprocessor=preprocessor)


def adapted_texts(make):
    model = make()
    keras_flix.enable_flix(model, FEATURES, rank=2, seed=0)
    model.compile(sampler="greedy", optimizer=keras.optimizers.SGD(0.0))
    return randomize(model, scale=0.8)


def check_generation(model, own, features):
    """A mixed batch answers as merged models do, and as with stated features."""
    mixed = model.generate({**own, **features}, max_length=28)
    for i in range(2):
        combination = {name: values[i] for name, values in features.items()}
        merged = keras_flix.merge_features(model, combination)
        merged.compile(sampler="greedy")
        one = {name: column[i] for name, column in own.items()}
        assert merged.generate(dict(one), max_length=28) == mixed[i]
        with keras_flix.use_features(model, combination):
            assert model.generate(dict(one), max_length=28) == mixed[i]


def check_fit(model, rows):
    history = model.fit(rows, batch_size=2, verbose=0)
    x, y, weights = model.preprocess_samples(rows)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(to_numpy(loss(y, model(x), weights)))
    assert history.history["loss"] == [pytest.approx(expected, rel=1e-4)]
    return y, weights


STATED = {"task": ["qa", None], "language": ["sw", {"yo": 0.5, "en": 0.5}]}


@pytest.mark.support("Tasks", "Gemma 3: prompts with images")
def test_prompts_with_images():
    model = adapted_texts(gemma3_texts)
    own = {
        "prompts": ["the quick <start_of_image>", "dog <start_of_image>"],
        "images": shown_and_heard()["images"],
    }
    check_generation(model, own, STATED)
    check_fit(model, {**own, "responses": ["fox", "the dog"], **STATED})


@pytest.mark.support("Tasks", "Gemma 4: prompts with images")
def test_prompts_with_images_of_gemma4():
    model = adapted_texts(gemma4_texts)
    own = {
        "prompts": ["the quick <|image|>", "dog <|image|>"],
        "images": shown_and_heard()["images"],
    }
    check_generation(model, own, STATED)
    check_fit(model, {**own, "responses": ["fox", "the dog"], **STATED})


@pytest.mark.support("Tasks", "Gemma 4: prompts with images and sound")
def test_prompts_with_images_and_sound():
    own = {
        "prompts": ["the quick <|image|> <|audio|>", "<|audio|> dog <|image|>"],
        **shown_and_heard(),
    }
    plain = gemma4_texts()
    plain.compile(sampler="greedy")
    twice = {name: [column[0]] * 2 for name, column in own.items()}
    first, second = plain.generate(twice, max_length=28)
    if first != second:
        pytest.skip(
            "KerasHub's plain Gemma 4 answers two examples of the same prompt and "
            "sound, in one batch, in two ways"
        )
    model = adapted_texts(gemma4_texts)
    check_generation(model, own, STATED)
    check_fit(model, {**own, "responses": ["fox", "the dog"], **STATED})
    texts = {"prompts": ["the quick", "dog"]}
    check_generation(model, texts, STATED)


def shown_and_heard():
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (2, 16, 16, 3)).astype("float32")
    sound = generator.normal(size=(2, 80)).astype("float32")
    return {"images": list(images), "audio": list(sound)}


@pytest.mark.parametrize(
    ("make", "template"),
    [
        pytest.param(
            make,
            TEMPLATES[name],
            id=name,
            marks=pytest.mark.support("Tasks", f"{title}: turns of a chat template"),
        )
        for make, name, title in (
            (gemma3_texts, "gemma", "Gemma 3"),
            (gemma4_texts, "gemma4", "Gemma 4"),
        )
    ],
)
def test_turns_of_a_chat(make, template):
    model = adapted_texts(make)
    tokenizer = model.preprocessor.tokenizer
    own = {"prompts": [template.prompt(text) for text in ("the quick", "dog")]}
    check_generation(model, own, STATED)
    texts = ["fox", "the dog"]
    responses = [template.response(text) for text in texts]
    y, weights = check_fit(model, {**own, "responses": responses, **STATED})
    # What is learned is the answer, the one token that ends its turn, and the end.
    ends = [tokenizer.token_to_id(template.end), tokenizer.end_token_id]
    for i, text in enumerate(texts):
        found = to_numpy(y)[i][to_numpy(weights)[i].astype(bool)]
        assert found.tolist() == [*to_numpy(tokenizer(text)).tolist(), *ends]
