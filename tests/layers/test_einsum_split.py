"""The low-rank split of einsum equations against `np.einsum`."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.einsums import EQUATIONS, full_kernel, shapes

from keras_flix.layers.einsum_split import split_equation

RANK = 2


def by_split(split, x, kernel_shape, a, b):
    """The update as the split prescribes it, in numpy."""
    x = x.transpose(split.input_axes)
    positions = x.shape[: split.num_positions]
    update = x.reshape(*positions, -1) @ a @ b
    update = update.reshape(*positions, *split.output_sizes(kernel_shape))
    return update.transpose(split.output_axes)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_split_equals_einsum_with_the_full_kernel(equation):
    generator = np.random.default_rng(0)
    input_shape, kernel_shape = shapes(equation)
    split = split_equation(equation, len(input_shape))
    d_in, d_out = split.matrix_shape(kernel_shape)
    assert d_in * d_out == math.prod(kernel_shape)
    x = generator.normal(size=input_shape)
    a = generator.normal(size=(d_in, RANK))
    b = generator.normal(size=(RANK, d_out))
    expected = np.einsum(equation, x, full_kernel(equation, kernel_shape, a, b))
    found = by_split(split, x, kernel_shape, a, b)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_matrix_unfolds_to_the_kernel(equation):
    input_shape, kernel_shape = shapes(equation)
    split = split_equation(equation, len(input_shape))
    d_in, d_out = split.matrix_shape(kernel_shape)
    a, b = np.eye(d_in), np.arange(d_in * d_out).reshape(d_in, d_out)
    unfolded = b.reshape([kernel_shape[axis] for axis in split.kernel_axes])
    kernel = unfolded.transpose(split.unflatten_axes())
    assert kernel.shape == kernel_shape
    np.testing.assert_array_equal(kernel, full_kernel(equation, kernel_shape, a, b))
    np.testing.assert_array_equal(
        kernel.transpose(split.kernel_axes).reshape(d_in, d_out), b
    )


@pytest.mark.parametrize("extra", [0, 1, 3])
@pytest.mark.parametrize("equation", ["...x,xy->...y", "ab...,bc->ac..."])
def test_an_ellipsis_stands_for_any_axes(equation, extra):
    generator = np.random.default_rng(0)
    # A Dense layer's batch is among the axes of its ellipsis.
    ellipsis = (3,) * extra if equation[0] != "." else (3,) * (extra + 1)
    input_shape, kernel_shape = shapes(equation, ellipsis=ellipsis)
    split = split_equation(equation, len(input_shape))
    x = generator.normal(size=input_shape)
    d_in, d_out = split.matrix_shape(kernel_shape)
    a, b = generator.normal(size=(d_in, 1)), generator.normal(size=(1, d_out))
    np.testing.assert_allclose(
        by_split(split, x, kernel_shape, a, b),
        np.einsum(equation, x, full_kernel(equation, kernel_shape, a, b)),
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_matrix_of_gemmas_query_spans_all_heads():
    split = split_equation("btd,ndh->btnh", 3)
    assert split.matrix_shape((4, 16, 6)) == (16, 24)
    assert split.output_sizes((4, 16, 6)) == (4, 6)
    assert split.kernel_axes == (1, 0, 2)
    assert split.num_contracted == 1


def test_splits_are_parsed_once_and_do_not_change():
    split = split_equation("btd,df->btf", 3)
    assert split_equation("btd,df->btf", 3) is split
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.num_positions = 1


def test_spaces_do_not_matter():
    spaced = split_equation("btd, ndh -> btnh", 3)
    plain = split_equation("btd,ndh->btnh", 3)
    assert dataclasses.replace(spaced, equation=plain.equation) == plain


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("bnd,ndh->bnh", "batches: axis 'n' is in all three terms"),
        ("btd,dfz->btf", "sums: axis 'z' is in the kernel only"),
        ("btzd,df->btf", "sums: axis 'z' is in the activation only"),
        ("...d,dfz->...f", "sums: axis 'z' is in the kernel only"),
        ("...d,dfa->...f", "sums: axis 'a' is in the kernel only"),
        ("bt,f->btf", "scales: no axis is contracted or produced"),
        ("btd,d->bt", "scales: no axis is contracted or produced"),
        ("d,df->f", "scales: no axis is contracted or produced"),
        ("dbt,df->btf", "contracts: the batch axis 'd' is"),
        ("bbd,df->bf", "takes a diagonal: an axis repeats in 'bbd'"),
        ("bd,ddf->bf", "takes a diagonal: an axis repeats in 'ddf'"),
        ("bd,df->bff", "takes a diagonal: an axis repeats in 'bff'"),
    ],
)
def test_refuses_kernels_without_two_sides(equation, reason):
    input_rank = len(equation.split(",")[0].replace("...", "bt"))
    with pytest.raises(ValueError) as error:
        split_equation(equation, input_rank)
    assert str(error.value) == (
        "A low-rank update needs kernel axes that are either contracted with the "
        "activation or produced in the output. Received: "
        f"equation={equation!r}, which {reason}. Leave this layer out of the targets."
    )


@pytest.mark.parametrize(
    "equation", ["btd,df", "btd->btf", "btd,df,fg->btg", "btd,...f->btf", ""]
)
def test_refuses_other_forms(equation):
    with pytest.raises(ValueError) as error:
        split_equation(equation, 3)
    assert str(error.value) == (
        "An equation must have the form 'activation,kernel->output', with an "
        f"ellipsis in the activation and output only. Received: equation={equation!r}"
        ". An example is 'btd,ndh->btnh'."
    )


@pytest.mark.parametrize(
    ("equation", "input_rank", "needs"),
    [
        ("btd,df->btf", 2, "3 axes"),
        ("btd,df->btf", 4, "3 axes"),
        ("ab...,bc->ac...", 1, "at least 2 axes"),
    ],
)
def test_refuses_activations_of_another_rank(equation, input_rank, needs):
    with pytest.raises(ValueError) as error:
        split_equation(equation, input_rank)
    assert str(error.value) == (
        f"The activation of equation {equation!r} must have {needs}. Received: an "
        f"activation with {input_rank} axes. Check the layer's input."
    )
