"""No id, however wrong, and no number in a table reaches an example it is not of."""

import collections
import math

import keras
import numpy as np
import pytest
from faults import random_cases
from faults.random_cases import (
    COMPILERS,
    SEEDS,
    Case,
    Plan,
    Structure,
    draw_batch,
    draw_plan,
    for_random,
    structures,
)
from helpers.tracing import compiled

from keras_flix import Feature
from keras_flix.features.tensor_ids import narrow_ids

BACKEND = keras.config.backend()
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
if BACKEND == "torch":
    INTEGERS.remove("uint64")  # Keras has none there.
# Structures, and batches for each of their plans: a plan is compiled once.
STRUCTURES, BATCHES = {"jax": (4, 11), "tensorflow": (6, 8), "torch": (16, 4)}[BACKEND]
PLANS = 2
# Under load, how many times as many batches, before there are more structures.
DEPTH = {"jax": 2, "tensorflow": 8, "torch": 2}[BACKEND]
# `torch.compile` takes seconds for each.
OTHERWISE_COMPILED = {"xla": 6, "dynamo": 2}
# How large a rounding error may be, in those that `Case.reference` expects.
ERRORS = 1.0


def test_adapted_equals_the_formula(load, record_fault):
    """Random schemas, ranks, equations, dtypes, batches, absences, and entries.

    A case is one batch of a structure. Its outputs are compared with those of plain
    kernels in float64, example by example.
    """
    batches = BATCHES * min(load, DEPTH)
    seen, count = collections.defaultdict(set), collections.Counter()
    worst = 0.0

    def close(found, expected, errors):
        nonlocal worst
        assert found.shape == expected.shape
        parts = np.abs(found - expected) / (errors + 1e-30)
        worst = max(worst, float(parts.max(initial=0.0)))
        return bool((parts <= ERRORS).all())

    def check_plan(case, plan, index):
        rng = case.rng
        run = random_cases.compiled(case, plan)
        # JAX compiles every operation of a shape that it has not seen.
        is_eager = BACKEND != "jax" or (index == 0 and rng.random() < 0.2)
        for number in range(batches):
            x, truth, entries = draw_batch(rng, case, plan)
            expected, errors = random_cases.expected(case, plan, x, truth)
            assert close(run(x, entries), expected, errors)
            count["cases"] += 1
            if is_eager and number % 4 == 0:
                own = entries
                if not plan.routed:
                    own = random_cases.written(rng, case, truth, entries)
                found = random_cases.eager(case, plan, x, own)
                assert close(found, expected, errors)
                count["eager"] += 1
            wrong = swapped(rng, case, truth)
            if wrong is not None:
                other, _ = random_cases.expected(case, plan, x, wrong)
                differs = (np.abs(other - expected) > 2 * ERRORS * errors).any()
                exact = case.structure.compute_dtype in ("float32", "float64")
                kind = "swaps" if exact else "swaps_in_half_precision"
                count[kind] += 1
                count[f"{kind}_noticed"] += int(differs)
        seen["shapes"].add((plan.shape, plan.batch))
        seen["forms"] |= {form[:2] for form in plan.forms.values()}

    @for_random(STRUCTURES * math.ceil(load / DEPTH), structures(), SEEDS)
    def check(structure, seed):
        with random_cases.precision(structure.policy):
            case = Case(structure, seed)
            for index in range(PLANS):
                plan = draw_plan(case.rng, structure)
                check_plan(case, plan, index)
            seen["structures"].add(str(structure))
            seen["equations"].add(structure.equation)
            seen["policies"].add(structure.policy)

    # Else a wrong table would pass for rounding.
    assert count["swaps_noticed"] >= 0.95 * count["swaps"]
    assert count["swaps_in_half_precision_noticed"] > 0
    record_fault(
        "ids: adapted = formula in float64",
        **count,
        largest_error_of_tolerance=round(worst, 2),
        **{name: len(members) for name, members in seen.items()},
    )


def swapped(rng, case, truth):
    """What examples have, with another value in one place; `None` if none has any."""
    places = [
        (name, example, slot)
        for name, rows in truth.items()
        if len(case.layer.features[name].values) > 1
        for example, row in enumerate(rows)
        for slot in range(len(row))
    ]
    if not places:
        return None
    name, example, slot = places[rng.integers(len(places))]
    value, weight = truth[name][example][slot]
    other = int(rng.integers(len(case.layer.features[name].values) - 1))
    rows = [list(row) for row in truth[name]]
    rows[example][slot] = (other + (other >= value), weight)
    return {**truth, name: rows}


