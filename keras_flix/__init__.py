"""Featurized Low-rank Mixtures (FLix) for Keras 3."""

from keras_flix import analysis, callbacks, evaluation, mixtures, plots
from keras_flix.exports.lora import export_lora, export_loras
from keras_flix.exports.transformers_model import export_merged
from keras_flix.features.dropout import FeatureDropout
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.fingerprint import base_fingerprint
from keras_flix.files.hub import push_adapters
from keras_flix.files.saving import load_adapters, save_adapters
from keras_flix.files.update_from import update_from
from keras_flix.layers import FlixDense, FlixEinsumDense
from keras_flix.models.disable import adapters_disabled
from keras_flix.models.enable import enable_flix
from keras_flix.models.growing.add_remove import (
    add_feature,
    add_values,
    remove_values,
    rename_value,
)
from keras_flix.models.growing.blend import Blend, fit_blend
from keras_flix.models.growing.set_trainable import set_trainable
from keras_flix.models.merge import merge_features
from keras_flix.models.optimizers import LazyAdam, LazySGD
from keras_flix.models.restore import AdaptedModel as _AdaptedModel  # noqa: F401
from keras_flix.models.sharding import add_adapter_rules
from keras_flix.models.summary import flix_summary
from keras_flix.version import __version__

__all__ = [
    "Blend",
    "Feature",
    "FeatureDropout",
    "FeatureSchema",
    "FlixDense",
    "FlixEinsumDense",
    "LazyAdam",
    "LazySGD",
    "__version__",
    "adapters_disabled",
    "add_adapter_rules",
    "add_feature",
    "add_values",
    "analysis",
    "base_fingerprint",
    "callbacks",
    "enable_flix",
    "evaluation",
    "export_lora",
    "export_loras",
    "export_merged",
    "fit_blend",
    "flix_summary",
    "load_adapters",
    "merge_features",
    "mixtures",
    "plots",
    "push_adapters",
    "remove_values",
    "rename_value",
    "save_adapters",
    "set_trainable",
    "update_from",
]
