"""Gradients are those of the formula, and half precision loses none of them."""

import collections
import math

import keras
import numpy as np
import pytest
from faults import random_cases
from faults.random_cases import (
    SEEDS,
    Case,
    Plan,
    Structure,
    draw_batch,
    draw_plan,
    for_random,
    structures,
)
from helpers.gemma import make_backbone, randomize, to_numpy

import keras_flix
from keras_flix import Feature

BACKEND = keras.config.backend()
# Structures, each with three directions.
STRUCTURES = {"jax": 4, "tensorflow": 6, "torch": 12}[BACKEND]
# How large a rounding error of a gradient may be, in those that are expected.
ERRORS = 1.0


def half_of_squares(case, plan, x, truth, tables):
    """The loss whose gradients `differentiated` gives, in float64; and its bound.

    The latter is that of absolute values throughout: it grows with all that is added
    up on the way.
    """
    outputs, errors = random_cases.expected(case, plan, x, truth, tables)
    sizes = errors / case.roundoff(truth)
    return np.sum(outputs**2) / 2, np.sum(sizes**2) / 2


def absolute(tables):
    return {name: [np.abs(t) for t in pair] for name, pair in tables.items()}


def moved(case, x, direction, step):
    """Activations and tables, moved along a direction."""
    dx, tables = direction
    return x + step * dx, {
        name: [t + step * d for t, d in zip(pair, tables[name])]
        for name, pair in case.tables.items()
    }


def slope(case, plan, x, truth, direction):
    """The loss' central difference along a direction, in float64; and its bound's.

    Along activations alone, or all `A`, or all `B`, the loss is a polynomial of
    degree 2: its central difference is its derivative, at any step.
    """
    ends = [moved(case, x, direction, step) for step in (1.0, -1.0)]
    (up, _), (down, _) = (half_of_squares(case, plan, *end_of(e, truth)) for e in ends)
    dx, tables = direction
    size = (np.abs(dx), absolute(tables))
    plain = Case.__new__(Case)
    plain.__dict__.update({**case.__dict__, "tables": absolute(case.tables)})
    ends = [moved(plain, np.abs(x), size, step) for step in (1.0, 0.0)]
    (_, top), (_, bottom) = (
        half_of_squares(case, plan, *end_of(e, truth)) for e in ends
    )
    return (up - down) / 2, top - bottom


def end_of(end, truth):
    x, tables = end
    return x, truth, tables


def directions(rng, case, x):
    """One each along the activations, all `A` and all `B`."""
    none = {n: [np.zeros_like(t) for t in pair] for n, pair in case.tables.items()}
    yield "x", (rng.choice([-1.0, 1.0], x.shape), none)
    for part, name in enumerate("ab"):
        tables = {n: list(pair) for n, pair in none.items()}
        for feature in case.layer.features:
            table = case.tables[feature.name][part]
            along = rng.choice([-1.0, 1.0], table.shape)
            # What is beyond a value's rank stays as it is.
            beyond = np.arange(max(feature.ranks)) >= np.array(feature.ranks)[:, None]
            beyond = np.expand_dims(beyond, 1 if part == 0 else 2)
            tables[feature.name][part] = np.where(beyond, 0.0, along)
        yield name, (np.zeros_like(x), tables)


@pytest.mark.short("jax", "tensorflow", "torch")
def test_gradients_of_random_layers_are_differences_of_the_formula(load, record_fault):
    count, worst = collections.Counter(), 0.0

    @for_random(STRUCTURES * load, structures(), SEEDS)
    def check(structure, seed):
        nonlocal worst
        with random_cases.precision(structure.policy):
            case = Case(structure, seed)
            plan = draw_plan(case.rng, structure, batches=(1, 2, 5, 7))
            run = random_cases.differentiated(case, plan)
            x, truth, entries = draw_batch(case.rng, case, plan)
            _, dx, tables = run(x, entries)
            for name, direction in directions(case.rng, case, x):
                along_x, along = direction
                found = np.sum(dx * along_x) + sum(
                    np.sum(gradient * d)
                    for feature in case.layer.features.names
                    for gradient, d in zip(tables[feature], along[feature])
                )
                expected, size = slope(case, plan, x, truth, direction)
                part = abs(found - expected) / (case.roundoff(truth) * size + 1e-30)
                worst = max(worst, float(part))
                assert part <= ERRORS, name
                count["differences"] += 1
            for feature in case.layer.features:
                for axis, gradient in zip((2, 1), tables[feature.name]):
                    for value, rank in enumerate(feature.ranks):
                        beyond = np.moveaxis(gradient[value], axis - 1, 0)[rank:]
                        np.testing.assert_array_equal(beyond, 0.0)
            count["structures"] += 1

    record_fault(
        "numerics: gradients of random layers",
        largest_error_of_tolerance=round(worst, 2),
        **count,
    )


