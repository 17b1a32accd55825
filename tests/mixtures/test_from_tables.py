"""`Mixture.from_*`: from records, tables and files to a mixture in one line."""

import json
import re

import numpy as np
import pytest
from helpers.tables import FORMS, FRAMES

from keras_flix.mixtures import Mixture

ROWS = [
    {"task": "qa", "language": "sw", "prompt": "a?", "response": "A", "id": 1},
    {"task": "qa", "language": None, "prompt": 'b, "c"\n?', "response": "B", "id": 2},
    {"task": "parse", "language": "yo", "prompt": "ẹ̀kọ́", "response": "C", "id": 3},
    {"task": "qa", "language": "sw", "prompt": "d?", "response": "D", "id": 4},
]
EXPECTED = [
    ({"task": "qa", "language": "sw"}, ["a?", "d?"], ["A", "D"]),
    ({"task": "qa", "language": None}, ['b, "c"\n?'], ["B"]),
    ({"task": "parse", "language": "yo"}, ["ẹ̀kọ́"], ["C"]),
]
HEADER = "task,language,prompt,response\n"


def refusal(make, kind=ValueError):
    with pytest.raises(kind) as error:
        make()
    return str(error.value)


def contents(mixture):
    return [
        (dict(d.features), d.columns["prompts"], d.columns["responses"])
        for d in mixture.datasets
    ]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def write_csv(path, encoding="utf-8", newline="\r\n", delimiter=","):
    lines = [delimiter.join(ROWS[0])]
    for row in ROWS:
        cells = ["" if x is None else str(x) for x in row.values()]
        lines.append(
            delimiter.join(
                '"' + x.replace('"', '""') + '"' if re.search(r'[,;"\n]', x) else x
                for x in cells
            )
        )
    return write(path, newline.join(lines) + newline, encoding)


def write_jsonl(path, encoding="utf-8"):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    return write(path, "\n".join(lines), encoding)


