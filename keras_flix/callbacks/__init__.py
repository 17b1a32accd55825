"""Keras callbacks: scores by feature value, TensorBoard, backups, values that end."""

from keras_flix.callbacks.backup import BackupAndRestore
from keras_flix.callbacks.feature_scores import FeatureScores
from keras_flix.callbacks.save_finished import SaveFinished
from keras_flix.callbacks.tensorboard import FeatureTensorBoard

__all__ = ["BackupAndRestore", "FeatureScores", "FeatureTensorBoard", "SaveFinished"]