@pytest.mark.short("jax", "tensorflow", "torch")
def test_every_gradient_is_a_central_difference(record_fault):
    """Number by number, of the layer's own outputs in float64."""
    policy = "float32" if BACKEND == "torch" else "float64"  # See `POLICIES`.
    structure = Structure(
        equation="btd,ndh->btnh",
        sizes=(("n", 2), ("d", 3), ("h", 2)),
        bias_axes="nh",
        features=(
            Feature("task", ["qa", "parse", "list"], rank={"qa": 1, "*": 2}),
            Feature("language", ["en", "sw", "yo"], rank=2, multiple=True, alpha=3.0),
            Feature("shared", rank=1, always=True),
        ),
        alpha=None,
        policy=policy,
        ellipsis=0,
    )
    forms = {"task": ("ids", "int32", 1), "language": ("packed", "int32", 2)}
    plan = Plan(5, 1, False, structure.input_shape(5, [2]), forms)
    with random_cases.precision(policy):
        case = Case(structure, seed=0)
        outputs_of = random_cases.compiled(case, plan)
        # Several values, one, and none.
        lengths = None
        while lengths != [{0, 1, 2}, {0, 1}]:
            x, truth, entries = draw_batch(case.rng, case, plan)
            lengths = [{len(row) for row in truth[n]} for n in ("language", "task")]
        _, dx, tables = random_cases.differentiated(case, plan)(x, entries)

        def loss():
            return np.sum(outputs_of(x, entries) ** 2) / 2

        def difference(array, index, assign):
            kept, losses = array[index], []
            for step in (0.5, -0.5):
                array[index] = kept + np.float32(step)
                assign()
                losses.append((loss(), float(array[index])))
            array[index] = kept
            assign()
            (up, high), (down, low) = losses
            return (up - down) / (high - low)

        found, expected = [], []
        for index in np.ndindex(x.shape):
            found.append(dx[index])
            expected.append(difference(x, index, lambda: None))
        for feature in structure.features:
            for part, table in enumerate(case.tables[feature.name]):
                for index in np.ndindex(table.shape):
                    if index[2 - part] >= feature.ranks[index[0]]:
                        continue
                    found.append(tables[feature.name][part][index])
                    pair = case.tables[feature.name]
                    expected.append(
                        difference(
                            table,
                            index,
                            lambda f=feature, p=pair: case.assign(f.name, *p),
                        )
                    )
    found, expected = np.array(found), np.array(expected)
    errors = np.abs(found - expected) / np.abs(expected).max()
    # Tables and their gradients are float32, and so are the places of the steps.
    of_x, of_tables = (float(e.max()) for e in np.split(errors, [x.size]))
    assert max(of_x, of_tables) < (2e-7 if policy == "float64" else 2e-5)
    assert np.count_nonzero(expected) > 0.5 * expected.size
    record_fault(
        "numerics: gradients number by number",
        gradients=expected.size,
        policy=policy,
        error_of_inputs=f"{of_x:.0e}",
        error_of_tables=f"{of_tables:.0e}",
    )


# Training. -------------------------------------------------------------------

SLOW = pytest.mark.slow
HALF = ["mixed_float16", "bfloat16"]
if BACKEND == "torch":  # It compiles nothing, so all of them cost little.
    HALF += ["mixed_bfloat16", "float16"]
BATCH = 8
RATE = 1e-4
FEATURES = [
    Feature("task", ["qa", "parse", "list"], rank={"qa": 1, "*": 2}),
    Feature("language", ["en", "sw", "yo"], rank=2, multiple=True),
    Feature("shared", rank=1, always=True, alpha=2.0),
    Feature("domain", ["web"], rank=1),
]
IDS = {
    "task": np.array([0, 0, 1, -1, 0, 1, 0, -1], "int32"),
    "language": np.array([[0, 1], [1, -1], [-1, -1], [0, 2]] * 2, "int32"),
    "domain": np.array([0, -1] * 4, "int32"),
}