def edges(dtype, num_values, wide=BACKEND != "jax"):
    """What an integer dtype holds at its own ends and at those of a vocabulary."""
    info = np.iinfo(dtype)
    if not wide and dtype.endswith("64"):
        # JAX itself narrows those before anything else sees them.
        info = np.iinfo(dtype.replace("64", "32"))
    near = [-3, -2, -1, 0, 1, num_values - 1, num_values, num_values + 1]
    far = [127, 128, 255, 256, 2**15, 2**16, 2**31, 2**32, 2**32 + 1, -(2**32)]
    ends = [info.min, info.min + 1, info.max - 1, info.max]
    return [i for i in sorted({*near, *far, *ends}) if info.min <= i <= info.max]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_narrowed_ids_are_the_same_value_or_out_of_range(dtype, record_fault):
    """257 values make an id of 1 out of what an int8 cannot hold."""
    tried = 0
    for num_values in (3, 128, 255, 256, 257, 300):
        ids = edges(dtype, num_values)
        lowest = 0 if dtype.startswith("u") else -1
        expected = [i if lowest <= i < num_values else num_values for i in ids]
        narrow = compiled(lambda ids, count=num_values: narrow_ids(ids, count))
        found = narrow(np.array(ids, dtype))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
        tried += len(ids)
    record_fault(f"ids: narrowed from {dtype}", inputs=tried)


def bad_entries(rng, case, plan, entries, unbounded):
    """Entries with one number of one example that is no id or weight; that example."""
    for feature in case.layer.features.routed:
        form, dtype, _ = plan.forms[feature.name]
        count = len(feature.values)
        if form == "matrix":
            bad = [np.nan, np.inf, -np.inf, 1e9, -1000.5]
        else:
            dtype = "int32" if form == "packed" else dtype
            lowest = 0 if dtype.startswith("u") else -1
            ids = edges(dtype, count, unbounded)
            bad = [i for i in ids if not lowest <= i < count]
        for number in bad:
            entry = entries[feature.name].copy()
            example = int(rng.integers(plan.batch))
            at = [example, *(int(rng.integers(n)) for n in entry.shape[1:])]
            if form == "packed":
                at[-1] = 0
            entry[tuple(at)] = number
            yield {**entries, feature.name: entry}, example


def check_compiled(run, case, plan, x, entries):
    """Raises unless wrong numbers make their own example NaN, and nothing else.

    Returns:
        How many were tried.
    """
    tried = 0
    good = run(x, entries)
    wide = BACKEND != "jax" or case.structure.policy == "float64"
    for own, example in bad_entries(case.rng, case, plan, entries, wide):
        found = run(x, own)
        rows = np.arange(len(good)) // plan.repeats == example
        assert np.isnan(found[rows]).all()
        np.testing.assert_array_equal(found[~rows], good[~rows])
        tried += 1
    return tried


def test_ids_out_of_range_give_an_error_or_nan_in_their_example(load, record_fault):
    count = collections.Counter()

    def check_eager(case, plan):
        x, _, entries = draw_batch(case.rng, case, plan)
        x = random_cases.as_input(np.repeat(x[:1], plan.batch, axis=0), case.structure)
        for own, _ in bad_entries(case.rng, case, plan, entries, True):
            with pytest.raises(ValueError, match="Received: "):
                case.layer(x, features=own)
            count["refused"] += 1

    @for_random(STRUCTURES // 2 * math.ceil(load / 4), structures(), SEEDS)
    def check(structure, seed):
        with random_cases.precision(structure.policy):
            case = Case(structure, seed)
            plan = draw_plan(case.rng, structure, batches=(1, 2, 5, 7))
            count["structures"] += 1
            x, _, entries = draw_batch(case.rng, case, plan)
            run = random_cases.compiled(case, plan)
            count["nan"] += check_compiled(run, case, plan, x, entries)
            check_eager(case, plan)

    assert count["nan"] and count["refused"]
    record_fault(
        "ids: out of range",
        inputs=count["nan"] + count["refused"],
        structures=count["structures"],
        refused=count["refused"],
        nan_in_their_example=count["nan"],
    )


NONE = pytest.param(None, marks=pytest.mark.skip(reason="JAX has no compiler but XLA"))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS[BACKEND][1:] or [NONE])
def test_other_compilers_keep_to_the_formula_and_the_range(
    compiler, load, record_fault
):
    """`jit_compile=True` of TensorFlow, and `torch.compile`."""
    count = collections.Counter()

    @for_random(OTHERWISE_COMPILED[compiler] * load, structures(), SEEDS)
    def check(structure, seed):
        with random_cases.precision(structure.policy):
            case = Case(structure, seed)
            plan = draw_plan(case.rng, structure, batches=(1, 2, 5, 7))
            x, truth, entries = draw_batch(case.rng, case, plan)
            run = random_cases.compiled(case, plan, compiler)
            expected, errors = random_cases.expected(case, plan, x, truth)
            assert (np.abs(run(x, entries) - expected) <= ERRORS * errors + 1e-30).all()
            count["nan_in_their_example"] += check_compiled(run, case, plan, x, entries)
            count["structures"] += 1

    assert count["nan_in_their_example"]
    record_fault(f"ids: compiled by {compiler}", **count)


