import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_lightning.losses import ReviewKD
from kd_lightning.losses.adapters import Shape
from kd_lightning.losses.review import Fusion, as_map, hierarchical_context

NO_TARGET = torch.zeros(0, dtype=torch.int64)
# Stages of two networks and their embeddings.
STUDENT = [(6, 3, 8, 8), (6, 4, 4, 4), (6, 5, 4, 4), (6, 5)]
TEACHER = [(6, 4, 8, 8), (6, 6, 8, 8), (6, 7, 2, 2), (6, 9)]


def built() -> tuple[ReviewKD, list[Tensor], list[Tensor]]:
    loss = ReviewKD()
    loss.build(STUDENT, TEACHER)
    return loss, [torch.randn(shape) for shape in STUDENT], [torch.randn(shape) for shape in TEACHER]


def test_by_hand() -> None:
    # 2 x 2: only the level 1 is smaller. Differences 1, 3, -1, 1: MSE 12 / 4 = 3, of the means 1. (3 + 1 / 2) / 1.5.
    student, teacher = torch.tensor([[[[1.0, 3.0], [-1.0, 1.0]]]]), torch.zeros(1, 1, 2, 2)
    assert hierarchical_context(student, teacher).item() == pytest.approx(7 / 3)
    assert ReviewKD()(student, teacher, NO_TARGET).item() == pytest.approx(7 / 3)


def test_a_single_position_is_the_squared_error() -> None:
    assert hierarchical_context(torch.full((2, 3, 1, 1), 2.0), torch.zeros(2, 3, 1, 1)).item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("side", "weights"), [(1, {}), (2, {1: 1 / 2}), (4, {2: 1 / 2, 1: 1 / 4}), (8, {4: 1 / 2, 2: 1 / 4, 1: 1 / 8})]
)
def test_levels_that_are_not_smaller_halve_nothing(side: int, weights: dict[int, float]) -> None:
    student, teacher = torch.randn(2, 2, 3, side, side)
    total = (student - teacher).square().mean()
    for level, weight in weights.items():
        # Cells of side / level positions, averaged.
        cells = [x.reshape(2, 3, level, side // level, level, side // level).mean((3, 5)) for x in (student, teacher)]
        total = total + weight * (cells[0] - cells[1]).square().mean()
    expected = total / (1 + sum(weights.values()))
    torch.testing.assert_close(hierarchical_context(student, teacher), expected)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8])
def test_against_torchdistill(side: int) -> None:
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = torch.randn(2, 2, 3, side, side)
    theirs = losses.HierarchicalContextLoss("s", "output", "t", "output")
    # Its student's module gives (the map to compare, the one to hand on).
    expected = theirs({"s": {"output": (student, None)}}, {"t": {"output": teacher}})
    torch.testing.assert_close(hierarchical_context(student, teacher), expected)


@pytest.mark.parametrize("fuses", [False, True])
def test_the_fusion_is_that_of_torchdistill(fuses: bool) -> None:
    wrapper = pytest.importorskip("torchdistill.models.wrapper")
    ours, theirs = Fusion(3, 4, 5, fuses), wrapper.AttentionBasedFusion(3, 4, 5, fuses)
    # Its layers have other names; conv2 is before the attention in both.
    names = {"conv1": ours.reduce, "conv2": ours.expand, "attention_conv": ours.attention}
    for name, module in names.items():
        if module is not None:
            getattr(theirs, name).load_state_dict(module.state_dict())
    x, deeper = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4) if fuses else None
    compared, handed = ours(x, deeper, (8, 8))
    expected = theirs(x, deeper, 8)
    torch.testing.assert_close(compared, expected[0])
    torch.testing.assert_close(handed, expected[1])


