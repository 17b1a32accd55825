"""The search for a recipe: its base, its budget, its measures."""

import dataclasses
import json
import random
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_flix

if keras.config.backend() != "jax":
    reason = "the benchmark trains on JAX, and nothing else here knows of backends"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("babel")
pytestmark = pytest.mark.short("jax")

from benchmarks.quality import (  # noqa: E402
    arm_search,
    cldr_mix,
    evidence_arms,
    evidence_page,
    hierarchical,
    hyper_trial,
    instruct_base,
    plan,
    recipe_figures,
    recipe_search,
    recipe_tables,
    recipes,
    scheduler,
    scoring,
    store,
    training,
    trial as trials,
)

SMOKE = plan.SIZES["smoke"]


def test_instruction_tuning_shows_no_cell_that_is_trained_or_held_out():
    shown = set(instruct_base.cells())
    for language in cldr_mix.LANGUAGES:
        for task in cldr_mix.TASKS:
            assert (task, language) not in shown
    languages = {language for _, language in shown}
    assert languages == {*cldr_mix.LANGUAGES, *cldr_mix.NEW_LANGUAGES}
    tasks = {task for task, _ in shown}
    assert tasks == {*cldr_mix.TASKS, *instruct_base.OTHER_TASKS}


@pytest.mark.parametrize("task", instruct_base.OTHER_TASKS)
def test_another_task_is_asked_in_the_form_of_the_mixture(task):
    example = instruct_base.example(task, "fi", random.Random(0))
    assert example.prompt.startswith(f"[{task}] [fi] ")
    assert example.prompt.endswith(" = ") and example.response


def test_the_instructed_base_is_that_of_its_record():
    folder = Path(cldr_mix.base_folder(recipes.BASE))
    record = json.loads((folder / instruct_base.RECORD).read_text())
    assert instruct_base.digest(recipes.BASE) == record["sha256"]
    assert instruct_base.digest("base") == record["made_of"]["sha256"]


def found_by(score):
    """Answers as stored results do, and remembers what was asked for."""
    answers = {}

    def known(trial, size=recipes.SIZE):
        return answers.get((size, trial.key))

    def run(trial, size=recipes.SIZE):
        answers[size, trial.key] = {"validation_nats": score(trial)}

    return known, run


@pytest.mark.parametrize("best_rate", [3e-3, 6e-3, 2.4e-2])
@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("rank", [6, 24])
def test_every_arm_has_the_same_budget(best_rate, targets, rank):
    def score(trial):
        # A high rank wants half of the rate.
        best = best_rate if trial.arm.active_rank == 6 else best_rate / 2
        return (
            abs(np.log(trial.learning_rate / best))
            + 0.3 * (trial.arm.targets != targets)
            + 0.1 * abs(trial.arm.active_rank - rank)
        )

    for name in recipes.RANKS:
        known, run = found_by(score)
        asked = []
        while recipes.tuned(name, known) is None:
            asked.append(recipes.search(name, known)[-1])
            run(recipes.trial_of(name, asked[-1]))
        assert len(set(asked)) == len(asked) == arm_search.BUDGET
        found = recipes.tuned(name, known)
        expected = best_rate if rank == 6 else best_rate / 2
        assert (found.targets, found.rate) == (targets, expected)
        assert sum(recipes.RANKS[name].values()) * found.times == rank


def test_the_first_arms_of_the_search_are_of_equal_active_rank():
    assert {sum(ranks.values()) for ranks in recipes.RANKS.values()} == {6}


def test_searches_take_turns(monkeypatch):
    known, run = found_by(lambda trial: trial.learning_rate)
    monkeypatch.setattr(recipes, "known", known)
    monkeypatch.setattr(
        recipes, "search", lambda name, search=recipes.search: search(name, known)
    )
    monkeypatch.setattr(recipes, "tuned", lambda name: None)
    counts = dict.fromkeys(recipes.RANKS, 0)
    for _ in range(3 * len(counts)):
        size, first = recipes.missing()[0]
        assert size == recipes.SIZE
        counts[first.arm.name] += 1
        run(first)
        assert max(counts.values()) - min(counts.values()) <= 1
    found = recipes.missing(arms=["lora"])
    assert {trial.arm.name for _, trial in found} == {"lora"}


