"""XTREME-UP: a loader for its JSON-lines files.

The benchmark of scarce data in under-represented languages is published at
https://github.com/google-research/xtreme-up as one archive, and as MasakhaNER,
which is downloaded apart. Nothing is downloaded here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_flix._utils.atomic_files import MissingFileError
from keras_flix._utils.near_names import hint
from keras_flix.mixtures.dataset import Dataset
from keras_flix.mixtures.json_lines import entities_of, read_json_lines, text_of
from keras_flix.mixtures.mixture import Mixture

PromptFormat = Callable[[str, str, str], str]
"""From task, language and the example's own text to the prompt."""

SPLITS = ("train", "validation", "test")
"""What `load_xtreme_up` takes as `split`."""
DELIMITER = " $$ "
"""Between the entities of a response in `ner`."""

LANGUAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "semantic_parsing": (
            "am", "be", "bn", "fi", "ha", "hu", "ja", "pt_br", "ru", "sw", "ta", "tr",
            "yo", "zu", "en", "de", "es", "fr", "hi", "th", "de_localized", "bn_cs",
            "hi_cs", "ta_cs",
        ),
        "qa_in_lang": ("ar", "bn", "fi", "id", "ko", "ru", "sw", "te", "en"),
        "qa_cross_lang": (
            "ar", "bn", "fi", "ko", "ru", "te", "as", "bho", "brx", "gbm", "gom", "gu",
            "hi", "hne", "kn", "mai", "ml", "mni", "mr", "mwr", "or", "pa", "ps", "sa",
            "ta", "ur",
        ),
        "translation": (
            "af", "am", "ar", "as", "az", "be", "bg", "bn", "bs", "ca", "ceb", "ckb",
            "cs", "cy", "da", "de", "el", "es", "et", "fa", "ff", "fi", "fil", "fr",
            "ga", "gl", "gu", "ha", "he", "hi", "hr", "hu", "hy", "id", "ig", "is",
            "it", "ja", "jv", "ka", "kk", "km", "kn", "ko", "ky", "lb", "lg", "ln",
            "lo", "lt", "lv", "mi", "mk", "ml", "mn", "mr", "ms", "mt", "my", "ne",
            "nl", "no", "nso", "ny", "om", "or", "pa", "pl", "ps", "pt", "ro", "ru",
            "sd", "sk", "sl", "sn", "so", "sr", "sv", "sw", "ta", "te", "tg", "th",
            "tr", "uk", "ur", "uz", "vi", "xh", "yo", "zh", "zu",
        ),
        "ner": (
            "am", "bm", "bbj", "ee", "ha", "ig", "rw", "lg", "luo", "mos", "ny", "pcm",
            "sn", "sw", "tn", "tw", "wo", "xh", "yo", "zu",
        ),
    }
)  # fmt: skip
"""The published languages of each task, as its files are named."""

TASKS = tuple(LANGUAGES)
"""What `load_xtreme_up` takes as `tasks`."""

CODE_SWITCHED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"bn_cs": ("bn", "en"), "hi_cs": ("hi", "en"), "ta_cs": ("ta", "en")}
)
"""Sets that mix languages in one sentence, and the languages that they mix."""

CODE = re.compile(r"[A-Za-z]+(_[A-Za-z]+)*")
FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "semantic_parsing": ("input", "target"),
        "qa_in_lang": ("question", "title", "context", "target"),
        "qa_cross_lang": ("question", "title", "context", "target"),
        "translation": ("input", "target"),
    }
)
"""The string fields of the tasks but `ner`, which has `text` and `spans`."""


def default_prompt(task: str, language: str, text: str) -> str:
    r"""The prompt unless another format is given: task, language and text.

    A model without features, such as one LoRA for all, can know what is asked of it
    from the text alone, so that a comparison does not hide it from one side.

    >>> default_prompt("ner", "sw", "Amina yuko Nairobi")
    'task: ner\nlanguage: sw\nAmina yuko Nairobi\nanswer:\n'
    """
    return f"task: {task}\nlanguage: {language}\n{text}\nanswer:\n"


