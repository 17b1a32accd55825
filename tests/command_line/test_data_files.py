"""Files and folders of examples, as mixtures."""

import csv

import keras
import pytest
from helpers.runs import examples, write_lines

from keras_flix.command_line.data_files import digest, read_mixture
from keras_flix.mixtures import Mixture

if keras.config.backend() != "torch":
    reason = "files are read without a backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

COLUMNS = (["task", "language"], "prompt", "response")


def read(place):
    return read_mixture(str(place), *COLUMNS).inputs()


def test_every_form_of_data_gives_the_same_examples(tmp_path):
    datasets = pytest.importorskip("datasets", reason="extra `datasets`")
    rows = examples()
    expected = Mixture.from_records(rows).inputs()
    assert read(write_lines(tmp_path / "a.jsonl", rows)) == expected
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        assert read(tmp_path / name) == expected
    data = datasets.Dataset.from_list(rows).cast_column(
        "language", datasets.ClassLabel(names=["de", "en"])
    )
    data.save_to_disk(tmp_path / "disk")
    assert read(tmp_path / "disk") == expected
    splits = {"test": data.select([0]), "train": data}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits") == expected
    assert len(read(tmp_path / "splits" / "test")["prompts"]) == 1
    # As the hub has them.
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    data.select(range(5)).to_parquet(hub / "train-00000-of-00002.parquet")
    data.select(range(5, 12)).to_parquet(hub / "train-00001-of-00002.parquet")
    data.select([0]).to_parquet(hub / "test-00000-of-00001.parquet")
    assert read(tmp_path / "hub") == expected
    assert len(read(hub / "test-00000-of-00001.parquet")["prompts"]) == 1
    (hub / "train-00001-of-00002.parquet").unlink()
    (hub / "train-00000-of-00002.parquet").rename(hub / "dev-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="one must be called train. Received: dev, te"):
        read(hub)


def test_places_that_are_no_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="existing file or folder. Received: .*none'"):
        read(tmp_path / "none")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(
        ValueError, match="Data must be JSON lines .* Received: .*a.txt"
    ):
        read(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="a folder of neither"):
        read(tmp_path)


def test_a_missing_column_is_told_with_the_options(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("task,language,question,response\nqa,en,a?,A\n")
    with pytest.raises(ValueError) as error:
        read(path)
    text = "those there are with --features, --prompt and --response."
    assert str(error.value).endswith(text)


def test_a_digest_tells_other_examples_and_other_parts():
    one = Mixture.from_records(examples())
    other = Mixture.from_records([*examples()[:-1], {**examples()[-1], "prompt": "x"}])
    assert digest(one, None) == digest(Mixture.from_records(examples()), None)
    found = {digest(one, None), digest(None, one), digest(other, None), digest(one)}
    assert len(found) == 4
