"""The real base: its conversion, its fast training, its trials that resume."""

import doctest
import importlib
import json
import types

import keras
import numpy as np
import pytest
from helpers import tiny_gguf

import keras_flix
from keras_flix import Feature

if keras.config.backend() != "torch":
    reason = "the real base is trained in plain PyTorch: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("gguf", reason="gguf is not installed (extra `evidence`)")
pytestmark = pytest.mark.short("torch")

torch = pytest.importorskip("torch", reason="the fast training is in PyTorch")
(
    base,
    evidence,
    fast_llama,
    gguf_file,
    outside,
    plan,
    sequences,
    tables,
    training,
    trial,
) = (
    importlib.import_module(f"benchmarks.quality.smollm.{name}")
    for name in (
        "base",
        "real_evidence",
        "fast_llama",
        "gguf_file",
        "outside",
        "real_plan",
        "sequences",
        "real_tables",
        "fast_training",
        "real_trial",
    )
)
arm_search, evidence_arms, store = (
    importlib.import_module(f"benchmarks.quality.{name}")
    for name in ("arm_search", "evidence_arms", "store")
)
smollm = importlib.import_module("benchmarks.shared.smollm")

TASKS, LANGUAGES = ("upper", "twice"), ("de", "fi", "sw")
FLIX = {"task": 2, "language": 2, "shared": 2}


def example(task, language, word, group="seen"):
    answer = word.upper() if task == "upper" else word * 2
    prompt = f"{task} {language}: {word}"
    return types.SimpleNamespace(
        task=task,
        language=language,
        family="f",
        prompt=prompt,
        response=answer,
        group=group,
    )


def make_mix():
    """Two tasks in three languages, one cell held out, and a new language."""
    cells = {(task, language): "seen" for task in TASKS for language in LANGUAGES}
    cells["twice", "sw"] = "held_out"
    cells["upper", "nb"] = "new_language"

    def of(words, *groups):
        return [
            example(*cell, word, group)
            for cell, group in cells.items()
            for word in words
            if group in groups
        ]

    return types.SimpleNamespace(
        splits={
            "train": of(("a", "bcd", "ef"), "seen"),
            "validation": of(("gh", "ijk", "l"), "seen"),
            "validation_held_out": [],
            "test": of(("mn", "o"), "seen", "held_out", "new_language"),
        },
        cells=cells,
        languages=LANGUAGES,
        digest="tiny",
        versions={},
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(file):
    target = file.parent / "preset"
    base.convert(file, target)
    return target


@pytest.fixture
def tiny(folder, monkeypatch):
    """Everything that trials read is tiny."""
    for module in (trial, evidence):
        monkeypatch.setattr(module, "mix_of", lambda *size: make_mix())
    for module in (sequences, training):
        monkeypatch.setattr(module, "LENGTH", 96)
    return folder


@pytest.mark.slow
def test_the_conversion_computes_what_transformers_does_of_the_file(file):
    pytest.importorskip("transformers")
    model = base.build(gguf_file.read(file))
    assert base.difference(model, file) < 1e-4
    # Which tells: with the rows as GGUF has them, logits are others.
    query = model.backbone.transformer_layers[0]._self_attention_layer._query_dense
    kernel = np.asarray(query.kernel)
    query.kernel.assign(np.roll(kernel, 1, axis=2))
    assert base.difference(model, file) > 1e-3
    # And so they are with the epsilon that KerasHub takes of its own.
    assert model.backbone.layer_norm_epsilon == 1e-5


def test_a_conversion_whose_logits_differ_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "difference", lambda model, file: 2e-4)
    with pytest.raises(ValueError, match="to 0.0001. Received: a difference of 0.0002"):
        base.convert(file, tmp_path / "preset", check=True)
    assert not (tmp_path / "preset").exists()


