"""Trained models that change: values and axes that come and go, and what trains."""
