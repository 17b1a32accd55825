"""Exported artifacts take feature ids as named inputs and compute what Keras does."""

import importlib.util
import sys
import warnings

import keras
import numpy as np
import pytest
from helpers.exported import (
    assert_bad_ids_are_nan,
    assert_same,
    features,
    gemma,
    load_exported_program,
    load_litert,
    load_onnx,
    load_openvino,
    load_saved_model,
    small_batch,
    small_model,
    text_batch,
)
from helpers.gemma import randomize, to_numpy

import keras_flix
from keras_flix.models.adapted.savedmodel_onnx import (
    _check_onnx_inputs as check_onnx_inputs,
    _warn_of_select_ops as warn_of_select_ops,
    signature_of,
)

BACKEND = keras.config.backend()
NO_SAVED_MODEL = (
    "Keras exports a SavedModel from PyTorch by torch_xla, which lags behind PyTorch; "
    "load the adapter file on JAX or TensorFlow and export there."
)
NO_LITERT = "Adapted models are exported to LiteRT from TensorFlow only."
NO_OPENVINO = "not installed: the extra `openvino`"
NO_JAX2ONNX = (
    "Keras exports ONNX from JAX by the package jax2onnx, which is not installed here, "
    "and which fails on the causal masks of KerasHub."
)
NO_GEMMA_ONNX = (
    "The converters that Keras uses on JAX (jax2onnx) and TensorFlow (tf2onnx) fail on "
    "an adapted KerasHub Gemma; load the adapter file on PyTorch."
)


@pytest.mark.support("State", "`export` to a SavedModel")
@pytest.mark.parametrize(
    "multiple",
    [
        False,
        pytest.param(
            True, marks=[pytest.mark.slow, pytest.mark.short("tensorflow", "torch")]
        ),
    ],
)
def test_saved_model(tmp_path, multiple):
    if BACKEND == "torch":
        pytest.skip(NO_SAVED_MODEL)
    model = small_model(multiple)
    model.export(tmp_path / "model", verbose=False)
    run = load_saved_model(tmp_path / "model")
    assert_same(run, model, [small_batch(n, multiple) for n in (5, 1, 3)])
    assert_bad_ids_are_nan(run, small_batch(5, multiple))


@pytest.mark.short("tensorflow", "torch")
@pytest.mark.slow
@pytest.mark.support("State", "`export` of Gemma to a SavedModel")
def test_saved_model_of_gemma(tmp_path):
    if BACKEND == "torch":
        pytest.skip(NO_SAVED_MODEL)
    model = gemma()
    signature = None
    lengths = (7, 4, 9)
    if BACKEND == "jax":
        spec = keras.InputSpec(shape=(None, 7), dtype="int32")
        signature = {"token_ids": spec, "padding_mask": spec}
        lengths = (7, 7, 7)
    model.export(tmp_path / "model", verbose=False, input_signature=signature)
    run = load_saved_model(tmp_path / "model")
    assert_same(run, model, map(text_batch, (5, 1, 3), lengths))


@pytest.mark.support("State", "`export` to ONNX")
@pytest.mark.slow
@pytest.mark.parametrize("multiple", [False, True])
def test_onnx(tmp_path, multiple, capsys):
    if BACKEND == "jax" and importlib.util.find_spec("jax2onnx") is None:
        pytest.skip(NO_JAX2ONNX)
    model = small_model(multiple)
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    if BACKEND == "torch":
        assert capsys.readouterr().out == ""
    run = load_onnx(tmp_path / "model.onnx")
    assert_same(run, model, [small_batch(n, multiple) for n in (5, 1, 3)])
    assert_bad_ids_are_nan(run, small_batch(5, multiple))