# What comes out. ---------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, "generator"])
def test_every_form_gives_the_same(form):
    table = iter(ROWS) if form == "generator" else FORMS[form](ROWS)
    make = {
        "records": Mixture.from_records,
        "generator": Mixture.from_records,
        "hugging face": Mixture.from_dataset,
    }.get(form, Mixture.from_dataframe)
    mixture = make(table, keep=["id"], temperature=2.0)
    assert contents(mixture) == EXPECTED and mixture.temperature == 2.0
    # Columns that nobody named are left out, others keep their name.
    assert list(mixture.datasets[0].columns) == ["prompts", "responses", "id"]
    assert [d.columns["id"].tolist() for d in mixture.datasets] == [[1, 4], [2], [3]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files(tmp_path, encoding):
    lines = write_jsonl(tmp_path / "a.jsonl", encoding)
    table = write_csv(tmp_path / "a.csv", encoding)
    assert contents(Mixture.from_jsonl(lines)) == EXPECTED
    assert contents(Mixture.from_csv(str(table))) == EXPECTED
    other = write_csv(tmp_path / "b.csv", encoding, newline="\n", delimiter=";")
    mixture = Mixture.from_csv(other, delimiter=";", keep=["id"], temperature=3.0)
    assert contents(mixture) == EXPECTED and mixture.temperature == 3.0
    assert [d.columns["id"].tolist() for d in mixture.datasets] == [[1, 4], [2], [3]]


def test_own_names():
    rows = [{"lang": "sw", "question": "a?", "answers": ["A", "B"]}]
    names = {"features": "lang", "prompt": "question", "response": "answers"}
    assert Mixture.from_records(rows, **names).inputs() == {
        "prompts": ["a?"],
        "responses": [["A", "B"]],
        "lang": ["sw"],
    }
    numbers = [
        {"task": "a", "x": [0.5, 1.5], "y": 0},
        {"task": "b", "x": [2, 3], "y": 1},
    ]
    mixture = Mixture.from_records(
        numbers, features=["task"], prompt=None, response=None, keep=("x", "y")
    )
    assert mixture.inputs()["x"].tolist() == [[0.5, 1.5], [2, 3]]


def test_missing_values_are_absent():
    pandas = pytest.importorskip("pandas", reason="the extra `test` brings it")
    texts = {"prompt": ["a", "b", "c"], "response": ["A", "B", "C"]}
    frame = pandas.DataFrame({"level": [3, np.nan, 1], "task": ["qa", pandas.NA, None]})
    mixture = Mixture.from_dataframe(frame.assign(**texts), features=["level", "task"])
    # Integers became floats beside NaN.
    assert [dict(d.features) for d in mixture.datasets] == [
        {"level": 3, "task": "qa"},
        {"level": None, "task": None},
        {"level": 1, "task": None},
    ]


def test_csv_cells(tmp_path):
    """Only what is empty is missing: NA is Namibia, and 1 a text."""
    text = HEADER + "NA,,1,None\n\n  ,null,b,B\n"
    mixture = Mixture.from_csv(write(tmp_path / "a.csv", text))
    assert contents(mixture) == [
        ({"task": "NA", "language": None}, ["1"], ["None"]),
        ({"task": None, "language": "null"}, ["b"], ["B"]),
    ]
    kept = "task,p,r,n,x,id\na,b,c,1,.5,007\na,b,c,2,1.5,008\n"
    names = {"features": "task", "prompt": "p", "response": "r"}
    path = write(tmp_path / "b.csv", kept.replace(".5,007", "0.5,007"))
    columns = Mixture.from_csv(path, **names, keep=["n", "x", "id"]).datasets[0].columns
    assert columns["n"].tolist() == [1, 2] and columns["x"].tolist() == [0.5, 1.5]
    assert columns["id"] == ["007", "008"]


def test_labels_of_hugging_face_are_their_names():
    datasets = pytest.importorskip("datasets", reason="the extra `test` brings it")
    rows = {"task": [1, 0, -1], "prompt": ["a", "b", "c"], "response": [0, 1, 1]}
    label = datasets.ClassLabel(names=["no", "yes"])
    types = datasets.Features(
        task=label, prompt=datasets.Value("string"), response=label
    )
    data = datasets.Dataset.from_dict(rows, features=types)
    mixture = Mixture.from_dataset(data, features=["task"])
    assert mixture.inputs() == {
        "prompts": ["a", "b", "c"],
        "responses": ["no", "yes", "yes"],
        "task": ["yes", "no", None],
    }


def test_a_split_of_hugging_face():
    datasets = pytest.importorskip("datasets", reason="the extra `test` brings it")
    train = datasets.Dataset.from_list(ROWS)
    both = datasets.DatasetDict({"train": train, "test": train.select([0])})
    assert contents(Mixture.from_dataset(both, split="train")) == EXPECTED
    assert len(Mixture.from_dataset(both, split="test")) == 1
    for split in (None, "tset"):
        assert refusal(lambda s=split: Mixture.from_dataset(both, split=s)) == (
            "A DatasetDict needs one of its splits ['train', 'test']. Received: "
            f"split={split!r}."
            + (" The nearest is 'test'." if split else "")
            + " Pass it, such as split='train'."
        )
    assert refusal(lambda: Mixture.from_dataset(train, split="train")) == (
        "`split` must come with a DatasetDict. Received: split='train' with a Dataset. "
        "Leave it out."
    )
    stream = train.to_iterable_dataset()
    assert "a stream" in refusal(lambda: Mixture.from_dataset(stream))


# What is refused. --------------------------------------------------------------


@pytest.mark.parametrize("form", ["records", *FRAMES, "jsonl", "csv"])
def test_missing_column(form, tmp_path):
    rows = [{("lang" if k == "language" else k): v for k, v in r.items()} for r in ROWS]
    columns = "['task', 'lang', 'prompt', 'response', 'id']"
    place = ""
    if form == "jsonl":
        path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
        place = f"{path}, line 1: "
        text = refusal(lambda: Mixture.from_jsonl(path))
    elif form == "csv":
        path = write(tmp_path / "a.csv", ",".join(rows[0]) + "\na,b,c,d,1\n")
        place = f"{path}, line 1: "
        text = refusal(lambda: Mixture.from_csv(path))
    else:
        make = {
            "records": Mixture.from_records,
            "hugging face": Mixture.from_dataset,
        }.get(form, Mixture.from_dataframe)
        place = "row 0: " if form == "records" else ""
        text = refusal(lambda: make(FORMS[form](rows)))
    assert text == (
        f"A table must have the columns ['task', 'language', 'prompt', 'response']. "
        f"Received: {place}columns {columns}, without 'language'. The nearest is "
        "'lang'. Name those there are with features=, prompt= and response=."
    )


def test_records_without_an_entry():
    rows = [ROWS[0], {k: v for k, v in ROWS[1].items() if k != "language"}]
    assert refusal(lambda: Mixture.from_records(rows)) == (
        "Every example must have the entries ['task', 'language', 'prompt', "
        "'response']. Received: row 1: entries ['task', 'prompt', 'response', 'id'], "
        "without 'language'. Write None (null in JSON) where it has no value of a "
        "feature."
    )
    assert refusal(lambda: Mixture.from_records([ROWS[0], "qa"])) == (
        "Every example must be a dict. Received: row 1: 'qa'. Correct or remove it."
    )
    assert refusal(lambda: Mixture.from_records([])) == (
        "A table must have at least one row. Received: none. Look at how it was "
        "selected."
    )


@pytest.mark.parametrize("text", [None, float("nan"), 3, "", ["x", 1], [], "\ud800"])
@pytest.mark.parametrize("column", ["prompt", "response"])
def test_texts_that_are_none(column, text):
    rows = [ROWS[0], {**ROWS[1], column: text}]
    if text == "":
        assert len(Mixture.from_records(rows)) == 2
        return
    found = refusal(lambda: Mixture.from_records(rows))
    assert found.startswith("Every example must have a text in the column ")
    assert f"{column!r}" in found and "row 1: " in found
    if isinstance(text, float):
        frame = pytest.importorskip("pandas", reason="`test` brings it").DataFrame(rows)
        assert "row 1: " in refusal(lambda: Mixture.from_dataframe(frame))


def test_bad_lines(tmp_path):
    good = json.dumps(ROWS[0])
    path = write(tmp_path / "a.jsonl", f"{good}\n{good[:-1]}\n")
    assert f"{path}, line 2: " in refusal(lambda: Mixture.from_jsonl(path))
    path.write_bytes(good.encode() + b"\n\xff\n")
    assert f"{path}, line 2: " in refusal(lambda: Mixture.from_jsonl(path))
    write(path, "")
    assert "without any" in refusal(lambda: Mixture.from_jsonl(path))
    refusal(lambda: Mixture.from_jsonl(tmp_path / "b.jsonl"), FileNotFoundError)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (HEADER + 'a,b,"c\nd",e\na,b,c\n', 4, "3 cells beside 4 columns"),
        (HEADER + 'a,b,c,"d"e\n', 2, "',' expected after '\"'"),
        (HEADER + 'a,b,c,"d\n', 2, "unexpected end of data"),
        (HEADER + "a,b,,d\n", 2, "None"),
        (HEADER, 1, "no row besides"),
        ("", 1, "an empty file"),
        ("task,task,prompt,response\n", 1, "['task', 'task', 'prompt', 'response']"),
        (HEADER.replace(",", ";"), 1, "delimiter=';'"),
    ],
)
def test_bad_csv(tmp_path, text, line, reason):
    path = write(tmp_path / "a.csv", text)
    found = refusal(lambda: Mixture.from_csv(path))
    assert f"{path}, line {line}: " in found and reason in found
    path.write_bytes(HEADER.encode() + b"a,b,c\n\xff,d\n")
    assert f"{path}, line 3: " in refusal(lambda: Mixture.from_csv(path))


