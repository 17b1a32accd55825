"""`hold_out` and `validation_split`; `split` and `limit` are in `test_mixture.py`."""

import numpy as np
import pytest

from keras_flix.mixtures import Dataset, Mixture


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def make_mixture(sizes, temperature=2.0):
    """Prompts say where they are from."""
    return Mixture(
        [
            Dataset(
                {"task": task, "language": language},
                {"prompts": [f"{task} {language} {i}" for i in range(size)]},
            )
            for (task, language), size in sizes.items()
        ],
        temperature,
    )


GRID = {(t, v): 3 for t in ("qa", "parse", "list") for v in ("en", "sw", "yo")}


def cells(mixture):
    return [tuple(dataset.features.values()) for dataset in mixture.datasets]


# Held out. ---------------------------------------------------------------------


def test_a_tuple_has_a_value_of_every_feature():
    mixture = make_mixture(GRID)
    by_name = mixture.split({"task": "qa", "language": "sw"})
    assert list(map(cells, mixture.split(("qa", "sw")))) == list(map(cells, by_name))
    for combination in (("qa",), "qa", ("qa", "sw", "x")):
        assert refusal(lambda c=combination: mixture.split(c)) == (
            "A combination must be a dict, or a tuple with a value of each of the "
            f"features ['task', 'language']. Received: {combination!r}. Write such as "
            "{'task': ...}."
        )


def test_cells_are_told_by_their_values_however_they_are_written():
    """Of several sources: features in another order, texts in another normal form."""
    apart, composed = "Yoru\N{LATIN SMALL LETTER A}\N{COMBINING ACUTE ACCENT}", "Yoruá"
    datasets = [
        Dataset(features, {"prompts": ["a"]})
        for task in ("qa", "parse")
        for language, again in (("en", "en"), (composed, apart))
        for features in (
            {"task": task, "language": language},
            {"language": again, "task": task},
        )
    ]
    mixture = Mixture(datasets)
    for seed in range(4):
        train, unseen = mixture.hold_out(1, seed=seed)
        pairs = [
            {(d.features["task"], d.features["language"]) for d in part.datasets}
            for part in (train, unseen)
        ]
        assert not pairs[0] & pairs[1] and len(pairs[1]) == 1
        assert len(unseen.datasets) == 2
    assert len(mixture.split({"language": apart})[1].datasets) == 4
    assert mixture.schema()["language"].values == ("en", composed)


def test_hold_out_leaves_every_value():
    mixture = make_mixture(GRID)
    pairs = [("qa", "sw"), {"task": "parse", "language": "yo"}]
    rest, held_out = mixture.hold_out(pairs)
    assert cells(held_out) == [("qa", "sw"), ("parse", "yo")]
    assert cells(rest) == [cell for cell in GRID if cell not in cells(held_out)]
    assert rest.temperature == held_out.temperature == 2.0
    for pairs in ([{"language": "sw"}], [(t, "sw") for t in ("qa", "parse", "list")]):
        assert refusal(lambda p=pairs: mixture.hold_out(p)) == (
            "What is held out must leave every value in another combination. Received: "
            f"{len(pairs)} combinations, with all examples of language='sw'. Hold "
            "fewer out; `split` holds out whole values."
        )
    assert "matches none" in refusal(lambda: mixture.hold_out([("qa", "fr")]))


def test_hold_out_takes_a_list():
    mixture = make_mixture(GRID)
    for one in ({"task": "qa", "language": "sw"}, ("qa", "sw"), ["qa", None]):
        assert refusal(lambda one=one: mixture.hold_out(one)) == (
            "`pairs` must be a list of combinations, or how many of them to draw. "
            f"Received: one combination, {one!r}. Write [{one!r}]."
        )


def test_hold_out_draws():
    mixture = make_mixture(GRID | {("qa", None): 2})
    found = set()
    for seed in range(8):
        rest, held_out = mixture.hold_out(3, seed=seed)
        assert cells(mixture.hold_out(3, seed=seed)[1]) == cells(held_out)
        assert len(held_out.datasets) == 3 and len(rest.datasets) == 7
        # As many values as before, and pairs only.
        assert rest.schema()["task"].values.__len__() == 3
        assert len(rest.schema()["language"].values) == 3
        assert ("qa", None) not in cells(held_out)
        found.add(tuple(cells(held_out)))
    assert len(found) > 3
    # All values of a grid of 3 x 3 are left by no fewer than 3 pairs.
    text = refusal(lambda: mixture.hold_out(8))
    assert "Received: pairs=8 of 10 combinations, of which " in text
    assert "Received: pairs=0" in refusal(lambda: mixture.hold_out(0))
    alone = Mixture({"prompts": ["?"] * 2, "task": ["a", "b"]}, features=["task"])
    assert "of which 0 can be held out" in refusal(lambda: alone.hold_out(1))


def test_datasets_of_one_combination_are_held_out_together():
    mixture = make_mixture(GRID)
    mixture = Mixture([*mixture.datasets, *mixture.datasets])
    rest, held_out = mixture.hold_out(2)
    assert len(held_out.datasets) == 4 and not set(cells(rest)) & set(cells(held_out))


# Validation. -------------------------------------------------------------------


def prompts(mixture):
    return mixture.inputs()["prompts"]


def test_validation_split_parts_every_combination():
    sizes = dict(zip(GRID, [40, 30, 20, 10, 5, 5, 3, 2, 1]))
    mixture = make_mixture(sizes)
    train, validation = mixture.validation_split(0.2, seed=1)
    assert sorted(prompts(train) + prompts(validation)) == sorted(prompts(mixture))
    assert cells(train) == list(sizes)
    given = dict(zip(cells(validation), validation.sizes))
    assert len(validation) == round(0.2 * 116)
    for cell, size in sizes.items():
        assert abs(given.get(cell, 0) - 0.2 * size) < 1
        assert given.get(cell, 0) < size
    # In their order, and at random.
    first = train.datasets[0].columns["prompts"]
    assert first == sorted(first, key=lambda text: int(text.split()[-1]))
    again = mixture.validation_split(0.2, seed=1)[1]
    assert prompts(again) == prompts(validation)
    assert prompts(mixture.validation_split(0.2, seed=2)[1]) != prompts(validation)
    assert train.temperature == validation.temperature == 2.0


def test_many_small_combinations_give_their_share_together():
    mixture = make_mixture({("qa", str(i)): 4 for i in range(50)})
    train, validation = mixture.validation_split(0.1)
    assert len(validation) == 20 and set(validation.sizes) == {1}
    assert set(train.sizes) == {3, 4}
    most = mixture.validation_split(np.nextafter(1, 0))[0]
    assert set(most.sizes) == {1}


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, 0.001, float("nan")])
def test_validation_split_refusals(share):
    mixture = make_mixture(GRID)
    assert refusal(lambda: mixture.validation_split(share)) == (
        "A validation split must part off an example, by a share between 0 and 1, and "
        "leave one of every dataset. "
        f"Received: {share!r} of 27 examples in 9 datasets. Choose another share, or "
        "`split` datasets off."
    )
    ones = make_mixture(dict.fromkeys(GRID, 1))
    assert "of 9 examples in 9" in refusal(lambda: ones.validation_split(0.5))