@pytest.mark.slow
@pytest.mark.support("State", "`export` with features of integer values")
def test_integers_are_values_in_an_artifact(tmp_path):
    x = keras.Input((6,), name="x")
    model = keras.Model({"x": x}, keras.layers.Dense(5, name="hidden")(x))
    features = [
        keras_flix.Feature("level", [30, 1, 20]),
        keras_flix.Feature("several", [7, 5], multiple=True),
    ]
    keras_flix.enable_flix(model, features, rank=2, targets=["hidden"], seed=0)
    randomize(model)
    batch = {
        "x": np.random.default_rng(0).normal(size=(4, 6)).astype("float32"),
        "level": np.array([1, 30, -1, 20], "int32"),
        "several": np.array([[5, 7], [-1, 5], [-1, -1], [7, -1]], "int32"),
    }
    if BACKEND == "torch":
        model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
        run = load_onnx(tmp_path / "model.onnx")
    else:
        model.export(tmp_path / "model", verbose=False)
        run = load_saved_model(tmp_path / "model")
    found = to_numpy(run(batch))
    np.testing.assert_allclose(found, to_numpy(model(batch)), atol=2e-5, rtol=1e-4)
    for i in range(4):
        combination = {k: batch[k][i].tolist() for k in ("level", "several")}
        alone = keras_flix.merge_features(model, combination)
        expected = to_numpy(alone(batch["x"][i : i + 1]))
        np.testing.assert_allclose(found[i : i + 1], expected, atol=2e-5, rtol=1e-4)
    # A place in the list of values, or any other number, is none: never another's.
    for level in (0, 2, 25):
        odd = to_numpy(run({**batch, "level": np.array([1, level, -1, 20], "int32")}))
        assert np.isnan(odd[1]).all()
        np.testing.assert_array_equal(odd[[0, 2, 3]], found[[0, 2, 3]])


@pytest.fixture(scope="module")
def onnx_of_gemma(tmp_path_factory):
    """The model and its file, which takes half a minute to write."""
    path = tmp_path_factory.mktemp("gemma") / "model.onnx"
    model = gemma()
    model.export(path, format="onnx", verbose=False)
    return model, path


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.support("State", "`export` of Gemma to ONNX")
def test_onnx_of_gemma(request):
    if BACKEND != "torch":
        pytest.skip(NO_GEMMA_ONNX)
    model, path = request.getfixturevalue("onnx_of_gemma")
    run = load_onnx(path)
    assert_same(run, model, map(text_batch, (5, 1, 3), (7, 4, 9)))
    assert_bad_ids_are_nan(run, text_batch(5, 7))


@pytest.mark.slow
@pytest.mark.short()
def test_openvino_runs_the_onnx_file_of_gemma(request):
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    if BACKEND != "torch":
        pytest.skip(NO_GEMMA_ONNX)
    model, path = request.getfixturevalue("onnx_of_gemma")
    run = load_openvino(path)
    assert_same(run, model, map(text_batch, (5, 1, 3), (7, 4, 9)))
    assert_bad_ids_are_nan(run, text_batch(5, 7))


@pytest.mark.slow
@pytest.mark.short("torch")
def test_openvino_runs_the_onnx_file_of_several_values(tmp_path):
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    if BACKEND == "jax" and importlib.util.find_spec("jax2onnx") is None:
        pytest.skip(NO_JAX2ONNX)
    model = small_model(multiple=True)
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    run = load_openvino(tmp_path / "model.onnx")
    assert_same(run, model, [small_batch(n, multiple=True) for n in (5, 1, 3)])
    assert_bad_ids_are_nan(run, small_batch(5, multiple=True))


