"""`Mixture.from_*`: constructors of a mixture from records, tables and files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from keras_flix._utils.near_names import hint
from keras_flix.features.columns import form_of, is_split_dict
from keras_flix.mixtures.json_lines import read_json_lines
from keras_flix.mixtures.named_columns import (
    Names,
    checked_path,
    columns_of_csv,
    columns_of_rows,
    columns_of_table,
    rows_of_records,
    wrong_source,
)

FEATURES = ("task", "language")


class FromTables:
    """The constructors of a `Mixture` that name the columns of a table."""

    if TYPE_CHECKING:

        def __init__(
            self, datasets: Any, temperature: float = 1.0, *, features: Any = None
        ) -> None: ...

    @classmethod
    def from_records(
        cls,
        source: Iterable[Mapping[str, Any]],
        *,
        features: Sequence[str] = FEATURES,
        prompt: str | None = "prompt",
        response: str | None = "response",
        keep: Sequence[str] = (),
        temperature: float = 1.0,
    ) -> Self:
        """A mixture of examples that are dicts.

        Each combination of values becomes a dataset. Prompts and responses become the
        columns `"prompts"` and `"responses"`, which `fit`, `generate` and
        `keras_flix.evaluation.evaluate` take. Columns that are not named are left out.

        Args:
            source: The dicts, one per example, in a list or any other iterable.
            features: The names of the columns that are features. Where a value is
                missing (`None`, NaN or NA), the feature is absent from the example. A
                list is several values.
            prompt: The column of texts that are asked; `None` where there is none.
            response: The column of texts that are to be answered, or for evaluation of
                lists of several that are right; `None` where there is none.
            keep: Further columns, which keep their names, such as labels or weights.
            temperature: As for `Mixture`: how evenly datasets are drawn.

        Returns:
            The `Mixture`.

        Raises:
            ValueError: If a column or a text is missing; columns that there are, and
                the row, are named.

        Example:

        >>> from keras_flix.mixtures import Mixture
        >>> Mixture.from_records(
        ...     [
        ...         {"task": "qa", "language": "sw", "question": "a?", "answer": "A"},
        ...         {"task": "qa", "language": None, "question": "b?", "answer": "B"},
        ...     ],
        ...     prompt="question",
        ...     response="answer",
        ... ).inputs()["language"]
        ['sw', None]
        """
        names = Names(features, prompt, response, keep)
        columns = columns_of_rows(rows_of_records(source, "from_records"), names)
        return cls(columns, temperature, features=names.features)

    @classmethod
    def from_dataframe(
        cls,
        source: Any,
        *,
        features: Sequence[str] = FEATURES,
        prompt: str | None = "prompt",
        response: str | None = "response",
        keep: Sequence[str] = (),
        temperature: float = 1.0,
    ) -> Self:
        """A mixture of a DataFrame: `from_records`, but for its form.

        Args:
            source: A DataFrame of pandas or polars, a table of pyarrow, or a dict of
                columns.
            features: As for `from_records`.
            prompt: As for `from_records`.
            response: As for `from_records`.
            keep: As for `from_records`.
            temperature: As for `Mixture`.

        Returns:
            The `Mixture`.

        Raises:
            ValueError: As for `from_records`.

        Example:

        >>> from keras_flix.mixtures import Mixture
        >>> import pandas
        >>> frame = pandas.DataFrame({"lang": ["sw"], "prompt": ["a?"], "y": ["A"]})
        >>> Mixture.from_dataframe(frame, features=["lang"], response="y").inputs()
        {'prompts': ['a?'], 'responses': ['A'], 'lang': ['sw']}
        """
        names = Names(features, prompt, response, keep)
        if form_of(source) not in ("frame", "columns"):
            raise wrong_source(
                "from_dataframe",
                "a DataFrame (pandas, polars), a pyarrow table or a dict of columns",
                source,
            )
        columns = columns_of_table(source, names)
        return cls(columns, temperature, features=names.features)

    @classmethod
    def from_dataset(
        cls,
        source: Any,
        *,
        features: Sequence[str] = FEATURES,
        prompt: str | None = "prompt",
        response: str | None = "response",
        keep: Sequence[str] = (),
        temperature: float = 1.0,
        split: str | None = None,
    ) -> Self:
        """A mixture of a Hugging Face dataset: `from_records`, but for its form.

        Args:
            source: A `datasets.Dataset`, or a `datasets.DatasetDict`. Features, prompts
                and responses that are class labels are taken by their names; -1, no
                label, is missing.
            features: As for `from_records`.
            prompt: As for `from_records`.
            response: As for `from_records`.
            keep: As for `from_records`.
            temperature: As for `Mixture`.
            split: Which split of a `DatasetDict` to take, such as `"train"`.

        Returns:
            The `Mixture`.

        Raises:
            ValueError: As for `from_records`; and if a `DatasetDict` comes without a
                split, or with one that it does not have.

        Example:

        >>> from keras_flix.mixtures import Mixture
        >>> import datasets
        >>> rows = {"task": ["qa"], "prompt": ["a?"], "response": ["A"]}
        >>> data = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)})
        >>> Mixture.from_dataset(data, split="train", features=["task"]).inputs()
        {'prompts': ['a?'], 'responses': ['A'], 'task': ['qa']}
        """
        names = Names(features, prompt, response, keep)
        if is_split_dict(source):
            if split not in source:
                near = "" if split is None else hint(split, source)
                raise ValueError(
                    f"A DatasetDict needs one of its splits {list(source)}. Received: "
                    f"split={split!r}.{near} Pass it, such as split="
                    f"{next(iter(source), 'train')!r}."
                )
            source = source[split]
        elif split is not None:
            raise ValueError(
                "`split` must come with a DatasetDict. Received: "
                f"split={split!r} with a {type(source).__name__}. Leave it out."
            )
        if form_of(source) != "dataset":
            raise wrong_source("from_dataset", "a Hugging Face dataset", source)
        columns = columns_of_table(source, names)
        return cls(columns, temperature, features=names.features)

    @classmethod
    def from_jsonl(
        cls,
        source: str | os.PathLike[str],
        *,
        features: Sequence[str] = FEATURES,
        prompt: str | None = "prompt",
        response: str | None = "response",
        keep: Sequence[str] = (),
        temperature: float = 1.0,
    ) -> Self:
        """A mixture of a file with one JSON object per line: `from_records`, read.

        Args:
            source: The path of the file, which is UTF-8, with or without a byte order
                mark. Blank lines do no harm.
            features: As for `from_records`. `null` is a missing value.
            prompt: As for `from_records`.
            response: As for `from_records`.
            keep: As for `from_records`.
            temperature: As for `Mixture`.

        Returns:
            The `Mixture`.

        Raises:
            ValueError: As for `from_records`, and if a line is no JSON object; file and
                line are named.

        Example:

        >>> from keras_flix.mixtures import Mixture
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "train.jsonl")
        >>> _ = path.write_text('{"task": "qa", "prompt": "a?", "response": "A"}')
        >>> Mixture.from_jsonl(path, features=["task"]).inputs()
        {'prompts': ['a?'], 'responses': ['A'], 'task': ['qa']}
        """
        names = Names(features, prompt, response, keep)
        lines = read_json_lines(checked_path(source, "from_jsonl"))
        rows = ((f"{place} ", row) for place, row in lines)
        columns = columns_of_rows(rows, names)
        return cls(columns, temperature, features=names.features)

    @classmethod
    def from_csv(
        cls,
        source: str | os.PathLike[str],
        *,
        features: Sequence[str] = FEATURES,
        prompt: str | None = "prompt",
        response: str | None = "response",
        keep: Sequence[str] = (),
        temperature: float = 1.0,
        delimiter: str = ",",
    ) -> Self:
        r"""A mixture of a CSV file with a header: `from_records`, read.

        Every cell is a text, also `NA` and `1`; only empty and blank ones are missing.
        Where all cells of a column in `keep` are numbers, it becomes an array.

        Args:
            source: The path of the file, which is UTF-8, with or without a byte order
                mark.
            features: As for `from_records`.
            prompt: As for `from_records`.
            response: As for `from_records`.
            keep: As for `from_records`.
            temperature: As for `Mixture`.
            delimiter: What is between cells, such as `"\t"`.

        Returns:
            The `Mixture`.

        Raises:
            ValueError: As for `from_records`, and if the file is not well formed; file
                and line are named.

        Example:

        >>> from keras_flix.mixtures import Mixture
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "train.csv")
        >>> _ = path.write_text("task,prompt,response\nqa,a?,A\n,b?,B\n")
        >>> Mixture.from_csv(path, features=["task"]).inputs()["task"]
        ['qa', None]
        """
        names = Names(features, prompt, response, keep)
        columns = columns_of_csv(checked_path(source, "from_csv"), names, delimiter)
        return cls(columns, temperature, features=names.features)
