"""The low-rank split of an einsum equation.

The kernel axes of `activation,kernel->output` are split by role: *contracted*
ones, which the activation shares, and *output* ones. Flattened, they make the
kernel a `(d_in, d_out)` matrix, and that matrix is what gets a low-rank update.
This module needs the standard library only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import string


@dataclasses.dataclass(frozen=True)
class KernelSplit:
    """How an activation meets the flattened kernel, and how the result unfolds.

    Attributes:
        input_axes: Order of the activation's axes that puts positions first
            and contracted axes last, the latter in the kernel's order.
        num_positions: How many leading axes of that order are positions.
        output_axes: Order that brings `positions + output axes` to the
            layout the equation asks for.
        kernel_axes: Order of the kernel's axes that puts contracted ones
            first and output ones last.
        num_contracted: How many of them are contracted.

    Example:

    >>> split = split_equation("btd,ndh->btnh", input_rank=3)
    >>> split.input_axes, split.num_positions, split.output_axes
    ((0, 1, 2), 2, (0, 1, 2, 3))
    >>> split.kernel_axes, split.matrix_shape((4, 8, 16))
    ((1, 0, 2), (8, 64))
    """

    equation: str
    input_axes: tuple[int, ...]
    num_positions: int
    output_axes: tuple[int, ...]
    kernel_axes: tuple[int, ...]
    num_contracted: int

    def matrix_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, int]:
        """`(d_in, d_out)` of the flattened kernel.

        >>> split_equation("abcd,cde->abe", 4).matrix_shape((2, 8, 16))
        (16, 16)
        """
        sizes = [kernel_shape[axis] for axis in self.kernel_axes]
        split = self.num_contracted
        return math.prod(sizes[:split]), math.prod(sizes[split:])

    def output_sizes(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the kernel's output axes, in the kernel's order.

        >>> split_equation("btd,ndh->btnh", 3).output_sizes((4, 8, 16))
        (4, 16)
        """
        return tuple(
            kernel_shape[axis] for axis in self.kernel_axes[self.num_contracted :]
        )

    def unflatten_axes(self) -> tuple[int, ...]:
        """Order that brings the unfolded matrix back to the kernel's layout.

        >>> split_equation("btd,ndh->btnh", 3).unflatten_axes()
        (1, 0, 2)
        """
        return tuple(self.kernel_axes.index(i) for i in range(len(self.kernel_axes)))


@functools.lru_cache(maxsize=1024)
def split_equation(equation: str, input_rank: int) -> KernelSplit:
    """Parses `activation,kernel->output` once.

    Args:
        equation: An einsum equation as `keras.layers.EinsumDense` takes it;
            the activation and the output may hold an ellipsis.
        input_rank: Number of the activation's axes, the batch included.

    Returns:
        A `KernelSplit`.
    """
    input_term, kernel, output_term = _terms(equation)
    activation, output = _expand_ellipsis(equation, input_term, output_term, input_rank)
    contracted = [c for c in kernel if c in activation and c not in output]
    produced = [c for c in kernel if c in output and c not in activation]
    positions = [c for c in activation if c not in contracted]
    for c in kernel:
        if c in activation and c in output:
            raise _refusal(equation, f"axis {c!r} is in all three terms", "batches")
        if c not in activation and c not in output:
            raise _refusal(equation, f"axis {c!r} is in the kernel only", "sums")
    for c in positions:
        if c not in output:
            raise _refusal(equation, f"axis {c!r} is in the activation only", "sums")
    if not contracted or not produced or not positions:
        raise _refusal(equation, "no axis is contracted or produced", "scales")
    if activation[0] in contracted:
        raise _refusal(equation, f"the batch axis {activation[0]!r} is", "contracts")
    unfolded = positions + produced
    return KernelSplit(
        equation=equation,
        input_axes=tuple(activation.index(c) for c in positions + contracted),
        num_positions=len(positions),
        output_axes=tuple(unfolded.index(c) for c in output),
        kernel_axes=tuple(kernel.index(c) for c in contracted + produced),
        num_contracted=len(contracted),
    )


@dataclasses.dataclass(frozen=True)
class FlatKernel:
    """A kernel of known shape as a matrix, for activations of a known rank.

    Attributes:
        split: How its equation splits.
        d_in: Product of the contracted axes' sizes.
        d_out: Product of the output axes' sizes.
        output_sizes: The latter, in the kernel's order.
        input_axes: As that of the split; `None` where the order is right already.
        output_axes: Likewise.
    """

    split: KernelSplit
    d_in: int
    d_out: int
    output_sizes: tuple[int, ...]
    input_axes: tuple[int, ...] | None
    output_axes: tuple[int, ...] | None


@functools.lru_cache(maxsize=1024)
def flatten_kernel(
    equation: str, input_rank: int, kernel_shape: tuple[int, ...]
) -> FlatKernel:
    """Splits an equation, see `split_equation`, for a kernel of a shape."""
    split = split_equation(equation, input_rank)
    d_in, d_out = split.matrix_shape(kernel_shape)
    return FlatKernel(
        split,
        d_in,
        d_out,
        split.output_sizes(kernel_shape),
        _unless_in_order(split.input_axes),
        _unless_in_order(split.output_axes),
    )


def _unless_in_order(axes: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if axes == tuple(range(len(axes))) else axes


def _terms(equation: str) -> tuple[str, str, str]:
    compact = equation.replace(" ", "")
    inputs, arrow, output = compact.partition("->")
    activation, comma, kernel = inputs.partition(",")
    if not arrow or not comma or "." in kernel or "," in kernel:
        raise ValueError(
            "An equation must have the form 'activation,kernel->output', with "
            f"an ellipsis in the activation and output only. Received: "
            f"equation={equation!r}. An example is 'btd,ndh->btnh'."
        )
    for term in (activation, kernel, output):
        axes = term.replace("...", "")
        if len(set(axes)) < len(axes):
            raise _refusal(equation, f"an axis repeats in {term!r}", "takes a diagonal")
    return activation, kernel, output


def _expand_ellipsis(
    equation: str, activation: str, output: str, input_rank: int
) -> tuple[list[str], list[str]]:
    named = len(activation.replace("...", ""))
    extra = input_rank - named
    has_ellipsis = "..." in activation
    if extra < 0 or (extra and not has_ellipsis):
        raise ValueError(
            f"The activation of equation {equation!r} must have "
            f"{'at least ' if has_ellipsis else ''}{named} axes. Received: an "
            f"activation with {input_rank} axes. Check the layer's input."
        )
    used = set(equation)
    spare = [c for c in string.ascii_letters if c not in used][:extra]

    def expand(term: str) -> list[str]:
        before, dots, after = term.partition("...")
        return [*before, *(spare if dots else []), *after]

    return expand(activation), expand(output)


def _refusal(equation: str, reason: str, verb: str) -> ValueError:
    return ValueError(
        "A low-rank update needs kernel axes that are either contracted with "
        f"the activation or produced in the output. Received: "
        f"equation={equation!r}, which {verb}: {reason}. Leave this layer out "
        "of the targets."
    )
