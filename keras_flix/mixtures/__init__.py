"""Mixtures: datasets with features, and what is drawn from them."""

from typing import TYPE_CHECKING

from keras_flix._utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from keras_flix.mixtures.dataset import Dataset as Dataset
    from keras_flix.mixtures.mixture import Mixture as Mixture

ORIGINS = {
    "Dataset": "keras_flix.mixtures.dataset",
    "Mixture": "keras_flix.mixtures.mixture",
}
__all__ = sorted(ORIGINS)
if not TYPE_CHECKING:
    # Type checkers would take any name for one of the package.
    __getattr__, __dir__ = lazy_names(__name__, ORIGINS)
