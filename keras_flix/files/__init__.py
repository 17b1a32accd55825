"""Adapters outside of a model: files, the base they belong to, hubs."""
