"""Files and folders of examples, as mixtures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_flix._utils.atomic_files import MissingFileError
from keras_flix._utils.optional_packages import needed
from keras_flix.command_line.templates import Template
from keras_flix.mixtures.dataset import Dataset
from keras_flix.mixtures.mixture import Mixture
from keras_flix.mixtures.named_columns import ARGUMENTS, PROMPTS, RESPONSES

JSON_LINES, PARQUET = (".jsonl", ".ndjson"), ".parquet"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SPLIT = re.compile("[A-Za-z]*")
"""How the name of a parquet file begins: with that of its split, of several."""
FORMS = (
    "JSON lines (.jsonl), CSV (.csv, .tsv), parquet, or a folder of a Hugging Face "
    "dataset: of parquet files, or as `save_to_disk` writes it"
)


def read_mixture(
    place: str,
    features: Sequence[str],
    prompt: str,
    response: str,
    temperature: float = 1.0,
) -> Mixture:
    """The examples of a file or a folder.

    Args:
        place: JSON lines, CSV or parquet by the name's end; or a folder of parquet
            files, or one that `save_to_disk` of Hugging Face's `datasets` wrote. Of
            several splits, it is the one called train; each is a place, too.
        features: The columns that are features.
        prompt: The column of prompts.
        response: The column of responses.
        temperature: Of the mixture.

    Raises:
        ValueError: If it is no such place, or a line or a column is not right.
    """
    path = Path(place)
    if not path.exists():
        raise MissingFileError(
            f"Data must be an existing file or folder. Received: {place!r}, which is "
            "none. Check the path."
        )
    options: dict[str, Any] = {
        "features": list(features),
        "prompt": prompt,
        "response": response,
        "temperature": temperature,
    }
    try:
        return _read(path, options)
    except ValueError as error:
        if ARGUMENTS not in str(error):
            raise
        # What are arguments in Python are options here.
        text = str(error).replace(ARGUMENTS, "--features, --prompt and --response")
        raise ValueError(text) from error


def _read(path: Path, options: dict[str, Any]) -> Mixture:
    if path.is_dir():
        return Mixture.from_dataset(_dataset(path), **options)
    if path.suffix in JSON_LINES:
        return Mixture.from_jsonl(path, **options)
    if path.suffix in DELIMITERS:
        delimiter = DELIMITERS[path.suffix]
        return Mixture.from_csv(path, delimiter=delimiter, **options)
    if path.suffix == PARQUET:
        return Mixture.from_dataset(_parquet([path]), **options)
    raise ValueError(
        f"Data must be {FORMS}. Received: {str(path)!r}. Rename or convert it."
    )


def wrapped(mixture: Mixture, template: Template) -> Mixture:
    """A mixture whose prompts and responses are put into a template."""

    def columns(dataset: Dataset) -> dict[str, Any]:
        texts = dataset.columns
        return {
            **texts,
            PROMPTS: [template.prompt(text) for text in texts[PROMPTS]],
            RESPONSES: [of_each(template.response, x) for x in texts[RESPONSES]],
        }

    datasets = [Dataset(one.features, columns(one)) for one in mixture.datasets]
    return Mixture(datasets, mixture.temperature)


def of_each(function: Callable[[str], str], response: Any) -> Any:
    """What a function makes of a response, or of each of several that are right."""
    if isinstance(response, str):
        return function(response)
    return [function(text) for text in response]


def digest(*mixtures: Mixture | None) -> str:
    """What tells whether examples are the same, in the same order."""
    found = hashlib.sha256()
    for mixture in mixtures:
        for dataset in () if mixture is None else mixture.datasets:
            rows = [dict(dataset.features), dict(dataset.columns)]
            found.update(json.dumps(rows, default=str).encode())
        found.update(b"\n")
    return found.hexdigest()[:16]


def _dataset(folder: Path) -> Any:
    """The Hugging Face dataset in a folder."""
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        return _dataset(folder / _train(names, folder))
    if (folder / "state.json").is_file():
        package = needed("datasets", "A folder of `save_to_disk`", "datasets")
        return package.load_from_disk(str(folder))
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not files:
        raise ValueError(
            f"Data must be {FORMS}. Received: {str(folder)!r}, a folder of neither. "
            "Check the path."
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(SPLIT.match(file.name)[0], []).append(file)  # type: ignore[index]
    return _parquet(splits[_train(list(splits), folder)])


def _train(splits: Sequence[str], folder: Path) -> str:
    if len(splits) > 1 and "train" not in splits:
        raise ValueError(
            "Of several splits, one must be called train. Received: "
            f"{', '.join(splits)} in {str(folder)!r}. Name one of them, as a place."
        )
    return splits[0] if len(splits) == 1 else "train"


def _parquet(files: Sequence[Path]) -> Any:
    """The Hugging Face dataset in parquet files, with the names of class labels."""
    package = needed("datasets", "A parquet file", "datasets")
    parquet = needed("pyarrow.parquet", "A parquet file", "datasets")
    tables = [parquet.read_table(str(file)) for file in files]
    joined = needed("pyarrow", "A parquet file", "datasets").concat_tables(tables)
    return package.Dataset(package.table.InMemoryTable(joined))