def test_recipes_lie_with_the_same_arm_without_them(monkeypatch):
    known, run = found_by(lambda trial: 1.0)
    setting = arm_search.Setting("all-linear", 3e-3, 4)
    monkeypatch.setattr(recipes, "known", known)
    monkeypatch.setattr(recipes, "search", lambda name: [setting])
    monkeypatch.setattr(recipes, "tuned", lambda name: setting)
    names = ["lora", "flix"]
    plain = {name: recipes.trial_of(name, setting) for name in names}
    for trial in plain.values():
        run(trial)
    # That the search has it is nothing to the recipes, and `flix` has none.
    (size, first), *others = recipes.missing(arms=names)
    assert (size, first) == (recipes.RECIPE_SIZE, plain["lora"])
    assert [size for size, _ in others] == [size] * len(recipes.RECIPES["lora"])
    run(first, size)
    assert recipes.missing(arms=names) == others
    assert recipes.missing(recipe_seeds=0, arms=names) == []
    again = recipes.missing(recipe_seeds=2, arms=names)
    assert (size, dataclasses.replace(first, seed=1)) in again


def test_a_recipe_without_its_baseline_shows_no_difference(monkeypatch):
    kinds = dict(zip("abc", recipe_tables.KINDS))
    result = {"nats": dict.fromkeys("abc", 1.0), "kinds": kinds}
    result["scores"] = {"true": dict.fromkeys("abc", 90.0)}
    setting = arm_search.Setting("all-linear", 3e-3, 4)
    recipe = recipes.recipe_trial("lora", "weight decay 0.1", setting)
    stored = {(recipes.RECIPE_SIZE, recipe.key): result}

    def known(trial, size=recipes.SIZE):
        return stored.get((size, trial.key))

    monkeypatch.setattr(recipes, "known", known)
    monkeypatch.setattr(recipes, "tuned", lambda name: setting)
    # That of the search is of other data.
    plain = recipes.trial_of("lora", setting)
    stored[recipes.SIZE, plain.key] = result
    _, _, row = recipe_tables.tried().splitlines()
    assert row.startswith("| `lora` | weight decay 0.1 | 1 (a lead) | 90.0 |")
    assert row.endswith("| 1.00 |  |  |  |  |  |")
    assert recipe_figures.rows() == []
    stored[recipes.RECIPE_SIZE, plain.key] = result
    _, _, _, row = recipe_tables.tried().splitlines()
    assert row.count("+0.0 [+0.0, +0.0]") == 3
    assert row.count("+0.00 [+0.00, +0.00]") == 2
    ((name, ours, theirs),) = recipe_figures.rows()
    assert name == "LoRA\nweight decay 0.1" and ours == theirs == {0: result}


def test_recipes_are_not_run_beside_results_of_another_babel(tmp_path, monkeypatch):
    trial = recipes.trial_of("lora", arm_search.Setting("all-linear", 3e-3, 4))
    stored = tmp_path / recipes.RECIPE_SIZE / "lora-1.json"
    stored.parent.mkdir()
    stored.write_text('{"babel": "0.9"}')
    pairs = [(recipes.RECIPE_SIZE, trial)]
    monkeypatch.setattr(recipes, "missing", lambda *limits: pairs)
    monkeypatch.setattr(scheduler, "run_all", lambda *of: pytest.fail("ran"))
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["recipe_search"])
    with pytest.raises(ValueError, match="pip install babel==0.9"):
        recipe_search.main()
    # Where nothing is missing, nothing is asked.
    pairs.clear()
    monkeypatch.setattr(recipe_tables, "TABLES", {})
    recipe_search.main()


@pytest.mark.short()
@pytest.mark.slow
def test_what_is_measured_is_what_the_logits_say(monkeypatch):
    test = cldr_mix.test_examples(SMOKE.data, SMOKE.base)
    # Of two lengths, so that the first batch is not full and the order changes.
    used = -(-test["padding_mask"].sum(axis=1) // 8)
    rows = [*np.flatnonzero(used == used.max())[:3], *np.flatnonzero(used == used[0])]
    test = {name: np.asarray(value)[rows[:7]] for name, value in test.items()}
    trial = plan.trial_of(SMOKE, plan.arms_of(SMOKE)["flix_shared"], 6e-3)
    model, schema = trials.adapted(trial)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.02, seed=1))
    # Three lengths would be three compilations.
    model.compile(run_eagerly=True)
    ids = trial.arm.ids(schema, test)
    monkeypatch.setattr(scoring, "ROWS", 4)
    hits, nats = scoring.measured(model, test, ids)
    x, y, weight = scoring.inputs(test, ids)
    model.preprocessor = None
    logits = np.asarray(model.predict_on_batch(x), "float64")
    right = (logits.argmax(axis=-1) == y) | (weight == 0)
    np.testing.assert_array_equal(hits, right.all(axis=1))
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats, (loss * weight).sum(axis=1), rtol=1e-4)


