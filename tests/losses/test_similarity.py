import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import Similarity
from kd_lightning.losses.similarity import similarity

NO_TARGET = torch.zeros(0, dtype=torch.int64)


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_by_hand() -> None:
    # F F^T is the unit matrix for the student, ones for the teacher, whose rows become (1, 1) / sqrt 2.
    student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # 2 [(1 - 0.7071068)^2 + 0.7071068^2] / 2^2 = (2 - 2 * 0.7071068) / 2 = 0.2928932
    assert similarity(student, teacher).item() == pytest.approx(0.2928932, abs=1e-6)


def test_rows_are_normalised_by_their_length_and_not_by_their_sum() -> None:
    # F = (3), (4): F F^T = (9, 12), (12, 16), both of direction (0.6, 0.8); by sums it would be (3/7, 4/7).
    student, teacher = torch.tensor([[3.0], [4.0]]), torch.eye(2)
    # [(0.6 - 1)^2 + 0.8^2 + 0.6^2 + (0.8 - 1)^2] / 4 = (0.16 + 0.64 + 0.36 + 0.04) / 4 = 0.3
    assert similarity(student, teacher).item() == pytest.approx(0.3)


def test_against_torchdistill() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = rows(5, 7), rows(5, 3, 2, 2)
    theirs = losses.SPKDLoss("s", "t", "batchmean")
    # It normalises rows by L1, so its matrices are normalised once more.
    g_s, g_t = (F.normalize(theirs.matmul_and_normalize(x)) for x in (student, teacher))
    torch.testing.assert_close(Similarity()(student, teacher, NO_TARGET), (g_t - g_s).norm() ** 2 / 25)
    different = theirs({"s": {"output": student}}, {"t": {"output": teacher}})
    assert not torch.isclose(Similarity()(student, teacher, NO_TARGET), different)


def test_what_the_other_norm_of_torchdistill_makes() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    # Orthogonal samples have rows with one entry, and a constant's rows of 4 ones are divided by 2 here, by 4 there:
    # 4 [(1 - a)^2 + 3 a^2] / 4^2 is 0.25 for a = 1/2 and 0.1875 for a = 1/4.
    student, teacher = 3 * torch.eye(4), torch.ones(4, 2)
    theirs = losses.SPKDLoss("s", "t", "batchmean")({"s": {"output": student}}, {"t": {"output": teacher}})
    assert theirs.item() == pytest.approx(0.1875)
    assert similarity(student, teacher).item() == pytest.approx(0.25)


def test_against_loops() -> None:
    student, teacher = rows(4, 3), rows(4, 5)
    grams = []
    for x in (student, teacher):
        gram = [[float(x[i] @ x[j]) for j in range(4)] for i in range(4)]
        grams.append([[g / sum(h * h for h in line) ** 0.5 for g in line] for line in gram])
    expected = sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(4) for j in range(4)) / 16
    assert similarity(student, teacher).item() == pytest.approx(expected)


def test_maps_are_flattened() -> None:
    student, teacher = rows(3, 4, 2, 2), rows(3, 6, 3, 3)
    torch.testing.assert_close(similarity(student, teacher), similarity(student.flatten(1), teacher.flatten(1)))


def test_taps_are_summed() -> None:
    students, teachers = [rows(3, 4, 5, 5), rows(3, 6)], [rows(3, 8, 2, 2), rows(3, 2)]
    expected = sum(similarity(s, t) for s, t in zip(students, teachers, strict=True))
    torch.testing.assert_close(Similarity()(students, teachers, NO_TARGET), expected)


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = rows(4, 6)
    same = teacher.clone().requires_grad_()
    value = similarity(same, teacher)
    value.backward()
    assert value.item() == 0
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert similarity(rows(4, 6), teacher) > 1e-3


def test_a_rotation_changes_nothing() -> None:
    teacher = rows(4, 6)
    rotation = torch.linalg.qr(rows(6, 6)).Q
    assert similarity(teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-12)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(similarity, (rows(3, 4).requires_grad_(), rows(3, 2, 1, 2).requires_grad_()))


def test_the_gradient_reaches_each_sample_of_the_student() -> None:
    loss, student, teacher = Similarity(), rows(3, 4, 2, 2).requires_grad_(), rows(3, 8, 2, 2)
    loss.build([(3, 4, 2, 2)], [(3, 8, 2, 2)])
    loss(student, teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    assert teacher.grad is None
    assert not list(loss.parameters())


def test_twenty_steps_lower_it() -> None:
    student, teacher, values = rows(6, 8).requires_grad_(), rows(6, 5), []
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(21):
        value = Similarity()(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


def test_the_order_of_the_batch_does_not_matter() -> None:
    student, teacher, order = rows(5, 3), rows(5, 6), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(similarity(student[order], teacher[order]), similarity(student, teacher))
    assert not torch.isclose(similarity(student[order], teacher), similarity(student, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # Scalar products of 16 x 100^2 overflow float16.
    student, teacher = (100 * torch.randn(2, 4, 16)).to(dtype)
    value = similarity(student.requires_grad_(), teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, similarity(student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def test_autocast_does_not_lower_the_precision() -> None:
    network, teacher = nn.Linear(8, 6), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(torch.randn(4, 8))
        value = Similarity()(student, teacher, NO_TARGET)
    assert student.dtype == torch.bfloat16
    torch.testing.assert_close(value, similarity(student.float(), teacher))
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fill", [0.0, 2.0])
def test_constant_features_stay_finite(fill: float) -> None:
    student = torch.full((3, 4), fill, requires_grad=True)
    for teacher in (torch.randn(3, 4), torch.full((3, 4), fill)):
        value = similarity(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_a_sample_of_zeros_resembles_nothing() -> None:
    # Its row of the student's matrix is 0: only the second diagonal entry of the unit matrix is missed, 1 / 4.
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    value = similarity(student, torch.eye(2))
    value.backward()
    assert value.item() == pytest.approx(0.25)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_single_sample_resembles_itself(dim: int) -> None:
    student = torch.randn(1, dim, requires_grad=True)
    value = similarity(student, torch.randn(1, 3))
    value.backward()
    assert value.item() == pytest.approx(0)
    torch.testing.assert_close(student.grad, torch.zeros(1, dim))


@pytest.mark.parametrize("dim", [1, 2])
def test_short_features(dim: int) -> None:
    student = torch.randn(4, dim, requires_grad=True)
    value = similarity(student, torch.randn(4, 3))
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def test_labels_are_not_looked_at() -> None:
    student, teacher = rows(3, 4), rows(3, 4)
    values = [
        Similarity()(student, teacher, target)
        for target in (torch.tensor([0, 1, 0]), torch.rand(3, 5), torch.tensor([4, 4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


def test_the_tap_is_the_last_stage() -> None:
    assert (Similarity.student_tap, Similarity.teacher_tap) == ("last_stage", "last_stage")


def test_as_many_taps_are_needed_of_both() -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        Similarity()([rows(2, 3)] * 2, rows(2, 3), NO_TARGET)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 6), dims=st.tuples(st.integers(1, 6), st.integers(1, 6)), scale=st.floats(0.01, 100))
def test_any_shape_gives_a_value_that_no_scale_changes(samples: int, dims: tuple[int, int], scale: float) -> None:
    student, teacher = rows(samples, dims[0]), rows(samples, dims[1])
    value = similarity(student, teacher)
    # N pairs of unit rows, at most 2 apart, over N^2.
    assert 0 <= value.item() <= 4 / samples + 1e-12
    torch.testing.assert_close(similarity(scale * student, teacher / scale), value)
