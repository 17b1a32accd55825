"""The FLix update itself: the formula, absence, isolation of examples."""

import numpy as np
import pytest
from helpers.tracing import compiled, gradients
from keras import ops

from keras_flix.layers.low_rank_update import (
    ActiveValues,
    FeatureTables,
    combined_matrix,
    low_rank_update,
)

D_IN, D_OUT, POSITIONS = 6, 5, 4
SCALES = {"task": 1.0, "language": np.float32([0.5, 2.0]), "shared": 3.0}
VALUES = {"task": 3, "language": 2, "shared": 1}
RANKS = {"task": 3, "language": 2, "shared": 1}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_tables(**arrays):
    """Tables of all axes; `task_a=...` and so on take the place of random ones."""
    tables = {}
    for seed, (name, count) in enumerate(VALUES.items()):
        shapes = {"a": (count, D_IN, RANKS[name]), "b": (count, RANKS[name], D_OUT)}
        tables[name] = [
            arrays.get(f"{name}_{part}", random(*shape, seed=2 * seed + (part == "b")))
            for part, shape in shapes.items()
        ]
    return tables


def update(x, ids, arrays=None, names=("task", "language", "shared")):
    tables = [
        FeatureTables(
            name,
            *map(ops.convert_to_tensor, (arrays or make_tables())[name]),
            scale=SCALES[name],
            shared=name == "shared",
        )
        for name in names
    ]
    active = {
        name: ActiveValues.from_ids(
            ops.convert_to_tensor(value),
            VALUES[name],
            scale=1.0 if name == "shared" else SCALES[name],
        )
        for name, value in ids.items()
    }
    return low_rank_update(ops.convert_to_tensor(x), tables, active)


def numpy_update(x, ids, arrays=None, names=("task", "language", "shared")):
    """The formula of the paper, example by example, in float64."""
    arrays = arrays or make_tables()
    rows = []
    for example in range(len(x)):
        kernel = np.zeros((x.shape[-1], D_OUT))
        for name in names:
            entry = ids[name][example] if name in ids else 0
            for value in np.atleast_1d(entry):
                if value != -1:
                    a, b = (table[value].astype("float64") for table in arrays[name])
                    scale = np.broadcast_to(SCALES[name], VALUES[name])[value]
                    kernel += scale * a @ b
        rows.append(x[example].astype("float64") @ kernel)
    return np.stack(rows)


IDS = {
    "task": np.array([0, 2, -1, 1, -1], "int32"),
    "language": np.array([1, 1, 0, -1, -1], "int32"),
}
SEVERAL = {
    "task": np.array([[0, 2], [1, -1], [-1, -1], [-1, 0], [2, 1]], "int32"),
    "language": IDS["language"],
}
X = random(5, POSITIONS, D_IN, seed=9)


@pytest.mark.parametrize("ids", [IDS, SEVERAL], ids=["one value", "several values"])
@pytest.mark.parametrize(
    "names",
    [("task",), ("language",), ("task", "language"), ("task", "language", "shared")],
)
def test_formula(ids, names):
    ids = {name: value for name, value in ids.items() if name in names}
    np.testing.assert_allclose(
        ops.convert_to_numpy(update(X, ids, names=names)),
        numpy_update(X, ids, names=names),
        rtol=2e-5,
        atol=2e-5,
    )


def test_several_values_of_a_layer_with_one_input():
    # An entry of A is one number, however many there are of it.
    arrays = {"task": [random(3, 1, 1), random(3, 1, D_OUT, seed=1)]}
    args = X[..., :1], {"task": SEVERAL["task"]}, arrays, ("task",)
    np.testing.assert_allclose(
        ops.convert_to_numpy(update(*args)), numpy_update(*args), rtol=2e-5, atol=2e-5
    )


def test_a_shared_axis_alone_is_lora():
    np.testing.assert_allclose(
        ops.convert_to_numpy(update(X, {}, names=("shared",))),
        numpy_update(X, {}, names=("shared",)),
        rtol=2e-5,
        atol=2e-5,
    )


def test_a_shared_axis_may_be_dropped_from_examples():
    ids = {**IDS, "shared": np.array([0, -1, 0, -1, -1], "int32")}
    np.testing.assert_allclose(
        ops.convert_to_numpy(update(X, ids)),
        numpy_update(X, ids),
        rtol=2e-5,
        atol=2e-5,
    )


@pytest.mark.parametrize(
    "names", [("task", "language"), ("task", "language", "shared")]
)
def test_absent_contributes_exactly_zero(names):
    nothing = {name: np.full((5,), -1, "int32") for name in names}
    found = ops.convert_to_numpy(update(X, nothing, names=names))
    np.testing.assert_array_equal(found, np.zeros((5, POSITIONS, D_OUT)))


@pytest.mark.parametrize("batch", [1, 2])
def test_leading_axes_are_several_batches(batch):
    """As of experts. TensorFlow's own products are wrong where the batch is one."""
    x = random(3, batch, POSITIONS, D_IN)
    ids = {name: np.arange(batch, dtype="int32") for name in ("task", "language")}
    found = ops.convert_to_numpy(update(x, ids))
    for one, own in zip(found, x):
        np.testing.assert_allclose(one, numpy_update(own, ids), atol=1e-5)