def test_a_recipe_without_options_is_plain_adam():
    course = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=9, warmup_target=1e-2, warmup_steps=1
    )
    plain = keras.optimizers.Adam(course, global_clipnorm=1.0)
    arm = evidence_arms.Arm("flix", {})
    recipe = training.optimizer(1e-2, 10, arm)
    faster = training.optimizer(1e-2, 10, dataclasses.replace(arm, b_rate=4.0))
    values = []
    for optimizer in (plain, recipe, faster):
        pair = [
            keras.Variable(np.ones(3, "float32"), name=f"flix_task_{part}")
            for part in "ab"
        ]
        optimizer.build(pair)
        for gradient in ([0.3, -0.1, 0.2], [0.1, 2.0, 0.4]):
            optimizer.apply([np.array(gradient, "float32")] * 2, pair)
        values.append([np.array(variable) for variable in pair])
    assert not np.allclose(values[0], 1.0, atol=1e-3)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
    np.testing.assert_allclose(values[0][0], values[2][0], rtol=1e-6)
    np.testing.assert_allclose(values[2][1] - 1, 4 * (values[0][1] - 1), rtol=1e-4)


def test_values_that_share_a_keep_one_and_learn_from_all_examples():
    arm = evidence_arms.Arm("flix", {"task": 2}, one_a=["task"])
    optimizer = training.optimizer(1e-2, 10, arm)
    pair = [
        keras.Variable(np.ones((3, 2), "float32"), name=f"flix_task_{part}")
        for part in "ab"
    ]
    alone = keras.Variable(np.ones((1, 2), "float32"), name="flix_task_b")
    alone_optimizer = training.optimizer(1e-2, 10)
    optimizer.build(pair)
    alone_optimizer.build([alone])
    # Small, so that the norm of none is clipped.
    for gradient in ([[0.1, 0], [0.2, -0.3], [0, 0]], [[0, 0], [0, 0.1], [0.2, 0]]):
        gradient = np.array(gradient, "float32")
        optimizer.apply([gradient] * 2, pair)
        alone_optimizer.apply([gradient.sum(axis=0, keepdims=True)], [alone])
    a, b = map(np.array, pair)
    np.testing.assert_allclose(a, np.repeat(np.array(alone), 3, axis=0), rtol=1e-6)
    assert not np.allclose(a[0], 1.0, atol=1e-3)
    assert not np.allclose(b[0], b[1], atol=1e-3)


def test_the_tables_of_a_shared_a_begin_alike():
    arm = dataclasses.replace(plan.arms_of(SMOKE)["flix_shared"], one_a=["task"])
    model, _ = trials.adapted(plan.trial_of(SMOKE, arm, 6e-3))
    tables = [v for v in model.trainable_variables if v.name == "flix_task_a"]
    others = [v for v in model.trainable_variables if v.name == "flix_language_a"]
    assert tables and others
    for table in map(np.array, tables):
        assert np.abs(table).max() > 0
        np.testing.assert_array_equal(table, np.broadcast_to(table[:1], table.shape))
    for table in map(np.array, others):
        assert not np.allclose(table[0], table[1])


def test_an_axis_adapts_the_blocks_that_it_was_given():
    arm = plan.arms_of(SMOKE)["flix_shared"]
    blocks = {"language": [0, 2], "task": [1]}
    trial = plan.trial_of(SMOKE, dataclasses.replace(arm, blocks=blocks), 6e-3)
    model, _ = trials.adapted(trial)
    found = {
        axis: {
            int(variable.path.split("decoder_block_")[1][0])
            for variable in model.trainable_variables
            if f"flix_{axis}_" in variable.path
        }
        for axis in arm.ranks
    }
    assert found == {"language": {0, 2}, "task": {1}, "shared": {0, 1, 2}}


