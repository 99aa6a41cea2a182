import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import CorrelationCongruence
from kd_lightning.losses.correlation_congruence import consecutive_congruence, kernel_congruence, taylor_rbf

Form = Literal["kernel", "consecutive"]
NO_TARGET = torch.zeros(0, dtype=torch.int64)
FORMS = {"kernel": kernel_congruence, "consecutive": consecutive_congruence}
each_form = pytest.mark.parametrize("form", list(FORMS))


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def built(form: Form, student: tuple[int, ...], teacher: tuple[int, ...]) -> CorrelationCongruence:
    loss = CorrelationCongruence(form, dim=16)
    loss.build([student], [teacher])
    return loss


@pytest.mark.parametrize(("order", "expected"), [(2, 0.1266295), (1, 0.0646069)])
def test_the_kernel_by_hand(order: int, expected: float) -> None:
    # The diagonals agree. Beside them cos_s = 0 and cos_t = 1, so K_s = exp(-0.8), K_t = exp(-0.8) (1 + 0.8 + 0.32).
    student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    # 2 [0.4493290 * 1.12]^2 / 4 = 0.2532590 / 2; at order 1, 2 [0.4493290 * 0.8]^2 / 4
    value = CorrelationCongruence(order=order)(student, teacher, NO_TARGET)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_gamma_by_hand() -> None:
    # exp(-2) (1 + 2 cos + 2 cos^2) for gamma = 1, with cos = 0.8: exp(-2) * 3.88 = 0.5251009.
    kernel = taylor_rbf(torch.tensor([[1.0, 0.0], [4.0, 3.0]]), gamma=1.0, order=2)
    torch.testing.assert_close(kernel, math.exp(-2) * torch.tensor([[5.0, 3.88], [3.88, 5.0]]))


def test_the_series_tends_to_the_gaussian_kernel() -> None:
    x = F.normalize(rows(4, 3))
    gaussian = (-0.4 * torch.cdist(x, x).square()).exp()
    torch.testing.assert_close(taylor_rbf(x, 0.4, 12), gaussian, atol=1e-9, rtol=0)


def test_consecutive_differences_by_hand() -> None:
    # d = (1, 2), (3, 1), (1, 0): the products sum to 1 * 3 + 2 * 1 = 5 and 3 * 1 + 1 * 0 = 3, on average 4.
    student, teacher = torch.tensor([[2.0, 0], [4, 1], [0, 5]]), torch.tensor([[1.0, 2], [1, 0], [1, 5]])
    assert CorrelationCongruence("consecutive")(student, teacher, NO_TARGET).item() == pytest.approx(4)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.7, 3)])
