"""`push_adapters`: adapter files and LoRA directories on the hubs, with a card."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_flix import _compat
from keras_flix._utils.optional_packages import needed
from keras_flix.evaluation.scores import Scores
from keras_flix.files.adapter_file import SUFFIX, checked_path, read_adapters
from keras_flix.files.hub_handles import (
    INDEX_FILE,
    LORA_FILES,
    Handle,
    adapter_file,
    check_name,
    download,
    parse_handle,
)
from keras_flix.files.model_card import adapter_card, lora_card
from keras_flix.files.saving import save_adapters

__all__ = ["download", "push_adapters"]

CARD = "README.md"
TAKEN = (".json", ".safetensors", ".md")
"""What may be in a folder that is pushed: no pickles, no code."""


def push_adapters(
    source: keras.Model | str | os.PathLike[str],
    handle: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    scores: Scores | Mapping[str, Scores] | None = None,
    private: bool | None = None,
    message: str | None = None,
    card: bool = True,
) -> str:
    """Puts adapters on the Hugging Face hub or on Kaggle.

    With them goes a `README.md` that says what is in them and how to load them. You
    must be logged in, as the clients `huggingface_hub` (extra `hub`) and `kagglehub`
    ask for it.

    Args:
        source: An adapted model, an adapter file, or a directory that `export_lora`
            or `export_loras` wrote.
        handle: `"hf://owner/name"` or `"kaggle://owner/model/framework/variation"`;
            `"/name.flix.safetensors"` after it names the file there, which otherwise
            keeps its name, or is `adapters.flix.safetensors`. A repository on
            Hugging Face that does not exist is made.
        base_model: The preset that the adapters were trained on, for the card.
        license: The identifier of a license, such as `"apache-2.0"`.
        scores: Scores to show in the card, or several by title.
        private: Whether a repository that is made on Hugging Face is private; `None`
            is the owner's default. On Kaggle, models begin as private.
        message: What the commit, or the version, is called.
        card: Whether to write the `README.md`. A directory's own one is kept.

    Returns:
        The handle under which `load_adapters` finds the file; of a directory, the
        one that `keras_flix.files.hub.download` takes.

    Raises:
        ValueError: If the handle is not valid, or `source` is none of the above.
            Nothing is sent then.
        ImportError: If the hub's client is not installed.
    """
    place = parse_handle(handle)
    if place.revision is not None:
        raise ValueError(
            "Adapters are pushed to a repository, not to one of its revisions. "
            f"Received: handle={handle!r}. Leave {place.revision!r} out."
        )
    options: dict[str, Any] = {
        "base_model": base_model,
        "license": license,
        "scores": scores,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not isinstance(source, keras.Model) and Path(source).is_dir():
            text = _gather_directory(Path(source), place, folder, options)
        else:
            place = _gather_file(source, place, folder)
            file = str(place.file)
            text = adapter_card(read_adapters(folder / file), place, **options)
        if card and not (folder / CARD).exists():
            (folder / CARD).write_text(text, encoding="utf-8")
        message = message or "Adapters of keras_flix"
        if place.hub == "hf":
            _to_hugging_face(place, folder, private, message)
        else:
            _to_kaggle(place, folder, license, message)
    return str(place)


def _gather_file(source: Any, place: Handle, folder: Path) -> Handle:
    """Puts an adapter file into the folder; returns the handle with its name."""
    own = f"adapters{SUFFIX}" if isinstance(source, keras.Model) else Path(source).name
    file = place.file or own
    if "/" in file:
        raise ValueError(
            "The name of a pushed file must not be in a folder of the repository. "
            f"Received: {file!r}. Leave the folder out."
        )
    checked_path(file)
    check_name(file, str(place))
    if isinstance(source, keras.Model):
        if _compat.is_split(source.variables):
            raise ValueError(
                "What is pushed to a hub must be in one process. Received: a model "
                "that is split across processes. `save_adapters` on all of them, and "
                "push the file from one."
            )
        save_adapters(source, folder / file)
    else:
        source = adapter_file(source, SUFFIX)
        # Not what else a file of that name may be.
        read_adapters(source)
        shutil.copyfile(source, folder / file)
    return Handle(place.hub, place.repository, file=file)


def _gather_directory(
    source: Path, place: Handle, folder: Path, options: Mapping[str, Any]
) -> str:
    """Puts a LoRA directory, or many with their index, into the folder.

    Returns:
        The card.
    """
    if place.file is not None:
        raise ValueError(
            "A directory is pushed to a repository as it is. Received: a file "
            f"{place.file!r} in the handle. Leave it out."
        )
    indexed = (source / INDEX_FILE).is_file()
    inner = sorted(p for p in source.iterdir() if p.is_dir()) if indexed else []
    for directory in inner or [source]:
        _check_files(directory, LORA_FILES)
    if inner:
        _check_files(source, [INDEX_FILE], [p.name for p in inner])
    for path in [source, *inner]:
        target = folder / path.relative_to(source)
        target.mkdir(exist_ok=True)
        for file in path.iterdir():
            if file.is_file():
                shutil.copyfile(file, target / file.name)
    first = (inner or [source])[0]
    config = _lora_config(first / LORA_FILES[0])
    names = [p.name for p in inner]
    values = _is_of_values(source)
    return lora_card(config, place, inner=names, values=values, **options)


def _is_of_values(source: Path) -> bool:
    """Whether each directory inside holds a value, by what the index says."""
    with contextlib.suppress(AttributeError, OSError, RecursionError, ValueError):
        index = json.loads((source / INDEX_FILE).read_text(encoding="utf-8"))
        return bool(index.get("format") == "keras_flix.values")
    return False


def _lora_config(path: Path) -> dict[str, Any]:
    """What is in an `adapter_config.json`; raises if it is not of that form."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        modules = config.get("target_modules") or []
        named = isinstance(modules, str) or all(isinstance(m, str) for m in modules)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        wrong = f"{type(error).__name__}: {error}"
    else:
        if named:
            return config
        wrong = "names of modules that are no strings"
    raise ValueError(
        "The configuration of a LoRA must be a JSON object, as PEFT writes it. "
        f"Received: {str(path)!r} ({wrong[:200]}). Export the LoRA again."
    )


def _check_files(
    source: Path, expected: Sequence[str], directories: Sequence[str] = ()
) -> None:
    names = sorted(p.name for p in source.iterdir() if p.name not in directories)
    missing = [name for name in expected if name not in names]
    odd = [n for n in names if not n.endswith(TAKEN) or not (source / n).is_file()]
    if missing or odd:
        raise ValueError(
            f"A directory that is pushed must hold {' and '.join(expected)}, and "
            f"besides only files that end in {', '.join(TAKEN)}. Received: "
            f"{str(source)!r}, "
            + (f"without {missing[0]!r}. " if missing else f"with {odd[0]!r}. ")
            + "Push what `export_lora` or `export_loras` wrote."
        )


def _to_hugging_face(
    place: Handle, folder: Path, private: bool | None, message: str
) -> None:
    api = needed("huggingface_hub", "An 'hf://' handle", "hub").HfApi()
    api.create_repo(place.repository, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=place.repository, folder_path=folder, commit_message=message
    )


def _to_kaggle(place: Handle, folder: Path, license: str | None, message: str) -> None:
    client = needed("kagglehub", "A 'kaggle://' handle", "hub")
    client.model_upload(
        place.repository, str(folder), license_name=license, version_notes=message
    )