def test_an_interval_covers_seeds_and_cells():
    generator = np.random.default_rng(0)
    cells = [f"{i}" for i in range(50)]
    none = {seed: dict.fromkeys(cells, 0.0) for seed in range(3)}
    apart = {
        seed: {cell: 10.0 * seed + generator.normal() for cell in cells}
        for seed in range(3)
    }
    several = hierarchical.compare(apart, none)
    assert several.low < 2.0 and several.high > 18.0
    one = hierarchical.compare({0: apart[0]}, none)
    assert one.high - one.low < 1.0
    with pytest.raises(ValueError, match="common seeds"):
        hierarchical.compare({0: none[0]}, {1: none[1]})


def test_the_tables_of_the_readme_are_those_of_the_stored_results():
    text = evidence_page.README.read_text()
    for size, tables in evidence_page.OTHERS.items():
        for name, table in tables.items():
            found = table()
            # A head alone is of trials that nobody has run.
            if len(found.splitlines()) > 2:
                assert f"<!-- table: {size} {name} -->\n{found}<!-- end -->" in text


@pytest.mark.short()
@pytest.mark.slow
def test_early_stopping_keeps_the_best_weights(monkeypatch):
    arm = evidence_arms.Arm("flix", {"task": 1, "language": 1}, stop=True)
    trial = plan.trial_of(SMOKE, arm, 6e-3, steps=10, details=True)
    kept = []

    def nats(model, trial, schema):
        kept.append([np.array(variable) for variable in model.trainable_variables])
        # Training gets better up to its fourth tenth.
        return abs(len(kept) - 4.0)

    monkeypatch.setattr(trials, "held_out_nats", nats)
    model, schema, _ = trials.train(trial)
    assert len(kept) == 10 and isinstance(schema, keras_flix.FeatureSchema)
    for variable, value in zip(model.trainable_variables, kept[3]):
        np.testing.assert_array_equal(np.array(variable), value)
    result = trials.detailed(model, trial, lambda of: trial.arm.ids(schema, of))
    assert set(result["nats"]) == set(result["scores"]["true"])
    assert result["validation_nats"] > 0 and result["validation_held_out_nats"] > 0


@pytest.mark.slow
def test_a_hypernetwork_makes_the_tables_of_all_pairs():
    arm = evidence_arms.Arm("hyper", {"cell": 2}, targets=None)
    trial = dataclasses.replace(plan.trial_of(SMOKE, arm, 6e-3), details=True)
    names = [f"{task}/{language}" for task in ("a", "b") for language in ("x", "y")]
    model, schema = trials.adapted(trial, {"cell": names})
    hyper = hyper_trial.Hyper(
        model, np.array([(0, 0), (0, 1), (1, 0), (1, 1)], "int32")
    )
    tables = model.trainable_variables
    first = [np.array(table) for table in tables]
    x = {
        "token_ids": np.ones((4, 8), "int32"),
        "padding_mask": np.ones((4, 8), "int32"),
        **schema.encode({"cell": names}),
    }
    # Before training it adds nothing, and `A` is the library's, one for all pairs.
    plain = np.asarray(model({**x, "cell": np.full(4, -1, "int32")}))
    np.testing.assert_array_equal(np.asarray(hyper(x)), plain)
    hyper.give()
    for table, before in zip(tables, first):
        np.testing.assert_array_equal(table, np.broadcast_to(before[:1], table.shape))
    # The base is none of what it trains.
    held = {id(variable) for variable in hyper.variables}
    assert not held & {id(variable) for variable in model.variables}
    for index, variable in enumerate(hyper.trainable_variables):
        noise = keras.random.normal(variable.shape, stddev=0.1, seed=index)
        variable.assign(variable + noise)
    alone = np.asarray(hyper(x))
    hyper.give()
    np.testing.assert_allclose(np.asarray(model(x)), alone, atol=1e-5)
    assert np.abs(alone - plain).max() > 1e-3
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in x.items()}
        np.testing.assert_allclose(np.asarray(hyper(one))[0], alone[row], atol=1e-5)
    # Every pair has another adapter.
    for table in tables:
        assert len({row.tobytes() for row in np.asarray(table)}) == 4
