"""`SaveFinished`: values come to their ends one by one, and `fit` goes on."""

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.growing import DATA, Y, small
from helpers.models import make_mlp

import keras_flix
from keras_flix.callbacks import BackupAndRestore, SaveFinished

USERS = {"task": ["qa", "parse"], "user": ["Ann", "ann", "bob", "cat"]}


def model_of():
    model = small(features=USERS, trained=False)
    model.compile(keras_flix.LazyAdam(0.05, step_counts="value"), loss="mse")
    return model


def data():
    x = {"x": DATA["x"], "task": DATA["task"]}
    return {**x, "user": ["Ann", "ann", "bob", "bob", "ann", None]}


def rows_of(model, user):
    row = keras_flix.schema_of(model)["user"].id_of(user)
    return {
        v.path: to_numpy(v)[row] for v in model.trainable_variables if "user" in v.path
    }


def assert_saved(callback, model, users):
    assert list(callback.saved) == users
    for user in users:
        loaded = keras_flix.load_adapters(make_mlp(), callback.saved[user])
        assert keras_flix.schema_of(loaded)["user"].values == (user,)
        own = rows_of(model, user)
        for path, value in rows_of(loaded, user).items():
            np.testing.assert_array_equal(value, own[path])


@pytest.mark.support(
    "Life of an adapter", "`limit_steps` and `SaveFinished`, steps counted by value"
)
def test_by_limits_within_an_epoch(tmp_path):
    model = model_of()
    limits = {"Ann": 2, "ann": 4, "*": None}
    callback = SaveFinished(tmp_path / "users", "user", limits=limits, every=2)
    model.fit(data(), Y, batch_size=6, epochs=5, verbose=0, callbacks=[callback])
    expected = {"Ann": 2, "ann": 4, "bob": 5, "cat": 0}
    assert keras_flix.step_counts(model, "user") == expected
    assert_saved(callback, model, ["Ann", "ann"])
    names = sorted(path.name for path in (tmp_path / "users").iterdir())
    assert names == ["Ann.flix.safetensors", "ann-2.flix.safetensors"]
    # They rest in later calls of `fit`, too, and are not saved again.
    before = {path: path.read_bytes() for path in callback.saved.values()}
    model.fit(data(), Y, verbose=0, callbacks=[callback])
    assert_saved(callback, model, ["Ann", "ann"])
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.short("torch")
@pytest.mark.parametrize("mode", ["max", "min"])
def test_by_patience_with_a_score_of_each_value(mode, tmp_path):
    model = model_of()
    scores = {
        "Ann": [1, 2, 2, 1, 9, 9],
        "ann": [1, 2, 3, 4, 5, 6],
        "bob": [3, 2, 4, 4.05, 4, float("nan")],
        # Never updated: its score cannot become better, and it is not done.
        "cat": [1, 1, 1, 1, 1, 1],
    }
    sign = 1 if mode == "max" else -1
    epoch = []

    def monitor(one):
        assert one is model
        epoch.append(0)
        return {user: sign * s[len(epoch) - 1] for user, s in scores.items()}

    callback = SaveFinished(
        tmp_path, "user", monitor=monitor, patience=1, mode=mode, min_delta=0.1
    )
    model.fit(data(), Y, batch_size=6, epochs=6, verbose=0, callbacks=[callback])
    # Ann after the fourth epoch, bob after the fifth: two in a row are no better.
    expected = {"Ann": 4, "ann": 6, "bob": 5, "cat": 0}
    assert keras_flix.step_counts(model, "user") == expected
    assert_saved(callback, model, ["Ann", "bob"])


@pytest.mark.short("torch")
def test_what_ended_by_its_score_rests_in_later_fits(tmp_path):
    model = model_of()
    callback = SaveFinished(tmp_path, "user", limits=9, monitor=lambda _: {"bob": 1.0})
    for _ in range(2):
        model.fit(data(), Y, batch_size=6, epochs=3, verbose=0, callbacks=[callback])
    expected = {"Ann": 6, "ann": 6, "bob": 2, "cat": 0}
    assert keras_flix.step_counts(model, "user") == expected
    assert_saved(callback, model, ["bob"])


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 4:
            raise InterruptedError


@pytest.mark.short("torch")
@pytest.mark.parametrize("first", ["save", "backup"])
def test_what_is_done_rests_when_a_backup_goes_on(first, tmp_path):
    """With the limits of the run that was ended, whichever callback begins first."""

    def run(place, *more):
        model = model_of()
        options = {"limits": {"Ann": 2, "*": 9}, "monitor": lambda _: {"bob": 1.0}}
        save = SaveFinished(place / "users", "user", **options)
        backup = BackupAndRestore(place / "backup")
        order = [save, backup] if first == "save" else [backup, save]
        model.fit(
            data(), Y, batch_size=6, epochs=7, shuffle=False, verbose=0,
            callbacks=[*order, *more],
        )  # fmt: skip
        return model, save

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "killed", Stop())
    resumed, saved = run(tmp_path / "killed")
    counts = {"Ann": 2, "ann": 7, "bob": 2, "cat": 0}
    assert keras_flix.step_counts(whole, "user") == counts
    assert keras_flix.step_counts(resumed, "user") == counts
    for one, other in zip(whole.trainable_variables, resumed.trainable_variables):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    # Another callback saves anew what is done.
    assert_saved(saved, resumed, ["Ann", "bob"])


def watched(directory):
    """A model that made a step, and a callback that reads scores from the logs."""
    model = model_of()
    callback = SaveFinished(directory, "user", monitor="exact_match")
    callback.set_model(model)
    callback.on_train_begin()
    model.train_on_batch(data(), Y)
    return model, callback