def load_xtreme_up(
    directory: str | os.PathLike[str],
    split: str = "train",
    *,
    tasks: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    code_switched: bool = False,
    temperature: float = 1.0,
    prompt_format: PromptFormat = default_prompt,
) -> Mixture:
    r"""Reads one split of XTREME-UP as a mixture of `(task, language)` datasets.

    A file is `<directory>/<task>/<split>/<language>.jsonl`, and for translation
    `en2<language>.jsonl`. Responses are those of the public baseline, and so is the
    text within the prompts: the sentence itself, or `question: ... title: ...
    context: ...`; the entities of `ner` are written `LABEL: entity`, joined by
    `" $$ "`, with tabs as spaces.

    Args:
        directory: Folder that holds the folders of the tasks.
        split: `"train"`, `"validation"` or `"test"`.
        tasks: Names of tasks; `None` (default) takes those of `TASKS` that have
            this split in the directory.
        languages: Languages as files name them (`"sw"`, `"pt_br"`, `"hi_cs"`), each
            taken from all tasks that have it. `None` (default) takes every file
            there is, also of languages that are not in `LANGUAGES`.
        code_switched: Whether to take the sets that mix languages too, which are
            left out by default. The entry of every dataset on the language feature is
            then a list (`["hi", "en"]` for `hi_cs`, `["sw"]` for `sw`), and the feature
            is `multiple`.
        temperature: Of the mixture: 1.0 (default) draws datasets in proportion to
            their sizes, `float("inf")` evenly.
        prompt_format: From task, language as the file names it, and text to the
            prompt. `default_prompt` by default.

    Returns:
        A `Mixture` of datasets with the features `"task"` and `"language"` and the
        columns `"prompts"` and `"responses"`, by task in the order of `TASKS` or
        `tasks`, and by language in the order of the alphabet or `languages`.

    Raises:
        ValueError: If a task, split, language or file is unknown or missing, or if
            a line is not what the layout promises; the message names file and line.

    Example:

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp(), "semantic_parsing", "train")
    >>> folder.mkdir(parents=True)
    >>> line = '{"input": "niamshe saa moja", "target": "[IN:CREATE_ALARM ]"}\n'
    >>> _ = Path(folder, "sw.jsonl").write_text(line)
    >>> mixture = load_xtreme_up(folder.parents[1])
    >>> mixture.datasets[0].features
    {'task': 'semantic_parsing', 'language': 'sw'}
    >>> mixture.datasets[0].columns["responses"]
    ['[IN:CREATE_ALARM ]']
    """
    check_known("split", [split], SPLITS)
    folders = _folders(Path(directory), split, tasks)
    files = {task: _files(task, folder) for task, folder in folders.items()}
    if languages is not None:
        _check_languages(languages, files, code_switched)
    datasets = []
    for task, by_language in files.items():
        chosen = sorted(by_language) if languages is None else list(languages)
        for language in chosen:
            switched = language in CODE_SWITCHED
            if language not in by_language or (switched and not code_switched):
                continue
            rows = list(_rows(task, by_language[language]))
            values = list(CODE_SWITCHED.get(language, (language,)))
            datasets.append(
                Dataset(
                    {"task": task, "language": values if code_switched else language},
                    {
                        "prompts": [prompt_format(task, language, t) for t, _ in rows],
                        "responses": [response for _, response in rows],
                    },
                )
            )
    if not datasets:
        raise ValueError(
            f"The {split!r} split must have at least one '<language>.jsonl' file. "
            f"Received: {', '.join(str(folder) for folder in folders.values())}, "
            f"without one (code_switched={code_switched}). Unpack the archive there."
        )
    return Mixture(datasets, temperature=temperature)


def check_known(
    label: str, names: Sequence[str], known: Sequence[str], those: str = ""
) -> None:
    """Raises unless all names are known."""
    for name in names:
        if name not in known:
            raise ValueError(
                f"A {label} must be one of {', '.join(map(repr, known))}{those}. "
                f"Received: {label}={name!r}.{hint(name, known)}"
            )


def _check_list(label: str, names: Any) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ValueError(
            f"`{label}` must be a list of different names, or None for all. Received: "
            f"{label}={names!r}."
        )


def _folders(root: Path, split: str, tasks: Sequence[str] | None) -> dict[str, Path]:
    if tasks is not None:
        _check_list("tasks", tasks)
        check_known("task", tasks, TASKS)
    folders = {task: root / task / split for task in tasks or TASKS}
    missing = [folder for folder in folders.values() if not folder.is_dir()]
    # Without a choice of tasks, those that were downloaded are taken.
    if missing and (tasks is not None or len(missing) == len(folders)):
        raise MissingFileError(
            "`directory` must hold '<task>/<split>' folders, as the archive of "
            f"XTREME-UP does. Received: directory={str(root)!r}, without "
            f"{str(missing[0].relative_to(root))!r}. Unpack the archive and pass the "
            "folder that holds 'semantic_parsing'; 'ner' is a download of its own."
        )
    return {task: folder for task, folder in folders.items() if folder not in missing}


def _files(task: str, folder: Path) -> dict[str, Path]:
    """The files of one split by language."""
    prefix = "en2" if task == "translation" else ""
    files = {}
    for path in folder.glob("*.jsonl"):
        # Archives made on macOS hold "._sw.jsonl" next to "sw.jsonl".
        if path.name.startswith("."):
            continue
        language = path.stem.removeprefix(prefix)
        if not path.stem.startswith(prefix) or not CODE.fullmatch(language):
            raise ValueError(
                f"The files of task {task!r} must be called '{prefix}<language>.jsonl'."
                f" Received: {str(path)!r}. Rename it, or move it elsewhere."
            )
        files[language] = path
    return files


def _check_languages(
    languages: Sequence[str], files: Mapping[str, Mapping[str, Path]], switched: bool
) -> None:
    _check_list("languages", languages)
    known = sorted({language for names in files.values() for language in names})
    for language in languages:
        # Only names that were found are ever made into paths.
        check_known("language", [language], known, ", the files of this split")
        if language in CODE_SWITCHED and not switched:
            raise ValueError(
                "Code-switched sets must be asked for. Received: languages="
                f"{list(languages)!r} with code_switched=False, where {language!r} "
                f"mixes {list(CODE_SWITCHED[language])}. Pass code_switched=True."
            )


def _rows(task: str, path: Path) -> Iterator[tuple[str, str]]:
    """The text and the response of each line of a file."""
    for place, example in read_json_lines(path):
        if task == "ner":
            yield _recognition(example, place)
        else:
            fields = {name: text_of(example, name, place) for name in FIELDS[task]}
            response = fields.pop("target")
            if len(fields) == 1:
                yield fields["input"], response
            else:
                named = [f"{name}: {text}" for name, text in fields.items()]
                yield " ".join(named), response


def _recognition(example: Mapping[str, Any], place: str) -> tuple[str, str]:
    text = text_of(example, "text", place)
    entities = [f"{label}: {name}" for label, name in entities_of(example, text, place)]
    for entity in entities:
        if DELIMITER.strip() in entity:
            raise ValueError(
                f"Labels and entities must not hold {DELIMITER.strip()!r}, which joins "
                f"them in responses. Received: {place} {entity!r}. Remove the line."
            )
    # As the baseline has it, whose own files are separated by tabs.
    return text.replace("\t", " "), DELIMITER.join(entities).replace("\t", " ")
