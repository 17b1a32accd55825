"""What the host does for a batch does not grow with values that are not in it."""

import time

import keras
import pytest

import keras_flix
from benchmarks.cost import many_tables, many_values

pytestmark = pytest.mark.short("torch")
SIZES = {"width": 8, "layers": 2, "length": 1, "batch": 8}


def seconds(calls, rounds=5, at_once=5):
    """CPU seconds of each call, in turns; the least of several rounds."""
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(at_once):
                call()
            found[name].append(time.process_time() - start)
    return {name: min(times) for name, times in found.items()}


@pytest.mark.parametrize("case", ["ids", "strings", "ranks", "half_trains_alpha"])
def test_a_step_and_a_prediction_cost_the_same_with_many_values(case):
    """0.1 took 10 to 60 times as long with 5,000 and 100,000 values."""
    steps, predictions = {}, {}
    for count in (2, 20_000):
        model, x, y = many_values.adapted(count, case, **SIZES)
        steps[count] = lambda m=model, x=x, y=y: m.train_on_batch(x, y)
        predictions[count] = lambda m=model, x=x: m.predict_on_batch(x)
    for calls in (steps, predictions):
        for call in calls.values():
            call()
        found = seconds(calls)
        # Far below what it was, far above what a busy machine makes of 1.
        assert found[20_000] < 2 * found[2], found


def test_lazy_adam_is_not_slower_than_adam_with_many_small_tables():
    """It took 3.3 times Adam's step with 240 of them."""
    optimizers = keras.optimizers.Adam(1e-3), keras_flix.LazyAdam(1e-3)
    calls = {type(one).__name__: many_tables.step(one, 3, 30) for one in optimizers}
    for call in calls.values():
        call()
    found = seconds(calls, at_once=2)
    assert found["LazyAdam"] < 1.8 * found["Adam"], found
