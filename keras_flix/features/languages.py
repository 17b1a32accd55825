"""How far apart languages are, and what a new one may start as."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from keras_flix._utils.optional_packages import needed
from keras_flix.features.typology import KINDS, WHAT, is_known, typological_distance

NO_FAMILIES = frozenset(
    ("arti1236", "book1242", "mixe1287", "pidg1258")
    + ("sign1238", "deaf1237", "auxi1235", "pidg1253")
    + ("spee1234", "unat1236", "uncl1493")
)
"""Glottolog's groups whose members have no ancestor in common."""

Distances = Mapping[str, Mapping[str, float]]


DESCENT = "descent"


def language_distances(
    new: str | Sequence[str], known: Sequence[str], *, kind: str = DESCENT
) -> dict[str, dict[str, float]]:
    """How far languages are from others, by descent or by what they are like.

    By descent, each language stands for the set of its ancestors in Glottolog's tree
    and itself. By typology, it stands for the set of what it has of URIEL's features:
    of `"syntax"` (103, such as the order of subject, verb and object), `"phonology"`
    (28), the `"inventory"` of sounds (158), or all of these, `"typology"`. What no
    source says of a language, URIEL took from those that are nearest to it. A distance
    is 1 less the cosine of two such sets, as in URIEL (Littell et al., 2017): 0 for the
    same language, 1 where nothing is shared, which by typology hardly occurs.

    Glottolog's tree comes with the package `qwanqwa` (its software is under Apache 2.0,
    its data under CC BY-SA 4.0); which language a macrolanguage such as `"zh"` stands
    for there, from CLDR with the package `babel`. (URIEL has rows of macrolanguages,
    which are near the language's own and not the same.) The extra `languages` installs
    both; the extra `typology` also `lang2vec` (CC BY-SA 4.0), which has URIEL's
    features, of which only that data is read. The first call takes seconds.

    Args:
        new: A language, or several: BCP 47 (`"sw"`, `"pt-BR"`), ISO 639-3, Glottocodes.
        known: Those that it is compared with.
        kind: `"descent"`, `"typology"`, `"syntax"`, `"phonology"` or `"inventory"`.

    Returns:
        Distances in `[0, 1]`, by new and then by known language, as they were written.

    Raises:
        ImportError: If the extra is not installed.
        ValueError: If Glottolog's tree has no place for one of them, or URIEL no
            features.

    Example:

    >>> found = language_distances("gl", ["pt", "it", "de", "ja"])["gl"]
    >>> sorted(found, key=found.get), found["ja"]
    (['pt', 'it', 'de', 'ja'], 1.0)
    """
    if kind not in (DESCENT, *KINDS):
        raise ValueError(
            f"`kind` must be one of {[DESCENT, *KINDS]}. Received: kind={kind!r}. "
            "Choose what languages are compared by."
        )
    if kind != DESCENT:
        codes = {code: _iso_639_3(code, "known") for code in _codes(known, "known")}
        return {
            code: {
                other: typological_distance(own, theirs, kind)
                for other, theirs in codes.items()
            }
            for code in _codes(new, "new")
            for own in [_iso_639_3(code, "new")]
        }
    others = {code: _lineage(code, "known") for code in _codes(known, "known")}
    return {
        code: {other: _distance(own, theirs) for other, theirs in others.items()}
        for code in _codes(new, "new")
        for own in [_lineage(code, "new")]
    }


def language_weights(
    new: str | Sequence[str],
    known: Sequence[str],
    *,
    nearest: int | None = None,
    distances: Distances | None = None,
    kind: str = DESCENT,
) -> dict[str, dict[str, float]]:
    """Weights with which new languages may start: nearer languages weigh more.

    A known language weighs what is left of 1 after its distance, and the weights of
    a new one sum to 1 (Accou and Poelman, arXiv 2601.16629). The result is an `init`
    of `add_values`; that of one language is an entry of a model's input, too, which
    needs no new value. Expect little: in our benchmarks no start was much better than
    none. Before training, `kind="typology", nearest=3` was the best where the base
    knew the language, and `nearest=1` where it did not
    (`benchmarks/quality/README.md`).

    Args:
        new: A language, or several, as for `language_distances`.
        known: The values that weights are for, which are languages. Those that are as
            far as can be have no weight, and are left out.
        nearest: Only so many of the nearest have a weight; the first ones, where
            several are equally far. `None`: all.
        distances: Distances in `[0, 1]` of your own, by new and then by known value.
            They need neither languages nor an extra. `None`: `language_distances`.
        kind: By what languages are compared, as in `language_distances`. By typology
            all share something, so without `nearest` all have a weight, and nearly
            the same one.

    Returns:
        Weights by new and then by known value.

    Raises:
        ImportError: If the extra is needed and not installed.
        ValueError: If a language is unknown or has no relative among `known`, or the
            distances are not as they must be.

    Example:

    >>> by_hand = {"gl": {"pt": 0.25, "it": 0.75, "ja": 1.0}}
    >>> language_weights("gl", ["pt", "it", "ja"], distances=by_hand)
    {'gl': {'pt': 0.75, 'it': 0.25}}
    """
    if nearest is not None and (
        isinstance(nearest, bool)
        or not isinstance(nearest, numbers.Integral)
        or nearest < 1
    ):
        raise ValueError(
            "`nearest` must be an integer of at least 1, or None for all. Received: "
            f"nearest={nearest!r}."
        )
    names, others = _codes(new, "new"), _codes(known, "known")
    if distances is None:
        distances = language_distances(names, others, kind=kind)
    elif kind != DESCENT:
        raise ValueError(
            "Weights must follow from either `distances` or `kind`. Received: "
            f"kind={kind!r} and distances of your own. Leave one of them out."
        )
    return {name: _weights(name, others, distances, nearest) for name in names}


