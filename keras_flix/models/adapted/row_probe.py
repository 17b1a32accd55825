"""Which example each row of a layer's input belongs to, found out by trying.

A model runs a few times on a small random batch, each time with other examples
changed. A row that changes with one example, and with no other, is that example's.
Each example is changed in as many runs, but no two in the same ones, so that a few
runs tell many examples apart, and tell a row that several examples change. Models
whose layers do something else in training are tried in training, too.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.host_values import tell_value, values_at_hand
from keras_flix.layers.checks import check_product
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.layers.row_orders import BATCH, REPEAT, SHARED, TILE, Orders
from keras_flix.models.adapted.probe_batches import (
    Probe,
    change_codes,
    changed_batch,
    shorter,
)

LENGTHS = (5, 6, 4)
"""Of batches to try: none that other axes of unknown length have, see `sized`."""

Calls = list["list[np.ndarray] | None"]
"""What a layer was given, by call; `None` where that cannot be seen."""
Runs = Mapping[str, Calls]


class Found(NamedTuple):
    """What the runs told of a target.

    Attributes:
        orders: The orders of the rows in all of its calls; empty if it has none.
        odd: What is wrong with a call of it; empty if nothing is.
        trains: Whether that call was in training.
    """

    orders: Orders
    odd: str = ""
    trains: bool = False

    @property
    def ran(self) -> bool:
        """Whether the layer was called at all."""
        return bool(self.orders or self.odd)


def entry_point(layer: Any) -> str:
    """The name of the method that computes a layer's output."""
    return "call" if layer.quantization_mode is None else "quantized_call"


@contextlib.contextmanager
def watched(
    layers: Mapping[str, Any],
    seen: Callable[[str, Any], None],
    readers: Mapping[str, Any] = types.MappingProxyType({}),
) -> Iterator[_compat.WatchedProducts]:
    """Calls `seen` with the path and the input of each call of the layers, here only.

    Of those that have `readers`, with those of each product that these compute. Other
    threads' calls pass unseen.
    """
    here = threading.get_ident()

    def watch(path: str, layer: Any) -> Any:
        call = getattr(layer, entry_point(layer))

        def watched_call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == here:
                seen(path, args[0] if args else kwargs.get("inputs"))
            return call(*args, **kwargs)

        return watched_call

    def product(path: str, equation: str, inputs: Any) -> None:
        layer = layers[path]
        if isinstance(layer, ExpertKernel):
            inputs = layer.rows_of(equation, inputs)
        else:
            check_product(layer, equation, len(inputs.shape))
        seen(path, inputs)

    called = {path: layer for path, layer in layers.items() if path not in readers}
    watches = [
        _compat.Watch(path, reader, layers[path].kernel)
        for path, reader in readers.items()
    ]
    names = {path: entry_point(layer) for path, layer in called.items()}
    try:
        for path, layer in called.items():
            object.__setattr__(layer, names[path], watch(path, layer))
        with _compat.watched_products(watches, product) as products:
            yield products
    finally:
        for path, layer in called.items():
            layer.__dict__.pop(names[path], None)


def find_orders(probe: Probe, layers: Mapping[str, Any]) -> dict[str, Found] | None:
    """What the rows of the layers' inputs are; `None` if the model cannot be tried.

    Args:
        probe: The model. None of its variables changes.
        layers: Layers of it by path, adapted or not.
    """
    found = _best(probe, layers, False)
    trained = _best(probe, layers, True) if found and probe.trains else None
    if found is None or trained is None:
        return found
    return {path: _of_both(one, trained[path]) for path, one in found.items()}


def _best(
    probe: Probe, layers: Mapping[str, Any], training: bool
) -> dict[str, Found] | None:
    best: dict[str, Found] | None = None
    # NaN reaches what it can reach, whatever the weights. But it is not for a model
    # that fills in for it, nor for ids, which may look like floats.
    for filling in (np.nan, None, "int32"):
        try:
            found = _tried(probe, layers, filling, training)
        except Exception:  # noqa: BLE001, a user's code on inputs of no meaning
            continue
        if best is None or _count_odd(found) < _count_odd(best):
            best = found
        if not _count_odd(best):
            break
    return best


def _of_both(one: Found, in_training: Found) -> Found:
    """What is known of a layer that was seen both ways."""
    if one.odd or not one.ran or not in_training.ran:
        return one
    return in_training if in_training.odd else _found(one.orders | in_training.orders)


def _found(orders: Orders, odd: str = "", trains: bool = False) -> Found:
    if {REPEAT, TILE} <= orders:
        odd = "rows that are repeated in one call and tiled in another"
    return Found(orders, odd, trains)


def _count_odd(found: Mapping[str, Found]) -> int:
    return sum(bool(one.odd) for one in found.values())


