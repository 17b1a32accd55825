"""Small helpers that know nothing of Keras or of features."""