def dense(policy):
    """A model of two layers, one batch for it and the target."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, activation="tanh", name="hidden", dtype=policy)(x)
    outputs = keras.layers.Dense(4, name="head", dtype=policy)(hidden)
    model = keras.Model({"x": x}, outputs)
    rng = np.random.default_rng(0)
    for variable in model.weights:  # The same numbers in every precision.
        variable.assign(np.round(6 * rng.normal(size=variable.shape)) / 16)
    inputs = {"x": rng.normal(size=(BATCH, 8)).astype("float32"), **IDS}
    return model, inputs, rng.normal(size=(BATCH, 4)).astype("float32")


def gemma(policy):
    """A Gemma of one block, one batch for it and the target."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = {
        "token_ids": rng.integers(4, 40, (BATCH, 5)).astype("int32"),
        "padding_mask": np.ones((BATCH, 5), "int32"),
        **IDS,
    }
    target = rng.normal(size=(BATCH, 5, 16)).astype("float32")
    return make_backbone(num_layers=1, dtype=policy), inputs, target


def adapted(make, policy, optimizer):
    """An adapted and compiled model with random tables, its batch and target."""
    model, inputs, target = make(policy)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear", seed=0)
    randomize(model)
    model.compile(optimizer, "mse")
    return model, inputs, target


def fit(model, inputs, target, steps=1):
    """Trains on the one batch."""
    model.fit(inputs, target, batch_size=BATCH, epochs=steps, shuffle=False, verbose=0)


def values(variables):
    return [to_numpy(v).copy() for v in variables]


@pytest.fixture(scope="module")
def plain_moves():
    """How far tables move in float32."""
    model, inputs, target = adapted(dense, "float32", keras.optimizers.SGD(RATE))
    before = values(model.trainable_variables)
    fit(model, inputs, target, steps=30)
    return [a - b for a, b in zip(values(model.trainable_variables), before)]


@pytest.mark.parametrize("policy", HALF)
def test_steps_too_small_for_half_precision_add_up(policy, plain_moves, record_fault):
    model, inputs, target = adapted(dense, policy, keras.optimizers.SGD(RATE))
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    stored = keras.DTypePolicy(policy).variable_dtype
    frozen = [v for v in model.non_trainable_variables if "float" in v.dtype]
    assert {v.dtype for v in frozen} == {stored}
    base = [to_numpy(keras.ops.cast(v, "float32")) for v in frozen]
    before = values(model.trainable_variables)
    fit(model, inputs, target, steps=30)
    moves = [a - b for a, b in zip(values(model.trainable_variables), before)]
    for old, variable in zip(base, frozen):
        np.testing.assert_array_equal(
            to_numpy(keras.ops.cast(variable, "float32")), old
        )
    # In half precision, most steps would round to none at all.
    half = keras.DTypePolicy(policy).compute_dtype
    lost = [
        to_numpy(keras.ops.cast(keras.ops.cast(b + m / 30, half), "float32"))
        == to_numpy(keras.ops.cast(keras.ops.cast(b, half), "float32"))
        for b, m in zip(before, moves)
    ]
    lost = np.mean(np.concatenate([x.ravel() for x in lost]))
    assert lost > 0.8
    one, other = (
        np.concatenate([m.ravel() for m in ms]) for ms in (moves, plain_moves)
    )
    error = np.linalg.norm(one - other) / np.linalg.norm(other)
    assert error < 0.02
    record_fault(
        f"numerics: small steps in {policy}",
        steps=30,
        lost_in_half_precision=round(float(lost), 2),
        error_of_the_sum=round(float(error), 4),
    )


# What makes gradients overflow, but no activation.
TOO_FAR = {"mixed_float16": 1e10, "float16": 1e10, "mixed_bfloat16": 1e36}