@pytest.mark.short("torch")
def test_onnx_needs_its_packages(monkeypatch, tmp_path):
    if BACKEND != "torch":
        pytest.skip("Keras' own export says so on the other backends.")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-flix\[onnx\]'"):
        small_model().export(tmp_path / "model.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.support("State", "`export` to PyTorch's `.pt2`")
def test_exported_program(tmp_path):
    if BACKEND != "torch":
        pytest.skip("Keras exports a `.pt2` file from the PyTorch backend only.")
    model = small_model()
    model.export(tmp_path / "model.pt2", format="torch", verbose=False)
    run = load_exported_program(tmp_path / "model.pt2")
    assert_same(run, model, [small_batch(n) for n in (5, 1, 3)])
    assert_bad_ids_are_nan(run, small_batch(5))


@pytest.mark.support("State", "`export` to LiteRT")
def test_litert(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip(NO_LITERT)
    model = small_model()
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    run = load_litert(tmp_path / "model.tflite")
    assert_same(run, model, [small_batch(n) for n in (5, 1, 3)])
    assert_bad_ids_are_nan(run, small_batch(5))


@pytest.mark.slow
@pytest.mark.support("State", "`export` of Gemma to LiteRT")
def test_litert_of_gemma(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip(NO_LITERT)
    model = gemma()
    spec = keras.InputSpec(shape=(None, 7), dtype="int32")
    signature = {"token_ids": spec, "padding_mask": spec}
    path = tmp_path / "model.tflite"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This LiteRT file needs")
        model.export(path, "litert", verbose=False, input_signature=signature)
    run = load_litert(path)
    assert_same(run, model, map(text_batch, (5, 1, 3), (7, 7, 7)))
    assert_bad_ids_are_nan(run, text_batch(5, 7))


def test_ops_that_litert_lacks_are_named(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip(NO_LITERT)
    import tensorflow as tf

    x = tf.TensorSpec((2, 2), "float32")
    path = tmp_path / "program.tflite"
    for function, lacks in ((tf.linalg.det, True), (tf.math.exp, False)):
        # TensorFlow's own model of a function.
        module = tf.Module()
        module.call = tf.function(function, input_signature=[x])
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.call.get_concrete_function()], module
        )
        ops = tf.lite.OpsSet
        converter.target_spec.supported_ops = [ops.TFLITE_BUILTINS, ops.SELECT_TF_OPS]
        path.write_bytes(converter.convert())
        if lacks:
            with pytest.warns(
                UserWarning, match="ops .'FlexMatrixDeterminant'., which LiteRT"
            ):
                warn_of_select_ops(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warn_of_select_ops(path)


@pytest.mark.support("State", "`export` to other formats", "refused")
def test_other_formats_are_refused(tmp_path):
    refused = {"torch": "tf_saved_model", "jax": "litert", "tensorflow": "torch"}
    for format in ("openvino", refused[BACKEND]):
        with pytest.raises(ValueError, match=f"Received: format='{format}'. Choose"):
            small_model().export(tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.short("torch")
@pytest.mark.slow
def test_onnx_that_would_want_more_inputs_is_refused(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("Only tf2onnx makes inputs of constants.")
    with pytest.raises(ValueError, match="took constants of this model for inputs"):
        gemma().export(tmp_path / "model.onnx", format="onnx", verbose=False)
    assert not list(tmp_path.iterdir())


def test_a_task_is_exported_like_its_backbone(tmp_path, make_gemma):
    """Its signature: running it is the backbone's test."""
    model = keras_flix.enable_flix(make_gemma(), features(multiple=True), rank=2)
    specs = signature_of(model, None)
    assert {name: (spec.shape, spec.dtype) for name, spec in specs.items()} == {
        "token_ids": ((None, None), "int32"),
        "padding_mask": ((None, None), "int32"),
        "task": ((None,), "int32"),
        "language": ((None, None), "int32"),
    }


def test_a_signature_may_be_alone_in_a_list():
    model = small_model()
    spec = keras.InputSpec(shape=(8, 6), dtype="float32")
    for given in ({"x": spec}, [{"x": spec}], ({"x": spec},)):
        found = signature_of(model, given)
        assert {name: one.shape for name, one in found.items()} == {
            "x": (None, 6),
            "task": (None,),
            "language": (None,),
        }
    with pytest.raises(ValueError, match="`input_signature` must be a dict"):
        signature_of(model, [{"x": spec}, {"x": spec}])


def test_unknown_lengths_are_refused_on_jax(tmp_path):
    if BACKEND != "jax":
        pytest.skip("Other backends export any length.")
    with pytest.raises(ValueError, match="must know all lengths but that of the batch"):
        gemma().export(tmp_path / "model", verbose=False)


def test_subclassed_models_must_be_given_a_signature(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(5, name="hidden")

        def call(self, inputs):
            return self.hidden(inputs["x"])

    model = Own()
    model({"x": np.ones((2, 6), "float32")})
    keras_flix.enable_flix(model, features(), targets="all-linear", rank=2)
    randomize(model)
    with pytest.raises(ValueError, match="does not tell its inputs"):
        model.export(tmp_path / "model.onnx", format="onnx")
    if BACKEND == "torch":
        pytest.skip(NO_SAVED_MODEL)
    signature = {"x": keras.InputSpec(shape=(None, 6), dtype="float32")}
    model.export(tmp_path / "model", verbose=False, input_signature=signature)
    run = load_saved_model(tmp_path / "model")
    assert_same(run, model, [small_batch(n) for n in (5, 1)])


def test_an_onnx_file_with_other_inputs_is_removed(tmp_path):
    onnx = pytest.importorskip("onnx", reason="extra `test`")
    number = onnx.TensorProto.FLOAT
    x, y, found = (
        onnx.helper.make_tensor_value_info(name, number, [2])
        for name in ("x", "y", "z")
    )
    add = onnx.helper.make_node("Add", ["x", "y"], ["z"])
    graph = onnx.helper.make_graph([add], "sum", [x, y], [found])
    path = tmp_path / "sum.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    check_onnx_inputs(path, {"y": None, "x": None})
    assert path.exists()
    with pytest.raises(ValueError) as error:
        check_onnx_inputs(path, {"x": None})
    assert str(error.value).startswith(
        "The ONNX file must have the inputs ['x']. Received: ['x', 'y'] from the "
        "converter,"
    )
    assert not path.exists()
