"""Fixtures of what is exported."""

from __future__ import annotations

import functools

import pytest


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Directories of random models, made once."""
    from helpers.hugging_face import save_base

    @functools.cache
    def base(family, auto, **more):
        directory = tmp_path_factory.mktemp(family)
        save_base(family, directory, auto, **more)
        return directory

    return base
