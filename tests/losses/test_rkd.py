import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import RKD, RelationalAngle, RelationalDistance
from kd_lightning.losses.base import Loss
from kd_lightning.losses.rkd import angles, normalised_distances, relational_angle, relational_distance

Formula = Callable[[Tensor, Tensor], Tensor]
NO_TARGET = torch.zeros(0, dtype=torch.int64)
each_formula = pytest.mark.parametrize("formula", [relational_distance, relational_angle])
each_kind = pytest.mark.parametrize("kind", [RelationalDistance, RelationalAngle, RKD])


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def line(*points: float) -> Tensor:
    return torch.tensor(points, dtype=torch.float64)[:, None]


def smooth_l1(a: float, b: float) -> float:
    d = abs(a - b)
    return d * d / 2 if d < 1 else d - 0.5


def test_distances_by_hand() -> None:
    # |0 - 1| = 1, |0 - 3| = 3, |1 - 3| = 2, on average 2; and 1, 2, 1, on average 4/3.
    student, teacher = line(0, 1, 3), line(0, 1, 2)
    expected = torch.tensor([[0, 0.5, 1.5], [0.5, 0, 1], [1.5, 1, 0]]).double()
    torch.testing.assert_close(normalised_distances(student), expected)
    # Against 0.75, 1.5, 0.75: twice (0.25^2 + 0 + 0.25^2) / 2 = 0.0625, over 9 entries
    assert relational_distance(student, teacher).item() == pytest.approx(0.125 / 9)


def test_large_differences_of_distances_count_linearly() -> None:
    # Samples that coincide have distances of 0: 0.5^2 / 2 + (1.5 - 0.5) + 1^2 / 2 = 1.625, twice, over 9.
    assert relational_distance(torch.ones(3, 4).double(), line(0, 1, 3)).item() == pytest.approx(3.25 / 9)


def test_the_mean_distance_is_of_those_that_are_not_zero() -> None:
    # 0, 0, 1: distances 0, 1, 1 have the mean 1 over two of the three pairs.
    expected = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]]).double()
    torch.testing.assert_close(normalised_distances(line(0, 0, 1)), expected)


def test_angles_by_hand() -> None:
    # A right angle at the first sample and 45 degrees at the others; on a line cosines of 1, -1 and 1.
    student = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    cosines, half = angles(student), math.sqrt(0.5)
    assert [cosines[0, 1, 2].item(), cosines[1, 0, 2].item(), cosines[2, 0, 1].item()] == pytest.approx([0, half, half])
    assert [cosines[0, 1, 1].item(), cosines[0, 0, 1].item()] == pytest.approx([1, 0])
    # Differences 1, 1 + half and 1 - half: 0.5 + 1.2071068 + 0.0428932 = 1.75, twice, over 27 entries.
    assert relational_angle(student, line(0, 1, 2).float()).item() == pytest.approx(3.5 / 27)


def test_the_weights_by_hand() -> None:
    # Distances 1, 1, sqrt 2, of mean (2 + sqrt 2) / 3, against 0.75, 1.5, 0.75; the angles are those above.
    student, teacher = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), line(0, 1, 2).float()
    m = (2 + math.sqrt(2)) / 3
    distance = 2 * (smooth_l1(1 / m, 0.75) + smooth_l1(1 / m, 1.5) + smooth_l1(math.sqrt(2) / m, 0.75)) / 9
    assert RKD()(student, teacher, NO_TARGET).item() == pytest.approx(25 * distance + 50 * 3.5 / 27)
    assert RKD(distance=2, angle=0)(student, teacher, NO_TARGET).item() == pytest.approx(2 * distance)
    assert RKD(distance=0, angle=3)(student, teacher, NO_TARGET).item() == pytest.approx(3 * 3.5 / 27)
    assert RKD(distance=0, angle=0)(student, teacher, NO_TARGET) == 0


@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, 0.0), (0.0, 2.0)])
def test_against_torchdistill(distance: float, angle: float) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = rows(6, 7), rows(6, 3, 2, 2)
    theirs = losses.RKDLoss("s", "t", distance, angle, "mean")({"s": {"output": student}}, {"t": {"output": teacher}})
    torch.testing.assert_close(RKD(distance, angle)(student, teacher, NO_TARGET), theirs)


def test_distances_against_loops() -> None:
    student, teacher = rows(4, 3), rows(4, 5)
    sides = []
    for x in (student, teacher):
        d = [[math.dist(a, b) for b in x.tolist()] for a in x.tolist()]
        mean = sum(map(sum, d)) / 12
        sides.append([[v / mean for v in r] for r in d])
    expected = sum(smooth_l1(sides[0][i][j], sides[1][i][j]) for i in range(4) for j in range(4)) / 16
    assert relational_distance(student, teacher).item() == pytest.approx(expected)


def test_angles_against_loops() -> None:
    student, teacher = rows(4, 3), rows(4, 5)
    total = 0.0
    for i in range(4):
        for j in range(4):
            for k in range(4):
                if i in (j, k):
                    continue  # no angle, 0 in both
                cosines = []
                for x in (student, teacher):
                    a, b = x[j] - x[i], x[k] - x[i]
                    cosines.append(float(a @ b / (a.norm() * b.norm())))
                total += smooth_l1(*cosines)
    assert relational_angle(student, teacher).item() == pytest.approx(total / 64)


@each_formula
def test_maps_are_flattened(formula: Formula) -> None:
    student, teacher = rows(3, 4, 2, 2), rows(3, 6, 3, 3)
    torch.testing.assert_close(formula(student, teacher), formula(student.flatten(1), teacher.flatten(1)))