def test_an_absent_axis_changes_no_bit():
    """Both axes in one product give the same as the other axis alone would."""
    ids = {"task": IDS["task"], "language": np.full((5,), -1, "int32")}
    both = update(X, ids, names=("task", "language"))
    one = update(X, {"task": IDS["task"]}, names=("task",))
    np.testing.assert_allclose(
        ops.convert_to_numpy(both), ops.convert_to_numpy(one), rtol=1e-6, atol=1e-6
    )
    padded = {"task": np.stack([IDS["task"], np.full(5, -1, "int32")], 1)}
    np.testing.assert_allclose(
        ops.convert_to_numpy(update(X, padded, names=("task",))),
        ops.convert_to_numpy(one),
        rtol=1e-6,
        atol=1e-6,
    )


def test_each_example_is_as_if_alone():
    mixed = ops.convert_to_numpy(update(X, SEVERAL))
    for i in range(5):
        alone = update(X[i : i + 1], {k: v[i : i + 1] for k, v in SEVERAL.items()})
        np.testing.assert_allclose(
            mixed[i], ops.convert_to_numpy(alone)[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("ids", [IDS, SEVERAL], ids=["one value", "several values"])
def test_combined_matrix(ids):
    tables = [
        FeatureTables(
            name,
            *map(ops.convert_to_tensor, arrays),
            scale=SCALES[name],
            shared=name == "shared",
        )
        for name, arrays in make_tables().items()
    ]
    for i in range(5):
        one = {name: value[i : i + 1] for name, value in ids.items()}
        matrix = ops.convert_to_numpy(combined_matrix(tables, one, D_IN))
        assert matrix.dtype == np.float32
        expected = numpy_update(np.eye(D_IN)[None], one)[0]
        np.testing.assert_allclose(matrix, expected, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def compiled_update():
    return compiled(
        lambda x, task, language: update(x, {"task": task, "language": language})
    )


@pytest.mark.parametrize("bad", [3, 7, -2, 2**31 - 1, -(2**31)])
def test_ids_out_of_range_in_compiled_code_give_nan_to_their_example_only(
    compiled_update, bad
):
    task = IDS["task"].copy()
    good = compiled_update(X, task, IDS["language"])
    task[1] = bad
    found = compiled_update(X, task, IDS["language"])
    assert np.isnan(found[1]).all()
    others = [0, 2, 3, 4]
    np.testing.assert_array_equal(found[others], good[others])


def test_one_of_several_ids_out_of_range_gives_nan(compiled_update):
    ids = {**SEVERAL, "task": SEVERAL["task"].copy()}
    ids["task"][1, 1] = 3
    found = compiled_update(X, ids["task"], ids["language"])
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2, 3, 4]]).all()


def test_a_dropped_shared_axis_with_an_id_out_of_range_gives_nan():
    ids = {"shared": np.array([0, -1, 1, 0, 0], "int32")}
    found = ops.convert_to_numpy(update(X, ids, names=("shared",)))
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[[0, 1, 3, 4]]).all()


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("ids", [IDS, SEVERAL], ids=["one value", "several values"])
def test_nan_in_one_values_tables_stays_with_its_examples(row, ids):
    """Also in row 0, which is what absent ids look up."""
    clean = make_tables()
    for part in range(2):
        arrays = make_tables()
        arrays["task"][part] = arrays["task"][part].copy()
        arrays["task"][part][row] = np.nan
        uses = (ids["task"].reshape(5, -1) == row).any(axis=1)
        assert uses.any() and not uses.all()
        found = ops.convert_to_numpy(update(X, ids, arrays))
        assert np.isnan(found[uses]).any(axis=(1, 2)).all()
        np.testing.assert_array_equal(
            found[~uses], ops.convert_to_numpy(update(X, ids, clean))[~uses]
        )


@pytest.mark.parametrize("row", [0, 2])
def test_nan_in_one_values_tables_reaches_no_gradient_of_others(row):
    clean, arrays = make_tables(), make_tables()
    arrays["task"][0] = arrays["task"][0].copy()
    arrays["task"][0][row] = np.nan

    def loss(x, task_a, task_b, language_a, language_b):
        tables = {
            **clean,
            "task": [task_a, task_b],
            "language": [language_a, language_b],
        }
        return ops.sum(ops.mean(ops.square(update(x, IDS, tables)), axis=(1, 2)))

    found = gradients(loss, X, *arrays["task"], *arrays["language"])
    expected = gradients(loss, X, *clean["task"], *clean["language"])
    # By example, by task, by task, by language, by language.
    examples = IDS["task"] != row
    tasks = np.arange(3) != row
    language = np.array([v not in IDS["language"][~examples] for v in range(2)])
    for f, e, others in zip(
        found, expected, [examples, tasks, tasks, language, language]
    ):
        assert others.any()
        np.testing.assert_array_equal(f[others], e[others])
        assert np.isfinite(f[others]).all()


def test_values_that_no_example_has_get_exactly_no_gradient():
    clean = make_tables()

    def loss(task_a, task_b):
        ids = {"task": np.array([2, -1, -1, 2, 2], "int32")}
        tables = {**clean, "task": [task_a, task_b]}
        return ops.sum(ops.square(update(X, ids, tables, names=("task",))))

    for gradient in gradients(loss, *clean["task"]):
        np.testing.assert_array_equal(gradient[:2], 0.0)
        assert (gradient[2] != 0).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_in_the_activations_dtype(dtype):
    x = ops.cast(X, dtype)
    found = update(x, IDS)
    assert found.dtype == ops.zeros((), dtype).dtype
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(found, "float32")),
        numpy_update(X, IDS),
        rtol=0.1,
        atol=0.3,
    )
