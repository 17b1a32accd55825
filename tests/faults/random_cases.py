"""Random adapted layers and batches, and what they must compute, in float64 NumPy.

What an example has is drawn first, as values and weights. The entries of the input
dict are made from it, and the reference never sees those.
"""

import contextlib
import dataclasses
import math

import keras
import ml_dtypes
import numpy as np
from helpers.einsums import EQUATIONS, full_kernel
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from keras import ops

from keras_flix import Feature, FlixDense, FlixEinsumDense
from keras_flix.layers.active_scope import Routing, routing_scope
from keras_flix.layers.row_orders import KERAS_HUB

BACKEND = keras.config.backend()
POLICIES = ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16"]
if BACKEND != "torch":  # Where Keras multiplies float64 in float32.
    POLICIES.append("float64")
SIGNED, UNSIGNED = ["int8", "int16", "int32", "int64"], ["uint8", "uint16", "uint32"]
DENSE = "...x,xy->...y"
SEEDS = st.integers(0, 2**32 - 1)
# `EinsumDense` itself takes the batch to come first in the output.
LAYER_EQUATIONS = [e for e in EQUATIONS if not e.endswith("->nhbt")]


def for_random(count, *strategies):
    """Runs a function for so many random arguments, the same ones every time."""

    def run(function):
        checks = settings(
            max_examples=count,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        checks(given(*strategies)(function))()

    return run


@dataclasses.dataclass(frozen=True)
class Structure:
    """An adapted layer.

    Attributes:
        equation: Of the layer; the batch comes first.
        sizes: By letter, sizes of the kernel's axes, as pairs.
        bias_axes: As for `EinsumDense`; `None` for no bias.
        features: The axes.
        alpha: That of the axes which have none of their own.
        policy: Name of the dtype policy.
        ellipsis: How many axes an ellipsis stands for, the batch not counted.
    """

    equation: str
    sizes: tuple
    bias_axes: str | None
    features: tuple
    alpha: float | None
    policy: str
    ellipsis: int

    @property
    def terms(self):
        """Activation, kernel and output of the equation."""
        inputs, output = self.equation.split("->")
        return (*inputs.split(","), output)

    @property
    def kernel_shape(self):
        sizes = dict(self.sizes)
        return tuple(sizes[axis] for axis in self.terms[1])

    @property
    def matrix_shape(self):
        sizes, (activation, kernel, _) = dict(self.sizes), self.terms
        contracted = [c for c in kernel if c in activation]
        produced = [c for c in kernel if c not in activation]
        return tuple(math.prod(sizes[c] for c in cs) for cs in (contracted, produced))

    @property
    def compute_dtype(self):
        return keras.DTypePolicy(self.policy).compute_dtype

    def input_shape(self, batch, positions):
        """Shape of the activation; axes that the kernel has not are `positions`."""
        activation, kernel, _ = self.terms
        sizes, positions = dict(self.sizes), iter(positions)
        before, dots, after = activation.partition("...")
        # In `Dense`, the ellipsis stands for the batch too.
        extra = [next(positions) for _ in range(self.ellipsis if dots else 0)]
        named = [
            [sizes[c] if c in kernel else next(positions) for c in part]
            for part in (before[1:], after)
        ]
        return (batch, *named[0], *extra, *named[1])


@st.composite
def equations(draw):
    """The known ones, and others with their axes in any order."""
    if draw(st.booleans()):
        return draw(st.sampled_from(LAYER_EQUATIONS))
    positions, contracted, produced = (
        letters[: draw(st.integers(least, 2))]
        for least, letters in ((0, "tu"), (1, "cd"), (1, "no"))
    )
    activation, kernel, output = (
        "".join(draw(st.permutations(axes)))
        for axes in (
            positions + contracted,
            contracted + produced,
            positions + produced,
        )
    )
    return f"b{activation},{kernel}->b{output}"


@st.composite
def axes(draw, name, highest_rank, always):
    """One feature axis."""
    count = 1 if always else draw(st.integers(1, 40) | st.sampled_from([130, 257]))
    ranks = st.integers(1, highest_rank)
    values = [f"v{i}" for i in range(count)]
    rank = draw(ranks | st.fixed_dictionaries({"*": ranks, "v0": ranks}))
    alpha = draw(st.none() | st.sampled_from([0.5, 3.0, 16.0]))
    if always:
        rank = rank if isinstance(rank, int) else rank["*"]
        return Feature(name, rank=rank, alpha=alpha, always=True)
    multiple = draw(st.booleans())
    return Feature(name, values, rank=rank, alpha=alpha, multiple=multiple)


@st.composite
def structures(draw, policies=tuple(POLICIES)):
    """Adapted layers with 1 to 4 axes."""
    equation = draw(equations())
    activation, kernel = equation.split("->")[0].split(",")
    sizes = tuple((c, draw(st.integers(1, 6))) for c in kernel)
    produced = [c for c in kernel if c not in activation]
    bias = draw(st.none() | st.lists(st.sampled_from(produced), unique=True))
    last = equation[-1]
    if BACKEND == "tensorflow" and bias and dict(sizes).get(last, 1) == 1:
        bias = None  # Of the shape `(n, 1)`, Keras adds it to another axis there.
    elif BACKEND == "tensorflow" and bias and last not in bias:
        bias.append(last)
    structure = Structure(
        equation=equation,
        sizes=sizes,
        # `Dense` has a bias of all its axes.
        bias_axes=None
        if not bias
        else "".join(produced if "..." in equation else bias),
        features=(),
        alpha=draw(st.none() | st.sampled_from([1.0, 3.0])),
        policy=draw(st.sampled_from(policies)),
        ellipsis=draw(st.integers(1, 2)) if "..." in equation else 0,
    )
    always = draw(st.lists(st.booleans(), min_size=1, max_size=4))
    highest = min(4, *structure.matrix_shape)
    features = [
        draw(axes(f"axis{i}", highest, only_one)) for i, only_one in enumerate(always)
    ]
    return dataclasses.replace(structure, features=tuple(features))


@contextlib.contextmanager
def precision(policy):
    """Lets JAX compute in float64, for the policy of that name."""
    if BACKEND == "jax" and policy == "float64":
        import jax

        with jax.enable_x64(True):
            yield
    else:
        yield


def numbers(rng, shape, dtype):
    """Random numbers that the dtype holds exactly: only what it computes is rounded."""
    if dtype in ("float32", "float64"):
        return rng.normal(size=shape).astype("float32")
    return (rng.integers(-24, 25, shape) / 16).astype("float32")


class Case:
    """A built layer with random weights, which are known here too."""

    def __init__(self, structure, seed):
        self.structure, rng = structure, np.random.default_rng(seed)
        self.rng, dtype = rng, structure.compute_dtype
        self.layer = _layer(structure)
        shape = structure.input_shape(2, [2] * 4)
        self.layer.build(shape)
        self.kernel = numbers(rng, structure.kernel_shape, dtype)
        self.layer.kernel.assign(self.kernel)
        self.bias = np.zeros((), "float32")
        if self.layer.bias is not None:
            self.bias = numbers(rng, tuple(self.layer.bias.shape), dtype)
            self.layer.bias.assign(self.bias)
        self.tables = {}
        d_in, d_out = structure.matrix_shape
        for feature in structure.features:
            count, rank = len(feature.values), max(feature.ranks)
            a = numbers(rng, (count, d_in, rank), dtype)
            b = numbers(rng, (count, rank, d_out), dtype)
            beyond = np.arange(rank) >= np.array(feature.ranks)[:, None]
            a = np.where(beyond[:, None, :], np.float32(0), a)
            b = np.where(beyond[:, :, None], np.float32(0), b)
            self.assign(feature.name, a, b)

    def variables(self, name):
        """The variables of an axis' tables."""
        named = self.layer._tables.named_variables
        return [named[f"flix_{name}_{part}"] for part in "ab"]

    def assign(self, name, a, b):
        """Gives an axis tables."""
        self.tables[name] = [a, b]
        for variable, value in zip(self.variables(name), (a, b)):
            variable.assign(value)

    def scale(self, feature, value):
        """`alpha / rank`, or 1."""
        alpha = self.structure.alpha if feature.alpha is None else feature.alpha
        return 1.0 if alpha is None else alpha / feature.ranks[value]

    def reference(self, x, truth, tables=None):
        """The layer's outputs, and how much of rounding errors they may have.

        Args:
            x: The activations.
            truth: By routed axis, per example, pairs of a value's id and its weight.
            tables: By axis, other tables than the layer's.

        Returns:
            Two float64 arrays. The second is the sum of the sizes of all that is
            added up, times a unit roundoff and the square root of the number of
            roundings (Higham and Mary, "A New Approach to Probabilistic Rounding
            Error Analysis", 2019).
        """
        tables = self.tables if tables is None else tables
        return self._outputs(x, truth, tables, abs_of=lambda a: a), (
            self._outputs(x, truth, tables, abs_of=np.abs) * self.roundoff(truth)
        )

    def roundoff(self, truth):
        """The unit roundoff times the square root of the number of roundings."""
        unit = float(ml_dtypes.finfo(self.structure.compute_dtype).eps) / 2
        d_in, _ = self.structure.matrix_shape
        roundings = 8 + d_in
        for feature in self.structure.features:
            rows = [[(0, 1.0)]] if feature.always else truth[feature.name]
            most = max([len(row) for row in rows], default=0)
            roundings += most * (d_in + max(feature.ranks))
        return unit * math.sqrt(roundings)

    def _outputs(self, x, truth, tables, abs_of):
        """By the formula; with absolute values of all factors, or as they are."""
        base, bias = (abs_of(v.astype("float64")) for v in (self.kernel, self.bias))
        outputs = [self._einsum(abs_of(x[:0].astype("float64")), base) + bias]
        for example in range(len(x)):
            kernel = base
            for feature in self.structure.features:
                has = [(0, 1.0)] if feature.always else truth[feature.name][example]
                for value, weight in has:
                    rank = feature.ranks[value]
                    a, b = (
                        abs_of(table[value].astype("float64"))
                        for table in tables[feature.name]
                    )
                    factor = abs_of(weight * self.scale(feature, value))
                    kernel = kernel + factor * self._kernel_of(a[:, :rank], b[:rank])
            one = abs_of(x[example : example + 1].astype("float64"))
            outputs.append(self._einsum(one, kernel) + bias)
        return np.concatenate(outputs)

    def _einsum(self, x, kernel):
        return np.einsum(self.structure.equation, x, kernel)

    def _kernel_of(self, a, b):
        return full_kernel(self.structure.equation, self.kernel.shape, a, b)


def _layer(structure):
    kwargs = {
        "features": list(structure.features),
        "alpha": structure.alpha,
        "dtype": structure.policy,
    }
    if structure.equation == DENSE:
        bias = structure.bias_axes is not None
        return FlixDense(structure.kernel_shape[1], use_bias=bias, **kwargs)
    sizes, output = dict(structure.sizes), structure.terms[2].replace("...", "")
    # The letters of the kernel that the output has; other lengths vary.
    shape = [sizes.get(axis) for axis in output[1:]]
    return FlixEinsumDense(
        structure.equation, shape, bias_axes=structure.bias_axes, **kwargs
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What batches have in common that a compiled function sees alike.

    Attributes:
        batch: Number of entries per axis.
        repeats: Rows of the activation per entry, as beams are.
        one_input: Whether one row of activations holds for all entries.
        shape: That of the activations.
        forms: By routed axis, the form of the entry, its dtype and how many
            values an example has at most.
    """

    batch: int
    repeats: int
    one_input: bool
    shape: tuple
    forms: dict

    @property
    def routed(self):
        """Whether only a routing can tell the layer of the features."""
        return self.repeats > 1 or self.one_input


def draw_plan(rng, structure, batches=(0, 1, 2, 3, 5, 7)):
    """A plan for a structure; its forms are those that are ids while traced."""
    batch = int(rng.choice(batches))
    special = rng.random()
    repeats = int(rng.integers(2, 4)) if special < 0.15 and batch else 1
    routes = any(not f.always for f in structure.features)
    one_input = special > 0.9 and batch > 0 and routes
    positions = rng.integers(1, 5, 4)
    rows = 1 if one_input else batch * repeats
    forms = {}
    for feature in structure.features:
        if feature.always:
            continue
        count = len(feature.values)
        form = str(rng.choice(["ids", "ids", "ids", "packed", "matrix"]))
        k = int(rng.integers(1, min(4, count) + 1))
        if form == "ids" and not feature.multiple:
            k = 1
        dtype = str(rng.choice(SIGNED + UNSIGNED))
        forms[feature.name] = (form, dtype, k)
    shape = structure.input_shape(rows, positions.tolist())
    return Plan(batch, repeats if routes else 1, one_input, shape, forms)


def draw_batch(rng, case, plan):
    """Activations, what each example has, and the entries that say so."""
    x = numbers(rng, plan.shape, case.structure.compute_dtype)
    truth, entries = {}, {}
    for feature in case.structure.features:
        if feature.always:
            continue
        form, dtype, k = plan.forms[feature.name]
        absent = float(rng.choice([0.0, 0.3, 0.7, 1.0]))
        # Unsigned integers have no -1.
        full = form == "ids" and dtype in UNSIGNED
        count = len(feature.values)
        if form == "ids":
            count = min(count, np.iinfo(dtype).max + 1)
        slots = np.full((plan.batch, k), -1)
        for row in slots:
            row[:] = rng.permutation(count)[:k]
            if not full:
                row[rng.random(k) < absent] = -1
        weights = np.ones((plan.batch, k))
        if form != "ids":
            weights = rng.choice([-1.5, -0.25, 0.5, 0.75, 1.0, 2.0], (plan.batch, k))
        truth[feature.name] = [
            [(int(v), float(w)) for v, w in zip(*row) if v >= 0]
            for row in zip(slots, weights)
        ]
        entries[feature.name] = _entry(feature, form, dtype, slots, weights)
    return x, truth, entries


def _entry(feature, form, dtype, slots, weights):
    if form == "ids":
        ids = slots.astype(dtype)
        return ids if feature.multiple else ids[:, 0]
    if form == "packed":
        # Whole millionths, see the encoder: binary fractions are exact.
        return np.stack([slots, np.round(weights * 2**20)], -1).astype("int32")
    matrix = np.zeros((len(slots), len(feature.values)), "float32")
    for row, values, own in zip(matrix, slots, weights):
        row[values[values >= 0]] = own[values >= 0]
    return matrix


def written(rng, case, truth, entries):
    """The same batch as a person might write it: names, lists, dicts, `None`."""
    own = {}
    for feature in case.structure.features:
        if feature.always:
            continue
        rows = truth[feature.name]
        names = [[(feature.values[v], w) for v, w in row] for row in rows]
        if rng.random() < 0.3:
            own[feature.name] = entries[feature.name]
        elif all(row == rows[0] for row in rows) and rows and rng.random() < 0.7:
            # One for the whole batch.
            own[feature.name] = dict(names[0]) if names[0] else None
        elif all(w == 1.0 for row in rows for _, w in row) and (
            feature.multiple or all(len(row) <= 1 for row in rows)
        ):
            own[feature.name] = [
                [v for v, _ in row] if feature.multiple else row[0][0] if row else None
                for row in names
            ]
        else:
            own[feature.name] = [dict(row) if row else None for row in names]
    return own


def expected(case, plan, x, truth, tables=None):
    """`Case.reference` for rows that share features, or features that share rows."""
    rows = np.repeat(x, plan.batch, axis=0) if plan.one_input else x
    repeated = {
        name: [row for row in has for _ in range(plan.repeats)]
        for name, has in truth.items()
    }
    return case.reference(rows, repeated, tables)


def numpy(tensor):
    """A tensor as float64, which holds all that narrower dtypes hold."""
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = ops.cast(tensor, "float32")
    return ops.convert_to_numpy(tensor).astype("float64")


def as_input(x, structure):
    """Activations in the dtype that reaches a layer of the policy."""
    return ops.convert_to_tensor(x, structure.compute_dtype)


def eager(case, plan, x, entries):
    """The layer's outputs, called as it is."""
    x = as_input(x, case.structure)
    return numpy(_call(case, plan, x, entries, case.layer))


def _call(case, plan, x, entries, call):
    if not plan.routed:
        return call(x, features=entries)
    schema = case.layer.features
    ids = {name: _traced_ids(schema[name], e) for name, e in entries.items()}
    with routing_scope(Routing.from_ids(schema, ids, orders=KERAS_HUB)):
        return call(x)


def _traced_ids(feature, entry):
    from keras_flix.features.tensor_ids import checked_tensor

    return checked_tensor(feature, ops.convert_to_tensor(entry), is_ids=True)


COMPILERS = {
    "jax": ["jit"],
    "tensorflow": ["graph", "xla"],
    "torch": ["eager", "dynamo"],
}


def compiled(case, plan, compiler=COMPILERS[BACKEND][0]):
    """A function of activations and entries that traces the layer and compiles it.

    Args:
        case: The layer.
        plan: That of a batch.
        compiler: One of the backend's `COMPILERS`. "eager" of torch does not trace:
            ids reach the layer unchecked, as they do where it does.
    """
    layer, structure = case.layer, case.structure
    if BACKEND == "jax":
        import jax

        @jax.jit
        def run(trained, others, x, entries):
            def call(*args, **kwargs):
                return layer.stateless_call(trained, others, *args, **kwargs)[0]

            return _call(case, plan, x, entries, call)

        def call(x, entries):
            return run(*_state(layer), as_input(x, structure), entries)

    elif BACKEND == "tensorflow":
        import tensorflow as tf

        run = tf.function(
            lambda x, entries: _call(case, plan, x, entries, layer),
            jit_compile=compiler == "xla",
        )

        def call(x, entries):
            return run(as_input(x, structure), _tensors(entries))

    else:
        import torch

        run = _call
        if compiler == "dynamo":
            torch.compiler.reset()
            run = torch.compile(_call, backend="eager")
        else:
            plan = dataclasses.replace(plan, one_input=True)  # Unchecked.

        def call(x, entries):
            with torch.no_grad():
                x = as_input(x, structure)
                return run(case, plan, x, _tensors(entries), layer)

    return lambda x, entries: numpy(call(x, entries))


def differentiated(case, plan):
    """Like `compiled`, with the gradients of half the sum of the outputs' squares.

    Returns:
        A function that returns the outputs, the gradient of the activations, and
        by axis those of its tables, all in float64.
    """
    layer, structure = case.layer, case.structure
    plan = dataclasses.replace(plan, one_input=True) if BACKEND == "torch" else plan

    def loss_of(outputs):
        wide = "float64" if structure.compute_dtype == "float64" else "float32"
        return ops.sum(ops.square(ops.cast(outputs, wide))) / 2

    if BACKEND == "jax":
        import jax

        def loss(trained, x, others, entries):
            def call(*args, **kwargs):
                return layer.stateless_call(trained, others, *args, **kwargs)[0]

            outputs = _call(case, plan, x, entries, call)
            return loss_of(outputs), outputs

        step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

        def run(x, entries):
            trained, others = _state(layer)
            (found, dx), outputs = step(trained, x, others, entries)
            return outputs, dx, found

    elif BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def run(x, entries):
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = _call(case, plan, x, entries, layer)
                loss = loss_of(outputs)
            variables = [v.value for v in layer.trainable_variables]
            dx, *found = tape.gradient(loss, [x, *variables])
            return outputs, dx, [tf.convert_to_tensor(g) for g in found]

    else:
        import torch

        def run(x, entries):
            x = x.requires_grad_()
            outputs = _call(case, plan, x, entries, layer)
            variables = [v.value for v in layer.trainable_variables]
            dx, *found = torch.autograd.grad(loss_of(outputs), [x, *variables])
            return outputs, dx, found

    def call(x, entries):
        # JAX keeps the dtypes of NumPy, which its function is traced for.
        entries = entries if BACKEND == "jax" else _tensors(entries)
        outputs, dx, found = run(as_input(x, structure), entries)
        by_id = {id(v): numpy(g) for v, g in zip(layer.trainable_variables, found)}
        tables = {
            feature.name: [by_id[id(v)] for v in case.variables(feature.name)]
            for feature in structure.features
        }
        return (
            numpy(outputs.detach() if BACKEND == "torch" else outputs),
            numpy(dx),
            tables,
        )

    return call


def _state(layer):
    """The values of what trains in a layer, and of all else."""
    return tuple(
        [v.value for v in variables]
        for variables in (layer.trainable_variables, layer.non_trainable_variables)
    )


def _tensors(entries):
    return {name: ops.convert_to_tensor(entry) for name, entry in entries.items()}