def _tried(
    probe: Probe, layers: Mapping[str, Any], filling: Any, training: bool
) -> dict[str, Found]:
    codes = change_codes(probe.length)

    def run(one: Probe, changed: Sequence[int] = ()) -> Runs:
        return _run(one, layers, changed_batch(one, changed, filling), training)

    base = run(probe)
    runs = []
    for number in range(max(map(max, codes)) + 1):
        runs.append(run(probe, [i for i, code in enumerate(codes) if number in code]))
    owners = {code: i for i, code in enumerate(codes)}

    found = {}
    for path in layers:
        orders, odd = set(), ""
        for place, first in enumerate(base[path]):
            others = [one[path][place : place + 1] for one in runs]
            rows = _owners(first, [x[0] if x else None for x in others], owners)
            order = None if rows is None else order_of(rows, probe.length)
            if rows is not None and rows == [None] * probe.length:
                # As the zeros that a recurrent layer begins with.
                with contextlib.suppress(Exception):
                    again = run(shorter(probe))[path][place]
                    if again and len(again[0]) == probe.length - 1:
                        order = BATCH
            if order is None:
                odd = odd or _described(rows, probe.length)
            else:
                orders.add(order)
        found[path] = _found(frozenset(orders), odd, training)
    if training and _count_odd(found):
        same = run(probe)
        # What Keras cannot draw again tells of no example.
        alike = {path: _alike(base[path], same[path]) for path in layers}
        found = {p: one if alike[p] else Found(frozenset()) for p, one in found.items()}
    return found


def _alike(calls: Calls, others: Calls) -> bool:
    """Whether a layer was given the same in two runs on the same batch."""
    rows = [[None] if a is None else _owners(a, [b], {}) for a, b in zip(calls, others)]
    return len(calls) == len(others) and all(x and set(x) <= {None} for x in rows)


def _run(probe: Probe, layers: Mapping[str, Any], inputs: Any, training: bool) -> Runs:
    calls: dict[str, Calls] = {path: [] for path in layers}

    def see(path: str, x: Any) -> None:
        rows: list[np.ndarray] = []
        calls[path].append(rows)
        if not tell_value(ops.stop_gradient(ops.cast(x, "float32")), rows.append):
            calls[path][-1] = None

    # Nothing that the model keeps, such as a state or a count, is to change.
    readers = {p: x for p, x in probe.readers.items() if p in layers}
    with watched(layers, see, readers), keras.StatelessScope(), values_at_hand():
        probe.call(inputs, training=training)
    return {
        path: [None if not rows else rows for rows in seen]
        for path, seen in calls.items()
    }


def _owners(
    first: list[np.ndarray] | None,
    others: Sequence[list[np.ndarray] | None],
    owners: Mapping[tuple[int, ...], int],
) -> list[int | None] | None:
    """The example of each row: `None` for none's, -1 for more than one's.

    `None` altogether if the rows cannot be seen.
    """
    if first is None or not len(first[0].shape):
        return None
    changed = np.zeros((len(others), len(first[0])), bool)
    for number, other in enumerate(others):
        if other is None or len(other) != len(first):
            return None
        for a, b in zip(first, other):
            if a.shape != b.shape or len(a) != changed.shape[1]:
                return None
            changed[number] |= _differs(a, b)
    found: list[int | None] = []
    for column in changed.T:
        code = tuple(np.flatnonzero(column).tolist())
        found.append(owners.get(code, -1) if code else None)
    return found


def _differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which rows differ by more than their sums may, on a GPU, from run to run."""
    a, b = (np.asarray(x, "float32").reshape(len(x), -1) for x in (a, b))
    if not a.size:
        return np.zeros(len(a), bool)
    size = np.nan_to_num(np.abs(a)).max(axis=1, keepdims=True)
    same = (np.abs(a - b) <= 1e-5 * size) | (a == b) | (np.isnan(a) & np.isnan(b))
    return ~same.all(axis=1)


def order_of(rows: Sequence[int | None], length: int) -> str | None:
    """The order of rows, given the example of each; `None` if it is none of them."""
    if list(rows) == [None]:
        return SHARED
    times, left = divmod(len(rows), length)
    if left or not times:
        return None
    examples = list(range(length))
    if list(rows) == examples:
        return BATCH
    if list(rows) == [i for i in examples for _ in range(times)]:
        return REPEAT
    return TILE if list(rows) == examples * times else None


def _described(rows: Sequence[int | None] | None, length: int) -> str:
    if rows is None:
        return "rows that cannot be seen, as inside of `vectorized_map`"
    count = f"{len(rows)} rows for a batch of {length}"
    if -1 in rows:
        return f"{count}, some of which depend on several examples"
    if None in rows:
        return f"{count}, some of which depend on no example"
    return f"{count}, which are those of the examples {list(rows)[:12]}"


def unclear_rows(found: Mapping[str, Found]) -> str:
    """The error for targets whose rows are in no known order; empty for none."""
    odd = {path: one.odd for path, one in found.items() if one.odd}
    if not odd:
        return ""
    path, text = next(iter(odd.items()))
    when = ", in training," if found[path].trains else ""
    more = f" ({len(odd) - 1} more targets are alike)" if len(odd) > 1 else ""
    return (
        "The rows of a target's input must be those of the batch: one per example, or "
        "as `keras.ops.repeat` or `keras.ops.tile` make several of them; or one for "
        f"all. Received: layer {path!r}, whose input has{when} {text}{more}. Leave it "
        "out of `targets`, or state the order: `enable_flix(..., rows={"
        f"{path!r}: 'batch'}})`, or None if its calls bring `features=`."
    )
