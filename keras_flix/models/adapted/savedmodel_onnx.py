"""`model.export` of an adapted model: feature ids are inputs of the artifact."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import keras

from keras_flix import _compat
from keras_flix._utils.optional_packages import needed

FORMATS = {
    "tensorflow": ("tf_saved_model", "onnx", "litert"),
    "jax": ("tf_saved_model", "onnx"),
    "torch": ("onnx", "torch"),
}
"""What an adapted model can be exported to, by backend."""

Specs = dict[str, keras.InputSpec]


class Exporting(_compat.Mixin):
    """The part of an adapted model that is exported for inference."""

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Keras' own `export`; every feature is an input of the artifact.

        Args:
            filepath: Where to save the artifact.
            format: `"tf_saved_model"` (TensorFlow and JAX), `"onnx"`,
                `"litert"` (TensorFlow) or `"torch"` (PyTorch).
            verbose: As for Keras' `export`.
            input_signature: A dict of `keras.InputSpec` by input. Defaults to
                the model's own inputs, with their unknown lengths. Features
                that it leaves out are added: int32 ids of shape `(batch,)`, or
                `(batch, k)` for a `multiple` one; -1 is absent, and any id
                that stands for no value gives its example NaN. Of a feature of
                integer values, the artifact takes the values.
            **kwargs: As for Keras' `export`.

        Raises:
            ImportError: If a package is missing that the format needs, such as
                those of the extra `onnx`.
            ValueError: If the backend cannot export to the format, or needs
                lengths that are not known.

        Warns:
            UserWarning: If a LiteRT file needs ops that LiteRT itself lacks, as
                those of KerasHub's text models do without known lengths.
        """
        backend = keras.config.backend()
        if format not in FORMATS[backend]:
            raise ValueError(
                f"On the {backend} backend, an adapted model can be exported to "
                f"{list(FORMATS[backend])}. Received: format={format!r}. Choose one "
                "of these, load the adapter file of `save_adapters` on another "
                "backend, or use `merge_features(model, ...).export(...)`."
            )
        specs = signature_of(self, input_signature)
        if backend == "jax" and "jax2tf_kwargs" not in kwargs:
            _check_lengths(specs, self._adaptation.schema.names)
        if backend == "torch" and format == "onnx":
            return _export_onnx_from_torch(self, filepath, specs, verbose, kwargs)
        if backend == "torch":
            kwargs.setdefault("dynamic_shapes", [({**_dynamic_axes(specs)},)])
        exported = super().export(
            os.fspath(filepath), format, verbose, input_signature=[specs], **kwargs
        )
        if format == "onnx":
            _check_onnx_inputs(filepath, specs)
        if format == "litert":
            _warn_of_select_ops(filepath)
        return exported

    @property
    def _default_save_signature(self) -> Any:
        # TensorFlow traces it with every model in a SavedModel; Keras' own would
        # leave the features out.
        if keras.config.backend() != "tensorflow":
            return None
        import tensorflow as tf

        specs = {
            name: tf.TensorSpec(spec.shape, spec.dtype, name)
            for name, spec in signature_of(self, None).items()
        }
        return tf.function(lambda inputs: self(inputs), input_signature=[specs])


def signature_of(model: Any, given: Any) -> Specs:
    """The named inputs of an artifact: the model's own ones and its features."""
    if isinstance(given, (list, tuple)) and len(given) == 1:
        given = given[0]
    if given is None:
        if _compat.is_functional(model):
            given = model.input
        elif isinstance(model, keras.Sequential):
            given = model.inputs[0]
        else:
            raise ValueError(
                "A subclassed model does not tell its inputs. Received: a "
                f"{type(model).__name__}. Pass `input_signature={{...}}`, a dict of "
                "`keras.InputSpec` by input."
            )
    if isinstance(given, (list, tuple)):
        raise ValueError(
            "`input_signature` must be a dict of `keras.InputSpec` by input. "
            f"Received: input_signature={given!r}. Name the inputs."
        )
    if not isinstance(given, Mapping):
        given = {getattr(given, "name", None) or "inputs": given}
    specs = {
        name: keras.InputSpec(
            shape=(None, *spec.shape[1:]),
            dtype=keras.backend.standardize_dtype(spec.dtype),
            name=name,
        )
        for name, spec in given.items()
    }
    for feature in model._adaptation.schema.routed:
        if feature.ids_key in specs:
            continue
        specs.setdefault(
            feature.name,
            keras.InputSpec(
                shape=(None, None) if feature.multiple else (None,),
                dtype="int32",
                name=feature.name,
            ),
        )
    return specs


