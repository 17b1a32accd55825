"""Model cards: what somebody who finds adapters on a hub needs to know, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_flix.evaluation.scores import Scores
from keras_flix.features.feature import Feature
from keras_flix.files.adapter_file import Adapters
from keras_flix.files.hub_handles import INDEX_FILE, Handle
from keras_flix.models.summary import shown_ranks
from keras_flix.version import __version__

SHOWN = 40
"""So many values of a feature are listed, and so many layers."""


def adapter_card(
    adapters: Adapters,
    handle: Handle | Path,
    *,
    base_model: str | None = None,
    license: str | None = None,
    scores: Scores | Mapping[str, Scores] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """The card of an adapter file.

    Args:
        adapters: What is in the file.
        handle: Where it will be, with the file's name: on a hub, or in a folder.
        base_model: The preset that the adapters were trained on.
        license: Its identifier, such as `"apache-2.0"`.
        scores: The scores to show, or several by title.
        training: How they were trained: settings by name.

    Returns:
        Markdown, with metadata as the hubs read it.
    """
    size = sum(table.nbytes for table in adapters.tables.values())
    count = sum(table.size for table in adapters.tables.values())
    base = adapters.base
    parts = [
        _metadata(base_model, license, ["keras", "flix"]),
        f"# {_title(handle)}",
        "Featurized low-rank adapters (FLix): every value of a feature has a low-rank "
        "update of the base model's weights, and an example uses the sum of the "
        "updates of its own values.",
        "## Features",
        _features(adapters),
        "## Base",
        f"Trained on {_code(base_model) if base_model else 'a base model'}"
        + (
            f", with the fingerprint {_code(base.digest)}: `load_adapters` refuses "
            "another one."
            if base is not None
            else "."
        ),
        f"{len(adapters.layers)} adapted layers, {count:,} parameters, "
        f"{size / 1e6:,.1f} MB:",
        _listed(map(_code, adapters.layers), len(adapters.layers)),
        *(
            ["What trained besides the adapters is in the file, too:"]
            + [_listed(map(_code, adapters.trained), len(adapters.trained))]
            if adapters.trained
            else []
        ),
        "## Use",
        _usage(adapters, handle, base_model),
        *_training_parts(training),
        *_score_parts(scores),
        f"Written by keras_flix {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def lora_card(
    config: Mapping[str, Any],
    handle: Handle,
    *,
    inner: Sequence[str] = (),
    values: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    scores: Scores | Mapping[str, Scores] | None = None,
) -> str:
    """The card of a PEFT directory, as `adapter_card`.

    Args:
        config: What is in `adapter_config.json`.
        handle: Where it will be.
        inner: The names of the directories, if there are several with an index.
        values: Whether each of them holds a value, not a combination.
        base_model: As for `adapter_card`; by default what `config` names.
        license: As for `adapter_card`.
        scores: As for `adapter_card`.
    """
    base_model = base_model or config.get("base_model_name_or_path")
    # PEFT finds repositories on Hugging Face by itself.
    fetched = f"keras_flix.files.hub.download({str(handle)!r})"
    place = repr(handle.repository) if handle.hub == "hf" else fetched
    imports = "" if handle.hub == "hf" else "import keras_flix\n"
    modules = config.get("target_modules") or []
    modules = [modules] if isinstance(modules, str) else sorted(modules)
    # Values have ranks of their own.
    rank = "" if values else f" of rank {config.get('r')}"
    lora = f"LoRA{rank} on {', '.join(map(_code, modules))}"
    whole = config.get("modules_to_save") or []
    if whole:
        lora += f", with {', '.join(map(_code, whole))} as a whole"
    is_classifier = config.get("task_type") == "SEQ_CLS"
    cls = "SequenceClassification" if is_classifier else "CausalLM"
    about = (
        "One combination of the values of featurized low-rank adapters (FLix), as a "
        f"{lora}."
    )
    if inner:
        about = (
            f"{len(inner)} {'' if values else 'combinations of the '}values of "
            "featurized low-rank adapters "
            f"(FLix), each in a directory of its own as a {lora}: "
            f"{_listed(map(_code, inner), len(inner))}. The features of each are in "
            f"{_code(INDEX_FILE)}."
        )
    if inner and handle.hub == "hf":
        place += f", subfolder={inner[0]!r}"
    elif inner:
        place += f" / {inner[0]!r}"
    parts = [
        _metadata(base_model, license, ["peft", "lora", "flix"]),
        f"# {handle.repository.rpartition('/')[2]}",
        about,
        "## Use",
        f"```python\n{imports}from peft import PeftModel\n"
        f"from transformers import AutoModelFor{cls}\n\n"
        f"base = AutoModelFor{cls}.from_pretrained({base_model or '...'!r})\n"
        f"model = PeftModel.from_pretrained(base, {place})\n```",
        *_score_parts(scores),
        f"Written by keras_flix {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(base_model: str | None, license: str | None, tags: list[str]) -> str:
    library = "peft" if "peft" in tags else "keras-flix"
    lines = [f"library_name: {library}", f"tags: {json.dumps(tags)}"]
    # JSON strings are YAML strings: nothing in them can add an entry.
    if license:
        lines.append(f"license: {json.dumps(license)}")
    if base_model and base_model.count("/") == 1 and "://" not in base_model:
        lines.append(f"base_model: {json.dumps(base_model)}")
    return "\n".join(["---", *lines, "---"])


def _features(adapters: Adapters) -> str:
    rows = [
        "| feature | values | rank | scale | kind |",
        "| --- | --- | --- | --- | --- |",
    ]
    for feature in adapters.schema:
        own_layers = adapters.layers_of(feature.name)
        rank = shown_ranks(adapters.feature_in(x, feature.name) for x in own_layers)
        values = _listed(map(_code, feature.values), len(feature.values))
        layers, own = len(adapters.layers), len(own_layers)
        kind = _kind(feature) + f", in {own} of {layers} layers" * (own < layers)
        cells = [_code(feature.name), values, rank, str(feature.scaling), kind]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _kind(feature: Feature) -> str:
    if feature.always:
        return "always active"
    return "several per example" if feature.multiple else "one per example"


def _title(handle: Handle | Path) -> str:
    if isinstance(handle, Path):
        return handle.absolute().parent.name
    return handle.repository.rpartition("/")[2]


def _usage(adapters: Adapters, handle: Handle | Path, base_model: str | None) -> str:
    entries = {f.name: f.values[0] for f in adapters.schema.routed}
    place = handle.name if isinstance(handle, Path) else str(handle)
    task = f"keras_hub.models.CausalLM.from_preset({base_model or '...'!r})"
    lines = [
        "```python",
        "import keras_hub, keras_flix",
        "",
        "# Or the class of the base that it was trained as.",
        f"model = {task}",
        f"keras_flix.load_adapters(model, {place!r})",
    ]
    if entries:
        lines.append(f"merged = keras_flix.merge_features(model, {entries!r})")
    return "\n".join([*lines, "```"])


def _training_parts(training: Mapping[str, Any] | None) -> list[str]:
    if not training:
        return []
    rows = [f"| {_code(name)} | {_code(value)} |" for name, value in training.items()]
    return ["## Training", "\n".join(["| setting | value |", "| --- | --- |", *rows])]


def _score_parts(scores: Scores | Mapping[str, Scores] | None) -> list[str]:
    if scores is None:
        return []
    named = {"": scores} if isinstance(scores, Scores) else scores
    parts = ["## Scores"]
    for title, one in named.items():
        parts += [f"### {title}"] if title else []
        parts += [f"```text\n{one.table(name)}\n```" for name in one.features]
    return parts


def _listed(texts: Any, count: int) -> str:
    shown = [text for _, text in zip(range(min(SHOWN, count)), texts)]
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    return ", ".join(shown) + more


def _code(text: Any) -> str:
    """A name as code, which cannot end the cell or the code that it is in."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"
