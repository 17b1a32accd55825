"""Tables of every form as columns: what becomes of entries, and how they are read."""

import numpy as np
import pytest
from helpers.places import ROOT
from helpers.tables import FORMS, FRAMES, columns_of

from keras_flix import FeatureSchema
from keras_flix.features.columns import (
    UNREAD,
    as_columns,
    described,
    is_table,
)
from keras_flix.features.missing import is_missing

ROWS = [
    {"prompts": "a?", "task": "qa", "id": 3, "x": [0.5, 1.5], "domain": ["web"]},
    {"prompts": "ß", "task": None, "id": 4, "x": [2.5, 3.5], "domain": []},
    {"prompts": "", "task": "parse", "id": 5, "x": [4.5, 5.5], "domain": ["a", "b"]},
]


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def check(columns):
    assert list(columns) == list(ROWS[0])
    assert columns["prompts"] == ["a?", "ß", ""]
    assert [None if is_missing(t) else t for t in columns["task"]] == [
        "qa", None, "parse",
    ]  # fmt: skip
    for name, kind in (("id", "i"), ("x", "f")):
        column = columns[name]
        assert isinstance(column, np.ndarray) and column.dtype.kind == kind
        np.testing.assert_array_equal(column, [row[name] for row in ROWS])
    assert [list(d) for d in columns["domain"]] == [row["domain"] for row in ROWS]


@pytest.mark.parametrize("form", [name for name in FORMS if name != "dict"])
def test_columns_of_every_form(form):
    table = FORMS[form](ROWS)
    check(as_columns(table))
    assert is_table(table)
    text = described(table)
    assert "['prompts', 'task', 'id', 'x', 'domain']" in text
    assert "ß" not in text and "qa" not in text


@pytest.mark.parametrize("form", FRAMES)
def test_columns_of_other_libraries_in_a_dict(form):
    table = FORMS[form](ROWS)
    take = table.column if form == "pyarrow" else table.__getitem__
    check(as_columns({name: take(name) for name in ROWS[0]}))


def test_a_dict_is_not_copied():
    columns = {**columns_of(ROWS), "images": np.zeros((3, 2)), "language": "sw"}
    assert as_columns(columns) is columns
    assert is_table(columns)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 3)),
        ["a?", "b?"],
        [],
        [np.zeros(2), {"a": 1}],
        # Two inputs, or inputs and targets.
        [{"a": np.zeros(2)}, {"b": np.zeros(2)}],
        ({"a": [1]}, [1]),
        "a?",
        None,
    ],
)
def test_what_is_no_table_stays(data):
    assert as_columns(data) is data
    assert not is_table(data)


def test_records():
    rows = [{"x": np.ones((2, 3), "float32"), "n": np.int8(i)} for i in range(4)]
    columns = as_columns(rows)
    assert columns["x"].shape == (4, 2, 3) and columns["x"].dtype == "float32"
    assert columns["n"].dtype == "int8"
    # Rows of several lengths stay lists, for a feature of several values.
    assert as_columns([{"n": [1]}, {"n": [1, 2]}]) == {"n": [[1], [1, 2]]}
    ragged = as_columns([{"n": np.ones(2)}, {"n": np.ones(3)}])["n"]
    assert isinstance(ragged, list) and len(ragged) == 2
    assert as_columns([{"n": 1}, {"n": None}]) == {"n": [1, None]}
    assert as_columns([{"n": 2**70}, {"n": 1}]) == {"n": [2**70, 1]}
    assert refusal(lambda: as_columns([{"a": 1, "b": 2}, {"a": 1}])) == (
        "The dicts of a list must all have the same entries. Received: ['a', 'b'] and, "
        "at row 1, ['a']. Write None where a row has no value of a feature."
    )
    with pytest.raises(ValueError, match=r"at row 1, <class 'str'>"):
        as_columns([{"a": 1}, "text", {"a": 1}])


BIG = 2**60


@pytest.mark.parametrize("form", ["records", "columns", "pandas", "categories"])
def test_large_integers_beside_nan_stay_themselves(form):
    schema = FeatureSchema({"user": [BIG, BIG + 1]})
    users = [BIG + 1, float("nan"), BIG]
    data = {"user": users}
    if form == "records":
        data = [{"user": user} for user in users]
    elif form != "columns":
        pd = pytest.importorskip("pandas", reason="pandas is not installed")
        series = pd.Series(users, dtype=object)
        if form == "categories":
            series = pd.Series([BIG + 1, BIG], dtype="category").reindex([0, 2, 1])
        data = pd.DataFrame({"user": series})
    assert schema.encode(data)["user"].tolist() == [1, -1, 0]
    # Where floats hold them, they are an array as before.
    assert as_columns([{"n": 3}, {"n": 0.5}])["n"].dtype == "float64"


def test_class_labels_are_read_by_name_where_values_are_strings():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    label = datasets.ClassLabel(names=["sw", "en"])
    data = datasets.Dataset.from_dict({"language": ["sw", "en", None], "n": [1, 0, 1]})
    data = data.cast(datasets.Features(language=label, n=label))
    schema = FeatureSchema({"language": ["en", "sw"]})
    for form in (data.select_columns("language"), {"language": data["language"]}):
        assert schema.encode(form)["language"].tolist() == [1, 0, -1]
    whole = as_columns(data, ["language"])
    assert whole["language"] == ["sw", "en", None] and whole["n"].tolist() == [1, 0, 1]
    assert as_columns(data, None)["n"] == ["en", "sw", "en"]
    # Of integer values, the integers are values.
    numbers = FeatureSchema({"n": [1, 0]})
    found = numbers.encode(data.select_columns("n"))
    assert np.asarray(found["n"]).tolist() == [0, 1, 0]


