"""A refused adapter file says why and leaves the model exactly as it was."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from helpers.gemma import FEATURES, randomize
from helpers.models import make_mlp, rows, state
from keras import ops

import keras_flix
from keras_flix import Feature
from keras_flix.command_line.main import main
from keras_flix.files import adapter_file
from keras_flix.files.adapter_file import read_adapters

INPUTS = {**rows(), "task": "qa", "language": ["sw", None, "en"]}


def adapted(features=FEATURES, rank=2, **options):
    options = {"targets": "all-linear", **options}
    return keras_flix.enable_flix(make_mlp(), features, rank=rank, **options)


def saved(tmp_path, *args, **options):
    path = tmp_path / "saved.flix.safetensors"
    keras_flix.save_adapters(randomize(adapted(*args, **options)), path)
    return path


def check_refusal(model, inputs, path, text):
    before = state(model, inputs)
    with pytest.raises(ValueError) as error:
        keras_flix.load_adapters(model, path)
    assert str(error.value) == text
    assert state(model, inputs) == before


def check_plain_and_adapted(path, tmp_path, text):
    plain, own = make_mlp(), randomize(adapted(), seed=1)
    check_refusal(plain, rows(), path, text)
    check_refusal(own, INPUTS, path, text)
    # Neither is spoilt: a good file loads.
    good = tmp_path / "good.flix.safetensors"
    keras_flix.save_adapters(randomize(adapted(), seed=2), good)
    for model in (plain, own):
        keras_flix.load_adapters(model, good)
    np.testing.assert_array_equal(
        *(ops.convert_to_numpy(m(INPUTS)) for m in (plain, own))
    )


UNREADABLE = (
    "An adapter file must have been written by `save_adapters` and be whole. Received: "
    "path='{path}', which cannot be read ({error}). Save it again."
)


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.flix.safetensors"
    text = (
        f"`path` must be an existing file. Received: path='{path}', which is none. "
        "Check the path."
    )
    check_plain_and_adapted(path, tmp_path, text)
    for read in (
        lambda: keras_flix.load_adapters(make_mlp(), path),
        lambda: keras_flix.update_from(adapted(), path),
        lambda: keras_flix.files.read_adapters(path),
        lambda: keras_flix.save_adapters(adapted(), path / path.name),
        lambda: main(["inspect", str(path), "--traceback"]),
        lambda: main(["diff", str(path), str(path), "--traceback"]),
        lambda: keras_flix.xtreme_up.load_xtreme_up(path, "train"),
    ):
        with pytest.raises(FileNotFoundError):
            read()
    path.mkdir()
    check_plain_and_adapted(path, tmp_path, text)
    with pytest.raises(ValueError) as error:
        keras_flix.load_adapters(make_mlp(), path)
    assert not isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapters.flix", "adapters"])
def test_a_wrong_suffix(tmp_path, name):
    path = saved(tmp_path).rename(tmp_path / name)
    text = (
        "An adapter file's name must end in '.flix.safetensors'. Received: "
        f"path='{path}'. Rename it, such as 'adapters.flix.safetensors'."
    )
    check_plain_and_adapted(path, tmp_path, text)
    with pytest.raises(ValueError) as error:
        keras_flix.save_adapters(adapted(), path)
    assert str(error.value) == text


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file(tmp_path, kept):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(safetensors.SafetensorError) as error:
        safetensors.safe_open(path, framework="numpy")
    reason = f"SafetensorError: {error.value}"
    check_plain_and_adapted(path, tmp_path, UNREADABLE.format(path=path, error=reason))


class Trap:
    """Unpickling this would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("A file ran code.",))


def test_a_pickle_with_another_name(tmp_path):
    path = tmp_path / "trap.flix.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(safetensors.SafetensorError) as error:
        safetensors.safe_open(path, framework="numpy")
    reason = f"SafetensorError: {error.value}"
    check_plain_and_adapted(path, tmp_path, UNREADABLE.format(path=path, error=reason))


