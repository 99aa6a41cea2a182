import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import CATKD
from kd_lightning.losses.catkd import attention_error, class_attention

NO_TARGET = torch.zeros(0, dtype=torch.int64)


def heads(student: int = 3, teacher: int = 5, classes: int = 4) -> dict[str, nn.Linear]:
    return {
        "student_classifier": nn.Linear(student, classes),
        "teacher_classifier": nn.Linear(teacher, classes).requires_grad_(False),
    }


def identity(x: Tensor) -> Tensor:
    return x


def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 4, 4), torch.randn(6, 5, 8, 8).relu()


def test_by_hand() -> None:
    # One class. Unit vectors (3, 4) / 5 = (0.6, 0.8) and (0, 2) / 2 = (0, 1): (0.36 + 0.04) / 2 = 0.2.
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    value = CATKD()(student, teacher, NO_TARGET, student_classifier=identity, teacher_classifier=identity)
    assert value.item() == pytest.approx(0.2)


def test_a_class_attention_map_by_hand() -> None:
    # The classifier 2 x + 1 at each position: 3, 5, 7, 9 in a row, averaged to (4, 8), over the norm of 80.
    head = nn.Linear(1, 1)
    nn.init.constant_(head.weight, 2.0)
    nn.init.constant_(head.bias, 1.0)
    cam = class_attention(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), head, 2)
    torch.testing.assert_close(cam, torch.tensor([[[4.0, 8.0]]]) / 80**0.5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_against_a_loop(size: int) -> None:
    student, teacher, classifiers = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 8, 8), heads()
    total = 0.0
    for n in range(2):
        for c in range(4):
            vectors = []
            for x, head in zip((student, teacher), classifiers.values(), strict=True):
                cell = x.shape[2] // size
                values = []
                for i in range(size):
                    for j in range(size):
                        part = x[n, :, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
                        values.append(((head.weight[c] @ part.flatten(1)).mean() + head.bias[c]).item())
                norm = sum(value**2 for value in values) ** 0.5
                vectors.append([value / norm for value in values])
            total += sum((a - b) ** 2 for a, b in zip(*vectors, strict=True))
    value = CATKD(size)(student, teacher, NO_TARGET, **classifiers)
    assert value.item() == pytest.approx(total / (2 * 4 * size**2), rel=1e-4, abs=1e-7)


def test_the_mean_of_the_attention_is_the_logit() -> None:
    feature, head = torch.randn(6, 3, 4, 4), nn.Linear(3, 4)
    # Of a single cell only the sign is left.
    logits = head(feature.mean((2, 3)))
    torch.testing.assert_close(class_attention(feature, head, 1)[:, :, 0], logits.sign())


def test_the_maps_are_unit_vectors_of_each_class() -> None:
    cam = class_attention(torch.randn(6, 3, 4, 4), nn.Linear(3, 4), 2)
    assert cam.shape == (6, 4, 4)
    torch.testing.assert_close(cam.norm(dim=2), torch.ones(6, 4))


def test_a_map_smaller_than_the_size_stays() -> None:
    feature = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(class_attention(feature, identity, 7), F.normalize(feature.flatten(2), dim=2))


def test_the_minimum_is_zero_at_equality() -> None:
    teacher, head = torch.randn(4, 3, 4, 4), nn.Linear(3, 5)
    student = teacher.clone().requires_grad_()
    classifiers = {"student_classifier": head, "teacher_classifier": head}
    value = CATKD()(student, teacher, NO_TARGET, **classifiers)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    assert CATKD()(torch.randn(4, 3, 4, 4), teacher, NO_TARGET, **classifiers) > 0.01


@pytest.mark.parametrize("size", [2, 3])
def test_gradcheck(size: int) -> None:
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5, 4, 4).double()
    classifiers = {name: head.double() for name, head in heads().items()}
    weight = classifiers["student_classifier"].weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, w: CATKD(size)(
            s, teacher, NO_TARGET, lambda x: x @ w.T, teacher_classifier=classifiers["teacher_classifier"]
        ),
        (student.requires_grad_(), weight),
    )


def test_double_precision_stays() -> None:
    assert class_attention(torch.randn(2, 3, 4, 4).double(), identity, 2).dtype == torch.float64


def test_gradcheck_of_the_error() -> None:
    student, teacher = torch.randn(2, 2, 3, 4).double()
    assert torch.autograd.gradcheck(attention_error, (student.requires_grad_(), teacher.requires_grad_()))


