from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.models import FrozenTeacher, Network, Views, save_weights
from kd_lightning.models.class_map import ClassMap

VIEWS = Views((3, 8, 8))


class Net(nn.Module):
    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.fc = nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits

    def get_classifier(self) -> nn.Module:
        return self.fc


def test_logits_are_picked_in_the_order_of_the_data() -> None:
    logits = torch.arange(14.0).view(2, 7)
    assert ClassMap([5, 0, 2])(logits).tolist() == [[5.0, 0.0, 2.0], [12.0, 7.0, 9.0]]


def test_a_teacher_with_more_classes_answers_with_those_of_the_data() -> None:
    network = Net()
    teacher = FrozenTeacher(network, classes=[6, 1, 3])
    teacher.setup(3, VIEWS, ["logits", "fc:in"])
    image = torch.randn(4, 3, 8, 8)
    logits, taps = teacher(Batch({"default": image}, torch.zeros(4).long()))
    torch.testing.assert_close(logits, network(image)[:, [6, 1, 3]])
    assert teacher.plan().shapes == {"logits": (2, 3), "fc:in": (2, 192)}
    embedding = taps["fc:in"]
    assert isinstance(embedding, Tensor)
    torch.testing.assert_close(teacher.classifier()(embedding), logits)


def test_a_recipe_is_built_with_its_own_classes(tmp_path: Path) -> None:
    network = Network("cifar_resnet8").build(7)
    save_weights(network, tmp_path / "w.safetensors")
    recipe = Network("cifar_resnet8", weights=str(tmp_path / "w.safetensors"))
    teacher = FrozenTeacher(recipe, classes=[2, 4], num_classes=7)
    teacher.setup(2, VIEWS, [])
    image = torch.randn(4, 3, 8, 8)
    logits = teacher(Batch({"default": image}, torch.zeros(4).long())).logits
    torch.testing.assert_close(logits, network.eval()(image)[:, [2, 4]])
    with pytest.raises(ValueError, match="cifar_resnet8: with classes, give num_classes, the number of its own"):
        FrozenTeacher(recipe, classes=[2, 4]).setup(2, VIEWS, [])


def test_without_a_map_it_is_an_error_that_names_the_map() -> None:
    with pytest.raises(ValueError, match="the teacher has 7 classes, the data 3: .* say which in classes"):
        FrozenTeacher(Net()).setup(3, VIEWS, [])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 1], "classes must name 3 classes, one for each of the data, got 2"),
        ([0, 1, 2, 3], "classes must name 3 classes, one for each of the data, got 4"),
        ([0, 1, 7], r"classes must be in 0 … 6, the teacher's classes, got 7"),
    ],
)
def test_a_map_that_does_not_fit(classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenTeacher(Net(), classes=classes).setup(3, VIEWS, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [0, -1]}, "classes must be indices >= 0 of the teacher's classes, got -1"),
        ({"classes": [3, 1, 3]}, r"classes must name each class of the teacher once at most, got \[3\] more than once"),
        ({"classes": []}, "classes must name a class of the teacher for each class of the data, got none"),
        ({"num_classes": 7}, "num_classes 7 must come with classes"),
    ],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenTeacher(Net(), **options)