def rewritten(path, change):
    """The file with its header changed by `change(header, tensors)`."""
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["keras_flix"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    # As files of earlier versions: it would tell at once that something changed.
    del header["digest"]
    header = change(header, tensors) or header
    safetensors.numpy.save_file(tensors, path, {"keras_flix": json.dumps(header)})
    return path


def without(key):
    return lambda header, tensors: {k: v for k, v in header.items() if k != key}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without("version"), "KeyError: 'version'"),
        (without("schema"), "KeyError: 'schema'"),
        (without("layers"), "KeyError: 'layers'"),
        (without("alpha"), "KeyError: 'alpha'"),
        (lambda header, tensors: {**header, "schema": {}}, "KeyError: 'features'"),
        (
            lambda header, tensors: {**header, "layers": 3},
            "TypeError: 'int' object is not iterable",
        ),
        (
            lambda header, tensors: {**header, "layers": header["layers"] * 2},
            "ValueError: The layers must be a list of different names.",
        ),
        (
            lambda header, tensors: {**header, "layers": "one"},
            "ValueError: The layers must be a list of different names.",
        ),
        (
            lambda header, tensors: [1],
            "TypeError: list indices must be integers or slices, not str",
        ),
    ],
)
def test_a_header_of_another_form(tmp_path, change, error):
    path = rewritten(saved(tmp_path), change)
    check_plain_and_adapted(path, tmp_path, UNREADABLE.format(path=path, error=error))


def test_a_header_that_would_not_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_file, "MAX_HEADER", 100)
    with pytest.raises(ValueError, match="in an adapter file may take 100 bytes"):
        saved(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["rows", "rank", "missing", "besides"])
def test_tables_that_do_not_fit_their_schema_replace_no_file(tmp_path, change):
    path = saved(tmp_path)
    before, adapters = path.read_bytes(), adapter_file.read_adapters(path)
    name = "hidden/flix_language_b"
    tables = dict(adapters.tables)
    if change == "missing":
        del tables[name]
    elif change == "besides":
        tables["hidden/flix_dialect_a"] = tables[name]
    else:
        tables[name] = tables[name][1:] if change == "rows" else tables[name][:, 1:]
    found = {"rows": (2, 2, 6), "rank": (3, 1, 6), "missing": "no table"}
    text = {"besides": "Received: 'hidden/flix_dialect_a' besides in"}.get(change) or (
        f"At {name!r}, expected: 3 values and rank 2. Received: {found[change]} in"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        adapter_file.write_adapters(dataclasses.replace(adapters, tables=tables), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_of_something_else(tmp_path):
    path = tmp_path / "other.flix.safetensors"
    safetensors.numpy.save_file({"weight": np.ones(3, "float32")}, path)
    text = UNREADABLE.format(path=path, error="KeyError: 'keras_flix'")
    check_plain_and_adapted(path, tmp_path, text)


def test_a_file_of_a_later_version(tmp_path):
    def change(header, tensors):
        return {**header, "version": 5, "schema": "of another form"}

    path = rewritten(saved(tmp_path), change)
    text = (
        "An adapter file must have one of the format versions (1, 2, 3, 4). Received: "
        f"version 5 in '{path}'. Update keras_flix."
    )
    check_plain_and_adapted(path, tmp_path, text)


def test_tables_of_another_dtype(tmp_path):
    name = "hidden/flix_task_a"

    def change(header, tensors):
        tensors[name] = tensors[name].astype("float16")

    path = rewritten(saved(tmp_path), change)
    error = (
        "ValueError: Weights must be F32. Received: F16 of shape (3, 8, 2) at "
        f"'{name}'."
    )
    check_plain_and_adapted(path, tmp_path, UNREADABLE.format(path=path, error=error))


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[:2],
        lambda table: table[..., :1],
        lambda table: table[0],
        lambda table: table.astype("float64"),
    ],
    ids=["values", "rank", "axes", "dtype"],
)
def test_adapter_weights_of_another_form(tmp_path, change):
    adapters, name = read_adapters(saved(tmp_path)), "hidden/flix_task_a"
    changed = {**adapters.tables, name: change(adapters.tables[name])}
    with pytest.raises(ValueError, match="must be float32, of shape .values, d_in,"):
        dataclasses.replace(adapters, tables=changed).pair("hidden", "task")


TASK = "feature 'task' with 3 values ('qa', 'parse', 'list')"