def test_missing_entries_of_pandas():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pd.DataFrame(
        {
            "text": ["qa", None],
            "nullable": pd.array([1, None], dtype="Int64"),
            "category": pd.Categorical(["qa", None]),
            "number": [1, None],
            "time": pd.to_datetime(["2026-01-01", None]),
        }
    )
    for column in as_columns(frame).values():
        assert [is_missing(entry) for entry in column] == [False, True]
    assert as_columns(frame)["nullable"][0] == 1


def test_numbers_of_pandas_are_not_copied():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pd.DataFrame({"n": np.arange(5)})
    assert np.shares_memory(as_columns(frame)["n"], frame["n"].to_numpy())
    complete = pd.DataFrame({"n": pd.array([1, 2], dtype="Int64")})
    np.testing.assert_array_equal(as_columns(complete)["n"], [1, 2])


def test_names_of_columns():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    for names in (["a", "a"], [0, "a"], [("a", "b"), "c"]):
        text = refusal(lambda n=names: as_columns(pd.DataFrame([[1, 2]], columns=n)))
        assert text == (
            "The columns of a table must have different names, all of them strings. "
            f"Received: {names}. Rename them."
        )


def test_arrow_in_batches_and_dictionaries():
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pa.Table.from_pylist(ROWS)
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    check(as_columns(chunks))
    check(as_columns(table.to_batches()[0]))
    column = table.column("task").dictionary_encode()
    assert as_columns({"task": column})["task"] == ["qa", None, "parse"]


def test_polars_of_all_types():
    pl = pytest.importorskip("polars", reason="polars is not installed")
    frame = pl.DataFrame(ROWS).with_columns(
        pl.col("task").cast(pl.Categorical), pl.col("x").list.to_array(2)
    )
    check(as_columns(frame))


@pytest.mark.parametrize("form", [None, "numpy", "arrow", "pandas", "polars"])
def test_hugging_face_in_its_own_formats_and_order(form):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    if form in ("pandas", "polars"):
        pytest.importorskip(form, reason=f"{form} is not installed")
    data = datasets.Dataset.from_list(ROWS[::-1]).select([2, 1, 0])
    columns = as_columns(data.with_format(form))
    assert list(columns["prompts"]) == ["a?", "ß", ""]
    np.testing.assert_array_equal(columns["x"], [row["x"] for row in ROWS])
    np.testing.assert_array_equal(columns["id"], [3, 4, 5])


def test_hugging_face_is_read_at_once():
    """Not row by row, each of which would be decoded alone."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    reads = []

    class Counted(datasets.Dataset):
        def __getitem__(self, key):
            reads.append(key)
            return super().__getitem__(key)

    data = datasets.Dataset.from_list(ROWS)
    data.__class__ = Counted
    check(as_columns(data))
    assert reads == [slice(None)]


def test_what_must_be_read_first():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    data = datasets.Dataset.from_list(ROWS)
    forms = (
        "A table must be a dict of columns, a list of dicts, a DataFrame (pandas, "
        "polars), a pyarrow table or a Hugging Face dataset. Received: a datasets."
    )
    assert refusal(lambda: as_columns(data.to_iterable_dataset())) == (
        f"{forms}IterableDataset, a stream, which is as long as it likes. Collect what "
        "fits into memory, such as `list(stream.take(10_000))`, or write a generator "
        "of batches."
    )
    assert refusal(lambda: as_columns(datasets.DatasetDict(train=data))) == (
        f"{forms}DatasetDict, a dict of whole datasets. Choose one, such as "
        "data['train']."
    )
    streams = datasets.IterableDatasetDict(train=data.to_iterable_dataset())
    assert "`list(data['train'].take(10_000))`" in refusal(lambda: as_columns(streams))


def test_the_reference_names_what_must_be_read_first():
    page = (ROOT / "guides" / "reference" / "adapting.md").read_text()
    for _, name in UNREAD:
        assert f"`{name}`" in page


def test_a_query_must_run_first():
    pl = pytest.importorskip("polars", reason="polars is not installed")
    text = refusal(lambda: as_columns(pl.LazyFrame({"task": ["qa"]})))
    assert text.endswith(
        "Received: a polars.LazyFrame, a query. Run it with `.collect()`."
    )


def test_a_reader_must_be_read_first():
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    reader = pa.Table.from_pylist(ROWS).to_reader()
    assert "Read it with `.read_all()`." in refusal(lambda: as_columns(reader))


@pytest.mark.parametrize("form", FORMS)
def test_a_schema_encodes_every_form(form):
    rows = [{"task": "qa", "language": "sw"}, {"task": "parse", "language": "en"}]
    schema = FeatureSchema({"task": ["qa", "parse"], "language": ["en", "sw"]})
    ids = schema.encode(FORMS[form](rows))
    assert {name: value.tolist() for name, value in ids.items()} == {
        "task": [0, 1],
        "language": [1, 0],
    }
