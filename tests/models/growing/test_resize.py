"""Values that go or are renamed, more features, also while `fit` runs."""

import threading

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.growing import (
    DATA,
    FEATURES,
    Y,
    predicted,
    slots,
    small,
    step,
    tables,
    train,
)
from helpers.models import make_mlp

import keras_flix
from keras_flix import Feature

pytestmark = pytest.mark.eager

# Values go, or are renamed. -------------------------------------------------


@pytest.mark.support("Life of an adapter", "`remove_values`, `rename_value`")
def test_removing_equals_a_model_enabled_without(tmp_path):
    ranks = {"language": {"en": 3, "*": 2}}
    features = {**FEATURES, "language": ["sw", "en", "yo"]}
    model = train(small(features=features, rank=ranks, trained=False), 1)
    state, before = tables(model), slots(model)
    data = {**DATA, "language": ["sw", "yo", None] * 2}
    known = predicted(model, data)
    keras_flix.remove_values(model, "language", ["en"])
    np.testing.assert_allclose(predicted(model, data), known, atol=1e-6)
    features["language"].remove("en")
    plain = small(features=features, rank={"language": 2}, trained=False)
    assert model._adaptation.schema == plain._adaptation.schema
    assert [v.path for v in model.variables] == [v.path for v in plain.variables]
    for path, value in tables(model).items():
        kept = state[path][[0, 2]] if "language" in path else state[path]
        inner = tuple(map(slice, value.shape))
        np.testing.assert_array_equal(value, kept[inner])
    for old, new in zip(before, slots(model), strict=True):
        kept = old[[0, 2]] if old.shape[:1] == (3,) else old
        np.testing.assert_array_equal(new, kept[tuple(map(slice, new.shape))])
    model.save_weights(tmp_path / "x.weights.h5")
    plain.load_weights(tmp_path / "x.weights.h5")
    np.testing.assert_array_equal(predicted(plain, data), predicted(model, data))


def test_adding_and_removing_again_changes_nothing():
    model = small()
    before, values, past = predicted(model), tables(model), slots(model)
    keras_flix.add_values(model, "language", ["rw"], rank=4)
    keras_flix.remove_values(model, "language", ["rw"])
    np.testing.assert_array_equal(predicted(model), before)
    for path, value in tables(model).items():
        np.testing.assert_array_equal(value, values[path])
    for old, new in zip(past, slots(model), strict=True):
        np.testing.assert_array_equal(new, old)
    assert model._adaptation.schema == small(trained=False)._adaptation.schema


def test_a_renamed_value_keeps_its_choice_and_its_rates_in_any_normal_form():
    apart = "Yoru\N{LATIN SMALL LETTER A}\N{COMBINING ACUTE ACCENT}"
    model = small(rank={"language": {"sw": 3, "*": 2}})
    keras_flix.set_trainable(model, {"language": ["sw"]})
    keras_flix.set_learning_rates(model, {"language": {"sw": 0.5}})
    keras_flix.rename_value(model, "language", "sw", apart)
    state = model._adaptation
    assert state.schema["language"].values == ("en", "Yoruá")
    assert state.schema["language"].ranks == (2, 3)
    assert state.trainable == {"language": ["Yoruá"]}
    assert state.rates.factors == {"language": {"Yoruá": 0.5}}
    keras_flix.rename_value(model, "language", apart, "sw")
    assert state.trainable == {"language": ["sw"]}
    assert state.rates.factors == {"language": {"sw": 0.5}}


@pytest.mark.parametrize("stated", ["sw", {"sw": 0.5, "en": 0.5}, None])
def test_features_that_were_set_follow_a_new_name(stated):
    model = small()
    x = {"x": DATA["x"], "task": "qa"}
    keras_flix.set_default_features(model, {"language": stated})
    before = to_numpy(model(x))
    keras_flix.rename_value(model, "language", "sw", "swh")
    np.testing.assert_array_equal(to_numpy(model(x)), before)


@pytest.mark.support("Life of an adapter", "`remove_values`, `rename_value`")
def test_a_renamed_value_is_the_same_one():
    model = small(rank={"language": {"sw": 3, "*": 2}})
    named = {**DATA, "language": ["sw", "en", None] * 2}
    before = predicted(model, named)
    keras_flix.rename_value(model, "language", "sw", "swh")
    renamed = {**DATA, "language": ["swh", "en", None] * 2}
    np.testing.assert_array_equal(predicted(model, renamed), before)
    assert model._adaptation.schema["language"].ranks == (2, 3)
    with pytest.raises(ValueError, match="The nearest known value is 'swh'"):
        model.predict(named, verbose=0)


# More features. -------------------------------------------------------------


