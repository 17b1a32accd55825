"""Mixtures of tables: each combination of values becomes a dataset."""

import numpy as np
import pytest
from helpers.tables import FORMS, FRAMES

from keras_flix.mixtures import Dataset, Mixture

ROWS = [
    {"prompts": "a", "number": 0, "task": "qa", "language": "sw", "domain": ["web"]},
    {"prompts": "b", "number": 1, "task": "parse", "language": None, "domain": []},
    {"prompts": "c", "number": 2, "task": "qa", "language": "sw", "domain": ["web"]},
    {"prompts": "d", "number": 3, "task": "qa", "language": None, "domain": []},
]
NAMES = ["task", "language", "domain"]


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form):
    mixture = Mixture(FORMS[form](ROWS), 2.0, features=NAMES)
    assert mixture.temperature == 2.0
    assert [dict(dataset.features) for dataset in mixture.datasets] == [
        {"task": "qa", "language": "sw", "domain": ["web"]},
        {"task": "parse", "language": None, "domain": []},
        {"task": "qa", "language": None, "domain": []},
    ]
    prompts = [dataset.columns["prompts"] for dataset in mixture.datasets]
    assert prompts == [["a", "c"], ["b"], ["d"]]
    numbers = [list(dataset.columns["number"]) for dataset in mixture.datasets]
    assert numbers == [[0, 2], [1], [3]]
    assert mixture.schema()["domain"].multiple
    # And back again.
    again = Mixture(mixture.inputs(), features=NAMES)
    assert again.inputs()["prompts"] == ["a", "c", "b", "d"]


def test_one_value_for_all_rows():
    mixture = Mixture(
        {"prompts": ["a", "b"], "task": "qa", "l": None}, features=["l", "task"]
    )
    (dataset,) = mixture.datasets
    assert dict(dataset.features) == {"l": None, "task": "qa"} and len(dataset) == 2
    one = Mixture({"prompts": ["a"], "task": ["qa"]}, features="task")
    assert list(one.datasets[0].features) == ["task"]


@pytest.mark.parametrize("form", ["records", *FRAMES])
def test_refusals(form):
    table = FORMS[form](ROWS)
    assert refusal(lambda: Mixture(table)) == (
        "A mixture of a table must know which columns are features. Received: the "
        "columns ['prompts', 'number', 'task', 'language', 'domain']. Name them, such "
        'as Mixture(table, features=["task", "language"]).'
    )
    assert refusal(lambda: Mixture(table, features=["langauge"])) == (
        "`features` must name columns of the table ['prompts', 'number', 'task', "
        "'language', 'domain']. Received: 'langauge'. The nearest is 'language'."
    )
    assert refusal(lambda: Mixture([table])).startswith(
        "A mixture must be of Dataset, or of a table. Received: a "
    )


def test_refusals_of_columns():
    assert refusal(lambda: Mixture({"task": ["qa"]}, features="task")) == (
        "A table must have rows, and columns besides its features. Received: 0 rows of "
        "the columns [] besides ['task']. Look at how it was selected, and at "
        "`features`."
    )
    assert "Received: 0 rows of the columns ['prompts']" in refusal(
        lambda: Mixture({"prompts": [], "task": []}, features="task")
    )
    table = {"prompts": ["a", "b"], "task": ["qa"]}
    assert refusal(lambda: Mixture(table, features="task")) == (
        "The columns of a table must be equally long. Received: 1 entries of 'task' in "
        "a table of 2 rows. Give every row an entry in every column."
    )
    table = {"prompts": ["a", "b"], "responses": ["A"], "task": "qa"}
    assert refusal(lambda: Mixture(table, features="task")) == (
        "The columns of a table must be equally long. Received: lengths {'prompts': 2, "
        "'responses': 1}. Give every row an entry in every column."
    )
    table = [{"prompts": "a", "language": {"hi": 0.6, "en": 0.4}}]
    assert refusal(lambda: Mixture(table, features="language")) == (
        "A feature of a mixture must be one value or a list of values per row. "
        "Received: language={'hi': 0.6, 'en': 0.4}. Weights of values go to the model "
        "directly, such as `model.fit(table)`."
    )
    datasets = [Dataset({"task": "qa"}, {"prompts": ["a"]})]
    assert refusal(lambda: Mixture(datasets, features=["task"])) == (
        "`features` must come with a table. Received: features=['task'] with a list of "
        "1. Leave it out: a Dataset states its own."
    )
    for data in ("prompts", 7):
        assert refusal(lambda d=data: Mixture(d)).startswith(
            f"A mixture must be of Dataset, or of a table. Received: {data!r}."
        )


def test_many_rows_and_combinations_take_linear_time():
    """Each row is looked at once, whatever the number of combinations."""
    looked = []

    class Text(str):
        def __hash__(self):
            looked.append(self)
            return super().__hash__()

    count = 2000
    values = [Text(i % 500) for i in range(count)]
    table = {"prompts": np.arange(count), "user": values}
    mixture = Mixture(table, features="user")
    assert len(mixture.datasets) == 500 and len(mixture) == count
    assert len(looked) <= 3 * count
