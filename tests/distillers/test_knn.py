import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_lightning.batch import Batch
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import NearestNeighbours
from kd_lightning.distillers.knn import training_images, votes
from kd_lightning.models import Network

CPU = torch.device("cpu")


class Net(nn.Module):
    """Whose embedding is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Flatten()
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(image))
        return logits


def ready(k: int = 20, temperature: float = 0.07) -> tuple[NearestNeighbours, Net]:
    knn, net = NearestNeighbours(k, temperature, "body"), Net()
    knn.prepare(net, (1, 8, 8), 10)
    return knn, net


def test_votes_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    labels = torch.tensor([0, 1, 2, 1])
    found = votes(torch.tensor([[1.0, 0.0]]), bank, labels, 3, 3, 0.5)
    torch.testing.assert_close(found, torch.tensor([[math.e**2, math.exp(1.2) + 1, 0.0]]))


def test_of_a_small_bank_all_are_asked() -> None:
    assert votes(torch.eye(2), torch.eye(2), torch.tensor([1, 0]), 2, 20, 0.07).argmax(1).tolist() == [1, 0]


def test_it_equals_a_naive_loop_on_real_digits() -> None:
    data = DigitsDataModule(64)
    data.setup("fit")
    knn, net = ready(k=5)
    shown = [batch for batch in training_images(data, CPU) if isinstance(batch, Batch)]
    knn.remember(net, shown)
    images, labels = torch.cat([b.image for b in shown]).flatten(1), torch.cat([b.target for b in shown])
    assert len(labels) == 1212
    right = total = 0
    for batch in data.val_dataloader():
        knn.update(net, batch)
        for image, label in zip(batch.image.flatten(1), batch.target, strict=True):
            cosine = F.cosine_similarity(image[None], images)
            nearest = cosine.argsort(descending=True)[:5]
            weights = torch.zeros(10).index_add(0, labels[nearest], torch.exp(cosine[nearest] / 0.07))
            right, total = right + int(weights.argmax() == label), total + 1
    assert total == 135
    assert knn.compute()["knn_top1"] == pytest.approx(right / total)
    assert right / total > 0.9
    assert knn.compute() == {}


def test_nothing_is_measured_before_anything_is_remembered() -> None:
    knn, net = ready()
    knn.update(net, Batch({"default": torch.zeros(2, 1, 8, 8)}, torch.zeros(2).long()))
    assert knn.compute() == {}


def test_it_leaves_nothing_in_the_state() -> None:
    assert ready()[0].state_dict() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k must be >= 1, got 0"), ({"temperature": 0.0}, r"temperature must be > 0, got 0\.0")],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearestNeighbours(**options)


def test_a_data_module_without_the_images() -> None:
    with pytest.raises(ValueError, match="knn needs the training images as they are"):
        training_images(None, CPU)


def test_several_taps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"knn\.tap must be one tap, but 'stages' is several"):
        NearestNeighbours(tap="stages").prepare(Network("cifar_resnet8").build(10, 1), (1, 8, 8), 10)