def test_the_gradient_reaches_the_student_and_its_classifier() -> None:
    (student, teacher), classifiers = pair(), heads()
    CATKD()(student.requires_grad_(), teacher, NO_TARGET, **classifiers).backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    for parameter in classifiers["student_classifier"].parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert teacher.grad is None
    assert all(parameter.grad is None for parameter in classifiers["teacher_classifier"].parameters())


def test_it_has_no_adapters() -> None:
    loss = CATKD()
    loss.build([(6, 3, 4, 4)], [(6, 5, 8, 8)])
    assert list(loss.parameters()) == []


def test_twenty_steps_lower_it() -> None:
    (student, teacher), classifiers = pair(), heads()
    optimizer = torch.optim.Adam([student.requires_grad_(), *classifiers["student_classifier"].parameters()], lr=0.05)
    values = []
    for _ in range(21):
        value = CATKD()(student, teacher, NO_TARGET, **classifiers)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


def test_the_order_of_the_batch_does_not_matter() -> None:
    (student, teacher), classifiers, order = pair(), heads(), torch.randperm(6)
    shuffled = CATKD()(student[order], teacher[order], NO_TARGET, **classifiers)
    torch.testing.assert_close(shuffled, CATKD()(student, teacher, NO_TARGET, **classifiers))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_pools_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * torch.randn(2, 4, 3, 4, 4)).to(dtype)  # a square would not fit in float16
    plain = {"student_classifier": identity, "teacher_classifier": identity}
    value = CATKD()(student.requires_grad_(), teacher, NO_TARGET, **plain)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, CATKD()(student.float(), teacher.float(), NO_TARGET, **plain))
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_is_near_float32() -> None:
    (student, teacher), classifiers = pair(), heads()
    expected = CATKD()(student, teacher, NO_TARGET, **classifiers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CATKD()(student.requires_grad_(), teacher, NO_TARGET, **classifiers)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("constant", [0.0, 2.0])
@pytest.mark.parametrize("side", [1, 3])
def test_small_and_constant_inputs_stay_finite(classes: int, constant: float, side: int) -> None:
    student = torch.full((1, classes, side, side), constant, requires_grad=True)
    value = CATKD()(student, torch.randn(1, classes, side, side), NO_TARGET, identity, identity)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_class_that_is_seen_nowhere_has_no_gradient() -> None:
    student = torch.zeros(1, 1, 2, 2, requires_grad=True)
    value = CATKD()(student, torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]), NO_TARGET, identity, identity)
    value.backward()
    assert value.item() == pytest.approx(0.25)  # (0 - 1)^2 / 4
    assert student.grad is not None
    assert student.grad.abs().max() == 0


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.floats(1e-2, 1e2))
def test_the_scale_does_not_matter_and_the_value_is_bounded(
    samples: int, classes: int, side: int, size: int, scale: float
) -> None:
    student, teacher = torch.randn(2, samples, classes, side, side).double()
    value = CATKD(size)(student, teacher, NO_TARGET, identity, identity)
    scaled = CATKD(size)(scale * student, teacher, NO_TARGET, identity, identity)
    torch.testing.assert_close(scaled, value)
    assert 0 <= value <= 4 / min(size, side) ** 2 + 1e-9  # |a - b|^2 <= 4 for unit vectors


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher = torch.randn(2, 2, 5, 2, 2)
    value = CATKD()(student, teacher, target, identity, identity)
    assert torch.equal(value, CATKD()(student, teacher, NO_TARGET, identity, identity))


def test_what_it_needs() -> None:
    assert CATKD.student_tap == CATKD.teacher_tap == "last_map"
    assert CATKD.needs == {"student_classifier", "teacher_classifier"}


@pytest.mark.parametrize("size", [0, -1])
def test_a_bad_size_is_named(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be >= 1, got {size}"):
        CATKD(size)


@pytest.mark.parametrize("shape", [(2, 3), (2, 7, 3)])
def test_maps_are_needed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features must be maps \[N, C, H, W\], got \(2, .*: a tap's :map makes one"):
        CATKD()(torch.zeros(2, 3, 4, 4), torch.zeros(shape), NO_TARGET, identity, identity)


def test_two_class_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(2, 3, 4\) and \(2, 5, 4\)"):
        CATKD()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4), NO_TARGET, identity, identity)
