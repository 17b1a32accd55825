"""The adapters that several guides start from, and the data they were trained on.

    python guides/cldr_adapters.py  # trains guides/cldr_adapters.flix.safetensors

Ten tasks of `cldr_mixture` in 18 languages, without 36 of the 180 cells. The prompts
say neither task nor language (`2024-07-24 3 = `): the features alone do. Training takes
500 steps of 32 examples.
"""

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import cldr_mixture
import keras
import keras_hub

import keras_flix
from keras_flix.evaluation import evaluate
from keras_flix.mixtures import Dataset, Mixture

HERE = Path(__file__).parent
SMALL = str(HERE / "cldr_gemma")
FILE = HERE / "cldr_adapters.flix.safetensors"

# By family: the guide that reads the adapters asks whether they know about it.
FAMILIES: dict[str, tuple[str, ...]] = {
    "Germanic": ("en", "de", "nl", "sv"),
    "Romance": ("es", "pt", "fr", "it"),
    "Slavic": ("ru", "uk", "bg", "pl"),
    "Indo-Aryan": ("hi", "bn"),
    "Semitic": ("ar", "he"),
    "Turkic": ("tr",),
    "Japonic": ("ja",),
}
LANGUAGES: tuple[str, ...] = tuple(v for vs in FAMILIES.values() for v in vs)
TASKS: tuple[str, ...] = cldr_mixture.TASKS

HELD_OUT: tuple[tuple[str, str], ...] = tuple(
    (task, language)
    for task, language in sorted(cldr_mixture.choose_held_out(0, per_language=2))
    if language in LANGUAGES
)
"""The cells of `LANGUAGES` that training never shows: two of each language."""


def cell(task: str, language: str, count: int, seed: int = 0) -> Dataset:
    """Returns examples of one cell, all with different inputs."""
    rng = random.Random(f"{seed}/{task}/{language}")
    examples = cldr_mixture.cell_examples(task, language, count, rng)
    tags = cldr_mixture.task_tag(task) + cldr_mixture.language_tag(language)
    return Dataset(
        {"task": task, "language": language},
        {
            "prompts": [example.prompt.removeprefix(tags) for example in examples],
            "responses": [example.response for example in examples],
        },
    )


def grid(
    tasks: Sequence[str] = TASKS,
    languages: Sequence[str] = LANGUAGES,
    train_per_cell: int = 60,
    test_per_cell: int = 3,
    seed: int = 0,
) -> tuple[Mixture, Mixture]:
    """Returns all cells: examples to train on, and others to test with."""
    train, test = [], []
    for task in tasks:
        for language in languages:
            both = cell(task, language, train_per_cell + test_per_cell, seed)
            train.append(both.select(slice(train_per_cell)))
            test.append(both.select(slice(train_per_cell, None)))
    return Mixture(train), Mixture(test)


def mixtures(test_per_cell: int = 3) -> tuple[Mixture, Mixture, Mixture]:
    """Returns what the adapters were trained on, and tests of seen and unseen cells."""
    pairs = [{"task": task, "language": language} for task, language in HELD_OUT]
    train, test = grid(test_per_cell=test_per_cell)
    seen, unseen = test.split(*pairs)
    return train.split(*pairs)[0], seen, unseen


def features() -> list[keras_flix.Feature]:
    """Returns the features of the adapters: small ranks keep the file small."""
    return [
        keras_flix.Feature("task", TASKS, rank=2, dropout=0.1),
        keras_flix.Feature("language", LANGUAGES, rank=1, dropout=0.1),
        keras_flix.Feature("shared", always=True, rank=2),
    ]