def test_a_folder_gives_the_model_that_was_converted(file, folder):
    written, loaded = base.build(gguf_file.read(file)), smollm.load(folder)
    source = smollm.source_of(folder)
    assert base.weights_digest(loaded.backbone) == source["weights_sha256"]
    tokens = np.arange(12).reshape(2, 6)
    x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(written(x)), keras.ops.convert_to_numpy(loaded(x))
    )
    tokenizer = loaded.preprocessor.tokenizer
    ids = tokenizer(sequences.as_prompt("the ü"))
    assert {tokenizer.start_token_id, tokenizer.end_token_id} <= set(map(int, ids))
    assert tokenizer.detokenize(ids) == sequences.as_prompt("the ü")
    with pytest.raises(ValueError, match=r"Run: python -m benchmarks.quality.smollm"):
        smollm.load(folder.parent)


def adapted(folder, features, seed=0, **options):
    model = smollm.load(folder)
    model.preprocessor.sequence_length = 96
    keras_flix.enable_flix(model, features, seed=seed, targets="all-linear", **options)
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(
            np.asarray(variable) + 0.1 * generator.normal(size=variable.shape)
        )
    return model


@pytest.mark.parametrize("kind", ["flix", "lora"])
def test_the_fast_loss_and_its_gradients_are_those_of_fit(tiny, kind):
    features = [Feature("shared", rank=3, always=True)]
    if kind == "flix":
        features += [
            Feature("task", TASKS, rank=2),
            Feature("language", LANGUAGES, rank=2),
        ]
    model = adapted(tiny, features)
    examples = sequences.columns(make_mix().splits["test"][:-3:2], LANGUAGES)
    ids = {}
    if kind == "flix":
        # Mixed in the batch, and some absent.
        ids = {"task": np.array([0, 1, -1, 1, 0, 0]), "language": np.arange(6) % 4 - 1}
        ids = {name: one.astype("int32") for name, one in ids.items()}
    texts = {name: examples[name] for name in ("prompts", "responses")}
    assert len(texts["prompts"]) == 6
    model.compile(
        optimizer=keras.optimizers.SGD(0.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit({**texts, **ids}, batch_size=6, shuffle=False, verbose=0)
    expected = [variable.value.grad.clone() for variable in model.trainable_variables]
    model.zero_grad()

    fast = fast_llama.FastLlama(model)
    batch = sequences.tokenize(model.preprocessor, examples, ids).batch(range(6))
    assert len(set(map(int, batch.ragged.positions))) < len(batch.ragged.tokens)
    loss = training.loss_of(fast, batch)
    loss.backward()
    assert loss.item() == pytest.approx(history.history["loss"][0], abs=1e-5)
    for variable, gradient in zip(model.trainable_variables, expected):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(variable.value.grad, gradient, atol=1e-6, rtol=1e-4)


def test_bfloat16_is_that_of_processors_which_have_it(tiny, monkeypatch):
    """Where products are in float32, of rounded values, as where they are not."""
    model = adapted(tiny, [Feature("shared", rank=3, always=True)])
    examples = sequences.columns(make_mix().splits["test"], LANGUAGES)
    batch = sequences.tokenize(model.preprocessor, examples, {}).batch(range(6))

    def found(dtype, multiplies):
        monkeypatch.setattr(fast_llama, "multiplies_in", lambda _: multiplies)
        fast = fast_llama.FastLlama(model, dtype)
        assert fast.products == (dtype if multiplies else torch.float32)
        model.zero_grad()
        loss = training.loss_of(fast, batch)
        loss.backward()
        gradients = [table.grad.flatten() for table in fast.tables]
        return loss.item(), torch.cat(gradients)

    exact, slope = found(torch.float32, True)
    native, native_slope = found(torch.bfloat16, True)
    other, other_slope = found(torch.bfloat16, False)
    assert found(torch.float32, False)[0] == exact
    rounding = abs(native - exact)
    assert 0 < abs(other - exact) < 2 * rounding
    error = (native_slope - slope).norm()
    assert 0 < (other_slope - slope).norm() < 1.2 * error < 0.1 * slope.norm()


def test_scores_are_those_of_the_keras_model(tiny):
    model = adapted(tiny, {"task": TASKS}, rank=2)
    examples = sequences.columns(make_mix().splits["test"], LANGUAGES)
    ids = adaptation_ids(model, examples)
    found = training.scores(
        fast_llama.FastLlama(model),
        sequences.tokenize(model.preprocessor, examples, ids),
    )
    texts = {name: examples[name] for name in ("prompts", "responses")}
    x, y, weight = model.preprocess_samples({**texts, **ids})
    log = torch.log_softmax(model(x), dim=-1).detach().numpy()
    own = np.take_along_axis(log, np.asarray(y)[..., None], axis=-1)[..., 0]
    nats = -(own * np.asarray(weight)).sum(axis=1)
    hits = keras_flix.evaluation.forced_exact_match(model, x, y, weight)
    cells = np.array(examples["cell"])
    for cell, one in found.items():
        assert one["nats"] == pytest.approx(nats[cells == cell].mean(), abs=1e-3)
        assert one["exact_match"] == 100 * hits[cells == cell].mean()
        assert one["count"] == (cells == cell).sum()


@pytest.fixture
def short_outside(monkeypatch):
    """One prompt outside the mixture, with an answer that any base may have given."""
    monkeypatch.setattr(outside, "PROMPTS", ("Well?",))
    monkeypatch.setattr(outside, "answers_of", lambda folder: ["no"])


def adaptation_ids(model, examples):
    return {"task": np.array([TASKS.index(task) for task in examples["task"]], "int32")}


def test_answers_that_were_cut_are_scored_without_their_end(tiny, short_outside):
    model = smollm.load(tiny)
    model.preprocessor.sequence_length = sequences.LENGTH
    examples = outside.columns(["no"])
    whole = sequences.tokenize(model.preprocessor, examples, {})
    cut = whole.without_end()
    assert cut.cells == ["outside/none", "outside/de"] == whole.cells
    for one, other in zip(whole.tokens + whole.targets, cut.tokens + cut.targets):
        assert len(other) == len(one) - 1 > 0
        np.testing.assert_array_equal(one[:-1], other)
    for tokens, places, targets in zip(cut.tokens, cut.places, cut.targets):
        assert places[-1] == len(tokens) - 1 and len(places) == len(targets)


def test_answers_of_another_base_are_refused(tiny):
    with pytest.raises(ValueError, match="must be those of the base to PROMPTS"):
        outside.answers_of(tiny)
    stored = json.loads(outside.FILE.read_text())
    assert [*stored["answers"]] == [*outside.PROMPTS] and all(stored["answers"])
    for file in (store.DEFAULT / plan.SIZE).glob("*.json"):
        base_of = json.loads(file.read_text())["base"]
        assert base_of["weights_sha256"] == stored["weights_sha256"]


def test_what_does_not_fit_is_refused(tiny):
    model = smollm.load(tiny)
    model.preprocessor.sequence_length = 20
    examples = sequences.columns(make_mix().splits["test"], LANGUAGES)
    with pytest.raises(ValueError, match="must fit into 20 tokens. Received: "):
        sequences.tokenize(model.preprocessor, examples, {})


def test_a_trial_comes_back_from_its_config_with_its_key():
    for one in (plan.UNTRAINED, trial.Trial(plan.rslora(48), 1e-3, seed=2)):
        config = json.loads(json.dumps(one.config()))
        again = trial.Trial.from_config(config)
        assert again == one and again.key == one.key
    arm = evidence_arms.Arm("arithmetic", {"task": 2}, apart=True)
    with pytest.raises(ValueError, match=r"Received: \['apart'\] of 'arithmetic'"):
        trial.Trial(arm, 1e-3)


def test_arms_have_the_active_rank_that_their_names_say():
    names = [arm.name for arm in (*plan.MAIN, *plan.OTHERS)]
    assert len(set(names)) == len(names)
    for arm in (*plan.MAIN, *plan.OTHERS):
        last = arm.name.rpartition("lora_")[2]
        expected = int(last) if last.isdigit() else 12
        assert arm.active_rank == expected + 4 * (arm.name == "flix_family")


@pytest.mark.parametrize("best", [1e-3, 2e-3, 4e-3])
def test_the_plan_searches_the_main_arms_in_turns_then_takes_more_seeds(best):
    results = {}
    order = []
    for one in plan.in_order(lambda t: results.get(t.key), seeds=2):
        if one.key in results:
            continue
        order.append(one)
        off = abs(np.log(one.learning_rate / best)) if one.learning_rate else 9.0
        worse = 3 * (one.arm.targets is None) + 2 * ("_x4" in one.arm.name)
        results[one.key] = {"validation": off + worse}
    names = [arm.name for arm in plan.MAIN]
    search = order[: 2 * arm_search.BUDGET]
    owners = [one.arm.name.partition("@")[0] for one in search]
    assert owners == names * arm_search.BUDGET
    assert order[len(search)] == plan.UNTRAINED
    seeded = order[len(search) + 1 : len(search) + 3]
    assert [one.seed for one in seeded] == [1, 1]
    assert [one.arm.name for one in seeded] == [f"{name}@all_linear" for name in names]
    assert {one.learning_rate for one in seeded} == {best}


@pytest.mark.slow
def test_a_trial_trains_scores_and_goes_on_where_it_was_stopped(
    tiny, tmp_path, short_outside
):
    arm = evidence_arms.Arm("flix", FLIX, dropout={"task": 0.5}, targets="all-linear")
    one = trial.Trial(arm, 3e-2, steps=36, batch_size=4, dtype="float32")
    whole = trial.run(one, tiny, tmp_path / "whole.pt")
    assert not (tmp_path / "whole.pt").exists()
    assert [point["step"] for point in whole["curve"]] == [6, 12, 18, 24, 30, 36]
    assert whole["curve"][-1]["nats"] < whole["curve"][0]["nats"]
    assert set(whole["scores"]) == {"validation", "test", "outside"}
    assert set(whole["scores"]["outside"]) == {"outside/none", "outside/de"}
    assert set(whole["scores"]["test"]) == set(whole["groups"])
    assert {v["count"] for v in whole["scores"]["validation"].values()} == {3}
    # `validation` is of seen cells alone.
    seen = [v["nats"] for v in whole["scores"]["validation"].values()]
    assert whole["validation"] == pytest.approx(np.mean(seen), abs=1e-6)

    class Stopped(Exception):
        pass

    def stop(self, step, until=training.Training.until):
        if step > 18:
            raise Stopped
        until(self, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(training.Training, "until", stop)
        trial.run(one, tiny, tmp_path / "part.pt")
    assert (tmp_path / "part.pt").exists()
    again = trial.run(one, tiny, tmp_path / "part.pt")
    for name in ("curve", "loss", "scores", "validation"):
        assert again[name] == whole[name]


@pytest.mark.slow
def test_the_command_runs_what_is_missing(
    tiny, tmp_path, monkeypatch, capsys, short_outside
):
    arm = evidence_arms.Arm("lora", {"shared": 2})
    trials = [
        trial.Trial(arm, rate, steps=6, batch_size=2, dtype="float32")
        for rate in (1e-3, 2e-3)
    ]
    monkeypatch.setattr(plan, "in_order", lambda load, seeds: iter(trials))
    monkeypatch.setattr(base, "default_folder", lambda: tmp_path / "cache" / "base")
    monkeypatch.setenv(store.VARIABLE, "before")

    def command(*options):
        results = ["--base", str(tiny), "--results", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["real_evidence", *results, *options])
        evidence.main()
        return capsys.readouterr().out

    command("--count", "1")
    files = sorted((tmp_path / plan.SIZE).glob("*.json"))
    assert [file.stem for file in files] == [trials[0].key]
    result = json.loads(files[0].read_text())
    assert result["base"] == smollm.source_of(tiny)
    assert result["mixture"]["digest"] == "tiny" and result["environment"]["cpu"]
    before = files[0].read_bytes()
    assert command("--list").count("missing") == 1
    command("--only", "others")
    assert not store.path(plan.SIZE, trials[1].key).exists()
    command("--only", "lora")
    assert store.path(plan.SIZE, trials[1].key).exists()
    assert files[0].read_bytes() == before
    # Another mixture is no part of the same table.
    result["mixture"]["digest"] = "0123456789abcdef"
    files[0].write_text(json.dumps(result))
    with pytest.raises(ValueError, match="of mixture 0123456789ab, where this .* tiny"):
        command()


def test_stored_results_are_of_the_trials_that_they_name():
    for file in (store.DEFAULT / plan.SIZE).glob("*.json"):
        result = json.loads(file.read_text())
        assert trial.Trial.from_config(result["trial"]).key == file.stem
        assert {"commit", "versions", "cpu"} <= set(result["environment"])
        assert result["base"]["weights_sha256"] and result["mixture"]["digest"]


def test_the_examples_of_the_conversion_run():
    assert doctest.testmod(gguf_file) == (0, 1)


def test_when_a_curve_is_as_low_as_another_one_ends():
    curve = [{"step": 50, "nats": 20.0}, {"step": 100, "nats": 10.0}]
    assert tables.step_at(curve, 25.0) == 50
    assert tables.step_at(curve, 12.5) == 87.5
    assert tables.step_at(curve, 10.0) == 100
    assert tables.step_at(curve, 9.0) is None


def test_tables_of_a_trial(tmp_path, monkeypatch):
    """The tables of one setting of each main arm, without any search."""
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    monkeypatch.setattr(arm_search, "BUDGET", 1)
    first = arm_search.Setting(plan.FIRST_RATE)

    def result(one, last, exact):
        cell = {"exact_match": exact, "nats": 3.0, "count": 2}
        return {
            "trial": one.config(),
            "trainable_parameters": 7,
            "validation": last,
            "curve": [{"step": 50, "nats": 9.0}, {"step": 300, "nats": last}],
            "groups": {
                f"{kind}/x": kind
                for kind in ("seen", "few_shot", "held_out", "new_language")
            },
            "processor_seconds": {"train": 600.0},
            "scores": {
                "test": {
                    f"{kind}/x": cell
                    for kind in ("seen", "few_shot", "held_out", "new_language")
                },
                "outside": {"outside/none": cell, "outside/de": cell},
            },
        }

    for arm, last, exact in zip(plan.MAIN, (8.0, 7.0), (10.0, 20.0)):
        for mixture in ({}, plan.AMOUNTS[1]):
            one = plan.trial_of(arm, first, **mixture)
            file = store.path(plan.SIZE, one.key)
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(result(one, last, exact)))
    lines = [line.split(" | ") for line in tables.compute().splitlines()[2:]]
    assert [line[2:] for line in lines] == [
        ["2.00", "1 of 1", "300", "600 |"],
        ["2.00", "1 of 1", "175", "350 |"],
    ]
    assert "| 1 | 20 | 3.00 | 20 | 3.00 |" in tables.outside()
    amounts = tables.TABLES["amounts"]()
    found = [line.split(" | ")[:3] for line in amounts.splitlines()[2:]]
    assert found == [
        [f"| {count}", f"`{arm.name}`", exact]
        for count in (60, 5)
        for arm, exact in zip(plan.MAIN, ("10.0", "20.0"))
    ]
