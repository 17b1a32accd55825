"""Layers whose code multiplies by kernels itself, without calling a layer.

KerasHub's Gemma 4 computes `ops.matmul(x, self.gating_ffw.kernel)`, and its experts
`ops.einsum("th,ehm->etm", x, self._kernel)`. Python's functions find `ops` among the
globals of their module. So such a layer gets a subclass whose `call` is the same code
with another `ops`: one that knows the adapted kernels, and passes all else on.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import keras
from keras import ops

MARK = "flix_kernel"
"""The attribute of a kernel's variable that says who adapts it."""

MATMUL = "...d,df->...f"
"""What `ops.matmul` computes with a kernel of two axes on its right."""


class UnknownUse(ValueError):
    """A layer's code does something unknown with an adapted kernel."""


class Multiplied(Protocol):
    """What is told of the products with a kernel."""

    def add_update(self, product: Any, equation: str, inputs: Any) -> Any:
        """The product of `inputs` with the kernel, with what is to be added to it."""


class CastKernel(NamedTuple):
    """A kernel in another dtype, which is still known.

    Keras' operations refuse it, so it cannot be used unseen.
    """

    value: Any
    kernel: Multiplied


class Products:
    """Stands for `keras.ops` where a layer's code multiplies by kernels itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ops, name)

    def cast(self, x: Any, dtype: Any) -> Any:
        """As `keras.ops.cast`; a kernel stays known."""
        kernel = self._kernel_of(x)
        value = self._computed(kernel, ops.cast, x, dtype)
        return value if kernel is None else CastKernel(value, kernel)

    def matmul(self, x1: Any, x2: Any) -> Any:
        """As `keras.ops.matmul`, with the update of a kernel on the right."""
        kernel = self._only_kernel("matmul", x1, x2)
        value = x2.value if isinstance(x2, CastKernel) else x2
        product = self._computed(kernel, ops.matmul, x1, value)
        if kernel is None:
            return product
        if len(value.shape) != 2:
            raise UnknownUse(unknown_use(f"a matmul by {len(value.shape)} axes"))
        return kernel.add_update(product, MATMUL, x1)

    def einsum(self, subscripts: str, *operands: Any, **kwargs: Any) -> Any:
        """As `keras.ops.einsum`, with the update of a kernel that comes second."""
        kernel = self._only_kernel(f"einsum {subscripts!r}", *operands)
        values = [x.value if isinstance(x, CastKernel) else x for x in operands]
        product = self._computed(kernel, ops.einsum, subscripts, *values, **kwargs)
        if kernel is None:
            return product
        return kernel.add_update(product, subscripts, operands[0])

    def _only_kernel(self, where: str, *operands: Any) -> Multiplied | None:
        kernels = [self._kernel_of(x) for x in operands]
        if not any(kernel is not None for kernel in kernels):
            return None
        if len(operands) != 2 or kernels[0] is not None:
            raise UnknownUse(unknown_use(f"{where} of another form"))
        return kernels[1]

    def _kernel_of(self, x: Any) -> Multiplied | None:
        if isinstance(x, CastKernel):
            return x.kernel
        return getattr(x, MARK, None) if isinstance(x, keras.Variable) else None

    def _computed(self, kernel: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """What a function computes that may read a kernel."""
        return function(*args, **kwargs)


def unknown_use(what: str) -> str:
    """The error for a layer that does something else with an adapted kernel."""
    return (
        "A kernel that is used without its layer being called must be the right-hand "
        f"side of a matmul or an einsum of two. Received: {what}, in a layer of a "
        "newer KerasHub. Leave it out of `targets`, and report this."
    )


def with_other_ops(call: Any, other: Products) -> Any:
    """A function of the same code, for which `ops` is another one."""
    made = types.FunctionType(
        call.__code__,
        {**call.__globals__, "ops": other},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    made.__kwdefaults__ = call.__kwdefaults__
    functools.update_wrapper(made, call)
    del made.__wrapped__  # type: ignore[attr-defined]
    return made


def multiplies_itself(layer: keras.layers.Layer) -> bool:
    """Whether a layer's code can be given another `ops`: KerasHub's own, of that name.

    Layers of users' own are left alone: whose their rows are, no test knows.
    """
    call = type(layer).call
    return (
        type(layer).__module__.partition(".")[0] == "keras_hub"
        and isinstance(call, types.FunctionType)
        and call.__globals__.get("ops") is ops
        and "ops" in call.__code__.co_names
    )


def attributes_read(layer: keras.layers.Layer) -> set[tuple[str, ...]]:
    """The attributes that a layer's `call` reads, each with the next one of it.

    `("gating_ffw", "kernel")` for `self.gating_ffw.kernel`, and `("_kernel",)` for
    `self._kernel`.
    """
    cls: Any = type(layer)
    return _attributes_read(cls)


@functools.cache
def _attributes_read(cls: Any) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    names: list[str] = []
    for step in dis.get_instructions(cls.call):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            names.append(step.argval)
            found |= {tuple(names[:1]), tuple(names[:2])}
        else:
            names = []
    return found


@functools.cache
def multiplying_class(cls: Any) -> type:
    """The class of layers of class `cls` whose kernels are adapted: the same name."""
    if hasattr(cls, "plain_class"):
        return cls
    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "plain_class": cls,
        "call": with_other_ops(cls.call, Products()),
    }
    return type(cls.__name__, (cls,), names)


def mark_kernel(variable: keras.Variable, kernel: Multiplied) -> None:
    """Makes products with a variable known to those who adapt it."""
    setattr(variable, MARK, kernel)


class Watch(NamedTuple):
    """What is to be seen of products with a layer's kernels.

    Attributes:
        path: What names the kernel.
        layer: The layer whose code multiplies by it.
        variable: The kernel.
    """

    path: str
    layer: keras.layers.Layer
    variable: keras.Variable


class _Seen:
    """Tells of each product with a kernel, then goes on as without."""

    def __init__(self, path: str, seen: Any, inner: Multiplied | None) -> None:
        self._path, self._seen, self._inner = path, seen, inner

    def add_update(self, product: Any, equation: str, inputs: Any) -> Any:
        self._seen(self._path, equation, inputs)
        if self._inner is None:
            return product
        return self._inner.add_update(product, equation, inputs)


class WatchedProducts(Products):
    """Products that tell of each one with some kernels.

    Attributes:
        read_elsewhere: The paths of the kernels that were read outside of them, if
            `note_read` was told.
    """

    def __init__(
        self, watches: Sequence[Watch], seen: Callable[[str, str, Any], None]
    ) -> None:
        self.read_elsewhere: dict[str, None] = {}
        self._computing: Any = None
        self._paths = {id(w.variable): w.path for w in watches}
        self._by_variable = {
            id(w.variable): _Seen(w.path, seen, getattr(w.variable, MARK, None))
            for w in watches
        }
        self._here = threading.get_ident()

    def _kernel_of(self, x: Any) -> Multiplied | None:
        if threading.get_ident() == self._here and id(x) in self._by_variable:
            return self._by_variable[id(x)]
        return super()._kernel_of(x)

    def _computed(self, kernel: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if kernel is None:
            return function(*args, **kwargs)
        self._computing = kernel
        try:
            return function(*args, **kwargs)
        finally:
            self._computing = None

    def note_read(self, variable: keras.Variable) -> None:
        """Takes note of a variable that is read."""
        path = self._paths.get(id(variable))
        if path is not None and self._computing is None:
            self.read_elsewhere[path] = None


@contextlib.contextmanager
def watched_products(
    watches: Sequence[Watch],
    seen: Callable[[str, str, Any], None] = lambda path, equation, inputs: None,
) -> Iterator[WatchedProducts]:
    """Calls `seen` with the path, equation and input of each product with kernels."""
    products = WatchedProducts(watches, seen)
    layers = {id(w.layer): w.layer for w in watches}
    try:
        for layer in layers.values():
            plain = getattr(type(layer), "plain_class", type(layer))
            call = types.MethodType(with_other_ops(plain.call, products), layer)
            object.__setattr__(layer, "call", call)
        yield products
    finally:
        for layer in layers.values():
            layer.__dict__.pop("call", None)
