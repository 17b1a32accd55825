"""Distances of languages by Glottolog's tree, and weights by distances."""

import math
import sys

import pytest

import keras_flix
from keras_flix.features import languages

DISTANCES = {"gl": {"pt": 0.1, "it": 0.4, "es": 0.1, "ja": 1.0}}
KNOWN = list(DISTANCES["gl"])


def weights(new="gl", known=KNOWN, **kwargs):
    return keras_flix.language_weights(new, known, **kwargs)


def test_distances_are_those_of_glottologs_tree():
    """One test, as loading the tree takes seconds."""
    pytest.importorskip("qq", reason="qwanqwa is not installed (extra `languages`)")
    known = ["pt", "es", "it", "de", "ja", "eu"]
    found = keras_flix.language_distances(["gl", "pt-BR"], known)
    near = [found["gl"][code] for code in known]
    assert near == sorted(near)
    assert found["pt-BR"]["pt"] == 0.0
    assert found["gl"]["ja"] == found["gl"]["eu"] == 1.0
    # Slovak: itself, Czech-Slovak, West Slavic, Slavic, Balto-Slavic and two more.
    slavic = keras_flix.language_distances("sk", ["cs", "ru"])["sk"]
    own, czech = languages._lineage("sk", ""), languages._lineage("cs", "")
    expected = 1 - len(own & czech) / math.sqrt(len(own) * len(czech))
    assert slavic["cs"] == pytest.approx(expected, abs=1e-12)
    assert 0 < slavic["cs"] < slavic["ru"] < 1
    # Macrolanguages without a place of their own, old codes, several alphabets.
    same = {"zh": "cmn", "et": "ekk", "ms": "zsm", "sw": "swh", "ar": "arb"}
    same |= {"iw": "he", "zh-Hant": "zh", "deu_Latn": "de", "dutc1256": "nl"}
    for new, other in same.items():
        assert keras_flix.language_distances(new, [other]) == {new: {other: 0.0}}
    # Neither artificial nor sign languages are relatives of one another.
    assert keras_flix.language_distances("eo", ["tlh"]) == {"eo": {"tlh": 1.0}}
    assert keras_flix.language_distances("ase", ["gsg"]) == {"ase": {"gsg": 1.0}}

    started = weights("gl", known, nearest=2)["gl"]
    assert list(started) == ["pt", "es"]
    assert sum(started.values()) == pytest.approx(1)
    for new, known_, message in (
        ("parse", ["en"], "place in Glottolog's tree. Received: 'parse' in `new`"),
        ("sw", ["en", "code"], "Received: 'code' in `known`"),
        ("und", ["en"], "Received: 'und' in `new`"),
        ("ja", ["en", "sw"], "must be related to 'ja'"),
    ):
        with pytest.raises(ValueError, match=message):
            weights(new, known_)


def test_weights_are_what_distances_leave_of_one():
    found = weights(distances=DISTANCES)["gl"]
    assert found == pytest.approx({"pt": 0.375, "es": 0.375, "it": 0.25})
    assert list(found) == ["pt", "es", "it"]
    assert weights(distances=DISTANCES, nearest=1) == {"gl": {"pt": 1.0}}
    assert weights(["gl", "gl"], distances=DISTANCES) == {"gl": found}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distances": {}}, "how far 'gl' is from each of `known`. Received: none"),
        ({"distances": {"gl": {"pt": 0}}}, r"none from \['it', 'es', 'ja'\]"),
        ({"distances": {"gl": dict.fromkeys(KNOWN, 2)}}, r"\['gl'\]\['pt'\]=2"),
        ({"distances": {"gl": dict.fromkeys(KNOWN, True)}}, "Divide them by"),
        ({"distances": {"gl": dict.fromkeys(KNOWN, math.nan)}}, "=nan"),
        ({"distances": {"gl": dict.fromkeys(KNOWN, 1)}}, "`init=None` is a fresh"),
        ({"distances": DISTANCES, "nearest": 0}, "integer of at least 1"),
        ({"distances": DISTANCES, "nearest": True}, "nearest=True"),
        ({"known": "en"}, "`known` must be a list of at least one language"),
        ({"known": []}, r"known=\[\]"),
        ({"new": []}, r"new=\[\]"),
        ({"known": [1, 2]}, "Languages must be strings, such as 'sw'. Received: 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        weights(**arguments)


def test_the_extra_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "qq", None)
    languages._lineage_of_code.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'keras-flix\[languages\]'"):
        weights()
    assert weights(distances=DISTANCES)
