"""New languages: what holds when they are measured again, and the hypernetwork."""

import json

import keras
import numpy as np
import pytest

if keras.config.backend() != "torch":
    reason = "they train on PyTorch, and nothing else here knows of backends"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("babel", reason="extra `evidence`")
pytestmark = pytest.mark.short("torch")

from benchmarks.quality import (  # noqa: E402
    evidence_page,
    hyper_trial,
    new_languages as flix,
    new_languages_hyper as hyper,
)
from benchmarks.shared.places import RESULTS  # noqa: E402

NAMES = [f"weekday/{code}" for code in flix.LANGUAGES]


@pytest.fixture
def measured(monkeypatch):
    """What was scored, of a model that answers as `answers[0]` says."""
    scored, answers = [], [1.0]
    rows = {code: {"fr": 1.0} for code in flix.LANGUAGES}

    def answered(model, examples, entries):
        scored.append(entries[0])
        return np.ones(len(NAMES)), np.full(len(NAMES), answers[0])

    starts = ("mean", "nearest", "weighted", "nearest 3", *flix.TYPOLOGY)
    monkeypatch.setattr(flix, "trained", lambda seed: None)
    examples = {"name": NAMES, "language": list(flix.LANGUAGES)}
    monkeypatch.setattr(flix, "new_examples", lambda part, count: examples)
    monkeypatch.setattr(flix, "starts", lambda: dict.fromkeys(starts, rows))
    monkeypatch.setattr(flix, "answered", answered)
    for name in ("add", "train_own", "average_factors"):
        monkeypatch.setattr(flix, name, lambda *args: None)
    monkeypatch.setattr(flix.keras_flix, "remove_values", lambda *args: None)
    return scored, answers


def test_a_seed_has_all_rows_when_it_is_measured(measured):
    found = list(flix.measure(0))
    assert found[-1].keys() == set(flix.ROWS) and len(measured[0]) == len(flix.ROWS)


def test_what_was_measured_of_the_same_model_is_not_measured_again(measured):
    scored, answers = measured
    whole = dict(list(flix.measure(0))[-1])
    stored = {name: whole[name] for name in flix.ROWS if "typology" not in name}
    scored.clear()
    assert list(flix.measure(0, stored))[-1] == whole
    # Without a language, the three starts by typology, and two with training.
    assert len(scored) == 6 and scored[0] is None
    scored.clear()
    answers[0] = 2.0
    again = list(flix.measure(0, stored))[-1]
    assert len(scored) == len(flix.ROWS)
    assert {nats for row in again.values() for nats in row["nats"].values()} == {2.0}


def test_coordinates_have_the_similarities_as_inner_products():
    points = np.random.default_rng(0).normal(size=(7, 4))
    known, new = points[:5], points[5:]
    found = hyper.coordinates(known @ known.T, new @ known.T)
    # Up to where the origin lies, and one scale.
    assert found[0].shape == (5, 4)
    np.testing.assert_allclose(found[0].mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose((found[0] ** 2).sum(axis=1).mean(), 1.0)
    centered = points - known.mean(axis=0)
    centered /= np.sqrt((centered[:5] ** 2).sum(axis=1).mean())
    both = np.concatenate(found)
    np.testing.assert_allclose(both @ both.T, centered @ centered.T, atol=1e-9)


def test_embeddings_of_features_start_and_move_as_free_ones_do():
    features = np.random.default_rng(0).normal(size=(29, 58))
    features -= features.mean(axis=0)
    keras.utils.set_random_seed(0)
    layer = hyper_trial.Projection(features)
    layer.build(None)
    found = hyper.to_numpy(layer(np.arange(29)))
    np.testing.assert_allclose(found, hyper.to_numpy(layer.of(features)), atol=1e-6)
    assert found.shape == (29, hyper_trial.EMBEDDING)
    assert 0.045 < found.std() < 0.055
    np.testing.assert_allclose(np.abs(layer.features).sum(axis=1).mean(), 1.0)


def test_a_hypernetwork_learns_on_pytorch_and_makes_adapters_of_new_languages(
    monkeypatch,
):
    pytest.importorskip("qq", reason="extra `typology`")
    pytest.importorskip("lang2vec", reason="extra `typology`")
    monkeypatch.setattr(flix, "STEPS", 3)
    # The first step has a rate of zero, and in the second every `B` is still zero.
    model, network = hyper.trained("features", 6e-3, 0)
    language = network.network.language
    start = hyper.new_embeddings(network, "features", "own")
    assert np.abs(start).sum(axis=1).all() and language.dense.trainable
    mean = hyper.new_embeddings(network, "features", "mean")
    np.testing.assert_array_equal(mean, 0.0)
    names = hyper.cells(flix.LANGUAGES)
    hyper.keras_flix.add_values(model, "cell", names, seed=0)
    known = [hyper.to_numpy(v)[: -len(names)] for v in model.trainable_variables]
    hyper.give_new(model, network, start)
    for variable, before in zip(model.trainable_variables, known):
        table = hyper.to_numpy(variable)
        np.testing.assert_array_equal(table[: -len(names)], before)
        assert np.abs(table[-len(names) :]).sum() > 0
    with pytest.raises(ValueError, match=r"embedding. Received: .*\(9, 32\)"):
        hyper.give_new(model, network, start[:9])


def test_the_hypernetworks_tables_are_those_of_the_stored_results():
    result = json.loads((RESULTS / "new_languages_hyper_torch.json").read_text())
    plain = json.loads((RESULTS / "new_languages_torch.json").read_text())["seeds"]
    trials, readme = result["trials"], evidence_page.README.read_text()
    assert result["method"] == hyper.METHOD
    assert hyper.table(trials, plain) in readme
    assert hyper.searches(trials) in readme
    searched = {(t["kind"], t["rate"]) for t in trials if t["seed"] == 0}
    assert searched == {(kind, rate) for kind in hyper.STARTS for rate in hyper.RATES}
