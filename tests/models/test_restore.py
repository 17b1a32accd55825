"""Configs of adapted models that do not fit the model that they are of."""

import pytest
from helpers.training import small_model


@pytest.mark.parametrize(
    "place, name, found", [(0, "head", "hidden"), (7, "hidden", "none")]
)
def test_other_layers_than_those_of_the_config_are_refused(place, name, found):
    model = small_model()
    config = model.get_config()
    config["layers"] = [[place, name]]
    with pytest.raises(ValueError) as error:
        type(model).from_config(config)
    assert (
        f"Expected: layer {name!r} at place {place}. Received: {found!r}. Load its "
        "weights"
    ) in str(error.value)
