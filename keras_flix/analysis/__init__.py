"""What adapters have learned: sizes, similarities and ranks of their updates, and
what each feature does to the loss; a page with all of it."""

from typing import TYPE_CHECKING

from keras_flix._utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from keras_flix.analysis.contributions import (
        FeatureContributions as FeatureContributions,
        feature_contributions as feature_contributions,
    )
    from keras_flix.analysis.html_report import (
        Analysis as Analysis,
        analyze as analyze,
        report as report,
    )
    from keras_flix.analysis.updates import (
        EffectiveRank as EffectiveRank,
        UpdateNorms as UpdateNorms,
        ValueSimilarity as ValueSimilarity,
        effective_rank as effective_rank,
        update_norms as update_norms,
        value_similarity as value_similarity,
    )

ORIGINS = {
    "Analysis": "keras_flix.analysis.html_report",
    "FeatureContributions": "keras_flix.analysis.contributions",
    "EffectiveRank": "keras_flix.analysis.updates",
    "UpdateNorms": "keras_flix.analysis.updates",
    "ValueSimilarity": "keras_flix.analysis.updates",
    "analyze": "keras_flix.analysis.html_report",
    "feature_contributions": "keras_flix.analysis.contributions",
    "effective_rank": "keras_flix.analysis.updates",
    "report": "keras_flix.analysis.html_report",
    "update_norms": "keras_flix.analysis.updates",
    "value_similarity": "keras_flix.analysis.updates",
}
__all__ = sorted(ORIGINS)
if not TYPE_CHECKING:
    # Type checkers would take any name for one of the package.
    __getattr__, __dir__ = lazy_names(
        __name__,
        ORIGINS,
        renamed={
            "AxisContributions": "FeatureContributions",
            "axis_contributions": "feature_contributions",
        },
    )
