"""What a file says of its layers is checked before anything is made of it."""

import keras
import pytest

from keras_flix.files.stand_ins import checked_experts

if keras.config.backend() != "torch":
    reason = "files do not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)


def test_all_layers_may_have_experts_and_no_others():
    assert checked_experts(["a", "b"], {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    for wrong in ({"c": 2}, ["a"]):
        with pytest.raises(ValueError, match="experts must be by layer"):
            checked_experts(["a", "b"], wrong)
    for count in (0, 2.0, True):
        with pytest.raises(ValueError, match="must be positive integers"):
            checked_experts(["a", "b"], {"a": count})
