import pytest
import torch
from torch import Tensor

from kd_lightning.losses.precision import in_float32, precise

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, -2.0], dtype=dtype)
    torch.testing.assert_close(precise(values), torch.tensor([1.5, -2.0]), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_other_values_are_given_back_as_they_are(dtype: torch.dtype) -> None:
    values = torch.ones(2, dtype=dtype)
    assert precise(values) is values


@pytest.mark.parametrize("dtype", HALVES)
def test_the_gradient_comes_back_in_the_precision_of_the_input(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    precise(values).square().sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == dtype
    assert values.grad.tolist() == [2.0, 4.0]


@in_float32
def product(a: Tensor, b: Tensor) -> Tensor:
    """What a product is."""
    return a @ b


def test_autocast_is_off_inside_and_on_again_afterwards() -> None:
    a, b = torch.randn(2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, after = product(a, b), a @ b
    assert (inside.dtype, after.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(inside, a @ b, rtol=0, atol=0)


def test_autocast_is_on_again_after_an_error() -> None:
    a = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            product(a, torch.randn(4, 4))
        assert (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES)
def test_a_sum_of_halves_does_not_drown_in_rounding(dtype: torch.dtype) -> None:
    # 1 + 1e-3 * 1e-3 * 10000 is 1.01; half precision has no number between 1 and 1.00097, or 1.0078.
    a = torch.full((1, 10001), 1e-3)
    a[0, 0] = 1.0
    a = a.to(dtype)
    expected = a.double() @ a.double().T
    torch.testing.assert_close(product(a, a.T).double(), expected, rtol=1e-4, atol=0)


def dtypes(*args: object, **kwargs: object) -> list[object]:
    """The dtype of each tensor, the container of each list, in order; other values themselves."""
    found: list[object] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value.dtype)
        elif isinstance(value, list | tuple):
            found += [type(value), *dtypes(*value)]
        else:
            found.append(value)
    return found


def test_tensors_in_lists_and_named_arguments_are_raised_too() -> None:
    half, whole = torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.int64)
    given = in_float32(dtypes)([half, (half, whole)], 0.5, target=whole, teacher=half, form="kernel", none=None)
    raised, index = torch.float32, torch.int64
    assert given == [list, raised, tuple, raised, index, 0.5, index, raised, "kernel", None]


def test_float64_stays() -> None:
    assert in_float32(dtypes)(torch.ones(1).double(), [torch.ones(1).double()]) == [torch.float64, list, torch.float64]


def test_the_tensor_may_be_anywhere_in_the_arguments() -> None:
    assert in_float32(dtypes)(2.0, "a", last=[[torch.ones(1).half()]]) == [2.0, "a", list, list, torch.float32]


def test_the_function_keeps_its_name_and_its_docstring() -> None:
    assert (product.__name__, product.__doc__) == ("product", "What a product is.")


@pytest.mark.parametrize("dtype", HALVES)
def test_the_gradient_passes_through(dtype: torch.dtype) -> None:
    a = torch.eye(2, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = product(a, torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)).sum()
    value.backward()
    assert a.grad is not None
    assert a.grad.tolist() == [[3.0, 7.0], [3.0, 7.0]]  # the sums of the rows
