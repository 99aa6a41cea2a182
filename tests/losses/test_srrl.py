import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.losses import SRRL
from kd_lightning.losses.adapters import Shape
from kd_lightning.losses.srrl import squared_error

NO_TARGET = torch.zeros(0, dtype=torch.int64)
STUDENT, TEACHER = (6, 3, 4, 4), (6, 5)


def frozen(features: int = 5, classes: int = 7) -> nn.Linear:
    return nn.Linear(features, classes).requires_grad_(False)


def built() -> tuple[SRRL, Tensor, Tensor, nn.Linear]:
    loss = SRRL()
    loss.build([STUDENT], [TEACHER])
    return loss, torch.randn(STUDENT), torch.randn(TEACHER).relu(), frozen()


def test_by_hand() -> None:
    # The pooled student is (2, 4), the teacher (1, 4): ((2 - 1)^2 + 0) / 2 = 0.5.
    # Logits z = (x1 + x2, 3 x1): (6, 6) and (5, 3): (1 + 9) / 2 = 5. The sum is 5.5.
    student = torch.tensor([[[[1.0, 3.0]], [[4.0, 4.0]]]])
    weight = torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    value = SRRL()(student, torch.tensor([[1.0, 4.0]]), NO_TARGET, teacher_classifier=lambda x: x @ weight.T)
    assert value.item() == pytest.approx(5.5)


def test_against_a_loop() -> None:
    student, teacher, classifier = torch.randn(2, 3, 2, 2), torch.randn(2, 3), frozen(3, 4)
    features, logits = 0.0, 0.0
    for n in range(2):
        pooled = [sum(student[n, d].flatten().tolist()) / 4 for d in range(3)]
        features += sum((pooled[d] - teacher[n, d].item()) ** 2 for d in range(3))
        for weight in classifier.weight.tolist():  # the bias falls out of the difference
            logits += sum(weight[d] * (pooled[d] - teacher[n, d].item()) for d in range(3)) ** 2
    value = SRRL()(student, teacher, NO_TARGET, teacher_classifier=classifier)
    assert value.item() == pytest.approx(features / 6 + logits / 8, rel=1e-4)


def test_the_built_loss_compares_what_the_adapter_gives() -> None:
    loss, student, teacher, classifier = built()
    (weight, *_) = loss.parameters()
    z = F.conv2d(student, weight)
    # Batch normalisation of a new module: scale 1, shift 0, eps 1e-5, the biased variance.
    z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    embedding = z.clamp(min=0).mean((2, 3))  # the ReLU comes before the pooling
    expected = F.mse_loss(embedding, teacher) + F.mse_loss(classifier(embedding), classifier(teacher))
    torch.testing.assert_close(loss(student, teacher, NO_TARGET, teacher_classifier=classifier), expected)


def test_the_minimum_is_zero_at_equality() -> None:
    teacher = torch.randn(4, 5)
    student = teacher[:, :, None, None].repeat(1, 1, 2, 2).requires_grad_()
    value = SRRL()(student, teacher, NO_TARGET, teacher_classifier=frozen())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6
    assert SRRL()(student + 0.1, teacher, NO_TARGET, teacher_classifier=frozen()) > 0.01


def test_gradcheck() -> None:
    student, teacher, classifier = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 3).double(), frozen(3, 4).double()
    assert torch.autograd.gradcheck(
        lambda s: SRRL()(s, teacher, NO_TARGET, teacher_classifier=classifier), (student.requires_grad_(),)
    )
    assert torch.autograd.gradcheck(
        squared_error, (torch.randn(3, 4).double().requires_grad_(), torch.randn(3, 4).double())
    )


def test_the_gradient_reaches_student_and_adapter_through_a_fixed_classifier() -> None:
    loss, student, teacher, classifier = built()
    loss(student.requires_grad_(), teacher, NO_TARGET, teacher_classifier=classifier).backward()
    assert student.grad is not None
    assert (student.grad.flatten(1).abs().sum(1) > 0).all()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert teacher.grad is None
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_the_logits_have_a_gradient_of_their_own() -> None:
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3)
    gradients = []
    for scale in (0.0, 1.0):
        maps = student.clone().requires_grad_()
        SRRL()(maps, teacher, NO_TARGET, teacher_classifier=lambda x, scale=scale: scale * x).backward()
        assert maps.grad is not None
        gradients.append(maps.grad)
    # Where the classifier is the identity both terms are one.
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    assert gradients[0].abs().min() > 0


