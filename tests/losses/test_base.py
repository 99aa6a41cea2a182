import pytest
import torch
from torch import Tensor, nn

from kd_lightning.losses import CrossEntropy, HardLabel, Loss, Shapes, SoftTarget
from kd_lightning.losses.base import MAY_BE_UNKNOWN, NEEDS, OF_THE_BATCH, OF_THE_RUN

LOSSES = [CrossEntropy, HardLabel, SoftTarget]


class Adapted(Loss):
    """As somebody outside the package would write one."""

    student_tap = "layer1"

    def build(self, student: Shapes, teacher: Shapes) -> None:
        self.adapter = nn.Linear(student[0][1], teacher[0][1])

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return (self.adapter(student) - teacher).square().mean()


def test_what_a_loss_may_ask_for() -> None:
    assert frozenset({"index", "number", "epoch"}) == OF_THE_BATCH
    of_the_run = {"epochs", "train_targets", "teacher_classifier", "student_classifier", "teacher_norms"}
    assert of_the_run == OF_THE_RUN
    assert MAY_BE_UNKNOWN < OF_THE_RUN
    assert OF_THE_BATCH | OF_THE_RUN == NEEDS


def test_a_loss_asks_for_nothing_and_taps_the_logits_unless_it_says_so() -> None:
    assert Loss.needs == frozenset()
    assert (Loss.student_tap, Loss.teacher_tap) == ("logits", "logits")


def test_a_loss_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Loss()(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1))


def test_build_makes_adapters_for_the_probed_shapes() -> None:
    loss = Adapted()
    assert not list(loss.parameters())
    loss.build([(2, 5)], [(2, 7)])
    assert [tuple(p.shape) for p in loss.parameters()] == [(7, 5), (7,)]
    assert loss(torch.randn(3, 5), torch.randn(3, 7), torch.zeros(3)).shape == ()


@pytest.mark.parametrize("kind", LOSSES)
def test_the_logit_losses_hold_nothing_and_give_a_scalar(kind: type[Loss]) -> None:
    loss = kind()
    loss.build([(2, 3)], [(2, 3)])
    assert not loss.state_dict()
    assert loss.needs <= NEEDS
    assert loss(torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0, 2])).shape == ()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gives_finite_losses_and_gradients(kind: type[Loss], dtype: torch.dtype) -> None:
    student = (30 * torch.randn(4, 10)).to(dtype).requires_grad_()
    loss = kind()(student, (30 * torch.randn(4, 10)).to(dtype), torch.tensor([0, 3, 6, 9]))
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert loss > 0
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_of_one_and_two_classes(kind: type[Loss]) -> None:
    loss = kind()(torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]]), torch.tensor([1]))
    assert loss.isfinite()
    assert loss > 0
