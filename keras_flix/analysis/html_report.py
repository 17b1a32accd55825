"""All analyses of a model at once, and an HTML page of them."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from keras_flix._utils.atomic_files import check_folder, write_whole
from keras_flix._utils.displayed import Displayed, Rows, count, cut, some
from keras_flix.analysis import plots
from keras_flix.analysis.contributions import (
    FeatureContributions,
    feature_contributions,
)
from keras_flix.analysis.figure_page import Groups, library
from keras_flix.analysis.updates import (
    EffectiveRank,
    UpdateNorms,
    ValueSimilarity,
    effective_rank,
    update_norms,
    value_similarity,
)
from keras_flix.features.schema import check_feature
from keras_flix.files.adapter_file import Adapters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:72em;padding:0 1em}"
    "pre{background:#f4f4f4;padding:.8em;overflow-x:auto}"
    "img{max-width:100%;display:block;margin:1em 0}"
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Analysis(Displayed):
    """All that `analyze` found.

    Attributes:
        name: The name of the model, or where its adapters come from.
        norms: What `update_norms` returned.
        similarities: What `value_similarity` returned, for features of several values.
        ranks: What `effective_rank` returned.
        contributions: What `feature_contributions` returned; `None` without data.
    """

    name: str
    norms: UpdateNorms
    similarities: Mapping[str, ValueSimilarity]
    ranks: EffectiveRank
    contributions: FeatureContributions | None = None

    def _parts(self) -> list[Displayed]:
        parts = [self.norms, *self.similarities.values(), self.ranks]
        return parts if self.contributions is None else [*parts, self.contributions]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._parts()))

    def _line(self) -> str:
        layers = count(len(self.norms.layers), "layer")
        features = some(self.norms.values)
        return f"Analysis({cut(self.name)!r}, {layers}, features {features})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        for part in self._parts():
            yield from ((title or repr(part), rows) for title, rows in part._tables())

    def to_dict(self) -> dict[str, Any]:
        """All numbers as a dict of JSON types; `None` stands for NaN."""
        contributions = self.contributions
        return {
            "name": self.name,
            "norms": self.norms.to_dict(),
            "similarities": {n: s.to_dict() for n, s in self.similarities.items()},
            "ranks": self.ranks.to_dict(),
            "contributions": None if contributions is None else contributions.to_dict(),
        }


def analyze(
    model: keras.Model | Adapters,
    path: str | os.PathLike[str] | None = None,
    data: Any = None,
    *,
    groups: Mapping[str, Groups] | None = None,
    batch_size: int = 32,
) -> Analysis:
    """All analyses of a model's adapters, and a report of them.

    Args:
        model: An adapted model, or what `read_adapters` read of a file.
        path: An HTML file to write the report to, see `report`. An existing one is
            replaced.
        data: Examples for `feature_contributions`: a `Mixture`, inputs, or a tuple of
            inputs, targets and sample weights. `None` leaves that part out.
        groups: As for `report`.
        batch_size: Examples per forward pass.

    Returns:
        The `Analysis`.

    Raises:
        ImportError: If there is a path, and matplotlib or scipy is not installed.
        ValueError: If an argument does not fit.

    Example:

    ```python
    analysis = keras_flix.analysis.analyze(gemma, "adapters.html", data=unseen)
    print(analysis.similarities["language"])
    ```
    """
    if path is not None:
        # Before all the work, not after.
        _checked(path, groups)
    if data is not None and isinstance(model, Adapters):
        raise ValueError(
            "Contributions to a loss need a model. Received: `data` with adapters "
            f"of {model.source!r} alone. Load them into their base model."
        )
    norms = update_norms(model)
    contributions = None
    if data is not None:
        data = data if isinstance(data, tuple) else (data,)
        contributions = feature_contributions(model, *data, batch_size=batch_size)
    analysis = Analysis(
        name=model.source if isinstance(model, Adapters) else model.name,
        norms=norms,
        similarities={
            name: value_similarity(model, name)
            for name, values in norms.values.items()
            if len(values) > 1
        },
        ranks=effective_rank(model),
        contributions=contributions,
    )
    if path is not None:
        report(analysis, path, groups=groups)
    return analysis


def report(
    analysis: Analysis,
    path: str | os.PathLike[str],
    *,
    groups: Mapping[str, Groups] | None = None,
) -> None:
    """Writes an analysis as one HTML page, with its figures inside.

    The page needs nothing from elsewhere, and no scripts.

    Args:
        analysis: What `analyze` returned.
        path: The file. An existing one is replaced only once this one is complete.
        groups: By feature, a dict from values to the names of their groups, such as
            `{"language": {"sw": "Bantu"}}`: labels are coloured by them.

    Raises:
        ImportError: If matplotlib or scipy is not installed.
        ValueError: If the folder does not exist, or `groups` names no feature.
    """
    target, groups = _checked(path, groups), groups or {}
    for name in groups:
        check_feature(name, analysis.norms.values, "`groups`")
    write_whole(target, _page(analysis, groups).encode())


def _checked(path: str | os.PathLike[str], groups: Any) -> Path:
    for module in ("matplotlib.figure", "scipy.cluster.hierarchy"):
        library(module)
    check_folder(Path(path))
    return Path(path)


def _page(analysis: Analysis, groups: Mapping[str, Groups]) -> str:
    title = html.escape(f"Adapters of {analysis.name}")
    norms, ranks, contributions = analysis.norms, analysis.ranks, analysis.contributions
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}'
        f"</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{len(norms.layers)} adapted layers.</p>"
    ]
    if contributions is not None:
        parts += _section(
            "Contributions",
            f"Losses of {len(contributions)} examples. Negative numbers: the feature "
            "lowers the loss, when it is added to all others, or to the base alone.",
            contributions.table(),
            plots.plot_contributions(contributions),
        )
    for feature, values in norms.values.items():
        own = groups.get(feature)
        parts.append(f"<h2>{html.escape(feature)}</h2>")
        if feature in analysis.similarities:
            similarity = analysis.similarities[feature]
            parts += _section(
                "Similarity",
                "Cosines between the updates of values, over all layers; grey where "
                "a value has no update.",
                similarity.table(),
                plots.plot_similarity(similarity, own),
            )
        parts += _section(
            "Norms",
            "Frobenius norms of updates, and relative to those of the base's "
            "kernels, over all layers; by layer in the figure.",
            norms.table(feature),
            plots.plot_norms(norms, feature, groups=own),
        )
        parts += _section(
            "Ranks",
            f"How many singular values hold {ranks.energy:.0%} of the energy, how "
            "many there are by their entropy, and the share of the rank in use: "
            "means over the layers.",
            ranks.table(feature),
            plots.plot_ranks(ranks, feature, own),
        )
        if contributions is not None and len(values) > 1:
            parts += _section(
                "Contributions by value",
                "As above, for the examples of each value.",
                contributions.table(feature),
                plots.plot_contributions(contributions, feature, own),
            )
    return "\n".join([*parts, "</body></html>"])


def _section(title: str, text: str, table: str, figure: Figure) -> Sequence[str]:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    image = base64.b64encode(data.getvalue()).decode()
    return [
        f"<h3>{title}</h3><p>{html.escape(text)}</p>",
        f'<img alt="{title}" src="data:image/png;base64,{image}">',
        f"<details><summary>Table</summary><pre>{html.escape(table)}</pre></details>",
    ]
