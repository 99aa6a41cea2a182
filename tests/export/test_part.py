import json
from pathlib import Path

import torch
from torch import nn

from kd_lightning.export.part import Ensemble, at_ease, bare, recipes
from kd_lightning.models import Network


def test_a_recipe_loses_the_weights_that_a_training_started_from() -> None:
    inner = {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}, "weights": "/home/me/a.pth", "mean": None}
    made = bare({"name": "kd_lightning.models.MultiExitNetwork", "kwargs": {"network": inner, "only": 2}})
    assert made.name == "kd_lightning.models.MultiExitNetwork"
    assert made.kwargs == {"network": {"name": "cifar_resnet8", "kwargs": {"widths": [2, 2, 4, 8]}}, "only": 2}
    assert made.weights is None
    assert bare({"name": "resnet18", "weights": "pretrained"}).kwargs == {}


def test_a_network_of_a_folder_is_known_by_its_architecture(tmp_path: Path) -> None:
    config = {"architecture": "resnet10t", "num_classes": 9, "model_args": {"in_chans": 3, "stem_width": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stated = {"name": f"local-dir:{tmp_path}", "kwargs": {"drop_rate": 0.1}}
    assert bare(stated) == Network("resnet10t", {"stem_width": 8, "drop_rate": 0.1})
    outer = bare({"name": "kd_lightning.models.MultiExitNetwork", "kwargs": {"network": stated}})
    assert outer.kwargs["network"] == {"name": "resnet10t", "kwargs": {"stem_width": 8, "drop_rate": 0.1}}


def test_the_recipes_of_a_run() -> None:
    student = {"name": "cifar_resnet8", "kwargs": {}}
    assert set(recipes({"student": student, "teacher": None})) == {"student"}
    assert recipes({"peers": {"a": {"network": {"name": "resnet18"}}}})["a"].name == "resnet18"
    assert recipes({"net": student}) == {}


def test_a_copy_for_inference_leaves_the_network_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double().to(memory_format=torch.channels_last)
    made = at_ease(network)
    assert not made.training
    assert made[0].weight.dtype == torch.float32
    assert made[0].weight.is_contiguous()
    assert network.training
    assert network[0].weight.dtype == torch.float64
    assert network[0].weight.requires_grad


def test_an_ensemble_answers_with_the_mean_of_the_probabilities() -> None:
    one, other = nn.Linear(3, 4), nn.Linear(3, 4)
    image = torch.randn(5, 3)
    expected = (one(image).softmax(dim=1) + other(image).softmax(dim=1)) / 2
    torch.testing.assert_close(Ensemble([one, other])(image).exp(), expected)
