"""Features, their values as ids, and how they come into a model."""