def test_a_new_feature_changes_nothing():
    alone, grown = small("averages"), small("averages")
    optimizer, before = grown.optimizer, predicted(grown)
    keras_flix.add_feature(grown, Feature("domain", ["news", "web"]), rank=1)
    keras_flix.add_feature(grown, Feature("shared", always=True, rank=3))
    data = {**DATA, "domain": ["web", None, "news"] * 2}
    np.testing.assert_allclose(predicted(grown, data), before, atol=1e-7)
    assert grown._adaptation.schema["domain"].rank == 1
    assert grown.optimizer is optimizer
    assert optimizer.iterations == 3
    shapes = {v.path: v.shape for v in alone.trainable_variables}
    # All but the new feature's tables get gradients.
    step(alone, list(shapes.values()), 2, seed=1)
    step(
        grown,
        [shapes.get(v.path, (0, 0, 0)) for v in grown.trainable_variables],
        2,
        seed=1,
    )
    for path, value in tables(alone).items():
        np.testing.assert_allclose(tables(grown)[path], value, atol=1e-6)
    assert [v.path for v in optimizer.variables] != [
        v.path for v in alone.optimizer.variables
    ]


def test_a_seed_for_dropout_is_added_with_the_first_feature_that_has_some():
    model = small()
    keras_flix.add_feature(model, Feature("domain", ["news", "web"]))
    assert model._adaptation.dropout_seed is None
    keras_flix.add_feature(model, Feature("tone", ["plain"], dropout=0.3))
    seed = model._adaptation.dropout_seed
    assert seed is not None
    keras_flix.add_feature(model, Feature("source", ["a", "b"], dropout=0.2))
    assert model._adaptation.dropout_seed is seed


def test_a_new_feature_starts_from_its_seed():
    starts = []
    for seed in ({}, {"seed": small()._adaptation.seed}, {"seed": 4}):
        model = small()
        keras_flix.add_feature(model, Feature("domain", ["news", "web"]), **seed)
        starts.append(tables(model)["hidden/flix_domain_a"])
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).all()


@pytest.mark.support("Life of an adapter", "`add_feature`")
def test_a_new_feature_trains_and_is_saved(tmp_path):
    model = small()
    keras_flix.add_feature(model, Feature("domain", ["news", "web"], dropout=0.3))
    data = {**DATA, "domain": np.array([0, 1, -1, 1, 0, 1], "int32")}
    train(model, 2, data)
    assert (tables(model)["hidden/flix_domain_b"] != 0).any()
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")
    assert found._adaptation.schema == model._adaptation.schema
    for one in (model, found):
        train(one, 1, data)
    for old, new in zip(slots(model), slots(found), strict=True):
        np.testing.assert_array_equal(new, old)
    for path, value in tables(model).items():
        np.testing.assert_array_equal(tables(found)[path], value)


# What holds a model's variables. --------------------------------------------


