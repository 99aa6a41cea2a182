from pathlib import Path

import yaml

from kd_lightning.export import networks

CONFIGS = Path(__file__).parents[2] / "configs/digits"


def teacher(config: str) -> object:
    return yaml.safe_load((CONFIGS / config).read_text())["model"]["init_args"]["teacher"]


def test_the_networks_that_teach() -> None:
    assert len(list(networks(teacher("offline/ensemble.yaml")))) > 1
    assert list(networks(teacher("offline/kd.yaml"))) == ["cifar_resnet8"]
    assert list(networks(None)) == []
    assert list(networks({"name": "local-dir:/home/me/big", "weights": "pretrained"})) == ["local-dir:big"]