def compile_model(
    gemma: keras_hub.models.CausalLM, steps: int, learning_rate: float = 6e-3
) -> None:
    """Compiles for that many steps: warm-up, then cosine decay; greedy answers."""
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=learning_rate,
        warmup_steps=steps // 10,
        decay_steps=steps - steps // 10,
    )
    gemma.compile(
        optimizer=keras.optimizers.Adam(schedule, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        sampler="greedy",
    )


def train(
    gemma: keras_hub.models.CausalLM,
    mixture: Mixture,
    steps: int,
    learning_rate: float = 6e-3,
    batch_size: int = 32,
) -> float:
    """Trains an adapted model; returns the loss, averaged over the steps."""
    compile_model(gemma, steps, learning_rate)
    history = gemma.fit(
        mixture.sample(steps * batch_size),
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
    )
    return history.history["loss"][-1]


def load_base(preset: str) -> keras_hub.models.CausalLM:
    """Loads a base: the small Gemma as it is, others in bfloat16, for short texts."""
    if preset == SMALL:
        return keras_hub.models.CausalLM.from_preset(preset)
    gemma = keras_hub.models.CausalLM.from_preset(preset, dtype="bfloat16")
    # Prompt and response together, in tokens. The small preset's own is 40.
    gemma.preprocessor.sequence_length = 128
    return gemma


def add_adapters(gemma: keras_hub.models.CausalLM, preset: str) -> None:
    """Gives a base its adapters: from the file if they are the small Gemma's.

    Another base is adapted with the same features and trained, which takes a GPU.
    """
    if preset == SMALL:
        keras_flix.load_adapters(gemma, FILE)
        gemma.compile(sampler="greedy")
        return
    keras_flix.enable_flix(gemma, features(), targets="all-linear", seed=0)
    # A rate for large models, chosen by no experiment of ours.
    train(gemma, mixtures()[0], steps=500, learning_rate=1e-3)


def save_for_transformers(gemma: keras_hub.models.GemmaCausalLM, folder: str) -> None:
    """Writes the plain small Gemma as a model of transformers.

    KerasHub's own export is right only for Gemmas whose heads share one key and value.
    A real Gemma need not be converted: the Hugging Face hub has it.
    """
    import torch
    import transformers

    config = gemma.backbone.get_config()
    theirs = transformers.GemmaForCausalLM(
        transformers.GemmaConfig(
            vocab_size=config["vocabulary_size"],
            hidden_size=config["hidden_dim"],
            # KerasHub counts gate and value together.
            intermediate_size=config["intermediate_dim"] // 2,
            num_hidden_layers=config["num_layers"],
            num_attention_heads=config["num_query_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            rms_norm_eps=config["layer_norm_epsilon"],
        )
    )
    kernels = {v.path: keras.ops.convert_to_numpy(v) for v in gemma.backbone.weights}
    weights = {
        "model.embed_tokens.weight": kernels["token_embedding/embeddings"],
        "model.norm.weight": kernels["final_normalization/scale"],
    }
    for i in range(config["num_layers"]):
        ours, prefix = f"decoder_block_{i}", f"model.layers.{i}"
        for name, other in (
            ("pre_attention_norm", "input_layernorm"),
            ("pre_ffw_norm", "post_attention_layernorm"),
        ):
            weights[f"{prefix}.{other}.weight"] = kernels[f"{ours}/{name}/scale"]
        for name, other in (("query", "q"), ("key", "k"), ("value", "v")):
            # (heads, in, head_dim) to (heads * head_dim, in).
            kernel = kernels[f"{ours}/attention/{name}/kernel"].swapaxes(1, 2)
            weights[f"{prefix}.self_attn.{other}_proj.weight"] = kernel.reshape(
                -1, kernel.shape[-1]
            )
        kernel = kernels[f"{ours}/attention/attention_output/kernel"]
        weights[f"{prefix}.self_attn.o_proj.weight"] = kernel.reshape(
            -1, kernel.shape[-1]
        ).T
        for name, other in (
            ("ffw_gating", "gate"),
            ("ffw_gating_2", "up"),
            ("ffw_linear", "down"),
        ):
            weights[f"{prefix}.mlp.{other}_proj.weight"] = kernels[
                f"{ours}/{name}/kernel"
            ].T
    tensors = {name: torch.tensor(array) for name, array in weights.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    theirs.load_state_dict(tensors)
    theirs.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default=str(FILE), help="the adapter file")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    start = time.time()
    keras.utils.set_random_seed(0)
    gemma = keras_hub.models.GemmaCausalLM.from_preset(SMALL)
    keras_flix.enable_flix(gemma, features(), targets="all-linear", seed=0)
    mixture, seen, unseen = mixtures()
    print(f"loss {train(gemma, mixture, options.steps):.4f}")
    for name, test in (("seen", seen), ("unseen", unseen)):
        score = evaluate(gemma, test, batch_size=108).overall()["exact_match"]
        print(f"{len(test)} examples of {name} cells: {score:.1f} % exact match")
    keras_flix.save_adapters(gemma, options.output)
    size = Path(options.output).stat().st_size / 1e6
    print(f"{options.output}: {size:.1f} MB, after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
