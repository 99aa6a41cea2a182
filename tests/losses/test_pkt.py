import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import PKT
from kd_lightning.losses.pkt import neighbours, probabilistic_transfer

NO_TARGET = torch.zeros(0, dtype=torch.int64)


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_by_hand() -> None:
    # (cos + 1) / 2 is 1 on the diagonal; beside it 1/2 for the student, so P_s = 2/3 and 1/3; else 1, so P_t = 1/2.
    student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    # 2 rows of 0.5 ln(3/4) + 0.5 ln(3/2) = 0.0588915, over 4 entries
    assert probabilistic_transfer(student, teacher).item() == pytest.approx(0.0294458, abs=1e-6)


def test_the_direction_is_from_the_teacher() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.eye(2)
    # 2 rows of (2/3) ln(4/3) + (1/3) ln(2/3) = 0.1917880 - 0.1351550 = 0.0566330, over 4 entries
    assert probabilistic_transfer(student, teacher).item() == pytest.approx(0.0283165, abs=1e-6)


def test_eps_by_hand() -> None:
    # Opposite samples are never neighbours, P_s = 1 and 0; P_t = 1/2: 0.5 ln(0.75 / 1.25) + 0.5 ln(0.75 / 0.25).
    student, teacher = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    # 2 * (-0.2554128 + 0.5493061) / 4 = 0.1469467
    assert probabilistic_transfer(student, teacher, eps=0.25).item() == pytest.approx(0.1469467, abs=1e-6)


@pytest.mark.parametrize("eps", [1e-7, 1e-3])
def test_against_torchdistill(eps: float) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = rows(6, 7), rows(6, 4)
    expected = losses.PKTLoss("s", "output", "t", "output", eps)({"s": {"output": student}}, {"t": {"output": teacher}})
    # It adds eps to the norms too, so the larger one is compared less closely.
    torch.testing.assert_close(PKT(eps)(student, teacher, NO_TARGET), expected, atol=0, rtol=max(1e-5, 10 * eps))


def test_against_loops() -> None:
    student, teacher = rows(4, 3), rows(4, 5)
    sides = []
    for x in (student, teacher):
        affinity = [[(float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) + 1) / 2 for j in range(4)] for i in range(4)]
        sides.append([[a / sum(line) for a in line] for line in affinity])
    total = 0.0
    for i in range(4):
        for j in range(4):
            p_s, p_t = sides[0][i][j], sides[1][i][j]
            total += p_t * math.log((p_t + 1e-7) / (p_s + 1e-7))
    assert probabilistic_transfer(student, teacher).item() == pytest.approx(total / 16)


def test_neighbours_are_probabilities() -> None:
    p = neighbours(rows(5, 3))
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(5).double())


def test_maps_are_flattened() -> None:
    student, teacher = rows(3, 4, 2, 2), rows(3, 6, 3, 3)
    torch.testing.assert_close(
        probabilistic_transfer(student, teacher), probabilistic_transfer(student.flatten(1), teacher.flatten(1))
    )


def test_taps_are_summed() -> None:
    students, teachers = [rows(3, 4, 5, 5), rows(3, 6)], [rows(3, 8, 2, 2), rows(3, 2)]
    expected = sum(probabilistic_transfer(s, t, 1e-3) for s, t in zip(students, teachers, strict=True))
    torch.testing.assert_close(PKT(1e-3)(students, teachers, NO_TARGET), expected)


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = rows(4, 6)
    same = teacher.clone().requires_grad_()
    value = probabilistic_transfer(same, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    # eps moves the minimum by as much as 1e-7.
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher), atol=1e-7, rtol=0)
    assert probabilistic_transfer(rows(4, 6), teacher) > 1e-3