def test_the_kernel_against_torchdistill(gamma: float, order: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = rows(5, 8), rows(5, 3)
    theirs = losses.CCKDLoss("s", "t", {"type": "gaussian", "gamma": gamma, "max_p": order}, "batchmean")
    # Its models normalise the embeddings, and it divides the norm by N^2 where the formula has its square.
    norm = 25 * theirs({"s": {"output": F.normalize(student)}}, {"t": {"output": F.normalize(teacher)}})
    ours = CorrelationCongruence(gamma=gamma, order=order)(student, teacher, NO_TARGET)
    torch.testing.assert_close(ours, norm**2 / 25)


def test_the_consecutive_form_against_loops() -> None:
    student, teacher = rows(5, 3), rows(5, 3)
    total = 0.0
    for i in range(4):
        for j in range(3):
            total += abs(float(student[i, j] - teacher[i, j])) * abs(float(student[i + 1, j] - teacher[i + 1, j]))
    assert consecutive_congruence(student, teacher).item() == pytest.approx(total / 4)


@each_form
def test_maps_are_flattened(form: Form) -> None:
    student, teacher = rows(3, 4, 2, 2), rows(3, 4, 2, 2)
    loss = FORMS[form]
    torch.testing.assert_close(loss(student, teacher), loss(student.flatten(1), teacher.flatten(1)))


@each_form
def test_taps_are_summed(form: Form) -> None:
    students, teachers = [rows(3, 4), rows(3, 6)], [rows(3, 4), rows(3, 6)]
    expected = sum(FORMS[form](s, t) for s, t in zip(students, teachers, strict=True))
    torch.testing.assert_close(CorrelationCongruence(form)(students, teachers, NO_TARGET), expected)


@each_form
def test_the_minimum_is_zero_at_equality(form: Form) -> None:
    teacher = rows(4, 6)
    same = teacher.clone().requires_grad_()
    value = FORMS[form](same, teacher)
    value.backward()
    assert value.item() == 0
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert FORMS[form](rows(4, 6), teacher) > 1e-3


def test_consecutive_differences_are_zero_also_where_every_second_sample_agrees() -> None:
    teacher = rows(5, 3)
    student = teacher.clone()
    student[::2] += 1
    assert consecutive_congruence(student, teacher) == 0


@each_form
def test_gradcheck(form: Form) -> None:
    assert torch.autograd.gradcheck(FORMS[form], (rows(3, 4).requires_grad_(), rows(3, 4).requires_grad_()))


@each_form
@pytest.mark.parametrize("teacher_shape", [(4, 7), (4, 5, 2, 2)])
def test_the_gradient_reaches_the_student_and_both_embeddings(form: Form, teacher_shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(teacher_shape)
    loss = built(form, (4, 3), teacher_shape)
    loss(student, teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(1) > 0).all()
    assert teacher.grad is None
    # Weight and bias of each side.
    assert len(list(loss.parameters())) == 4
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_built_it_is_the_formula_of_its_embeddings() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 5, 2, 2)
    loss = CorrelationCongruence(dim=9)
    loss.build([(4, 3)], [(4, 5, 2, 2)])
    weights = [p.detach() for p in loss.parameters()]
    assert [tuple(w.shape) for w in weights] == [(9, 3), (9,), (9, 20), (9,)]
    expected = kernel_congruence(
        F.linear(student, weights[0], weights[1]), F.linear(teacher.flatten(1), weights[2], weights[3])
    )
    torch.testing.assert_close(loss(student, teacher, NO_TARGET).detach(), expected)


@each_form
def test_each_tap_has_its_own_embeddings(form: Form) -> None:
    loss = CorrelationCongruence(form, dim=9)
    loss.build([(4, 3), (4, 5)], [(4, 6), (4, 2, 2, 2)])
    assert [m.shape[1] for m in loss.parameters() if m.ndim == 2] == [3, 5, 6, 8]
    value = loss([torch.randn(4, 3), torch.randn(4, 5)], [torch.randn(4, 6), torch.randn(4, 2, 2, 2)], NO_TARGET)
    assert value > 0


@each_form
@pytest.mark.parametrize("adapt", [False, True])
def test_twenty_steps_lower_it(form: Form, adapt: bool) -> None:
    student, teacher, values = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8), []
    loss = built(form, (6, 8), (6, 8)) if adapt else CorrelationCongruence(form)
    optimizer = torch.optim.Adam([student, *loss.parameters()], lr=0.03)
    for _ in range(21):
        value = loss(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.6 * values[0]


def test_the_order_of_the_batch_matters_to_the_consecutive_form_alone() -> None:
    student, teacher, order = rows(5, 3), rows(5, 3), torch.tensor([3, 0, 4, 1, 2])
    value = kernel_congruence(student, teacher)
    torch.testing.assert_close(kernel_congruence(student[order], teacher[order]), value)
    assert not torch.isclose(kernel_congruence(student[order], teacher), value)
    changed = consecutive_congruence(student[order], teacher[order])
    assert not torch.isclose(changed, consecutive_congruence(student, teacher))
    # Backwards, its neighbours are the same.
    torch.testing.assert_close(
        consecutive_congruence(student.flip(0), teacher.flip(0)), consecutive_congruence(student, teacher)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "scale"), [("kernel", 300), ("consecutive", 80)])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype, form: Form, scale: float) -> None:
    # Sums of squares of 300, and of products of 80, overflow float16.
    student, teacher = (scale * torch.randn(2, 4, 32)).to(dtype)
    value = FORMS[form](student.requires_grad_(), teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, FORMS[form](student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@each_form
def test_autocast_does_not_lower_the_precision(form: Form) -> None:
    network, teacher = nn.Linear(8, 6), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(torch.randn(4, 8))
        value = CorrelationCongruence(form)(student, teacher, NO_TARGET)
    assert student.dtype == torch.bfloat16
    torch.testing.assert_close(value, FORMS[form](student.float(), teacher))
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0


@each_form
def test_embeddings_under_autocast_are_near_those_in_float32(form: Form) -> None:
    loss, student, teacher = built(form, (4, 6), (4, 5)), torch.randn(4, 6, requires_grad=True), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student.bfloat16(), teacher, NO_TARGET)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student, teacher, NO_TARGET), atol=0, rtol=0.05)
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@each_form
@pytest.mark.parametrize("fill", [0.0, 2.0])
def test_constant_features_stay_finite(form: Form, fill: float) -> None:
    student = torch.full((3, 4), fill, requires_grad=True)
    for teacher in (torch.randn(3, 4), torch.full((3, 4), fill)):
        value = FORMS[form](student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


@each_form
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_single_sample_relates_to_nothing(form: Form, dim: int) -> None:
    student = torch.randn(1, dim, requires_grad=True)
    value = FORMS[form](student, torch.randn(1, dim))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros(1, dim))