def test_twenty_steps_lower_it() -> None:
    loss, student, teacher, classifier = built()
    optimizer = torch.optim.Adam([student.requires_grad_(), *loss.parameters()], lr=0.05)
    values = []
    for _ in range(21):
        value = loss(student, teacher, NO_TARGET, teacher_classifier=classifier)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.7 * values[0]


def test_the_order_of_the_batch_does_not_matter() -> None:
    loss, student, teacher, classifier = built()
    order = torch.randperm(6)
    shuffled = loss(student[order], teacher[order], NO_TARGET, teacher_classifier=classifier)
    torch.testing.assert_close(shuffled, loss(student, teacher, NO_TARGET, teacher_classifier=classifier))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_squares_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (300 * torch.randn(4, 5, 2, 2)).to(dtype), (300 * torch.randn(4, 5)).to(dtype)
    classifier = frozen()  # a square of its logits would not fit in float16
    value = SRRL()(student.requires_grad_(), teacher, NO_TARGET, teacher_classifier=classifier.to(dtype))
    value.backward()
    assert value.dtype == torch.float32
    expected = SRRL()(student.float(), teacher.float(), NO_TARGET, teacher_classifier=classifier.float())
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_is_near_float32() -> None:
    loss, student, teacher, classifier = built()
    expected = loss(student, teacher, NO_TARGET, teacher_classifier=classifier)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student.requires_grad_(), teacher, NO_TARGET, teacher_classifier=classifier)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("features", [1, 2])
def test_small_and_constant_inputs_stay_finite(classes: int, features: int) -> None:
    loss, shape = SRRL(), (1, features, 2, 2)
    loss.build([shape], [(1, features)])
    student = torch.ones(shape, requires_grad=True)
    value = loss(student, torch.ones(1, features), NO_TARGET, teacher_classifier=frozen(features, classes))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_single_position_of_a_single_sample_cannot_be_normalised() -> None:
    loss = SRRL()
    loss.build([(1, 3, 1, 1)], [(1, 5)])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        loss(torch.zeros(1, 3, 1, 1), torch.zeros(1, 5), NO_TARGET, teacher_classifier=frozen())


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.floats(1e-2, 1e2))
def test_it_grows_with_the_square_of_the_scale(
    samples: int, features: int, classes: int, side: int, scale: float
) -> None:
    student, teacher = torch.randn(samples, features, side, side).double(), torch.randn(samples, features).double()
    classifier = frozen(features, classes).double()
    value, scaled = (SRRL()(k * student, k * teacher, NO_TARGET, teacher_classifier=classifier) for k in (1.0, scale))
    torch.testing.assert_close(scaled, scale**2 * value)


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_the_labels_are_not_looked_at(target: Tensor) -> None:
    student, teacher, classifier = torch.randn(2, 5, 2, 2), torch.randn(2, 5), frozen()
    value = SRRL()(student, teacher, target, teacher_classifier=classifier)
    assert torch.equal(value, SRRL()(student, teacher, NO_TARGET, teacher_classifier=classifier))


def test_what_it_needs() -> None:
    assert (SRRL.student_tap, SRRL.teacher_tap) == ("last_map", "embedding")
    assert SRRL.needs == {"teacher_classifier"}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [([(2, 3)], [(2, 5)]), ([STUDENT], [(2, 5, 4, 4)]), ([STUDENT, STUDENT], [TEACHER]), ([STUDENT], [])],
)
def test_a_map_and_an_embedding_are_needed(student: list[Shape], teacher: list[Shape]) -> None:
    with pytest.raises(
        ValueError, match=r"SRRL needs one map \[N, C, H, W\] of the student and the embedding \[N, D\]"
    ):
        SRRL().build(student, teacher)


def test_a_student_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be maps \[N, C, H, W\], got \(2, 5\)"):
        SRRL()(torch.zeros(2, 5), torch.zeros(2, 5), NO_TARGET, teacher_classifier=frozen())


def test_features_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of one shape, got \(2, 3\) and \(2, 5\)"):
        SRRL()(torch.zeros(2, 3, 2, 2), torch.zeros(2, 5), NO_TARGET, teacher_classifier=lambda x: x[:, :2])