def test_gradcheck() -> None:
    inputs = rows(3, 4).requires_grad_(), rows(3, 2, 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(probabilistic_transfer, inputs)


def test_the_gradient_reaches_each_sample_of_the_student() -> None:
    loss, student, teacher = PKT(), rows(3, 4).requires_grad_(), rows(3, 8)
    loss.build([(3, 4)], [(3, 8)])
    loss(student, teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(1) > 0).all()
    assert teacher.grad is None
    assert not list(loss.parameters())


def test_twenty_steps_lower_it() -> None:
    student, teacher, values = rows(6, 8).requires_grad_(), rows(6, 5), []
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(21):
        value = PKT()(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


def test_the_order_of_the_batch_does_not_matter() -> None:
    student, teacher, order = rows(5, 3), rows(5, 6), torch.tensor([3, 0, 4, 1, 2])
    value = probabilistic_transfer(student, teacher)
    torch.testing.assert_close(probabilistic_transfer(student[order], teacher[order]), value)
    assert not torch.isclose(probabilistic_transfer(student[order], teacher), value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # Squares of 300 overflow float16.
    student, teacher = (300 * torch.randn(2, 4, 16)).to(dtype)
    value = probabilistic_transfer(student.requires_grad_(), teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, probabilistic_transfer(student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def test_autocast_does_not_lower_the_precision() -> None:
    network, teacher = nn.Linear(8, 6), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(torch.randn(4, 8))
        value = PKT()(student, teacher, NO_TARGET)
    assert student.dtype == torch.bfloat16
    torch.testing.assert_close(value, probabilistic_transfer(student.float(), teacher))
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fill", [0.0, 2.0])
def test_constant_features_stay_finite(fill: float) -> None:
    student = torch.full((3, 4), fill, requires_grad=True)
    for teacher in (torch.randn(3, 4), torch.full((3, 4), fill)):
        value = probabilistic_transfer(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("eps", [1e-7, 1e-12])
def test_opposite_samples_stay_finite(eps: float) -> None:
    # In float32 the cosine of a vector with its opposite may be below -1 by more than eps.
    directions = torch.randn(40, 1, 2048)
    below = False
    for direction in directions:
        student = torch.cat([direction, -direction]).requires_grad_()
        unit = torch.nn.functional.normalize(student.detach())
        below |= bool((unit @ unit.T < -1).any())
        value = probabilistic_transfer(student, torch.randn(2, 8), eps)
        value.backward()
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()
    assert below


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_single_sample_is_its_own_neighbour(dim: int) -> None:
    student = torch.randn(1, dim, requires_grad=True)
    value = probabilistic_transfer(student, torch.randn(1, 3))
    value.backward()
    assert value.item() == pytest.approx(0)
    torch.testing.assert_close(student.grad, torch.zeros(1, dim))


@pytest.mark.parametrize("dim", [1, 2])
def test_short_features(dim: int) -> None:
    student = torch.randn(4, dim, requires_grad=True)
    value = probabilistic_transfer(student, torch.randn(4, 3))
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_labels_are_not_looked_at() -> None:
    student, teacher = rows(3, 4), rows(3, 4)
    values = [
        PKT()(student, teacher, target)
        for target in (torch.tensor([0, 1, 0]), torch.rand(3, 5), torch.tensor([4, 4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


def test_the_tap_is_the_embedding() -> None:
    assert (PKT.student_tap, PKT.teacher_tap) == ("embedding", "embedding")
    assert PKT().eps == 1e-7


@pytest.mark.parametrize("eps", [0.0, -1e-7, 1.0, float("nan")])
def test_a_bad_eps_is_named(eps: float) -> None:
    with pytest.raises(ValueError, match=rf"eps must be in \(0, 1\), got {eps}"):
        PKT(eps)


def test_as_many_taps_are_needed_of_both() -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        PKT()([rows(2, 3)] * 2, rows(2, 3), NO_TARGET)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 6), dims=st.tuples(st.integers(1, 6), st.integers(1, 6)), scale=st.floats(0.01, 100))
def test_any_shape_gives_a_value_that_no_scale_of_a_sample_changes(
    samples: int, dims: tuple[int, int], scale: float
) -> None:
    student, teacher = rows(samples, dims[0]), rows(samples, dims[1])
    value = probabilistic_transfer(student, teacher)
    assert value.item() >= -1e-7
    scaled = student.clone()
    scaled[0] *= scale
    torch.testing.assert_close(probabilistic_transfer(scaled, teacher / scale), value)
