from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.models import BranchedNetwork, Network, peer_weights

SMALL = Network("cifar_resnet8", {"widths": [2, 2, 4, 8]})
BRANCHED = {"network": {"name": SMALL.name, "kwargs": SMALL.kwargs}, "at": "stages.2", "branches": 2}


def checkpoint() -> dict[str, Any]:
    networks = {"a": SMALL.build(10, seed=1), "b": SMALL.build(10, seed=2)}
    networks["one"] = BranchedNetwork(num_classes=10, **BRANCHED)  # type: ignore[arg-type]
    state = {
        f"student.networks.{name}.{key}": v for name, net in networks.items() for key, v in net.state_dict().items()
    }
    return {"state_dict": state | {"criteria.losses.a_x.w": torch.ones(1)}, "pytorch-lightning_version": "2"}


def test_a_peer_a_branch_and_the_best() -> None:
    given = checkpoint()
    for name in ("a", "b"):
        found = peer_weights(given, name)
        expected = SMALL.build(10, seed=1 if name == "a" else 2).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert peer_weights(given, "one").keys() == BranchedNetwork(num_classes=10, **BRANCHED).state_dict().keys()  # type: ignore[arg-type]
    average = {f"module.networks.a.{key}": v for key, v in SMALL.build(10, seed=3).state_dict().items()}
    averaged = peer_weights({**given, "ema": average}, "a")
    assert torch.equal(averaged["fc.weight"], average["module.networks.a.fc.weight"])
    branch = peer_weights(given, "one_2")
    assert torch.equal(branch["fc.weight"], given["state_dict"]["student.networks.one.branches.1.fc.weight"])
    assert torch.equal(branch["stem.conv.weight"], given["state_dict"]["student.networks.one.trunk.stem.conv.weight"])
    best = peer_weights({**given, "peers_top1": {"a": 0.5, "b": 0.7, "one_2": 0.6}}, "best")
    assert torch.equal(best["fc.weight"], given["state_dict"]["student.networks.b.fc.weight"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c", "the checkpoint has no peer 'c': it has a, b, one"),
        ("a_1", "there is no branch 1"),
        ("one_3", r"there is no branch 3: there are \[1, 2\]"),
        ("best", "knows no val/top1 of its peers"),
    ],
)
def test_faults_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peer_weights(checkpoint(), name)


def test_a_network_takes_the_weights_of_one_peer(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints/last.ckpt"
    file.parent.mkdir()
    torch.save(checkpoint(), file)
    for given in (tmp_path, file):
        built = Network(SMALL.name, SMALL.kwargs, weights=f"{given}#peer=b").build(10)
        assert torch.equal(built.get_parameter("fc.weight"), SMALL.build(10, seed=2).get_parameter("fc.weight"))
    with pytest.raises(ValueError, match=r"peer a of .*last\.ckpt does not fit the network"):
        Network("cifar_resnet14", weights=f"{file}#peer=a").build(10)
    with pytest.raises(ValueError, match="sha256 00000000 was asked for"):
        Network(SMALL.name, SMALL.kwargs, weights=f"{file}#peer=a", sha256="00000000").build(10)
