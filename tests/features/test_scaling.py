"""Scales by the rank and by its square root."""

import math

import pytest

from keras_flix import Feature
from keras_flix.features.scaling import Scaling


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_values_of_different_ranks_weigh_alike_by_the_square_root(rank):
    assert Scaling(8.0).of(rank) == 8 / rank
    assert Scaling(8.0, "sqrt").of(rank) == 8 / math.sqrt(rank)
    assert Scaling(None, "sqrt").of(rank) == 1


@pytest.mark.parametrize(
    "scaling, text, arguments",
    [
        (Scaling(None), "1", "alpha=None"),
        (Scaling(8.0), "8 / rank", "alpha=8.0"),
        (Scaling(2.5, "sqrt"), "2.5 / sqrt(rank)", "alpha=2.5, scale='sqrt'"),
    ],
)
def test_as_text(scaling, text, arguments):
    assert str(scaling) == text and scaling.arguments() == arguments


def test_scales_of_a_feature():
    ranks = {"en": 4, "*": 1}
    feature = Feature("language", ["en", "sw", "yo"], ranks, alpha=2, scale="sqrt")
    assert feature.scales == (1.0, 2.0, 2.0)
    assert feature.common_scale.tolist() == [1.0, 2.0, 2.0]
    assert Feature("a", ["b"], rank=4, alpha=2, scale="sqrt").common_scale == 1.0


@pytest.mark.parametrize("scale", ["", "log", 2, True, ["sqrt"]])
def test_refuses_other_scales(scale):
    with pytest.raises(ValueError, match="`scale` must be 'rank'"):
        Feature("task", ["qa"], scale=scale)
