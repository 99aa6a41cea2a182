import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import FSP
from kd_lightning.losses.fsp import flow, solution_flow

NO_TARGET = torch.zeros(0, dtype=torch.int64)
SHAPES = ((3, 6, 6), (4, 6, 6), (5, 3, 3))


def taps(samples: int = 3, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    return [torch.randn(samples, *shape, dtype=torch.float64) for shape in shapes]


def row(*values: float, channels: int = 1) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, channels, 1, -1)


def test_by_hand() -> None:
    second = row(3, 4, 5, 6, channels=2)
    # G_s = ((1 * 3 + 2 * 4) / 2, (1 * 5 + 2 * 6) / 2) = (5.5, 8.5), G_t = (3 / 2, 5 / 2).
    student, teacher = [row(1, 2), second], [row(1, 0), second]
    torch.testing.assert_close(flow(*student), torch.tensor([[[5.5, 8.5]]]))
    # (4^2 + 6^2) / 2 = 26
    assert solution_flow(student, teacher).item() == pytest.approx(26)


def test_the_batch_is_averaged() -> None:
    second = row(3, 4, 5, 6, channels=2).expand(2, 2, 1, 2)
    student = [torch.cat([row(1, 2), row(7, 7)]), second]
    teacher = [torch.cat([row(1, 0), row(7, 7)]), second]
    assert solution_flow(student, teacher).item() == pytest.approx(13)


def test_consecutive_taps_are_summed() -> None:
    # The pairs (1, 2) and (2, 3), not (1, 3): 1 * 2 against 1 * 3, 2 * 5 against 3 * 5.
    student, teacher = [row(1), row(2), row(5)], [row(1), row(3), row(5)]
    assert solution_flow(student, teacher).item() == pytest.approx((2 - 3) ** 2 + (10 - 15) ** 2)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_larger_map_is_average_pooled(swapped: bool) -> None:
    # (1, 5 | 4, 4) pools to (3, 4): (3 * 1 + 4 * 2) / 2. A maximum would give (5 * 1 + 4 * 2) / 2.
    pair = (row(1, 5, 4, 4), row(1, 2))
    assert flow(*(pair[::-1] if swapped else pair)).item() == pytest.approx(5.5)


def theirs(first: Tensor, second: Tensor) -> Tensor:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    # It pools by maximum, so the larger map comes pooled by average.
    return losses.FSPLoss.compute_fsp_matrix(F.adaptive_avg_pool2d(first, second.shape[2:]), second)


def test_matrices_against_torchdistill() -> None:
    student, teacher = taps(), taps()
    expected = sum((theirs(*student[i : i + 2]) - theirs(*teacher[i : i + 2])).square().mean() for i in range(2))
    torch.testing.assert_close(FSP()(student, teacher, NO_TARGET), expected)


def test_the_value_against_torchdistill() -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = taps(3, ((1, 4, 4), (1, 4, 4))), taps(3, ((1, 4, 4), (1, 4, 4)))
    pair = {f"{side}_{i}": {"io": "output", "path": i} for side in ("student", "teacher") for i in ("first", "second")}
    dicts = [{i: {"output": x} for i, x in zip(("first", "second"), side, strict=True)} for side in (student, teacher)]
    # It sums the norms of columns, not the squares: |G_s - G_t| for a single sample and channel, which we square.
    for n in range(3):
        one = [{i: {"output": x["output"][n : n + 1]} for i, x in side.items()} for side in dicts]
        ours = FSP()([x[n : n + 1] for x in student], [x[n : n + 1] for x in teacher], NO_TARGET)
        torch.testing.assert_close(ours, losses.FSPLoss({"a": pair})(*one) ** 2)


def test_against_loops() -> None:
    student, teacher = taps(2, ((2, 2, 2), (3, 2, 2))), taps(2, ((2, 2, 2), (3, 2, 2)))
    total = 0.0
    for n in range(2):
        for a in range(2):
            for b in range(3):
                grams = [
                    sum(float(x[0][n, a, i, j] * x[1][n, b, i, j]) for i in range(2) for j in range(2)) / 4
                    for x in (student, teacher)
                ]
                total += (grams[0] - grams[1]) ** 2
    assert solution_flow(student, teacher).item() == pytest.approx(total / (2 * 2 * 3))


