"""Adapters on hubs: `hf://owner/name`, `kaggle://owner/model/framework/variation`.

What is there was written by others. Names are checked before anything is done with
them, only JSON and safetensors files are taken, and none of it is run.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_flix._utils.optional_packages import needed

PARTS = {"hf": 2, "kaggle": 4}
"""By hub, the number of names that make a repository."""
FORMS = "'hf://owner/name' or 'kaggle://owner/model/framework/variation'"
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_\-])?")
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
INDEX_FILE = "index.json"
"""The list of many LoRA directories, as `export_loras` writes it."""


@dataclasses.dataclass(frozen=True)
class Handle:
    """A place on a hub.

    Attributes:
        hub: `"hf"` (Hugging Face) or `"kaggle"`.
        repository: Its name there.
        revision: A branch, tag or commit; on Kaggle a version number.
        file: A file's path in the repository.
    """

    hub: str
    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        mark = "@" if self.hub == "hf" else "/"
        revision = "" if self.revision is None else f"{mark}{self.revision}"
        file = "" if self.file is None else f"/{self.file}"
        return f"{self.hub}://{self.repository}{revision}{file}"

    @property
    def versioned(self) -> str:
        """The repository as Kaggle names it: with its version, if one is asked."""
        return self.repository + (f"/{self.revision}" if self.revision else "")


def is_handle(place: Any) -> bool:
    """Whether this is a handle rather than a path.

    >>> is_handle("hf://owner/name"), is_handle("adapters.flix.safetensors")
    (True, False)
    """
    return isinstance(place, str) and "://" in place


def parse_handle(text: str) -> Handle:
    """Reads `hf://owner/name[@revision][/file]` or `kaggle://...[/version][/file]`.

    Args:
        text: The handle.

    Raises:
        ValueError: If it is none, or one of its names could lead elsewhere.

    Example:

    >>> parse_handle("hf://me/languages@v2/a.flix.safetensors").repository
    'me/languages'
    >>> parse_handle("kaggle://me/gemma/keras/languages/3").revision
    '3'
    """
    hub, _, rest = text.partition("://")
    names = rest.split("/")
    count = PARTS.get(hub, 0)
    if not count or len(names) < count:
        raise ValueError(
            f"A handle must be {FORMS}, and may go on with '/file'. Received: "
            f"{text!r}. Write it like that."
        )
    revision = None
    if hub == "hf" and "@" in names[1]:
        names[1], _, revision = names[1].partition("@")
    elif hub == "kaggle" and names[count:] and names[count].isdecimal():
        revision = names.pop(count)
    for name in [*names, *([] if revision is None else [revision])]:
        check_name(name, text)
    return Handle(
        hub, "/".join(names[:count]), revision, "/".join(names[count:]) or None
    )


def check_name(name: str, place: str) -> None:
    """Raises for a name that is not plain, such as `..`, in `place`."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            "Names in a handle must consist of ASCII letters, digits, '_', '-' and "
            f"'.', which does not begin or end them. Received: {name!r} in {place!r}. "
            "Correct it."
        )


def download(handle: str | Handle, suffix: str = ".flix.safetensors") -> Path:
    """Fetches adapters from a hub, or finds them in its cache.

    Args:
        handle: Such as `"hf://owner/name"`, `"hf://owner/name@revision/file"` or
            `"kaggle://owner/model/framework/variation"`.
        suffix: What the file ends in, if the handle does not name it.

    Returns:
        The local path of the adapter file; or, where there is none, that of the
        folder, if it is a PEFT directory or holds several with their index.

    Raises:
        ValueError: If the handle is not valid, or there is not one such file.
        ImportError: If the hub's client is not installed (extra `hub`).
    """
    handle = parse_handle(handle) if isinstance(handle, str) else handle
    if handle.file is not None and not handle.file.endswith((suffix, *LORA_FILES)):
        raise ValueError(
            f"A file on a hub must end in {suffix!r}. Received: {handle.file!r} in "
            f"{str(handle)!r}. Name an adapter file, or none if there is only one."
        )
    return (_from_hugging_face if handle.hub == "hf" else _from_kaggle)(handle, suffix)


def adapter_file(place: str | os.PathLike[str], suffix: str) -> Path:
    """A path as it is; of a handle, the adapter file that it leads to."""
    if not is_handle(place):
        return Path(place)
    path = download(str(place), suffix)
    if path.is_dir():
        raise ValueError(
            f"Adapters are loaded from a file that ends in {suffix!r}. Received: "
            f"{place!r}, which is a LoRA in the form of PEFT. Load that with "
            "`peft.PeftModel.from_pretrained`."
        )
    return path


def _from_hugging_face(handle: Handle, suffix: str) -> Path:
    client = needed("huggingface_hub", "An 'hf://' handle", "hub")
    place = {"repo_id": handle.repository, "revision": handle.revision}
    file = handle.file
    if file is None:
        names = client.HfApi().list_repo_files(**place)
        file = _only_file(names, suffix, handle)
    if file is None:
        wanted = [INDEX_FILE, *LORA_FILES, *(f"*/{name}" for name in LORA_FILES)]
        folder = client.snapshot_download(**place, allow_patterns=wanted)
        return Path(folder)
    return Path(client.hf_hub_download(**place, filename=file))


def _from_kaggle(handle: Handle, suffix: str) -> Path:
    client = needed("kagglehub", "A 'kaggle://' handle", "hub")
    if handle.file is not None:
        return Path(client.model_download(handle.versioned, handle.file))
    folder = Path(client.model_download(handle.versioned))
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    file = _only_file(names, suffix, handle)
    return folder if file is None else folder / file


def _only_file(names: Iterable[str], suffix: str, handle: Handle) -> str | None:
    """The one adapter file in a repository; `None` if it holds PEFT directories."""
    names = list(names)
    found = sorted(name for name in names if name.endswith(suffix))
    if not found and (set(LORA_FILES) <= set(names) or INDEX_FILE in names):
        return None
    if len(found) != 1:
        raise ValueError(
            f"A repository must hold one file that ends in {suffix!r}, if the handle "
            f"names none. Received: {str(handle)!r} with {found[:5] or 'none'}. "
            + ("Add '/' and its name." if found else "Check the handle.")
        )
    for name in found[0].split("/"):
        check_name(name, f"{handle}/{found[0]}")
    return found[0]
