"""Distances of languages by Glottolog's tree, and weights by distances."""

import math
import sys

import pytest

import keras_flix
from keras_flix.features import languages, typology

DISTANCES = {"gl": {"pt": 0.1, "it": 0.4, "es": 0.1, "ja": 1.0}}
_GLG_DEU = ("glg", "deu")
KNOWN = list(DISTANCES["gl"])


def weights(new="gl", known=KNOWN, **kwargs):
    return keras_flix.language_weights(new, known, **kwargs)


@pytest.mark.slow
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


@pytest.mark.slow
def test_typological_distances_are_cosines_of_uriels_features():
    """One test, as loading languages takes seconds."""
    pytest.importorskip("qq", reason="qwanqwa is not installed (extra `typology`)")
    pytest.importorskip("lang2vec", reason="not installed (extra `typology`)")
    known = ["pt", "es", "de", "ja"]
    found = keras_flix.language_distances(["gl", "pt-BR"], known, kind="syntax")
    near = [found["gl"][code] for code in known]
    assert 0 < near[1] < near[0] < near[2] < near[3] < 1
    assert found["pt-BR"]["pt"] == 0.0
    # What both have over the geometric mean of what each has.
    rows, names, values = typology._table()
    syntax = [index for index, name in enumerate(names) if name.startswith("S_")]
    assert len(syntax) == 103 and len(names) == 289 and set(values.ravel()) == {0, 1}
    galician, german = ({i for i in syntax if values[rows[c], i]} for c in _GLG_DEU)
    shared = len(galician & german) / math.sqrt(len(galician) * len(german))
    assert found["gl"]["de"] == pytest.approx(1 - shared, abs=1e-12)
    # Languages that are no relatives, each kind in its own way.
    kinds = {
        kind: keras_flix.language_distances("fi", ["hu", "sv"], kind=kind)["fi"]
        for kind in typology.KINDS
    }
    assert len({row["sv"] for row in kinds.values()}) == 4
    assert all(0 < d < 0.5 for row in kinds.values() for d in row.values())
    started = weights("eu", known, nearest=2, kind="syntax")["eu"]
    assert len(started) == 2 and sum(started.values()) == pytest.approx(1)
    for new, others, message in (
        ("parse", ["en"], "that URIEL has features of. Received: 'parse' in `new`"),
        ("sw", ["en", "code"], "Received: 'code' in `known`"),
    ):
        with pytest.raises(ValueError, match=message):
            weights(new, others, kind="typology")


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
        ({"distances": DISTANCES, "kind": "syntax"}, "either `distances` or `kind`"),
        ({"kind": "taste"}, r"one of \['descent', 'syntax',.*Received: kind='taste'"),
        ({"known": "en"}, "`known` must be a list of at least one language"),
        ({"known": []}, r"known=\[\]"),
        ({"new": []}, r"new=\[\]"),
        ({"known": [1, 2]}, "Languages must be strings, such as 'sw'. Received: 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        weights(**arguments)


@pytest.mark.parametrize("kind", ["descent", "syntax", "phonology", "typology"])
@pytest.mark.parametrize("code", ["und", "mul", "zxx", "mis", "qaa"])
def test_codes_that_are_no_language_are_refused(code, kind):
    for one in ({"new": code, "known": ["en"]}, {"new": "zu", "known": ["en", code]}):
        with pytest.raises(ValueError, match=f"Received: '{code}' in"):
            weights(**one, kind=kind)


def test_the_extra_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "qq", None)
    languages._lineage_of_code.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'keras-flix\[languages\]'"):
        weights()
    assert weights(distances=DISTANCES)


def test_typology_is_an_extra_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "lang2vec", None)
    typology._table.cache_clear()
    with pytest.raises(ImportError, match=r"lang2vec, .*'keras-flix\[typology\]'"):
        typology.is_known("glg")