def _check_lengths(specs: Specs, features: list[str]) -> None:
    unknown = [
        name
        for name, spec in specs.items()
        if name not in features and None in spec.shape[1:]
    ]
    if len(unknown) > 1:
        raise ValueError(
            "An export from JAX must know all lengths but that of the batch, since "
            "Keras takes unknown ones to differ between inputs. Received: inputs "
            f"{unknown} of unknown length. Pass `input_signature={{...}}` with "
            f"such as {unknown[0]}=keras.InputSpec(shape=(None, 128), dtype='int32')."
        )


def _dynamic_axes(specs: Specs) -> dict[str, dict[int, Any]]:
    """Which axes have any length, as `torch.export` takes them."""
    import torch

    # Unlike AUTO, it raises where an axis would get the length of the example.
    any_length = torch.export.Dim.DYNAMIC
    return {
        name: {axis: any_length for axis, size in enumerate(spec.shape) if size is None}
        for name, spec in specs.items()
    }


def _export_onnx_from_torch(
    model: Any, filepath: Any, specs: Specs, verbose: bool | None, kwargs: Any
) -> None:
    """Keras' own goes by TorchScript here, which freezes lengths and lacks ops."""
    import torch

    needed("onnxscript", "An export to ONNX", "onnx")

    class Flat(torch.nn.Module):
        """The model with its inputs one by one, in order."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return self.model(dict(zip(specs, values)), training=False)

    program: Any = torch.onnx.export(
        Flat().eval(),
        tuple(_example(spec) for spec in specs.values()),
        dynamo=True,
        input_names=list(specs),
        dynamic_shapes=(tuple(_dynamic_axes(specs).values()),),
        verbose=bool(verbose),
        **kwargs,
    )
    program.save(os.fspath(filepath))


def _check_onnx_inputs(filepath: Any, specs: Specs) -> None:
    """`tf2onnx` makes inputs of constants that the graph of a model holds."""
    import onnx

    graph = onnx.load(os.fspath(filepath), load_external_data=False).graph
    names = [value.name for value in graph.input]
    if set(names) != set(specs):
        os.remove(filepath)
        raise ValueError(
            f"The ONNX file must have the inputs {list(specs)}. Received: {names} "
            "from the converter, which took constants of this model for inputs. "
            "Export to 'tf_saved_model', or to ONNX on the torch backend."
        )


def _warn_of_select_ops(filepath: Any) -> None:
    """Converted with them, a file runs only where they were built in."""
    from tensorflow.lite.python import schema_py_generated as schema

    with open(filepath, "rb") as file:
        program = schema.Model.GetRootAsModel(bytearray(file.read()), 0)
    codes = (program.OperatorCodes(i) for i in range(program.OperatorCodesLength()))
    names = [(code.CustomCode() or b"").decode() for code in codes]
    select = sorted(name for name in names if name.startswith("Flex"))
    if select:
        warnings.warn(
            f"This LiteRT file needs TensorFlow's own ops {select}, which LiteRT has "
            "only where it was built with 'Select TensorFlow ops'. KerasHub's text "
            "models need none once their lengths are known: pass `input_signature="
            "{...}` with such as token_ids=keras.InputSpec(shape=(None, 128), "
            "dtype='int32').",
            stacklevel=3,
        )


def _example(spec: keras.InputSpec) -> Any:
    """Some input. Lengths of 1 would be taken as fixed, equal ones as one."""
    shape = [
        (3, 5, 7, 11)[axis] if s is None else s for axis, s in enumerate(spec.shape)
    ]
    return keras.ops.zeros(shape, spec.dtype)