def test_wrong_constructor(tmp_path):
    for make, source, text in (
        (Mixture.from_dataframe, ROWS, "Use Mixture.from_records."),
        (Mixture.from_records, FORMS["dict"](ROWS), "Use Mixture.from_dataframe."),
        (Mixture.from_records, "a.jsonl", "Use Mixture.from_jsonl."),
        (Mixture.from_dataset, ROWS, "Use Mixture.from_records."),
        (Mixture.from_jsonl, ROWS, "Use Mixture.from_records."),
        (Mixture.from_csv, 3, "Received: 3."),
    ):
        assert text in refusal(lambda m=make, s=source: m(s)), text


def test_names_that_clash():
    for names in (
        {"features": ("task", "prompt")},
        {"features": ["task"], "keep": ["task"]},
        {"features": ["task"], "keep": ["prompts"]},
        {"features": ["prompts"]},
        {"response": "prompt"},
    ):
        assert refusal(lambda n=names: Mixture.from_records(ROWS, **n)).startswith(
            "Each column must be one thing: a feature, the prompt, the response or one "
        )
    for names in ({"features": []}, {"prompt": None, "response": None}):
        assert refusal(lambda n=names: Mixture.from_records(ROWS, **n)).startswith(
            "A mixture must have a feature and a column besides. Received: "
        )
