import pytest
import torch
from torch import nn

from kd_lightning.batch import Batch
from kd_lightning.models import FrozenTeacher, Network, Views
from kd_lightning.models.open_teacher import OpenTeacher, batch_norms, statistics

SHAPE = (1, 8, 8)


def teacher_of(network: nn.Module, classes: int = 10) -> FrozenTeacher:
    teacher = FrozenTeacher(network, check=False)
    teacher.setup(classes, Views(SHAPE), [])
    return teacher


def test_it_answers_as_the_teacher_does_with_a_gradient_to_the_images_alone() -> None:
    teacher = teacher_of(Network("cifar_resnet8").build(10, 1))
    image = torch.randn(6, *SHAPE, requires_grad=True)
    answer = OpenTeacher(teacher, ["embedding", "batch_norms"], SHAPE)(image)
    torch.testing.assert_close(answer.logits, teacher(Batch({"default": image}, torch.zeros(6))).logits)
    answer.logits.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert teacher.network is not None
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_statistics_are_those_of_each_layers_input() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 10))
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    image = torch.randn(6, *SHAPE)
    (found,) = OpenTeacher(teacher_of(network), ["batch_norms"], SHAPE)(image).taps["batch_norms"]
    heard = network[0](image).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[0], torch.stack([heard.mean(1), heard.var(1, correction=0)]))
    assert found[1].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_statistics_of_flat_features() -> None:
    heard = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    assert statistics(heard, nn.BatchNorm1d(2)).tolist() == [[[2, 4], [1, 0]], [[0, 0], [1, 1]]]


def test_all_layers_of_a_network_are_heard_and_its_buffers_stay() -> None:
    network = Network("cifar_resnet8").build(10, 1)
    opened = OpenTeacher(teacher_of(network), ["batch_norms"], SHAPE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    heard = opened(torch.randn(6, *SHAPE)).taps["batch_norms"]
    assert len(heard) == len(batch_norms(network)) == sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert [(2, *part.shape[1:]) for part in heard] == opened.plan.shapes["batch_norms"]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_teacher_without_batch_normalisation() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match="the teacher Sequential has no batch normalisation with running statistics"):
        OpenTeacher(teacher_of(plain), ["batch_norms"], SHAPE)
    OpenTeacher(teacher_of(plain), ["logits"], SHAPE)


def test_a_teacher_without_gradients() -> None:
    with pytest.raises(ValueError, match=r"^teacher must be a FrozenTeacher, .* got object$"):
        OpenTeacher(object(), [], SHAPE)  # type: ignore[arg-type]
