"""The benchmark of the evidence: its splits, its arms, its trials that resume."""

import dataclasses
import json
import os
import re
import sys

import keras
import numpy as np
import pytest

import keras_flix

if keras.config.backend() != "jax":
    reason = "the benchmark trains on JAX, and nothing else here knows of backends"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("babel", reason="extra `evidence`")
pytestmark = pytest.mark.short("jax")

from benchmarks.quality import (  # noqa: E402
    cldr_mix,
    evidence,
    evidence_arms,
    evidence_page,
    evidence_tables,
    few_shot,
    new_languages,
    plan,
    scheduler,
    store,
    training_flops,
    trial as trials,
)
from benchmarks.shared.places import RESULTS  # noqa: E402

CPU, SMOKE = plan.SIZES["cpu"], plan.SIZES["smoke"]


def cells(*kinds):
    return [
        (task, language)
        for task in cldr_mix.TASKS
        for language in (*cldr_mix.LANGUAGES, *cldr_mix.NEW_LANGUAGES)
        if cldr_mix.kind_of(task, language) in kinds
    ]


def test_the_mixture_has_the_size_that_was_asked_for():
    assert len(cldr_mix.TASKS) >= 8 and len(cldr_mix.LANGUAGES) >= 30
    assert not set(cldr_mix.LANGUAGES) & set(cldr_mix.NEW_LANGUAGES)
    groups = (cldr_mix.LANGUAGES, cldr_mix.NEW_LANGUAGES, cldr_mix.UNKNOWN_LANGUAGES)
    assert set(cldr_mix.FAMILY) == set().union(*groups)
    assert sum(map(len, groups)) == len(cldr_mix.FAMILY)
    sizes = [len(cells(kind)) for kind in cldr_mix.KINDS]
    assert sizes == [34 * 5, 34, 34 * 2, 6 * 8]


def test_both_values_of_a_held_out_cell_are_seen_elsewhere():
    seen = cells("seen")
    tasks, languages = (set(values) for values in zip(*seen))
    for task, language in cells("held_out", "few_shot"):
        assert task in tasks and language in languages
    # A new language has relatives among the seen ones.
    families = {cldr_mix.FAMILY[language] for language in languages}
    for language in cldr_mix.NEW_LANGUAGES:
        assert cldr_mix.FAMILY[language] in families


