"""What the host does for a batch does not grow with values that are not in it."""

import collections
import gc
import sys
import time

import keras
import numpy as np
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


def python_calls(call):
    """The functions that a call calls, of Python and of C, and how often."""
    count = collections.Counter()

    def profile(frame, event, argument):
        if event == "call":
            count[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            count[argument.__qualname__] += 1

    gc.disable()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def tensors_made(call):
    """PyTorch's operations, and the sizes of new tensors; not what is done in place."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made = collections.Counter()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            returns = function._schema.returns
            new = any(one.alias_info is None for one in returns)
            made[function.__name__, getattr(found, "numel", int)() if new else 0] += 1
            return found

    with Watched():
        call()
    return made


@pytest.mark.parametrize("case", many_values.CASES)
def test_a_step_and_a_prediction_do_the_same_with_many_values(case):
    """As many calls, operations and numbers made anew: none of them by value."""
    done = {}
    for count in (64, 16_000):
        model, x, y = many_values.adapted(count, case, **SIZES)
        if case == "strings":
            x["user"] = [f"user_{i:06d}" for i in range(8)]
        elif case != "two_occur":
            x["user"] = np.arange(8, dtype="int32")
        calls = (
            lambda m=model, x=x, y=y: m.train_on_batch(x, y),
            lambda m=model, x=x: m.predict_on_batch(x),
        )
        for call in 3 * calls:
            call()
        done[count] = [(python_calls(one), tensors_made(one)) for one in calls]
    assert done[16_000] == done[64]
    (calls, tensors), _ = done[64]
    # Others than PyTorch make theirs within compiled functions.
    assert len(calls) > 100 and (keras.config.backend() != "torch" or len(tensors) > 20)


def test_lazy_adam_is_not_slower_than_adam_with_many_small_tables():
    """It took 3.3 times Adam's step with 240 of them."""
    optimizers = keras.optimizers.Adam(1e-3), keras_flix.LazyAdam(1e-3)
    calls = {type(one).__name__: many_tables.step(one, 3, 30) for one in optimizers}
    for call in calls.values():
        call()
    found = seconds(calls, at_once=2)
    assert found["LazyAdam"] < 1.8 * found["Adam"], found
