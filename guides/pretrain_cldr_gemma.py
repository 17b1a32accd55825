"""Pretrains the small Gemma that the guides fine-tune.

The model is a true Gemma, a `keras_hub.models.GemmaCausalLM` of 1.3 million
parameters, trained from scratch on the raw CLDR records of
`cldr_mixture.raw_documents`. It never sees a prompt or a task tag. Run:

    KERAS_BACKEND=jax python pretrain_cldr_gemma.py --minutes 60

`--resume 1` goes on from the saved preset with new documents. The preset of the
repository took about 5,900 steps in three legs, an hour on one CPU core: 2,500 on
documents without the bare weekday names, 800 with them (`--resume 1 --peak
1.5e-3`), and 2,591 with weekdays made frequent (`--resume 2 --peak 2e-3`). Only
the last leg saw the documents as they are now, so a new run gives a model much
like this one, but not the same.

Other options make other bases: `benchmarks/quality/README.md` says which made its own.
"""

import argparse
import functools
import io
import itertools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import cldr_mixture
import keras
import keras_hub
import numpy as np
import sentencepiece

ROW_LENGTH = 128
TRAIN_SEED = 1
HELD_OUT_SEED = 2


def train_tokenizer(
    documents: int, vocabulary_size: int, languages: Sequence[str]
) -> bytes:
    """Trains a SentencePiece model on raw documents and returns its proto."""
    proto = io.BytesIO()
    # Tags and separators are one token each. The task tags get a row in the
    # embedding but no training: pretraining never shows them.
    symbols = [cldr_mixture.task_tag(task) for task in cldr_mixture.TASKS]
    symbols += [cldr_mixture.language_tag(name) for name in languages]
    symbols += [cldr_mixture.ANSWER, cldr_mixture.NEXT]
    stream = cldr_mixture.raw_documents(TRAIN_SEED, languages)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.islice(stream, documents),
        model_writer=proto,
        model_type="unigram",
        vocab_size=vocabulary_size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        # Identity: the CLDR tells U+0020, U+00A0 and U+202F apart.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=[symbol.replace(" ", "\u2581") for symbol in symbols],
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
    return proto.getvalue()


def longest_example(
    processor: sentencepiece.SentencePieceProcessor, languages: Sequence[str]
) -> int:
    """Checks that examples survive the tokenizer; returns the longest length."""
    longest = 0
    examples = [
        example
        for task in cldr_mixture.TASKS
        for language in languages
        for example in cldr_mixture.cell_examples(
            task, language, 120, random.Random(f"{task}/{language}")
        )
    ]
    for example in examples:
        prompt = processor.encode(example.prompt)
        response = processor.encode(example.response)
        if processor.decode(prompt + response) != example.prompt + example.response:
            raise ValueError(f"The tokenizer changes {example}.")
        # <bos> opens the sequence and <eos> ends it.
        longest = max(longest, len(prompt) + len(response) + 2)
    return longest