@each_form
@pytest.mark.parametrize("dim", [1, 2])
def test_short_features(form: Form, dim: int) -> None:
    student, teacher = torch.tensor([[1.0, 2], [-3, 1], [2, -2]])[:, :dim], torch.tensor([[1.0, 1], [1, 2], [4, 3]])
    student = student.clone().requires_grad_()
    value = FORMS[form](student, teacher[:, :dim])
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


@each_form
def test_labels_are_not_looked_at(form: Form) -> None:
    student, teacher = rows(3, 4), rows(3, 4)
    values = [
        CorrelationCongruence(form)(student, teacher, target)
        for target in (torch.tensor([0, 1, 0]), torch.rand(3, 5), torch.tensor([4, 4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


def test_the_defaults() -> None:
    loss = CorrelationCongruence()
    assert (loss.student_tap, loss.teacher_tap) == ("embedding", "embedding")
    assert (loss.form, loss.gamma, loss.order) == ("kernel", 0.4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "rbf"}, r"form must be one of \['kernel', 'consecutive'\], got 'rbf'"),
        ({"gamma": 0.0}, "gamma must be > 0 and finite, got 0.0"),
        ({"gamma": float("nan")}, "gamma must be > 0 and finite, got nan"),
        ({"gamma": float("inf")}, "gamma must be > 0 and finite, got inf"),
        ({"order": 0}, "order and dim must be >= 1, got 0 and 128"),
        ({"dim": 0}, "order and dim must be >= 1, got 2 and 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorrelationCongruence(**arguments)


def test_the_consecutive_form_needs_features_of_one_shape() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(3, 4\) and \(3, 5\): build the loss"):
        CorrelationCongruence("consecutive")(rows(3, 4), rows(3, 5), NO_TARGET)


def test_as_many_taps_are_needed_of_both() -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        CorrelationCongruence()([rows(2, 3)] * 2, rows(2, 3), NO_TARGET)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 6), dims=st.tuples(st.integers(1, 6), st.integers(1, 6)), scale=st.floats(0.01, 100))
def test_no_scale_of_a_sample_changes_the_kernel_form(samples: int, dims: tuple[int, int], scale: float) -> None:
    student, teacher = rows(samples, dims[0]), rows(samples, dims[1])
    value = kernel_congruence(student, teacher)
    scaled = student.clone()
    scaled[0] *= scale
    torch.testing.assert_close(kernel_congruence(scaled, teacher / scale), value)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 6), dim=st.integers(1, 6), scale=st.floats(0.01, 100))
def test_the_consecutive_form_grows_with_the_square(samples: int, dim: int, scale: float) -> None:
    student, teacher = rows(samples, dim), rows(samples, dim)
    torch.testing.assert_close(
        consecutive_congruence(scale * student, scale * teacher), scale**2 * consecutive_congruence(student, teacher)
    )