def test_training_shows_nothing_of_held_out_cells_and_new_languages():
    mixture = cldr_mix.training_mixture(SMOKE.data, SMOKE.base)
    names = set(mixture.inputs()["name"])
    assert names == {
        f"{task}/{language}"
        for task, language in cells("seen", "few_shot")
        if task in SMOKE.data.chosen_tasks and language in SMOKE.data.chosen_languages
    }
    test = cldr_mix.test_examples(SMOKE.data, SMOKE.base)
    validation = cldr_mix.validation_examples(SMOKE.data, SMOKE.base)
    parts = [set(part["prompts"]) for part in (mixture.inputs(), validation, test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    for prompt, name in zip(test["prompts"], test["name"]):
        task, language = name.split("/")
        assert prompt.startswith(f"[{task}] [{language}] ")


def test_new_languages_have_no_value_but_a_family():
    test = cldr_mix.test_examples(SMOKE.data, SMOKE.base)
    for name, language, family in zip(test["name"], test["language"], test["family"]):
        code = name.split("/")[1]
        assert language == (None if code in cldr_mix.NEW_LANGUAGES else code)
        assert family == cldr_mix.FAMILY[code]


@pytest.mark.parametrize("unknown", [0, 8])
def test_no_example_is_cut(unknown):
    data = dataclasses.replace(CPU.data, unknown=unknown)
    test = cldr_mix.test_examples(data, CPU.base)
    # The last position is free: the sequence ends with its end token.
    assert (test["padding_mask"][:, -1] == 0).all()
    assert (test["weight"].sum(axis=1) >= 2).all()


@pytest.mark.parametrize("name", plan.arms_of(CPU))
def test_arms_are_compute_matched(name):
    rank = plan.arms_of(CPU)[name].active_rank
    expected = {"lora_params": 64, "lora_2": 2, "lora_12": 12, "lora_24": 24}
    # The third axis comes on top.
    assert rank == {"flix_family": 8, **expected}.get(name, 6)


def test_shuffled_ids_are_the_same_ids():
    ids = {"task": np.arange(100) % 7, "language": np.arange(100) % 3}
    found = evidence_arms.shuffled(ids, seed=0)
    for axis in ids:
        np.testing.assert_array_equal(np.sort(found[axis]), np.sort(ids[axis]))
        assert not np.array_equal(found[axis], ids[axis])


def test_a_trial_comes_back_from_its_config_with_its_key():
    trial = plan.trial_of(CPU, plan.arms_of(CPU)["shuffled"], 3e-3, seed=2)
    config = json.loads(json.dumps(trial.config()))
    assert config["arm"]["labels"] == "shuffled" and "apart" not in config["arm"]
    again = trials.Trial.from_config(config)
    assert again == trial and again.key == trial.key
    assert dataclasses.replace(trial, seed=3).key != trial.key


def stored(folder, validation):
    """Stores results whose validation depends on the rate alone."""

    def run(needed, size, workers):
        for trial in needed:
            path = store.path(size, trial.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            result = {"validation": validation(trial.learning_rate)}
            path.write_text(json.dumps(result))

    return run


@pytest.mark.parametrize("best", [6e-3 / 4, 6e-3, 1.2e-2, 1.2e-2 * 4])
def test_the_search_ends_at_the_best_rate(tmp_path, monkeypatch, best):
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    # Without the repository's results.
    monkeypatch.setenv(store.SEARCH, "1")
    run = stored(tmp_path, lambda rate: -abs(np.log(rate / best)))
    arm, tried = plan.arms_of(CPU)["lora"], []
    while (found := plan.tuned_rate(CPU, arm))[0] is None:
        run(found[1], "cpu", 1)
        tried += found[1]
        assert len(tried) <= 6
    assert found == (best, [])
    # Both neighbours were tried too.
    assert {best / 2, best * 2} <= {trial.learning_rate for trial in tried}


@pytest.mark.parametrize("table", ["headline", *plan.variants(CPU)])
def test_a_table_asks_for_no_more_when_all_trials_are_there(
    tmp_path, monkeypatch, table
):
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    run = stored(tmp_path, lambda rate: -rate)
    rounds = 0
    while needed := plan.missing_trials(SMOKE, table, seeds=2):
        # A run that was stopped half-way goes on with the rest.
        run(needed[: len(needed) // 2 + 1], "smoke", 1)
        rounds += 1
        assert rounds < 50
    assert rounds >= 2


def test_the_stored_results_are_of_the_trials_that_they_name():
    # Those of the real base are other trials, see `test_smollm.py`.
    real = store.DEFAULT / "smollm_cpu"
    files = [f for f in sorted(store.DEFAULT.rglob("*.json")) if real not in f.parents]
    assert files
    for file in files:
        result = json.loads(file.read_text())
        assert trials.Trial.from_config(result["trial"]).key == file.stem
        assert {"commit", "versions", "cpu"} <= set(result["environment"])


def test_the_stored_results_of_a_folder_are_of_one_babel():
    found: dict[str, set[str]] = {}
    for file in store.DEFAULT.rglob("*.json"):
        version = json.loads(file.read_text()).get("babel", cldr_mix.UNSTATED_BABEL)
        found.setdefault(file.parent.name, set()).add(version)
    assert found["standin"] == {"2.18.0"} and found["standin_recipes"] == {"2.19.0"}
    assert all(len(versions) == 1 for versions in found.values())


def test_results_of_two_babels_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    monkeypatch.setattr(cldr_mix, "BABEL", "2.18.0")
    cldr_mix.check_babel("cpu")
    (tmp_path / "cpu").mkdir()
    # Of before results said it.
    (tmp_path / "cpu" / "a-1.json").write_text("{}")
    (tmp_path / "cpu" / "a-2.json").write_text('{"babel": "2.18.0"}')
    cldr_mix.check_babel("cpu")
    (tmp_path / "cpu" / "a-3.json").write_text('{"babel": "2.19.0"}')
    received = r"Received: Babel 2\.18\.0, and a-3\.json in .*cpu, made with 2\.19\.0"
    with pytest.raises(ValueError, match=received):
        cldr_mix.check_babel("cpu")
    cldr_mix.check_babel("standin")
    monkeypatch.setattr(cldr_mix, "BABEL", "2.19.0")
    with pytest.raises(
        ValueError, match=r"`pip install babel==2\.18\.0`, or .*--results"
    ):
        cldr_mix.check_babel("cpu")
    # The command asks before it runs anything.
    monkeypatch.setattr(scheduler, "run_all", lambda *of: pytest.fail("ran"))
    monkeypatch.setattr(sys, "argv", ["evidence", "axes"])
    with pytest.raises(ValueError, match="one version of Babel"):
        evidence.main()


@pytest.mark.parametrize("table", ["headline", *plan.variants(CPU)])
def test_every_table_is_made_of_stored_results(table, tmp_path, monkeypatch):
    head, _, *rows = evidence_tables.table(CPU, table).splitlines()
    assert len(rows) >= 3
    for row in rows:
        scores = [cell for cell in row.split(" | ") if re.fullmatch(r"\d+\.\d", cell)]
        assert len(scores) >= 2, row
    # Without results there is no such table.
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    try:
        found = evidence_tables.table(CPU, table)
    except (IndexError, ValueError):
        return
    assert not re.search(r"\| \d+\.\d \|", found)


def test_arms_are_compared_seed_by_seed():
    def result(seed, score):
        return {
            "trial": {"seed": seed} if seed else {},
            "scores": {"true": {f"{t}/{n}": score for t, n in cells("held_out")}},
        }

    ours = [result(0, 50.0), result(2, 90.0)]
    theirs = [result(2, 60.0), result(1, 10.0), result(0, 40.0)]
    assert evidence_tables.compare(ours, theirs, "held_out").difference == 20.0


def test_flops_are_those_of_the_shapes():
    # One block of width 4 with two heads of 2, one key-value head, and inner 3.
    config = {"hidden_dim": 4, "head_dim": 2, "num_query_heads": 2}
    config |= {"num_key_value_heads": 1, "intermediate_dim": 6, "num_layers": 1}
    config["vocabulary_size"] = 10
    kernels = training_flops.kernels_of(config)
    size = dataclasses.replace(CPU, steps=1, batch_size=1)
    arm = evidence_arms.Arm("lora", {"shared": 1})
    frozen = 16 + 8 + 8 + 16 + 12 + 12 + 12 + 40
    tables = 8 + 6 + 6 + 8 + 7 + 7 + 7
    expected = 2 * cldr_mix.LENGTH * (2 * frozen + 3 * tables)
    assert training_flops.count(kernels, size, arm) == expected


@pytest.mark.short()
@pytest.mark.slow
def test_a_trial_trains_and_scores():
    arm = dataclasses.replace(plan.arms_of(SMOKE)["flix_shared"], dropout={"task": 0.5})
    trial = plan.trial_of(SMOKE, arm, 6e-3, ablate=True, generate=True)
    result = trials.run(trial)
    assert result["babel"] == cldr_mix.BABEL
    assert result["loss"] > 0 and result["trainable_parameters"] > 0
    assert set(result["scores"]) == {
        "true",
        "random",
        "without_task",
        "without_language",
    }
    test = cldr_mix.test_examples(SMOKE.data, SMOKE.base)
    for view in (*result["scores"].values(), result["chrf"], result["generated"]):
        assert set(view) == set(test["name"])
    assert result["generated"] == result["scores"]["true"]
    json.dumps(result)


@pytest.mark.short()
@pytest.mark.slow
def test_task_arithmetic_adds_what_was_trained_apart(monkeypatch):
    arm = evidence_arms.Arm("arithmetic", {"task": 1, "language": 1}, apart=True)
    trial = plan.trial_of(SMOKE, arm, 6e-3)
    validation = cldr_mix.validation_examples(SMOKE.data, SMOKE.base)
    # Of three factors, the second is made the best.
    answers = iter([1.0, 2.0, 1.5])
    monkeypatch.setattr(trials, "mean_score", lambda cells: next(answers))
    model, schema, _ = trials.added(trial, validation)
    for axis in ("task", "language"):
        alone = dataclasses.replace(arm, ranks={axis: 1}, apart=False)
        trained, _, _ = trials.train(dataclasses.replace(trial, arm=alone))
        own = {v.path: np.array(v) for v in trained.trainable_variables}
        for variable in model.trainable_variables:
            if f"flix_{axis}_" in variable.path:
                factor = 0.7 if variable.path.endswith("_b") else 1.0
                np.testing.assert_allclose(
                    np.array(variable), factor * own[variable.path], atol=1e-7
                )
    assert [feature.name for feature in schema] == ["task", "language"]


def test_another_folder_takes_the_rates_that_were_found(tmp_path, monkeypatch):
    arm = plan.arms_of(CPU)["flix_shared"]
    rate, _ = plan.tuned_rate(CPU, arm)
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    assert plan.tuned_rate(CPU, arm) == (rate, [])
    (trial,) = [
        t for t in plan.missing_trials(CPU, "headline", 1) if t.arm.name == arm.name
    ]
    assert trial.learning_rate == rate


def test_the_command_prints_a_table_that_is_complete(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evidence", "axes"])
    evidence.main()
    assert capsys.readouterr().out.strip() == evidence_tables.table(CPU, "axes").strip()


def test_workers_see_the_chosen_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(store.VARIABLE, "before")
    store.use(str(tmp_path))
    assert os.environ[store.VARIABLE] == str(tmp_path.resolve())
    assert store.path("cpu", "key") == tmp_path.resolve() / "cpu" / "key.json"


def test_schemas_are_the_librarys():
    values = {"task": ["a", "b"], "language": ["x"], "family": ["f"], "cell": ["a/x"]}
    schema = plan.arms_of(CPU)["flix_family"].schema(values)
    assert isinstance(schema, keras_flix.FeatureSchema)
    assert [f.name for f in schema.routed] == ["task", "language", "family"]


def test_the_few_shot_table_is_that_of_the_stored_result():
    result = json.loads((RESULTS / "few_shot_torch.json").read_text())
    assert {row["language"] for row in result["rows"]} == set(few_shot.NEW)
    assert few_shot.table(result["rows"]) in evidence_page.README.read_text()


def test_the_table_of_new_languages_is_that_of_the_stored_result():
    result = json.loads((RESULTS / "new_languages_torch.json").read_text())
    seeds = result["seeds"]
    assert all(set(new_languages.ROWS) <= found.keys() for found in seeds.values())
    cells = {f"{t}/{code}" for t in cldr_mix.TASKS for code in new_languages.LANGUAGES}
    assert all(found["absent"]["nats"].keys() == cells for found in seeds.values())
    assert result["method"] == new_languages.METHOD
    assert new_languages.table(seeds) in evidence_page.README.read_text()


def test_new_languages_have_relatives_among_those_that_are_trained():
    """All but these two groups are trained, and none of the new ones is."""
    assert not set(new_languages.LANGUAGES) & set(new_languages.TRAINED)
    families = {cldr_mix.FAMILY[code] for code in new_languages.TRAINED}
    without = {c for c in new_languages.LANGUAGES if cldr_mix.FAMILY[c] not in families}
    # Welsh is Indo-European, no more.
    assert without == {"cy"}