def test_the_fusion_by_hand() -> None:
    fusion = Fusion(1, 1, 1, fuses=True).eval()
    assert fusion.attention is not None
    with torch.no_grad():
        for parameter in fusion.attention.parameters():
            parameter.zero_()
        fusion.reduce[0].weight.fill_(2.0)
    x, deeper = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[6.0]]]])
    # Both weights are sigmoid(0) = 1/2: (2 x + 6) / 2; in eval a new normalisation divides by sqrt(1 + 1e-5).
    _, handed = fusion(x, deeper, (2, 2))
    torch.testing.assert_close(handed, torch.tensor([[[[4.0, 5.0], [6.0, 7.0]]]]), rtol=1e-4, atol=0)


def test_the_fusion_repeats_positions_up_to_the_size_of_the_teacher() -> None:
    fusion = Fusion(3, 4, 5, fuses=False)
    compared, handed = fusion(torch.randn(2, 3, 2, 2), None, (4, 4))
    assert compared.shape == (2, 5, 4, 4)
    assert handed.shape == (2, 4, 4, 4)
    assert torch.equal(handed[:, :, ::2, ::2], handed[:, :, 1::2, 1::2])


def test_it_goes_from_deep_to_shallow() -> None:
    loss, students, teachers = built()
    total, deeper = torch.zeros(()), None
    for i in (3, 2, 1, 0):
        teacher = as_map(teachers[i])
        compared, deeper = loss.fusions[i](as_map(students[i]), deeper, tuple(teacher.shape[2:]))
        assert compared.shape == teacher.shape
        total = total + hierarchical_context(compared, teacher)
    torch.testing.assert_close(loss(students, teachers, NO_TARGET), total)


def test_the_shallow_comparison_hears_of_the_deep_features() -> None:
    loss, students, teachers = built()
    students[3].requires_grad_()
    captured: list[Tensor] = []
    handle = loss.fusions[0].register_forward_hook(lambda module, args, output: captured.append(output[0]))
    loss(students, teachers, NO_TARGET)
    handle.remove()
    captured[0].square().mean().backward()
    assert students[3].grad is not None
    assert students[3].grad.abs().max() > 0


@pytest.mark.parametrize(("most", "expected"), [(512, 5), (2, 2)])
def test_the_fused_channels_are_those_of_the_deepest_tap(most: int, expected: int) -> None:
    loss = ReviewKD(most)
    loss.build(STUDENT[:3], TEACHER[:3])
    assert [fusion.reduce[0].out_channels for fusion in loss.fusions] == [expected] * 3
    assert [fusion.attention is None for fusion in loss.fusions] == [False, False, True]


def test_taps_are_summed_where_it_is_not_built() -> None:
    students, teachers = [torch.randn(2, 3, 4, 4), torch.randn(2, 5)], [torch.randn(2, 3, 4, 4), torch.randn(2, 5)]
    expected = hierarchical_context(students[0], teachers[0]) + F.mse_loss(students[1], teachers[1])
    torch.testing.assert_close(ReviewKD()(students, teachers, NO_TARGET), expected)


def test_the_larger_map_is_averaged_first() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)
    expected = hierarchical_context(student, F.avg_pool2d(teacher, 2))
    torch.testing.assert_close(hierarchical_context(student, teacher), expected)


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = torch.randn(4, 3, 8, 8)
    student = teacher.clone().requires_grad_()
    value = ReviewKD()(student, teacher, NO_TARGET)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    # A shift is the same on every level.
    assert hierarchical_context(teacher + 0.1, teacher).item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_gradcheck(side: int) -> None:
    student, teacher = torch.randn(2, 2, 2, side, side).double()
    assert torch.autograd.gradcheck(hierarchical_context, (student.requires_grad_(), teacher.requires_grad_()))


def test_the_gradient_reaches_student_and_fusions() -> None:
    loss, students, teachers = built()
    loss([s.requires_grad_() for s in students], teachers, NO_TARGET).backward()
    for student in students:
        assert student.grad is not None
        assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(teacher.grad is None for teacher in teachers)


def test_twenty_steps_lower_it() -> None:
    loss, students, teachers = built()
    optimizer = torch.optim.Adam([*(s.requires_grad_() for s in students), *loss.parameters()], lr=0.03)
    values = []
    for _ in range(21):
        value = loss(students, teachers, NO_TARGET)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


