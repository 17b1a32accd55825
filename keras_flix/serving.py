"""Features as requests to servers: indices of adapters, under their public name."""

from keras_flix.exports.adapter_index import AdapterIndex, read_index

__all__ = ["AdapterIndex", "read_index"]