def test_files_of_a_grown_model(tmp_path):
    model = small()
    keras_flix.add_values(model, "language", ["rw"], init="sw")
    keras_flix.save_adapters(model, tmp_path / "x.flix.safetensors")
    model.save(tmp_path / "model.keras")
    loaded = keras_flix.load_adapters(make_mlp(), tmp_path / "x.flix.safetensors")
    found = keras.models.load_model(tmp_path / "model.keras")
    for path, value in tables(model).items():
        np.testing.assert_array_equal(tables(loaded)[path], value)
        np.testing.assert_array_equal(tables(found)[path], value)
    for old, new in zip(slots(model), slots(found), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_task_and_its_backbone_change_together(make_gemma):
    gemma = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    randomize(gemma)
    keras_flix.add_values(gemma.backbone, "language", ["rw"], init="sw")
    keras_flix.add_feature(gemma, Feature("shared", always=True, dropout=0.1))
    for part in (gemma, gemma.backbone):
        assert part._adaptation.schema["language"].values == ("en", "sw", "rw")
        assert part._adaptation.dropout_seed is not None
    for layer in gemma._adaptation.layers.values():
        assert layer.features == gemma._adaptation.schema
        one, other = (
            layer.kernel_delta({"task": None, "language": value})
            for value in ("sw", "rw")
        )
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_parameters_of_torch_are_the_new_ones():
    if keras.config.backend() != "torch":
        pytest.skip("`model.parameters()` is torch's")
    model = small()
    keras_flix.add_values(model, "language", ["rw"])
    known = {id(p) for p in model.parameters()}
    assert {id(v.value) for v in model.trainable_variables} <= known
    assert all(p.requires_grad for p in model.parameters() if len(p) == 3)


def test_exclusions_from_weight_decay_are_kept():
    model = small(trained=False)
    model.compile(keras.optimizers.AdamW(0.0, weight_decay=0.5), loss="mse")
    first, *_ = model.trainable_variables
    model.optimizer.exclude_from_weight_decay(var_list=[first])
    step(model, [(0, 0, 0)] * 8, 1)
    keras_flix.add_values(model, "language", ["rw"])
    keras_flix.add_values(model, "task", ["list"])
    assert not model.optimizer._use_weight_decay(first)
    assert model.optimizer._use_weight_decay(model.trainable_variables[1])


@keras.saving.register_keras_serializable(package="tests")
class Odd(keras.optimizers.SGD):
    """Holds state in its own way."""

    def build(self, variables):
        super().build(variables)
        if not hasattr(self, "norms"):
            self.norms = {v.path: self.add_variable((), name="norm") for v in variables}


def test_state_that_cannot_be_kept_is_refused():
    model = small(trained=False)
    model.compile(Odd(0.1), loss="mse")
    step(model, [v.shape for v in model.trainable_variables], 1)
    schema, before = model._adaptation.schema, tables(model)
    for change in (
        lambda: keras_flix.add_values(model, "language", ["rw"]),
        lambda: keras_flix.add_feature(model, Feature("domain", ["news"])),
    ):
        with pytest.raises(
            ValueError, match="Compile the model with a fresh optimizer"
        ):
            change()
    assert model._adaptation.schema is schema
    assert all((value == before[path]).all() for path, value in tables(model).items())


class At(keras.callbacks.Callback):
    """Does something once, in the middle of a `fit`."""

    def __init__(self, change, when="on_train_batch_end", batch=1):
        super().__init__()
        self.done = False

        def once(index, logs=None):
            if index == batch and not self.done:
                self.done = True
                change(self.model)

        setattr(self, when, once)


@pytest.mark.parametrize("change", [keras_flix.remove_values, keras_flix.add_feature])
def test_what_batches_on_their_way_hold_must_not_change_while_fit_runs(change):
    model = small(trained=False)
    arguments = {
        keras_flix.remove_values: ("language", ["sw"]),
        keras_flix.add_feature: (keras_flix.Feature("domain", ["web"]),),
    }[change]
    schema = model._adaptation.schema

    def refused(model):
        with pytest.raises(ValueError, match="a call from within `fit`"):
            change(model, *arguments)

    model.fit(DATA, Y, verbose=0, callbacks=[At(refused, batch=0)])
    assert model._adaptation.schema is schema


def grows(model):
    """As a tenant who comes while others train."""
    keras_flix.add_values(model, "language", ["rw"], init="sw", seed=1)
    keras_flix.rename_value(model, "task", "qa", "answer")
    keras_flix.set_learning_rates(model, {"language": {"rw": 2.0, "en": 0}})


class Arriving(keras.utils.PyDataset):
    """Batches of which the later ones have a value once the model has it.

    Those of TensorFlow are made ahead of the steps.
    """

    def __init__(self, model, count):
        super().__init__(workers=0)
        self.model, self.count, self.made = model, count, {}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        values = keras_flix.schema_of(self.model)["language"].values
        language = "rw" if "rw" in values else "en"
        x = {**DATA, "language": 3 * [language, "sw"]}
        self.made[index] = (x, Y * (1 + index))
        return self.made[index]


class Again(keras.utils.PyDataset):
    """The batches that were made, some of them."""

    def __init__(self, batches):
        super().__init__(workers=0)
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


@pytest.mark.support("Life of an adapter", "`add_values` while `fit` runs")
@pytest.mark.parametrize("name", ["adam", "lazy"])
@pytest.mark.parametrize("when", ["on_train_batch_end", "on_epoch_end"])
def test_values_join_while_fit_runs(name, when):
    """All is as if `fit` had ended there, and begun anew."""

    def made():
        model = small(trained=False)
        if name == "lazy":
            optimizer = keras_flix.LazyAdam(0.05, step_counts="value")
            model.compile(optimizer, loss="mse")
        return model

    model = made()
    within = when == "on_train_batch_end"
    data = Arriving(model, 12 if within else 2)
    fits = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            fits.append([data.made[index] for index in range(len(data))])

    model.fit(
        data, epochs=1 if within else 3, verbose=0, shuffle=False,
        # Its function is made anew, too.
        validation_data=None if within else (DATA, Y),
        callbacks=[Keep(), At(grows, when)],
    )  # fmt: skip
    if within:
        fits = [fits[0][:2], fits[0][2:]]
    assert any("rw" in x["language"] for x, _ in fits[-1])
    apart = made()
    for index, batches in enumerate(fits):
        if index == len(fits) - 1:
            grows(apart)
        apart.fit(Again(batches), verbose=0, shuffle=False)
    assert keras_flix.schema_of(model)["language"].values == ("en", "sw", "rw")
    for path, value in tables(apart).items():
        np.testing.assert_allclose(
            tables(model)[path], value, rtol=1e-5, atol=1e-6, err_msg=path
        )
    for one, other in zip(slots(apart), slots(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.short("torch", "jax")
def test_a_running_model_changes_between_its_steps_only():
    model = small(trained=False)
    errors = []

    def grow():
        try:
            keras_flix.add_values(model, "language", ["rw"])
        except ValueError as error:
            errors.append(str(error))

    def from_a_thread(model):
        thread = threading.Thread(target=grow)
        thread.start()
        thread.join()

    model.fit(DATA, Y, verbose=0, callbacks=[At(from_a_thread, batch=0)])
    assert len(errors) == 1 and "the thread of `fit`" in errors[0]
    assert keras_flix.schema_of(model)["language"].values == ("en", "sw")