def test_taps_are_summed() -> None:
    students, teachers = [rows(3, 4, 5, 5), rows(3, 6)], [rows(3, 8, 2, 2), rows(3, 2)]
    pairs = list(zip(students, teachers, strict=True))
    distance, angle = (sum(f(s, t) for s, t in pairs) for f in (relational_distance, relational_angle))
    torch.testing.assert_close(RelationalDistance()(students, teachers, NO_TARGET), distance)
    torch.testing.assert_close(RelationalAngle()(students, teachers, NO_TARGET), angle)
    torch.testing.assert_close(RKD(2, 3)(students, teachers, NO_TARGET), 2 * distance + 3 * angle)


@each_formula
def test_the_minimum_is_zero_at_equality(formula: Formula) -> None:
    teacher = rows(4, 6)
    same = teacher.clone().requires_grad_()
    value = formula(same, teacher)
    value.backward()
    assert value.item() == 0
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher))
    assert formula(rows(4, 6), teacher) > 1e-3


@each_formula
def test_gradcheck(formula: Formula) -> None:
    assert torch.autograd.gradcheck(formula, (rows(4, 3).requires_grad_(), rows(4, 2, 1, 2).requires_grad_()))


@each_kind
def test_the_gradient_reaches_each_sample_of_the_student(kind: type[Loss]) -> None:
    loss, student, teacher = kind(), rows(4, 5).requires_grad_(), rows(4, 8)
    loss.build([(4, 5)], [(4, 8)])
    loss(student, teacher, NO_TARGET).backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(1) > 0).all()
    assert teacher.grad is None
    assert not list(loss.parameters())


@each_kind
def test_twenty_steps_lower_it(kind: type[Loss]) -> None:
    student, teacher, values = rows(6, 8).requires_grad_(), rows(6, 5), []
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(21):
        value = kind()(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.6 * values[0]


@each_formula
def test_the_order_of_the_batch_does_not_matter(formula: Formula) -> None:
    student, teacher, order = rows(5, 3), rows(5, 6), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(formula(student[order], teacher[order]), formula(student, teacher))
    assert not torch.isclose(formula(student[order], teacher), formula(student, teacher))


@each_formula
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(formula: Formula, dtype: torch.dtype) -> None:
    # Squares of 300 overflow float16.
    student, teacher = (300 * torch.randn(2, 4, 16)).to(dtype)
    value = formula(student.requires_grad_(), teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, formula(student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@each_kind
def test_autocast_does_not_lower_the_precision(kind: type[Loss]) -> None:
    network, teacher = nn.Linear(8, 6), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = network(torch.randn(4, 8))
        value = kind()(student, teacher, NO_TARGET)
    assert student.dtype == torch.bfloat16
    torch.testing.assert_close(value, kind()(student.float(), teacher, NO_TARGET))
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0


@each_formula
@pytest.mark.parametrize("fill", [0.0, 2.0])
def test_constant_features_stay_finite(formula: Formula, fill: float) -> None:
    student = torch.full((3, 4), fill, requires_grad=True)
    for teacher in (torch.randn(3, 4), torch.full((3, 4), fill)):
        value = formula(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


@each_formula
def test_two_samples_that_coincide_keep_the_gradient_of_the_others(formula: Formula) -> None:
    student = torch.tensor([[1.0, 2], [1, 2], [0, 3], [4, 1]], requires_grad=True)
    value = formula(student, torch.randn(4, 3))
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[2:].abs().sum(1) > 0).all()


@each_formula
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_single_sample_relates_to_nothing(formula: Formula, dim: int) -> None:
    student = torch.randn(1, dim, requires_grad=True)
    value = formula(student, torch.randn(1, 3))
    value.backward()
    assert value == 0
    torch.testing.assert_close(student.grad, torch.zeros(1, dim))


@each_formula
def test_two_samples_always_agree(formula: Formula) -> None:
    # One distance, which is its own mean; and no angle.
    assert formula(rows(2, 3), rows(2, 5)).item() == pytest.approx(0, abs=1e-12)


@each_formula
@pytest.mark.parametrize("dim", [1, 2])
def test_short_features(formula: Formula, dim: int) -> None:
    student = torch.randn(5, dim, requires_grad=True)
    value = formula(student, torch.randn(5, 3))
    value.backward()
    assert value > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


@each_kind
def test_labels_are_not_looked_at(kind: type[Loss]) -> None:
    student, teacher = rows(3, 4), rows(3, 4)
    values = [
        kind()(student, teacher, target)
        for target in (torch.tensor([0, 1, 0]), torch.rand(3, 5), torch.tensor([4, 4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


@each_kind
def test_the_tap_is_the_embedding(kind: type[Loss]) -> None:
    assert (kind.student_tap, kind.teacher_tap) == ("embedding", "embedding")


@pytest.mark.parametrize("name", ["distance", "angle"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_named(name: str, weight: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be >= 0 and finite, got {weight}"):
        RKD(**{name: weight})


@each_kind
def test_as_many_taps_are_needed_of_both(kind: type[Loss]) -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        kind()([rows(2, 3)] * 2, rows(2, 3), NO_TARGET)


@each_formula
@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 5), dims=st.tuples(st.integers(1, 6), st.integers(1, 6)), scale=st.floats(0.01, 100))
def test_no_scale_and_no_shift_changes_it(formula: Formula, samples: int, dims: tuple[int, int], scale: float) -> None:
    student, teacher = rows(samples, dims[0]), rows(samples, dims[1])
    value = formula(student, teacher)
    assert value >= 0
    torch.testing.assert_close(formula(scale * student + 3, teacher / scale - 5), value, atol=1e-9, rtol=1e-6)