@pytest.mark.short("torch")
def test_scores_come_from_the_logs(tmp_path):
    model, callback = watched(tmp_path)
    for score in (0.5, 0.5):
        callback.on_epoch_end(0, {"exact_match/user=bob": score})
    assert list(callback.saved) == ["bob"]
    with pytest.raises(ValueError, match="FeatureScores"):
        callback.on_epoch_end(0, {"loss": 0.5})


@pytest.mark.short("torch")
def test_it_waits_for_the_first_scores(tmp_path):
    """As with `FeatureScores(every=2)`, also where training goes on in between."""
    model, callback = watched(tmp_path)
    callback.on_epoch_end(0, {"loss": 0.5})
    assert not callback.saved
    for epoch in (1, 2):
        callback.on_epoch_end(epoch, {"exact_match/user=bob": 0.5})
    assert list(callback.saved) == ["bob"]
    callback.on_train_end({"loss": 0.5})
    # Its last epoch alone may have no scores; a whole training must.
    model.fit(data(), Y, initial_epoch=2, epochs=3, verbose=0, callbacks=[callback])
    model.fit(data(), Y, epochs=0, verbose=0, callbacks=[callback])
    with pytest.raises(ValueError, match="FeatureScores"):
        model.fit(data(), Y, epochs=2, verbose=0, callbacks=[callback])


def fit(model, callback, epochs=3):
    model.fit(data(), Y, batch_size=6, epochs=epochs, verbose=0, callbacks=[callback])
    return keras_flix.step_counts(model, "user")


@pytest.mark.short("torch")
def test_a_value_that_was_added_again_is_a_new_one(tmp_path):
    model = model_of()
    callback = SaveFinished(tmp_path, "user", limits={"Ann": 2})
    fit(model, callback)
    keras_flix.remove_values(model, "user", ["Ann"])
    keras_flix.add_values(model, "user", ["Ann"])
    assert fit(model, callback, 1)["Ann"] == 1
    assert not callback.saved
    assert fit(model, callback)["Ann"] == 2
    assert_saved(callback, model, ["Ann"])


@pytest.mark.short("torch")
def test_another_model_begins_anew(tmp_path):
    callback = SaveFinished(tmp_path, "user", limits={"Ann": 2})
    for _ in range(2):
        model = model_of()
        assert fit(model, callback)["Ann"] == 2
        assert_saved(callback, model, ["Ann"])


@pytest.mark.short("torch")
def test_a_file_of_something_else_is_kept(tmp_path):
    model = model_of()
    keras_flix.save_adapters(model, tmp_path / "Ann.flix.safetensors")
    (tmp_path / "bob.flix.safetensors").write_bytes(b"no adapters")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    callback = SaveFinished(tmp_path, "user", limits={"Ann": 1, "bob": 1})
    fit(model, callback)
    assert_saved(callback, model, ["Ann", "bob"])
    assert before == {path: path.read_bytes() for path in before}
    names = [path.name for path in callback.saved.values()]
    assert names == ["Ann-2.flix.safetensors", "bob-2.flix.safetensors"]


@pytest.mark.short("torch")
def test_what_ended_by_its_score_rests_under_another_optimizer(tmp_path):
    model = model_of()
    callback = SaveFinished(tmp_path, "user", monitor=lambda _: {"bob": 1.0})
    fit(model, callback)
    model.compile(keras_flix.LazyAdam(0.05, step_counts="value"), loss="mse")
    assert fit(model, callback) == {"Ann": 3, "ann": 3, "bob": 0, "cat": 0}
    assert_saved(callback, model, ["bob"])


@pytest.mark.short("torch")
@pytest.mark.parametrize("others", [True, False])
def test_two_features_share_a_directory(others, tmp_path):
    features = {"task": ["qa", "parse"], "user": ["qa", "bob"]}
    x = {**data(), "task": ["qa", "parse"] * 3, "user": ["qa", "bob"] * 3}
    # Each finds its own files again, whichever comes first.
    for names in (["task", "user"], ["user", "task"]):
        model = small(features=features, trained=False)
        model.compile(keras_flix.LazyAdam(0.05, step_counts="value"), loss="mse")
        found = {
            name: SaveFinished(tmp_path, name, limits={"qa": 1}, others=others)
            for name in names
        }
        model.fit(x, Y, batch_size=6, epochs=2, verbose=0, callbacks=[*found.values()])
        paths = {name: one.saved["qa"].name for name, one in found.items()}
        assert paths == {
            "task": "qa.flix.safetensors",
            "user": "qa-2.flix.safetensors",
        }
        for name, one in found.items():
            schema = keras_flix.files.read_adapters(one.saved["qa"]).schema
            assert schema[name].values == ("qa",)
            assert len(schema.names) == (2 if others else 1)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.short("torch")
def test_what_it_refuses(tmp_path):
    for options, message in (
        ({"mode": "best"}, "mode"),
        ({"patience": -1}, "patience"),
        ({"every": 0}, "every"),
    ):
        with pytest.raises(ValueError, match=message):
            SaveFinished(tmp_path, "user", **options)
    model = small(features=USERS, trained=False)
    (tmp_path / "file").touch()
    counting = model_of()
    with pytest.raises(FileExistsError):
        counting.fit(data(), Y, callbacks=[SaveFinished(tmp_path / "file", "user")])
    # Before a step, not after an epoch.
    assert not any(keras_flix.step_counts(counting, "user").values())
    typo = SaveFinished(tmp_path, "user", monitor=lambda model: {"An": 1.0})
    with pytest.raises(ValueError, match="Received: user='An'. The nearest"):
        counting.fit(data(), Y, verbose=0, callbacks=[typo])
    with pytest.raises(ValueError, match="step_counts='value'"):
        model.fit(data(), Y, verbose=0, callbacks=[SaveFinished(tmp_path, "user")])
