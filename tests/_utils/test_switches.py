"""What is on or off."""

import numpy as np
import pytest

from keras_flix import Feature, FeatureDropout
from keras_flix._utils.switches import checked_switch

pytestmark = pytest.mark.short("torch")


@pytest.mark.parametrize("value", [True, False, 1, 0, np.True_, np.bool_(0)])
def test_true_and_false(value):
    found = checked_switch("always", value)
    assert type(found) is bool and found == value


@pytest.mark.parametrize("value", ["no", "", None, 2, -1, [], np.ones(2, "bool")])
def test_all_else_is_refused(value):
    with pytest.raises(ValueError, match="`always` must be true or false. Received: "):
        checked_switch("always", value)


@pytest.mark.parametrize("name", ["multiple", "always"])
@pytest.mark.parametrize("value", ["no", None])
def test_those_of_a_feature(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be true or false"):
        Feature("task", ["qa", "ner"], **{name: value})


@pytest.mark.parametrize("name", ["rescale", "per_batch"])
def test_those_of_a_dropout(name):
    with pytest.raises(ValueError, match=f"`{name}` must be true or false"):
        FeatureDropout(0.5, **{name: "no"})
