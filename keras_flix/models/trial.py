"""Whether the targets run in a model, and which examples the rows they see are of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_flix import _compat
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.row_orders import KERAS_HUB, Orders
from keras_flix.models.adapted.probe_batches import Probe
from keras_flix.models.adapted.row_probe import (
    LENGTHS,
    find_orders,
    unclear_rows,
    watched,
)
from keras_flix.models.adapted.unsupported import never_runs
from keras_flix.models.stated_rows import orders_of_family
from keras_flix.models.targets import Placed


def known_orders(
    model: keras.Model, schema: FeatureSchema, walk: Sequence[Placed]
) -> Orders | None:
    """The orders that all targets may have; `None` if the model is to be tried."""
    # What is active in every example is the same for every row.
    return orders_of_family(model, walk) if schema.routed else KERAS_HUB


def try_out(
    model: keras.Model,
    layers: dict[str, Any],
    orders: dict[str, Orders | None],
    readers: Mapping[str, Any],
) -> bool:
    """Fills in unknown orders; raises for targets that never run, or have none.

    Args:
        model: The plain model.
        layers: The targets by path.
        orders: The orders of their rows by path, `None` where unknown.
        readers: The layers that multiply by a target's kernel themselves, by path.

    Returns:
        Whether the model could be tried. If not, its first real call is.
    """
    example = None
    if None in orders.values():
        example = _compat.example_inputs(model, _lengths())
    if example is None:
        return _check_runs(model, layers, readers)
    inputs, length, sure = example
    trains = _compat.heeds_training(model)
    probe = Probe(model, inputs, length, sure, trains, readers)
    with _frozen(model):
        found = find_orders(probe, layers)
    if found is None:
        return _check_runs(model, layers, readers)
    _raise_for_idle(layers, {path for path, one in found.items() if one.ran})
    if readers:
        _check_runs(model, layers, readers)
    unknown = {path: one for path, one in found.items() if orders[path] is None}
    if text := unclear_rows(unknown):
        raise ValueError(text)
    orders |= {path: one.orders for path, one in unknown.items()}
    return True


@contextlib.contextmanager
def _frozen(model: keras.Model) -> Iterator[None]:
    """As the base is afterwards: batch normalization then mixes no examples."""
    flags = [one for one in _compat.with_flags(model) if _compat.is_on(one)]
    _compat.switch(flags, False)
    try:
        yield
    finally:
        _compat.switch(flags, True)


def _lengths() -> Sequence[int]:
    """Lengths of batches that the current distribution can share out."""
    distribution = keras.distribution.distribution()
    devices = 1 if distribution is None else distribution.device_mesh.devices.size
    return LENGTHS if devices == 1 else (devices, 2 * devices, 3 * devices)


def _check_runs(
    model: keras.Model, layers: dict[str, Any], readers: Mapping[str, Any]
) -> bool:
    """Raises if a target never runs in the model, or if readers do more with it.

    Returns:
        Whether that could be found out here. If not, the first real call of
        the model does.
    """
    inputs = _compat.symbolic_inputs(model)
    if inputs is None:
        return False
    ran: set[str] = set()
    try:
        with watched(layers, lambda path, _: ran.add(path), readers) as products:
            read = products.note_read if readers else None
            _compat.dry_run(model, inputs, read=read)
    except _compat.UnknownUse:
        raise
    except Exception:
        # A subclassed model does not tell the dtypes of its inputs, and some
        # layers need more than the small sizes that stand for unknown ones.
        return False
    _raise_for_idle(layers, ran)
    if products.read_elsewhere:
        path, *_ = products.read_elsewhere
        raise _compat.UnknownUse(
            _compat.unknown_use(f"another use of the kernel {path!r}")
        )
    return True


def _raise_for_idle(layers: dict[str, Any], ran: set[str]) -> None:
    idle = [path for path in layers if path not in ran]
    if idle:
        bypassed = {layers[path].name for path in idle}
        others = {layers[path].name for path in ran} - bypassed
        raise ValueError(never_runs(idle, sorted(others)))
