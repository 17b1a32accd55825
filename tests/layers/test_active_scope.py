"""Which routing a layer reads where models are inside of each other."""

import pytest
from keras import ops

from keras_flix import FeatureSchema
from keras_flix.layers.active_scope import Routing, current_routing, routing_scope
from keras_flix.layers.row_orders import BATCH, REPEAT, TILE


def test_a_layer_reads_the_innermost_scope_of_its_own_schema():
    task, language = {"task": ["qa", "parse"]}, {"language": ["en", "sw"]}
    outermost, outer, inner = (
        Routing(FeatureSchema(axes), None) for axes in (task, task, language)
    )
    with routing_scope(outermost), routing_scope(outer):
        with routing_scope(inner):
            assert current_routing(FeatureSchema(task)) is outer
            assert current_routing(inner.schema) is inner
            assert current_routing(FeatureSchema({"task": ["qa"]})) is None
        assert current_routing(inner.schema) is None
    assert current_routing(outer.schema) is None


@pytest.mark.parametrize(
    "orders, rows, expected",
    [
        ({BATCH}, 2, (2, 12)),
        ({BATCH, REPEAT}, 6, (2, 36)),
        ({BATCH, TILE}, 6, (3, 2, 12)),
    ],
)
def test_each_example_has_its_rows_where_only_a_graph_knows_how_many(
    orders, rows, expected
):
    # There, lengths are tensors.
    ids = {"task": ops.convert_to_tensor([0, 1])}
    routing = Routing.from_ids(FeatureSchema({"task": ["qa", "parse"]}), ids)
    positions = (ops.convert_to_tensor(rows), 4, 3)
    found = routing.by_example(positions, frozenset(orders), "layer")
    assert tuple(map(int, found)) == expected
