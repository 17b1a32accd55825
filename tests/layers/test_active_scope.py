"""Which routing a layer reads where models are inside of each other."""

from keras_flix import FeatureSchema
from keras_flix.layers.active_scope import Routing, current_routing, routing_scope


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
