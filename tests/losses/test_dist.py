import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_lightning.losses import DIST
from kd_lightning.losses.dist import correlation, pearson

# What holds of every loss of logits (precision, constants, one class, the order of the batch, ...): test_logits.py.
NO_TARGET = torch.zeros(0, dtype=torch.int64)


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(samples, classes).double(), 3 * torch.randn(samples, classes).double()


# The probabilities, in eighths, and their centred rows, in 24ths:
# teacher (4, 3, 1), (2, 2, 4): (4, 1, -5), (-2, -2, 4); student (2, 2, 4), (1, 4, 3): (-2, -2, 4), (-5, 4, 1).
# Rows: (-8 - 2 - 20) / sqrt(42 * 24) = -0.9449112 and (10 - 8 + 4) / sqrt(24 * 42) = 0.1889822, mean -0.3779645.
# Columns of two samples correlate by +-1: down and down, down and up, up and down, mean -1/3.
TEACHER = torch.tensor([[4.0, 3, 1], [2, 2, 4]]).log()
STUDENT = torch.tensor([[2.0, 2, 4], [1, 4, 3]]).log()


@pytest.mark.parametrize(
    ("beta", "gamma", "expected"), [(1, 0, 1.3779645), (0, 1, 4 / 3), (1, 1, 2.7112978), (2, 0.5, 3.4225957), (0, 0, 0)]
)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_by_hand(beta: float, gamma: float, expected: float, temperature: float) -> None:
    value = DIST(beta, gamma, temperature)(temperature * STUDENT, temperature * TEACHER, NO_TARGET)
    assert value.item() == pytest.approx(temperature**2 * expected, rel=1e-5)


def test_the_defaults() -> None:
    for value in (DIST()(STUDENT, TEACHER, NO_TARGET), correlation(STUDENT, TEACHER)):
        assert value.item() == pytest.approx(2.7112978, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_against_torchdistill(temperature: float) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = pair()
    theirs = losses.DISTLoss("s", "output", "t", "output", beta=2.0, gamma=0.5, tau=temperature)
    expected = theirs({"s": {"output": student}}, {"t": {"output": teacher}})
    # It clamps the norms to 1e-8, where ours adds 1e-8 to their product: here, products are above 1e-3.
    torch.testing.assert_close(correlation(student, teacher, 2.0, 0.5, temperature), expected, rtol=1e-5, atol=0)


def test_against_corrcoef() -> None:
    student, teacher = pair()
    p_s, p_t = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
    rows = torch.stack([torch.corrcoef(torch.stack(both))[0, 1] for both in zip(p_s, p_t, strict=True)])
    columns = torch.stack([torch.corrcoef(torch.stack(both))[0, 1] for both in zip(p_s.T, p_t.T, strict=True)])
    expected = 2 - rows.mean() - columns.mean()
    torch.testing.assert_close(correlation(student, teacher), expected, rtol=1e-5, atol=0)


def test_1e8_is_added_to_the_product_of_the_norms() -> None:
    # Centred: +-5e-5, norms 7.0711e-5, product 5e-9: 5e-9 / (5e-9 + 1e-8) = 1/3.
    a = torch.tensor([[1e-4, 0.0]]).double()
    assert pearson(a, a, 1).item() == pytest.approx(1 / 3)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.1, 100), shift=st.floats(-10, 10), dim=st.integers(0, 1), seed=st.integers(0, 2**16))
def test_pearson_forgets_scale_and_shift_but_not_the_sign(scale: float, shift: float, dim: int, seed: int) -> None:
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed)).double()
    torch.testing.assert_close(pearson(scale * a + shift, b, dim), pearson(a, b, dim), rtol=0, atol=1e-5)
    torch.testing.assert_close(pearson(shift - scale * a, b, dim), -pearson(a, b, dim), rtol=0, atol=1e-5)
    assert pearson(a, b, dim).abs().max() <= 1


@pytest.mark.parametrize("dim", [0, 1])
def test_pearson_of_a_constant_is_0_with_gradient_0(dim: int) -> None:
    # The mean of 7 equal numbers is not always that number: the remainder must not correlate.
    a, b = torch.full((7, 7), 0.1), torch.randn(7, 7)
    for pair_of in ((a, b), (b, a), (a, a)):
        first, second = (x.clone().requires_grad_() for x in pair_of)
        value = pearson(first, second, dim)
        value.sum().backward()
        assert value.tolist() == [0.0] * 7
        assert first.grad is not None
        assert second.grad is not None
        assert first.grad.abs().max() == second.grad.abs().max() == 0


def test_a_constant_row_leaves_the_others_their_gradient() -> None:
    a, b = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    a[1] = 0.1
    a.requires_grad_()
    pearson(a, b, 1).sum().backward()
    assert a.grad is not None
    assert (a.grad.abs().sum(1) > 1e-3).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [5, 100])
def test_a_zero_initialised_student_gets_no_exploding_gradient(dtype: torch.dtype, classes: int) -> None:
    student = torch.zeros(64, classes, dtype=dtype, requires_grad=True)
    value = DIST()(student, (3 * torch.randn(64, classes)).to(dtype), NO_TARGET)
    value.backward()
    assert value.item() == 2.0  # no correlation, neither of rows nor of columns
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_a_single_sample_has_no_columns_to_correlate() -> None:
    student, teacher = pair(1, 5)
    expected = 3.0 * (1 - pearson(F.softmax(student, dim=1), F.softmax(teacher, dim=1), 1)[0]) + 0.5
    torch.testing.assert_close(DIST(3.0, 0.5)(student, teacher, NO_TARGET), expected)


def test_a_single_class_correlates_with_nothing() -> None:
    assert DIST(2.0, 0.5)(torch.randn(4, 1), torch.randn(4, 1), NO_TARGET).item() == pytest.approx(2.5)


def test_the_minimum_is_zero_at_equality_and_at_anything_that_correlates_fully() -> None:
    student, teacher = pair()
    same = teacher.clone().requires_grad_()
    value = correlation(same, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)  # 1e-8 / the product of the norms
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-5
    assert correlation(student, teacher) > 0.1
    # One temperature for the two need not be: halfway to the uniform distribution is as good as the teacher.
    halfway = (F.softmax(teacher, dim=1) / 2 + 0.1).log()
    assert correlation(halfway, teacher).item() == pytest.approx(0, abs=1e-5)


def test_the_largest_value_is_of_opposites() -> None:
    # p = (1/4, 3/4) against (3/4, 1/4): both rows and both columns correlate by -1.
    logits = torch.tensor([[1.0, 3.0], [3.0, 1.0]]).log()
    assert correlation(logits, logits.flip(1)).item() == pytest.approx(4.0, abs=1e-5)


def test_gradcheck() -> None:
    student, teacher = pair(3, 4)
    assert torch.autograd.gradcheck(
        lambda s, t: correlation(s, t, 2.0, 0.5, 2.0), (student.requires_grad_(), teacher.requires_grad_())
    )


def test_the_order_of_the_classes_does_not_matter() -> None:
    student, teacher = pair()
    order = torch.randperm(5)
    torch.testing.assert_close(correlation(student[:, order], teacher[:, order]), correlation(student, teacher))


def test_the_rows_alone_are_a_mean_over_samples() -> None:
    student, teacher = pair()
    halves = [correlation(student[part], teacher[part], gamma=0.0) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(halves).mean(), correlation(student, teacher, gamma=0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta must be >= 0 and finite, got -1.0"),
        ({"gamma": float("inf")}, "gamma must be >= 0 and finite, got inf"),
        ({"temperature": -2.0}, "temperature must be > 0, got -2.0"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        DIST(**arguments)