@pytest.mark.parametrize(
    ("make", "policy"),
    [
        (dense, "mixed_float16"),
        pytest.param(dense, "float16", marks=SLOW),
        pytest.param(dense, "mixed_bfloat16", marks=SLOW),
        pytest.param(gemma, "mixed_float16", marks=SLOW),
    ],
)
def test_an_overflow_is_skipped_whole(make, policy, load, record_fault):
    """Tables and slots stay to the bit; then training goes on as if nothing was."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2))
    model, inputs, target = adapted(make, policy, optimizer)
    optimizer.build(model.trainable_variables)
    everything = [*model.trainable_variables, *optimizer.variables]
    start = values(everything)
    fit(model, inputs, target)
    slots = optimizer.inner_optimizer.variables[2:]
    assert len(slots) >= 2 * len(model.trainable_variables)
    assert {v.dtype for v in slots} == {"float32"}
    steps, overflows = 1, 0
    rng = np.random.default_rng(0)
    for _ in range(4 * load):
        scale = float(optimizer.dynamic_scale)
        tables = values(model.trainable_variables)
        slots = values(optimizer.inner_optimizer.variables)
        far = target.copy()
        far[rng.integers(BATCH)] = TOO_FAR[policy]
        fit(model, inputs, far)
        assert float(optimizer.dynamic_scale) == scale / 2
        overflows += 1
        for before, after in (
            (tables, values(model.trainable_variables)),
            (slots, values(optimizer.inner_optimizer.variables)),
        ):
            for one, other in zip(before, after, strict=True):
                np.testing.assert_array_equal(one, other)
        fit(model, inputs, target)
        steps += 1
        after = values(model.trainable_variables)
        assert all(np.isfinite(table).all() for table in after)
        assert all((a != b).any() for a, b in zip(after, tables))
        optimizer.dynamic_scale.assign(scale)
        assert int(optimizer.inner_optimizer.iterations) == steps
    for variable, value in zip(everything, start):
        variable.assign(value)
    fit(model, inputs, target, steps=steps)
    for one, two in zip(after, values(model.trainable_variables)):
        # A lower scale may round smallest numbers.
        np.testing.assert_allclose(one, two, atol=2e-3)
    record_fault(
        f"numerics: overflows of {make.__name__} in {policy}",
        steps=steps,
        overflows=overflows,
    )


def test_a_scale_too_high_comes_down_before_anything_moves(record_fault):
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1e-2), initial_scale=2.0**40, dynamic_growth_steps=3
    )
    model, inputs, target = adapted(dense, "mixed_float16", optimizer)
    before, scales = values(model.trainable_variables), [2.0**40]
    while int(optimizer.inner_optimizer.iterations if len(scales) > 1 else 0) == 0:
        for one, other in zip(before, values(model.trainable_variables)):
            np.testing.assert_array_equal(one, other)
        fit(model, inputs, target)
        scales.append(float(optimizer.dynamic_scale))
        assert len(scales) < 40
    skipped = scales[:-1]
    assert skipped == [2.0 ** (40 - i) for i in range(len(skipped))]
    assert scales[-1] == skipped[-1] < 2.0**30
    after = values(model.trainable_variables)
    assert any((a != b).any() for a, b in zip(after, before))
    fit(model, inputs, target, steps=2)
    # Three steps without an overflow, and it is raised again.
    assert float(optimizer.dynamic_scale) == 2 * scales[-1]
    record_fault("numerics: a loss scale of 2**40", skipped=len(skipped) - 1)


CLIPS = {
    "clipvalue": lambda gs, c: [np.clip(g, -c, c) for g in gs],
    "clipnorm": lambda gs, c: [g * min(1.0, c / np.linalg.norm(g)) for g in gs],
    "global_clipnorm": lambda gs, c: [
        g * min(1.0, c / math.sqrt(sum(np.sum(g**2) for g in gs))) for g in gs
    ],
}


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=SLOW)]
)
def test_clipping_is_that_of_the_unscaled_gradients(policy, record_fault):
    def step(**clip):
        """How one step of `fit` moves the tables, down the gradient."""
        optimizer = keras.optimizers.SGD(1.0, **clip)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model, inputs, target = adapted(dense, policy, optimizer)
        before = values(model.trainable_variables)
        fit(model, inputs, target)
        assert {v.dtype for v in model.trainable_variables} == {"float32"}
        return [b - a for b, a in zip(before, values(model.trainable_variables))]

    gradients = step()
    for option, clipped in CLIPS.items():
        limit = 0.5 * float(np.median([np.abs(g).max() for g in gradients]))
        expected = clipped(gradients, limit)
        assert any(not np.allclose(e, g) for e, g in zip(expected, gradients))
        for found, one in zip(step(**{option: limit}), expected):
            np.testing.assert_allclose(found, one, atol=1e-6, rtol=1e-4)
    record_fault(f"numerics: clipping in {policy}", options=len(CLIPS))
