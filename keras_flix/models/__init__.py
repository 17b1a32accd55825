"""Models with adapters: how a model becomes one, and what can be done with it."""
