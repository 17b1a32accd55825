"""What there is a table of for each feature, a line per value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_flix._utils.displayed import Displayed, Rows, count
from keras_flix._utils.renamed import renamed_keyword
from keras_flix._utils.text_tables import aligned
from keras_flix.features.schema import check_feature


class ByFeature(Displayed):
    """The tables of a result that has values of features, over layers."""

    if TYPE_CHECKING:
        layers: Sequence[str]
        values: Mapping[str, Sequence[Any]]

    def _rows(self, feature: str) -> Rows:
        raise NotImplementedError

    @renamed_keyword("axis", "feature")
    def table(self, feature: str) -> str:
        """The values of a feature as a text, one line each."""
        check_feature(feature, self.values, "A table")
        return aligned(self._rows(feature))

    def __str__(self) -> str:
        return "\n\n".join(self.table(name) for name in self.values)

    def _line(self) -> str:
        sizes = [f"{count(len(v), 'value')} of {n}" for n, v in self.values.items()]
        layers = count(len(self.layers), "layer")
        return f"{type(self).__name__}({', '.join([layers, *sizes])})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        return [("", self._rows(name)) for name in self.values]