def test_student_and_teacher_may_have_maps_of_two_sizes() -> None:
    small = tuple((c, h // 3, w // 3) for c, h, w in SHAPES)
    assert FSP()(taps(), taps(3, small), NO_TARGET) > 0


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = taps()
    same = [x.clone().requires_grad_() for x in teacher]
    value = solution_flow(same, teacher)
    value.backward()
    assert value.item() == 0
    assert all(x.grad is not None and not x.grad.any() for x in same)
    assert solution_flow(taps(), teacher) > 1e-3


def test_gradcheck() -> None:
    shapes = ((2, 4, 4), (3, 4, 4), (2, 2, 2))
    inputs = [x.requires_grad_() for x in taps(2, shapes) + taps(2, shapes)]
    assert torch.autograd.gradcheck(lambda *x: solution_flow(x[:3], x[3:]), inputs)


def test_the_gradient_reaches_every_tap_of_the_student() -> None:
    loss, student, teacher = FSP(), [x.requires_grad_() for x in taps()], taps()
    shapes = [tuple(x.shape) for x in student]
    loss.build(shapes, shapes)
    loss(student, teacher, NO_TARGET).backward()
    for x in student:
        assert x.grad is not None
        assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(x.grad is None for x in teacher)
    assert not list(loss.parameters())


def test_twenty_steps_lower_it() -> None:
    student, teacher, values = [x.requires_grad_() for x in taps()], taps(), []
    optimizer = torch.optim.Adam(student, lr=0.05)
    for _ in range(21):
        value = FSP()(student, teacher, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


def test_the_order_of_the_batch_does_not_matter() -> None:
    student, teacher, order = taps(5), taps(5), torch.tensor([3, 0, 4, 1, 2])
    value, mixed = solution_flow(student, teacher), [x[order] for x in student]
    torch.testing.assert_close(solution_flow(mixed, [x[order] for x in teacher]), value)
    assert not torch.isclose(solution_flow(mixed, teacher), value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # Gram matrices of about 900 have squares that overflow float16.
    student, teacher = ([(30 * x).to(dtype) for x in taps(8)] for _ in range(2))
    value = solution_flow([x.requires_grad_() for x in student], teacher)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, solution_flow([x.float() for x in student], [x.float() for x in teacher]))
    for x in student:
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.abs().sum() > 0


def test_autocast_does_not_lower_the_precision() -> None:
    first, second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, stride=2)
    teacher = [torch.randn(4, 6, 6, 6), torch.randn(4, 5, 2, 2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a = first(torch.randn(4, 3, 8, 8))
        student = [a, second(a)]
        value = FSP()(student, teacher, NO_TARGET)
    assert student[1].dtype == torch.bfloat16
    torch.testing.assert_close(value, solution_flow([x.float() for x in student], teacher))
    value.backward()
    for layer in (first, second):
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()
        assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fill", [0.0, 2.0])
def test_constant_maps_stay_finite(fill: float) -> None:
    student = [torch.full_like(x, fill).requires_grad_() for x in taps()]
    value = solution_flow(student, taps())
    value.backward()
    assert value > 0
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student)


@pytest.mark.parametrize("channels", [1, 2])
def test_one_sample_of_few_channels(channels: int) -> None:
    shapes = ((channels, 3, 3), (channels, 3, 3))
    student = [x.requires_grad_() for x in taps(1, shapes)]
    value = solution_flow(student, taps(1, shapes))
    value.backward()
    assert value > 0
    assert all(x.grad is not None and x.grad.isfinite().all() and x.grad.any() for x in student)


def test_labels_are_not_looked_at() -> None:
    student, teacher = taps(2), taps(2)
    values = [
        FSP()(student, teacher, target) for target in (torch.tensor([0, 1]), torch.rand(2, 5), torch.tensor([4, 4]))
    ]
    assert values[0] == values[1] == values[2] > 0


def test_the_taps_are_the_stem_and_the_stages() -> None:
    assert (FSP.student_tap, FSP.teacher_tap) == ("stem+stages", "stem+stages")


def test_other_channels_are_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"same channels at their taps, got \[8, 16\] and \[8, 32\]: choose networks"):
        FSP().build([(2, 8, 4, 4), (2, 16, 2, 2)], [(2, 8, 4, 4), (2, 32, 2, 2)])
    FSP().build([(2, 8, 4, 4), (2, 16, 2, 2)], [(2, 8, 8, 8), (2, 16, 4, 4)])


def test_other_channels_are_refused_by_the_formula() -> None:
    wide = taps(3, ((3, 6, 6), (4, 6, 6), (9, 3, 3)))
    with pytest.raises(ValueError, match=r"features of one shape, got \(3, 4, 5\) and \(3, 4, 9\)"):
        solution_flow(taps(), wide)


@pytest.mark.parametrize("single", [taps()[0], taps()[:1]])
def test_one_tap_is_too_few(single: Tensor | list[Tensor]) -> None:
    with pytest.raises(ValueError, match="FSP needs at least 2 taps of each network, got 1"):
        FSP()(single, single, NO_TARGET)


def test_as_many_taps_are_needed_of_both() -> None:
    with pytest.raises(ValueError, match="as many taps as one another, got 3 and 2"):
        FSP()(taps(), taps()[:2], NO_TARGET)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be maps \[N, C, H, W\], got \(3, 5\)"):
        FSP()([*taps()[:2], torch.zeros(3, 5)], taps(), NO_TARGET)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    scale=st.floats(0.1, 10),
)
def test_any_shape_gives_a_value_that_grows_with_the_fourth_power(
    samples: int, channels: tuple[int, int], sizes: tuple[int, int, int, int], scale: float
) -> None:
    shapes = ((channels[0], *sizes[:2]), (channels[1], *sizes[2:]))
    student, teacher = taps(samples, shapes), taps(samples, shapes)
    value = solution_flow(student, teacher)
    scaled = solution_flow([scale * x for x in student], [scale * x for x in teacher])
    torch.testing.assert_close(scaled, scale**4 * value)