@pytest.mark.parametrize(
    ("features", "options", "expected", "received"),
    [
        (
            {**FEATURES, "language": ["en", "yo", "sw"]},
            {},
            "feature 'language' with 3 values ('en', 'sw', 'yo') of rank 2",
            "feature 'language' with 3 values ('en', 'yo', 'sw') of rank 2",
        ),
        (
            {"task": FEATURES["task"]},
            {},
            "feature 'language' with 3 values ('en', 'sw', 'yo') of rank 2",
            "no more feature",
        ),
        (
            FEATURES,
            {"rank": {"task": 3, "language": 2}},
            f"{TASK} of rank 2",
            f"{TASK} of rank 3",
        ),
        (
            [Feature("task", FEATURES["task"], rank={"qa": 1, "*": 2})],
            {},
            f"{TASK} of rank 2",
            f"{TASK} of the ranks (1, 2, 2)",
        ),
        (
            [Feature("task", FEATURES["task"], multiple=True)],
            {},
            f"{TASK} of rank 2",
            f"{TASK} of rank 2, multiple=True",
        ),
    ],
)
def test_other_features_or_ranks(tmp_path, features, options, expected, received):
    path = saved(tmp_path, features, **options)
    text = (
        "The features of an adapter file must be those of the model, in order, with "
        f"their values and ranks. Expected: {expected}. Received: "
        f"{received} in '{path}'. Load it into a plain model, or adapt the model with "
        "these features."
    )
    check_refusal(randomize(adapted(), seed=1), INPUTS, path, text)
    keras_flix.load_adapters(make_mlp(), path)


def test_another_alpha(tmp_path):
    path = saved(tmp_path, alpha=8)
    text = (
        "The scale of feature 'task' in an adapter file must be that of the model. "
        f"Expected: alpha=None. Received: alpha=8.0 in '{path}'. Load it into a plain "
        "model, or adapt the model with this scale."
    )
    check_refusal(randomize(adapted(), seed=1), INPUTS, path, text)
    model = keras_flix.load_adapters(make_mlp(), path)
    assert {f.alpha for f in model.get_layer("head").features} == {8.0}


def test_another_alpha_of_a_feature(tmp_path):
    features = [Feature(name, values, alpha=8) for name, values in FEATURES.items()]
    path = saved(tmp_path, features)
    model = randomize(adapted(), seed=1)
    with pytest.raises(ValueError, match="Received: alpha=8.0"):
        keras_flix.load_adapters(model, path)
    loaded = keras_flix.load_adapters(make_mlp(), path)
    assert [f.alpha for f in loaded.get_layer("head").features] == [8.0, 8.0]


def test_other_layers(tmp_path):
    path = saved(tmp_path, targets=["hidden"])
    text = (
        "The adapter weights of a file must fit those of the model. At "
        "'head/flix_language_a', expected: shape (3, 6, 2). Received: none in "
        f"'{path}'. Use the base model and the targets it was trained with."
    )
    check_refusal(randomize(adapted(), seed=1), INPUTS, path, text)


def test_layers_that_a_plain_model_lacks(tmp_path):
    def rename(header, tensors):
        for name in list(tensors):
            tensors[name.replace("head", "top")] = tensors.pop(name)
        return {**header, "layers": ["hidden", "top"]}

    path = rewritten(saved(tmp_path), rename)
    text = (
        f"The layers of an adapter file must be in the model. Received: layer 'top' "
        f"in '{path}'; the model's layers look like ['hidden', 'head']. Use the base "
        "model it was trained with. Keras counts up the names of layers that have none "
        "of their own, such as 'dense_1': give them some."
    )
    check_refusal(make_mlp(), rows(), path, text)


def test_other_shapes(tmp_path):
    def cut(header, tensors):
        tensors["hidden/flix_task_b"] = tensors["hidden/flix_task_b"][:, :, :5].copy()

    path = rewritten(saved(tmp_path), cut)
    text = (
        "The adapter weights of a file must fit those of the model. At "
        "'hidden/flix_task_b', expected: shape (3, 2, 6). Received: (3, 2, 5) in "
        f"'{path}'. Use the base model and the targets it was trained with."
    )
    check_plain_and_adapted(path, tmp_path, text)


def test_a_file_with_fewer_values_names_the_way_to_take_them(tmp_path):
    path = saved(tmp_path, {**FEATURES, "task": ["qa", "list"]})
    model = randomize(adapted(), seed=1)
    text = (
        "The features of an adapter file must be those of the model, in order, with "
        f"their values and ranks. Expected: {TASK} of rank 2. Received: feature 'task' "
        f"with 2 values ('qa', 'list') of rank 2 in '{path}'. Load it into a plain "
        "model, or adapt the model with these features; or take its values over, by "
        f"`update_from(model, '{path}', {{'task': ['qa', 'list']}})`."
    )
    check_refusal(model, INPUTS, path, text)
    keras_flix.update_from(model, path, {"task": ["qa", "list"]})