def test_the_order_of_the_batch_does_not_matter() -> None:
    loss, students, teachers = built()
    order = torch.randperm(6)
    shuffled = loss([s[order] for s in students], [t[order] for t in teachers], NO_TARGET)
    torch.testing.assert_close(shuffled, loss(students, teachers, NO_TARGET))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * torch.randn(2, 4, 3, 8, 8)).to(dtype)  # a square would not fit in float16
    value = ReviewKD()(student.requires_grad_(), teacher, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, hierarchical_context(student.float(), teacher.float()))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_is_near_float32() -> None:
    loss, students, teachers = built()
    expected = loss(students, teachers, NO_TARGET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss([s.requires_grad_() for s in students], teachers, NO_TARGET)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    assert all(s.grad is not None and s.grad.isfinite().all() for s in students)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 1, 1, 1), (2, 1, 3, 3)])
def test_small_and_constant_inputs_stay_finite(shape: Shape) -> None:
    student = torch.full(shape, 2.0, requires_grad=True)
    value = ReviewKD()(student, torch.full(shape, 5.0), NO_TARGET)
    value.backward()
    assert value.item() == pytest.approx(9.0)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("channels", [1, 2])
def test_constant_maps_of_one_sample_pass_the_fusions(channels: int) -> None:
    loss, shapes = ReviewKD(), [(1, channels, 4, 4), (1, channels, 2, 2)]
    loss.build(shapes, shapes)
    students = [torch.ones(shape, requires_grad=True) for shape in shapes]
    value = loss(students, [torch.ones(shape) for shape in shapes], NO_TARGET)
    value.backward()
    assert value.isfinite()
    assert all(s.grad is not None and s.grad.isfinite().all() for s in students)


def test_the_embedding_of_a_single_sample_cannot_be_normalised() -> None:
    loss = ReviewKD()
    loss.build([(1, 3)], [(1, 3)])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        loss(torch.zeros(1, 3), torch.zeros(1, 3), NO_TARGET)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.floats(1e-2, 1e2))
def test_it_grows_with_the_square_of_the_scale_and_is_at_most_the_squared_error(
    samples: int, channels: int, side: int, scale: float
) -> None:
    student, teacher = torch.randn(2, samples, channels, side, side).double()
    value = hierarchical_context(student, teacher)
    torch.testing.assert_close(hierarchical_context(scale * student, scale * teacher), scale**2 * value)
    if side in (1, 2, 4, 8):  # equal cells: averaging does not add to a mean square
        assert value <= F.mse_loss(student, teacher) + 1e-12


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher = torch.randn(2, 2, 5, 4, 4)
    assert torch.equal(ReviewKD()(student, teacher, target), hierarchical_context(student, teacher))


def test_the_default_tap() -> None:
    assert ReviewKD.student_tap == ReviewKD.teacher_tap == "stages"


@pytest.mark.parametrize("most", [0, -1])
def test_bad_max_channels_are_named(most: int) -> None:
    with pytest.raises(ValueError, match=f"max_channels must be >= 1, got {most}"):
        ReviewKD(most)


@pytest.mark.parametrize("builds", [False, True])
def test_tokens_are_refused(builds: bool) -> None:
    loss, tokens = ReviewKD(), torch.zeros(2, 7, 3)
    if builds:
        loss.build([tokens.shape], [tokens.shape])
    with pytest.raises(ValueError, match=r"features must be maps \[N, C, H, W\], got \(2, 7, 3\): a tap's :map"):
        loss(tokens, tokens, NO_TARGET)


def test_features_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(4, 3, 2, 2\) and \(4, 5, 2, 2\)"):
        ReviewKD()(torch.zeros(4, 3, 2, 2), torch.zeros(4, 5, 2, 2), NO_TARGET)


def test_as_many_taps_are_needed() -> None:
    loss, maps = ReviewKD(), torch.zeros(4, 3, 2, 2)
    loss.build([maps.shape, maps.shape], [maps.shape])
    with pytest.raises(ValueError, match="as many taps as one another, got 2 and 1"):
        loss([maps, maps], maps, NO_TARGET)