def _weights(
    name: str, known: Sequence[str], distances: Distances, nearest: int | None
) -> dict[str, float]:
    row = distances.get(name)
    missing = known if row is None else [other for other in known if other not in row]
    if row is None or missing:
        raise ValueError(
            f"`distances` must say how far {name!r} is from each of `known`. "
            f"Received: none from {list(missing)[:3]}. Add them, or leave these out."
        )
    for other in known:
        _check_distance(name, other, row[other])
    near = sorted((other for other in known if row[other] < 1), key=row.__getitem__)
    near = near[:nearest]
    if not near:
        raise ValueError(
            f"At least one of `known` must be related to {name!r}. Received: known="
            f"{list(known)!r}, of which none is. Pass distances= or weights of your "
            "own, or leave it out: `init=None` is a fresh start."
        )
    total = math.fsum(1 - row[other] for other in near)
    return {other: (1 - row[other]) / total for other in near}


def _check_distance(name: str, other: str, distance: Any) -> None:
    if (
        isinstance(distance, bool)
        or not isinstance(distance, numbers.Real)
        or not 0 <= float(distance) <= 1
    ):
        raise ValueError(
            "Distances must be numbers from 0, the same, to 1, unrelated. Received: "
            f"distances[{name!r}][{other!r}]={distance!r}. Divide them by the largest."
        )


def _codes(codes: Any, label: str) -> list[str]:
    """Names of languages, each once."""
    found = [codes] if label == "new" and isinstance(codes, str) else codes
    if isinstance(found, (str, bytes)) or not isinstance(found, Sequence) or not found:
        raise ValueError(
            f"`{label}` must be a list of at least one language. Received: "
            f"{label}={codes!r}. Write such as ['sw', 'yo']."
        )
    for code in found:
        if not isinstance(code, str) or not code:
            raise ValueError(
                f"Languages must be strings, such as 'sw'. Received: {code!r} in "
                f"`{label}`. Values of another feature have no language distances: "
                "state weights of your own."
            )
    return list(dict.fromkeys(found))


def _distance(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    # Exactly 0 for the same set.
    return 1 - shared / math.sqrt(len(one) * len(other)) if one != other else 0.0


def _lineage(code: str, label: str) -> frozenset[str]:
    """Glottocodes of a language and its ancestors."""
    found = _lineage_of_code(code)
    if found is None:
        raise ValueError(
            "A language must have a place in Glottolog's tree. Received: "
            f"{code!r} in `{label}`. Write its BCP 47 or ISO 639-3 code; if it is no "
            "language, leave it out, or state weights of your own."
        )
    return found


def _iso_639_3(code: str, label: str) -> str:
    """The code by which URIEL may know a language."""
    qq = needed("qq", WHAT, "typology")
    found = _database().convert(code, qq.IdType.ISO_639_3)
    if not is_known(found):
        raise ValueError(
            "A language must be one that URIEL has features of. Received: "
            f"{code!r} in `{label}`. Write its BCP 47 or ISO 639-3 code; if it is no "
            "language, leave it out, or state weights of your own."
        )
    return str(found)


@functools.cache
def _lineage_of_code(code: str) -> frozenset[str] | None:
    qq = needed("qq", "A distance of languages", "languages")
    database = _database()
    bcp_47 = database.convert(code, qq.IdType.BCP_47)
    own = _individual_languages().get(bcp_47)
    # Only what has no place of its own: some macrolanguages are nodes of the tree.
    for candidate in (bcp_47, own):
        language = candidate and database.get(candidate)
        if language and language.glottocode:
            chain = [language, *language.family_tree]
            return frozenset(one.glottocode for one in chain) - NO_FAMILIES
    return None


@functools.cache
def _database() -> Any:
    return needed("qq", "A distance of languages", "languages").Database.load()


@functools.cache
def _individual_languages() -> dict[str, str]:
    """By macrolanguage, the language that CLDR takes for it, such as `cmn` for `zh`."""
    core = needed("babel.core", "A distance of languages", "languages")
    aliases = core.get_global("language_aliases")
    individual: dict[str, str] = {}
    for old, new in aliases.items():
        # The others are older or longer codes of the very same.
        qq = needed("qq", "A distance of languages", "languages")
        if _database().convert(old, qq.IdType.BCP_47) == old:
            individual.setdefault(new, old)
    return individual