def test_weights_out_of_range_give_nan_in_a_compiled_layer(record_fault):
    """Of "not at most 1000", graphs of TensorFlow make "above 1000": false for NaN."""
    features = (Feature("language", ["en", "sw", "yo"], rank=1),)
    structure = Structure(
        "bd,df->bf", (("d", 5), ("f", 1)), None, features, None, "float32", 0
    )
    case = Case(structure, seed=0)
    plan = Plan(2, 1, False, (2, 5), {"language": ("matrix", "float32", 3)})
    run = random_cases.compiled(case, plan)
    x, _, entries = draw_batch(case.rng, case, plan)
    good = run(x, entries)
    bad = [np.nan, np.inf, -np.inf, 1000.5, -1e9]
    for weight in bad:
        matrix = entries["language"].copy()
        matrix[0, 1] = weight
        found = run(x, {"language": matrix})
        assert np.isnan(found[0]).all()
        np.testing.assert_array_equal(found[1], good[1])
    record_fault("ids: weights that are none", inputs=len(bad))


POISONS = [np.nan, np.inf, -np.inf, 3e38]


def spreads(case, plan, positions=None):
    """How many poisons in one value's table were tried; raises if one spreads.

    Args:
        case: The layer.
        plan: That of a batch.
        positions: How many random places of the tables to try; `None` for all.
    """
    rng, tried = case.rng, 0
    run = random_cases.differentiated(case, plan)
    x, truth, entries = draw_batch(rng, case, plan)
    clean = run(x, entries)
    places = [
        (feature.name, part, index)
        for feature in case.layer.features.routed
        for part, table in enumerate(case.tables[feature.name])
        for index in np.ndindex(table.shape)
        # Beyond a value's rank there is nothing to spread.
        if index[2 - part] < feature.ranks[index[0]]
    ]
    if positions is not None:
        chosen = rng.permutation(len(places))[:positions]
        places = [places[i] for i in chosen]
    for name, part, index in places:
        tables = case.tables[name]
        poison = POISONS[rng.integers(len(POISONS))]
        hurt = [table.copy() for table in tables]
        hurt[part][index] = poison
        case.assign(name, *hurt)
        found = run(x, entries)
        case.assign(name, *tables)
        users = np.array([index[0] in [v for v, _ in row] for row in truth[name]])
        check_clean(case, plan, truth, users, found, clean)
        if not np.isfinite(poison):
            rows = np.repeat(users, plan.repeats)
            assert (
                not np.isfinite(found[0][rows])
                .all(axis=tuple(range(1, found[0].ndim)))
                .any()
            )
        tried += 1
    return tried


def check_clean(case, plan, truth, users, found, clean):
    """Raises unless all that only other examples reach is as it was, to the bit."""
    rows = np.repeat(~users, plan.repeats)
    np.testing.assert_array_equal(found[0][rows], clean[0][rows])
    assert np.isfinite(found[0][rows]).all()
    if not plan.one_input:
        np.testing.assert_array_equal(found[1][rows], clean[1][rows])
        assert np.isfinite(found[1][rows]).all()
    for feature in case.layer.features:
        has = [{0}] * len(users)
        if not feature.always:
            has = [{v for v, _ in row} for row in truth[feature.name]]
        reached = set().union(*(h for h, user in zip(has, users) if user))
        others = [v for v in range(len(feature.values)) if v not in reached]
        for after, before in zip(found[2][feature.name], clean[2][feature.name]):
            np.testing.assert_array_equal(after[others], before[others])
            assert np.isfinite(after[others]).all()


def test_no_number_of_a_table_reaches_other_examples(record_fault):
    """Every place of every value's tables, in the outputs and in the gradients."""
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
        policy="float32",
        ellipsis=0,
    )
    forms = {"task": ("ids", "int32", 1), "language": ("packed", "int32", 2)}
    plan = Plan(7, 1, False, structure.input_shape(7, [3]), forms)
    tried = spreads(Case(structure, seed=0), plan)
    assert tried == (1 + 2 + 2 + 3 * 2) * (3 + 4)
    record_fault("ids: a poisoned number, every place of one layer", faults=tried)


def test_no_poison_reaches_other_examples_of_random_layers(load, record_fault):
    count = collections.Counter()

    @for_random(STRUCTURES // 2 * math.ceil(load / 4), structures(), SEEDS)
    def check(structure, seed):
        with random_cases.precision(structure.policy):
            case = Case(structure, seed)
            plan = draw_plan(case.rng, structure, batches=(2, 5, 7))
            if plan.forms:
                count["faults"] += spreads(case, plan, positions=12)
                count["structures"] += 1

    assert count["faults"]
    record_fault("ids: a poisoned number in random layers", **count)
