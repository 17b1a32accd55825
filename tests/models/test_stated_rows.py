"""Families of KerasHub of which it is known how rows belong to examples, and others."""

import keras
import pytest
from helpers.gemma import make_backbone

from keras_flix.layers.row_orders import KERAS_HUB
from keras_flix.models.stated_rows import orders_of_family

if keras.config.backend() != "torch":
    reason = "names do not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)


def test_families_whose_rows_are_not_known_are_asked():
    backbone = make_backbone()
    assert orders_of_family(backbone, []) == KERAS_HUB
    own = type(backbone)
    for name in ("FluxBackbone", "SAM3PromptableConceptBackbone"):
        backbone.__class__ = type(name, (own,), {"__module__": own.__module__})
        assert orders_of_family(backbone, []) is None