def packed_batches(
    processor: sentencepiece.SentencePieceProcessor,
    batch_size: int,
    seed: int,
    languages: Sequence[str],
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields batches of rows that hold several documents each.

    Every row starts with a whole document, as a prompt does.
    """
    bos, eos = processor.bos_id(), processor.eos_id()
    stream = cldr_mixture.raw_documents(seed, languages)
    while True:
        rows = np.empty((batch_size, ROW_LENGTH + 1), "int32")
        for row in rows:
            ids: list[int] = []
            while len(ids) <= ROW_LENGTH:
                ids += [bos, *processor.encode(next(stream)), eos]
            row[:] = ids[: ROW_LENGTH + 1]
        mask = np.ones((batch_size, ROW_LENGTH), "bool")
        yield {"token_ids": rows[:, :-1], "padding_mask": mask}, rows[:, 1:]


def build_model(
    proto: bytes,
    sequence_length: int,
    layers: int,
    hidden_dim: int,
    intermediate_dim: int,
) -> keras_hub.models.GemmaCausalLM:
    """Builds a Gemma with fresh weights."""
    tokenizer = keras_hub.models.GemmaTokenizer(proto=proto)
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=layers,
        num_query_heads=hidden_dim // 32,
        num_key_value_heads=hidden_dim // 64,
        hidden_dim=hidden_dim,
        intermediate_dim=intermediate_dim,
        head_dim=32,
        dtype="float32",
    )
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(
        tokenizer, sequence_length=sequence_length
    )
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor)


def spread_task_tags(model: keras_hub.models.GemmaCausalLM) -> None:
    """Gives the task tags distinct embeddings, as new special tokens need.

    Pretraining never shows the tags; all it does is push their rows away from
    the outputs, alike, until they are parallel and no layer could tell them
    apart. Random parts as long as the common one set them apart; the common one
    stays, as it keeps the tags out of what the model writes.
    """
    tokenizer = model.preprocessor.tokenizer
    tags = [cldr_mixture.task_tag(task) for task in cldr_mixture.TASKS]
    ids = [tokenizer.token_to_id(tag.replace(" ", "\u2581")) for tag in tags]
    embeddings = model.backbone.token_embedding.embeddings
    rows = keras.ops.convert_to_numpy(embeddings).copy()
    common = rows[ids].mean(axis=0)
    parts = np.random.default_rng(0).normal(size=(len(ids), len(common)))
    parts *= np.linalg.norm(common) / np.linalg.norm(parts, axis=1, keepdims=True)
    rows[ids] = common + parts
    embeddings.assign(rows)


class Snapshots(keras.callbacks.Callback):
    """Prints the mean loss so far and saves the preset now and then."""

    def __init__(
        self, save_model: Callable[[], None], every: float, steps: int
    ) -> None:
        super().__init__()
        self.save_model = save_model
        self.every = every
        self.steps = steps
        self.start = self.saved = time.time()
        self.step = 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.step += 1
        now = time.time()
        if self.step % 50 == 0:
            loss = float((logs or {})["loss"])
            print(
                f"step {self.step}/{self.steps}  mean loss {loss:.4f}  "
                f"{now - self.start:.0f} s",
                flush=True,
            )
        if now - self.saved > self.every:
            self.saved = now
            # Reading `self.model` makes Keras write the weights of a JAX training
            # loop back into the variables.
            assert self.model is not None
            self.save_model()
            print("snapshot", flush=True)


def seconds_per_step(
    model: keras.Model,
    batches: Iterator[tuple[dict[str, np.ndarray], np.ndarray]],
) -> float:
    """Times a few training steps."""
    for _ in range(3):
        model.train_on_batch(*next(batches))
    start = time.time()
    for _ in range(10):
        model.train_on_batch(*next(batches))
    return (time.time() - start) / 10


def compile_model(model: keras.Model, steps: int, peak: float) -> None:
    """Compiles with AdamW on a cosine schedule with warm-up."""
    warmup = min(200, math.ceil(steps / 10))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=peak,
        warmup_steps=warmup,
        decay_steps=max(steps - warmup, 1),
        alpha=0.01,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=0.01, beta_2=0.98, clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["scale"])
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def main() -> None:
    """Trains the tokenizer and the model, and saves the preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "cldr_gemma"
    )
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--snapshot-minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument(
        "--resume", type=int, default=0, help="goes on from --output; a number from 1"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--peak", type=float, default=3e-3)
    parser.add_argument("--vocabulary-size", type=int, default=2400)
    parser.add_argument("--tokenizer-documents", type=int, default=60_000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--intermediate-dim", type=int, default=1024)
    parser.add_argument(
        "--more-languages", action="store_true", help="those of the benchmark too"
    )
    options = parser.parse_args()
    languages = cldr_mixture.LANGUAGES
    if options.more_languages:
        languages += cldr_mixture.MORE_LANGUAGES

    keras.utils.set_random_seed(0)
    if options.resume:
        model = keras_hub.models.GemmaCausalLM.from_preset(str(options.output))
        spread_task_tags(model)
        proto = model.preprocessor.tokenizer.proto
    else:
        proto = train_tokenizer(
            options.tokenizer_documents, options.vocabulary_size, languages
        )
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    longest = longest_example(processor, languages)
    # A few tokens of margin for inputs that the check did not draw.
    sequence_length = 8 * math.ceil((longest + 3) / 8)
    print(f"longest example {longest}, sequence length {sequence_length}", flush=True)

    if not options.resume:
        model = build_model(
            proto,
            sequence_length,
            options.layers,
            options.hidden_dim,
            options.intermediate_dim,
        )
    save_model = functools.partial(model.save_to_preset, str(options.output))
    # A plain Keras model: the rows are token ids already, while `fit` of a
    # `CausalLM` takes text.
    trainer = keras.Model(model.input, model.output)
    print(f"{model.backbone.count_params():,} parameters", flush=True)
    # A resumed run reads new documents.
    seed = TRAIN_SEED + 1000 * options.resume
    batches = packed_batches(processor, options.batch_size, seed, languages)
    steps = options.steps
    if steps is None:
        # The timing trains at a rate of almost zero, which does no harm.
        compile_model(trainer, 10**9, 1e-9)
        steps = int(options.minutes * 60 / seconds_per_step(trainer, batches))
    print(f"{steps} steps of {options.batch_size} rows", flush=True)

    compile_model(trainer, steps, options.peak)
    trainer.fit(
        batches,
        steps_per_epoch=steps,
        verbose=0,
        # Else Keras warns that it cannot shuffle a generator.
        shuffle=False,
        callbacks=[Snapshots(save_model, 60 * options.snapshot_minutes, steps)],
    )
    spread_task_tags(model)
    save_model()
    held_out = packed_batches(processor, options.batch_size, HELD_OUT_SEED, languages)
    loss = trainer.evaluate(held_out, steps=40, verbose=0)
    print(f"loss on held-out documents: {loss:.4f} per token", flush=True)


if __name__ == "__main__":
    main()
