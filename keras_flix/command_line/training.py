"""Trains adapters on examples, scores them, and writes them with a model card."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras

from keras_flix.callbacks.backup import BackupAndRestore
from keras_flix.command_line.adapting import adapt
from keras_flix.command_line.bases import check_template, load_writer
from keras_flix.command_line.configuration import write_config
from keras_flix.command_line.next_steps import after_training
from keras_flix.command_line.options import ADAPTERS
from keras_flix.command_line.output import Answer, say
from keras_flix.command_line.parts import Parts
from keras_flix.command_line.run_folder import (
    CARD,
    SCORES,
    SETTINGS,
    RunFolder,
)
from keras_flix.command_line.scoring import score_blocks, scored
from keras_flix.command_line.templates import TEMPLATES
from keras_flix.evaluation.scores import Scores
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import read_adapters
from keras_flix.files.model_card import adapter_card
from keras_flix.files.saving import save_adapters
from keras_flix.files.weight_digests import base_fingerprint
from keras_flix.mixtures.drawn_batches import DrawnBatches
from keras_flix.models.adapted.text_lengths import needed_length
from keras_flix.models.recommended import RECOMMENDED
from keras_flix.version import __version__


def carry_out(
    settings: dict[str, Any],
    folder: RunFolder,
    begun: dict[str, Any],
    parts: Parts,
    schema: FeatureSchema,
) -> Answer:
    """Trains, goes on with what was stopped, scores and writes.

    Args:
        settings: By name, of all options.
        folder: Where to write.
        begun: What a training must have begun with to go on here, as far as it is
            known by now.
        parts: The examples.
        schema: Their features.
    """
    begun = {**begun, "backend": keras.config.backend()}
    folder.check(begun)
    counts = ", ".join(f"{n:,} {name}" for name, n in parts.counts.items())
    say(f"examples: {counts.replace('_', ' ')}")
    say(f"loading {settings['preset']}")
    keras.utils.set_random_seed(settings["seed"])
    model = load_writer(settings["preset"], settings["dtype"])
    template = TEMPLATES[settings["template"]]
    check_template(model, settings["template"], template.end)
    begun["base"] = base_fingerprint(model).digest
    settings["sequence_length"] = _set_length(model, settings, parts)
    adapt(model, schema, settings)
    steps = settings["steps"]
    epoch = -(-len(parts.train) // settings["batch_size"])
    steps = settings["epochs"] * epoch if steps is None else steps
    compile_model(model, steps, settings["learning_rate"])
    if folder.begin(begun):
        say("going on where it was stopped")
    try:
        _fit(model, parts, settings, steps, settings["backup_steps"] or epoch, folder)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from the last backup")
        raise
    path = folder.path / ADAPTERS
    save_adapters(model, path)
    scores = _scores(model, parts, settings)
    about = f"keras_flix {__version__}, Keras {keras.__version__}, {begun['backend']}"
    write_config(settings, folder.path / SETTINGS, about)
    named = {name: one.to_dict() for name, one in scores.items()}
    folder.write(SCORES, json.dumps(named, indent=2) + "\n")
    folder.write(CARD, _card(folder, settings, steps, scores))
    folder.finish()
    data = {
        "output": str(folder.path),
        "adapters": str(path),
        "examples": parts.counts,
        "steps": steps,
        "sequence_length": settings["sequence_length"],
        "untrained": parts.untrained(),
        "scores": named,
    }
    blocks = [f"trained {steps:,} steps into {folder.path}"]
    if data["untrained"]:
        blocks.append(f"without a training example: {', '.join(data['untrained'])}")
    for name, one in scores.items():
        blocks += score_blocks(one, name.replace("_", " "))
    blocks.append(after_training(folder.path, schema))
    return Answer(data, blocks)


def _set_length(model: Any, settings: dict[str, Any], parts: Parts) -> int:
    """Sets the length of sequences, in tokens."""
    length = settings["sequence_length"]
    if length is None:
        needs = 0
        for part in [parts.train, *parts.scored.values()]:
            texts = part.inputs()
            columns = [texts[name] for name in ("prompts", "responses")]
            needs = max(needs, needed_length(model.preprocessor, *columns))
        # Multiples, so that a few more examples rarely make another length.
        length = min(-(-needs // 8) * 8, model.preprocessor.sequence_length)
    model.preprocessor.sequence_length = length
    return int(length)


def compile_model(model: Any, steps: int, learning_rate: float) -> None:
    """Compiles for so many steps: warm-up, then cosine decay; greedy answers."""
    warmup = int(steps * RECOMMENDED.warmup)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else learning_rate,
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
        decay_steps=steps - warmup,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(schedule, global_clipnorm=RECOMMENDED.clipnorm),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )


class _Order(keras.callbacks.Callback):
    """Ends training after so many steps, and tells the bar of it.

    Args:
        batches: What is trained on.
        steps: Where training ends, which may be within an epoch. What is drawn until
            then does not depend on what would follow.
        bar: Is told how many steps an epoch has; it must come later.
    """

    def __init__(
        self, batches: DrawnBatches, steps: int, bar: keras.callbacks.ProgbarLogger
    ) -> None:
        super().__init__()
        self.batches = batches
        self.steps = steps
        self.bar = bar

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.left = self.steps - epoch * len(self.batches)
        self.bar.target = min(self.left, len(self.batches))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch + 1 == self.left:
            self.model.stop_training = True


def _fit(
    model: Any,
    parts: Parts,
    settings: dict[str, Any],
    steps: int,
    backup_steps: int,
    folder: RunFolder,
) -> None:
    """Trains so many steps, with a backup after each `backup_steps` and at the end."""
    batches: Any = parts.train.batches(
        settings["batch_size"], min(backup_steps, steps), settings["seed"]
    )
    backup = BackupAndRestore(folder.backups, delete_checkpoint=False)
    bar = keras.callbacks.ProgbarLogger()
    model.fit(
        batches,
        epochs=-(-steps // len(batches)),
        validation_data=(
            None if parts.validation is None else parts.validation.inputs()
        ),
        shuffle=False,
        # A bar that moves, or a line per epoch in a file.
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[backup, _Order(batches, steps, bar), bar],
    )


def _scores(model: Any, parts: Parts, settings: dict[str, Any]) -> dict[str, Scores]:
    found = {}
    for name, part in parts.scored.items():
        if settings["score_examples"]:
            say(f"answering {name.replace('_', ' ')} examples")
            chosen = part.limit(settings["score_examples"], settings["seed"])
            template = TEMPLATES[settings["template"]]
            found[name] = scored(
                model, chosen, template, batch_size=settings["batch_size"]
            )
    return found


def _card(
    folder: RunFolder,
    settings: dict[str, Any],
    steps: int,
    scores: dict[str, Scores],
) -> str:
    preset = Path(settings["preset"])
    # A folder's place is nobody else's business.
    base = preset.name if preset.exists() else settings["preset"]
    named = ("learning_rate", "batch_size", "dropout", "sequence_length", "template")
    training = {"steps": steps, **{name: settings[name] for name in named}}
    return adapter_card(
        read_adapters(folder.path / ADAPTERS),
        folder.path / ADAPTERS,
        base_model=base,
        scores={name.replace("_", " "): one for name, one in scores.items()},
        training=training,
    )
