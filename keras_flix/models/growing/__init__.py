"""Trained models that change: values and features that come and go, and what trains."""
