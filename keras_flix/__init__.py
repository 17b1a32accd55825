"""Featurized Low-rank Mixtures (FLix) for Keras 3."""

from typing import TYPE_CHECKING

from keras_flix._utils.lazy_names import lazy_names
from keras_flix._utils.registered_names import register
from keras_flix.version import __version__ as __version__

if TYPE_CHECKING:
    from keras_flix import (
        analysis as analysis,
        callbacks as callbacks,
        evaluation as evaluation,
        files as files,
        mixtures as mixtures,
        plots as plots,
        serving as serving,
        text_metrics as text_metrics,
        xtreme_up as xtreme_up,
    )
    from keras_flix.exports.gguf_base import export_base as export_base
    from keras_flix.exports.lora import (
        export_lora as export_lora,
        export_loras as export_loras,
    )
    from keras_flix.exports.transformers_model import export_merged as export_merged
    from keras_flix.exports.values import export_values as export_values
    from keras_flix.features.dropout import FeatureDropout as FeatureDropout
    from keras_flix.features.feature import Feature as Feature
    from keras_flix.features.languages import (
        language_distances as language_distances,
        language_weights as language_weights,
    )
    from keras_flix.features.schema import FeatureSchema as FeatureSchema
    from keras_flix.files.hub import push_adapters as push_adapters
    from keras_flix.files.saving import (
        load_adapters as load_adapters,
        save_adapters as save_adapters,
    )
    from keras_flix.files.some_values import save_values as save_values
    from keras_flix.files.update_from import update_from as update_from
    from keras_flix.files.weight_digests import base_fingerprint as base_fingerprint
    from keras_flix.layers.dense import FlixDense as FlixDense
    from keras_flix.layers.einsum_dense import FlixEinsumDense as FlixEinsumDense
    from keras_flix.models.disable import adapters_disabled as adapters_disabled
    from keras_flix.models.enable import enable_flix as enable_flix
    from keras_flix.models.growing.add_remove import (
        add_feature as add_feature,
        add_values as add_values,
        remove_values as remove_values,
        rename_value as rename_value,
    )
    from keras_flix.models.growing.blend import Blend as Blend, fit_blend as fit_blend
    from keras_flix.models.growing.limit_steps import (
        limit_steps as limit_steps,
        step_counts as step_counts,
    )
    from keras_flix.models.growing.set_learning_rates import (
        set_learning_rates as set_learning_rates,
    )
    from keras_flix.models.growing.set_trainable import set_trainable as set_trainable
    from keras_flix.models.merge import merge_features as merge_features
    from keras_flix.models.optimizers import LazyAdam as LazyAdam, LazySGD as LazySGD
    from keras_flix.models.schema_of import schema_of as schema_of
    from keras_flix.models.sharding import add_adapter_rules as add_adapter_rules
    from keras_flix.models.share import share_features as share_features
    from keras_flix.models.summary import flix_summary as flix_summary
    from keras_flix.models.use_features import (
        set_default_features as set_default_features,
        use_features as use_features,
    )

ORIGINS = {
    "Blend": "keras_flix.models.growing.blend",
    "Feature": "keras_flix.features.feature",
    "FeatureDropout": "keras_flix.features.dropout",
    "FeatureSchema": "keras_flix.features.schema",
    "FlixDense": "keras_flix.layers.dense",
    "FlixEinsumDense": "keras_flix.layers.einsum_dense",
    "LazyAdam": "keras_flix.models.optimizers",
    "LazySGD": "keras_flix.models.optimizers",
    "__version__": "keras_flix.version",
    "adapters_disabled": "keras_flix.models.disable",
    "add_adapter_rules": "keras_flix.models.sharding",
    "add_feature": "keras_flix.models.growing.add_remove",
    "add_values": "keras_flix.models.growing.add_remove",
    "analysis": "keras_flix.analysis",
    "base_fingerprint": "keras_flix.files.weight_digests",
    "callbacks": "keras_flix.callbacks",
    "enable_flix": "keras_flix.models.enable",
    "evaluation": "keras_flix.evaluation",
    "export_base": "keras_flix.exports.gguf_base",
    "export_lora": "keras_flix.exports.lora",
    "export_loras": "keras_flix.exports.lora",
    "export_merged": "keras_flix.exports.transformers_model",
    "export_values": "keras_flix.exports.values",
    "files": "keras_flix.files",
    "fit_blend": "keras_flix.models.growing.blend",
    "flix_summary": "keras_flix.models.summary",
    "language_distances": "keras_flix.features.languages",
    "language_weights": "keras_flix.features.languages",
    "limit_steps": "keras_flix.models.growing.limit_steps",
    "load_adapters": "keras_flix.files.saving",
    "merge_features": "keras_flix.models.merge",
    "mixtures": "keras_flix.mixtures",
    "plots": "keras_flix.plots",
    "push_adapters": "keras_flix.files.hub",
    "remove_values": "keras_flix.models.growing.add_remove",
    "rename_value": "keras_flix.models.growing.add_remove",
    "save_adapters": "keras_flix.files.saving",
    "save_values": "keras_flix.files.some_values",
    "schema_of": "keras_flix.models.schema_of",
    "serving": "keras_flix.serving",
    "set_default_features": "keras_flix.models.use_features",
    "set_learning_rates": "keras_flix.models.growing.set_learning_rates",
    "set_trainable": "keras_flix.models.growing.set_trainable",
    "share_features": "keras_flix.models.share",
    "step_counts": "keras_flix.models.growing.limit_steps",
    "text_metrics": "keras_flix.text_metrics",
    "update_from": "keras_flix.files.update_from",
    "use_features": "keras_flix.models.use_features",
    "xtreme_up": "keras_flix.xtreme_up",
}
__all__ = sorted(ORIGINS)
if not TYPE_CHECKING:
    # Type checkers would take any name for one of the package.
    __getattr__, __dir__ = lazy_names(__name__, ORIGINS)

register(
    {
        "keras_flix>AdaptedModel": "keras_flix.models.restore",
        "keras_flix>FlixDense": "keras_flix.layers.dense",
        "keras_flix>FlixEinsumDense": "keras_flix.layers.einsum_dense",
        "keras_flix>LazyAdam": "keras_flix.models.optimizers",
        "keras_flix>LazySGD": "keras_flix.models.optimizers",
    }
)
