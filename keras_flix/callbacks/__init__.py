"""Keras callbacks: scores by feature value while `fit` runs, TensorBoard, backups."""

from keras_flix.callbacks.backup import BackupAndRestore
from keras_flix.callbacks.feature_scores import FeatureScores
from keras_flix.callbacks.tensorboard import FeatureTensorBoard

__all__ = ["BackupAndRestore", "FeatureScores", "FeatureTensorBoard"]
