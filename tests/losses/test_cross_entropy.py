import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses import CrossEntropy

LN3 = math.log(3)
ONE = torch.tensor([[LN3, 0.0]])  # softmax (3/4, 1/4), -log softmax (0.2876821, 1.3862944)


def test_class_indices_by_hand() -> None:
    logits = torch.tensor([[LN3, 0.0], [LN3, 0.0]])
    assert CrossEntropy()(logits, None, torch.tensor([0, 1])).item() == pytest.approx(0.8369882, abs=1e-6)


def test_mixed_targets_by_hand() -> None:
    # 0.25 * 0.2876821 + 0.75 * 1.3862944
    assert CrossEntropy()(ONE, None, torch.tensor([[0.25, 0.75]])).item() == pytest.approx(1.1116413, abs=1e-6)


def test_label_smoothing_by_hand() -> None:
    # The target becomes (0.95, 0.05).
    assert CrossEntropy(0.1)(ONE, None, torch.tensor([0])).item() == pytest.approx(0.3426127, abs=1e-6)


def test_mixed_targets_are_smoothed_too() -> None:
    # 0.9 (0.25, 0.75) + 0.1 (0.5, 0.5) = (0.275, 0.725)
    expected = 0.275 * 0.2876821 + 0.725 * 1.3862944
    assert CrossEntropy(0.1)(ONE, None, torch.tensor([[0.25, 0.75]])).item() == pytest.approx(expected, abs=1e-6)


def test_a_one_hot_target_is_the_class() -> None:
    logits, classes = torch.randn(6, 5), torch.randint(5, (6,))
    torch.testing.assert_close(
        CrossEntropy()(logits, None, classes), CrossEntropy()(logits, None, F.one_hot(classes, 5).float())
    )


def test_it_looks_at_no_teacher() -> None:
    assert CrossEntropy.teacher_tap is None
    logits, classes = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(CrossEntropy()(logits, torch.randn(4, 3), classes), CrossEntropy()(logits, None, classes))


def test_the_gradient_is_softmax_minus_target() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.softmax(torch.randn(4, 3, dtype=torch.float64), 1)
    CrossEntropy()(logits, None, target).backward()
    torch.testing.assert_close(logits.grad, (torch.softmax(logits.detach(), 1) - target) / 4)


@pytest.mark.parametrize("target", [torch.tensor([0, 2, 1]), torch.softmax(torch.randn(3, 4).double(), 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck(target: Tensor, smoothing: float) -> None:
    loss = CrossEntropy(smoothing)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, None, target), (logits,))


def test_the_order_of_the_batch_does_not_matter() -> None:
    logits, classes, order = torch.randn(8, 5).double(), torch.randint(5, (8,)), torch.randperm(8)
    torch.testing.assert_close(
        CrossEntropy()(logits[order], None, classes[order]), CrossEntropy()(logits, None, classes)
    )


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, float("nan")])
def test_a_bad_label_smoothing_is_named(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing must be in \[0, 1\), got {smoothing}"):
        CrossEntropy(smoothing)
