"""Taps and teachers: what is seen on the way, and what never changes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.models import FrozenTeacher, Network, TeacherCheck, Views
from kd_lightning.models.taps import install, probe, tapped
from kd_lightning.models.teacher import InputAdapter

VIEWS = Views((3, 8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Net(nn.Module):
    """A network whose activation works in place."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(5 * 64, classes))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.head(self.act(self.norm(self.conv(x))))
        return features


def images(samples: int = 6) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def batch(samples: int = 6) -> Batch:
    return Batch({"default": images(samples)}, torch.zeros(samples, dtype=torch.int64))


def test_taps_by_name_and_by_input() -> None:
    network = Net().eval()
    names = ["norm", "act", "act:in", "head.1:in", "logits"]
    install(network, names)
    with tapped(network, names) as taps:
        logits = network(images())
    assert set(taps) == {"norm", "act", "act:in", "head.1:in"}
    assert torch.equal(taps["norm"], taps["act:in"])
    assert (taps["act:in"] < 0).any(), "a tap in front of an in-place activation must not be overwritten"
    assert torch.equal(taps["act"], taps["act:in"].relu())
    assert torch.equal(logits, network.head[1](taps["head.1:in"]))
    assert taps["norm"].requires_grad


def test_nothing_is_heard_outside_or_of_others() -> None:
    network = Net().eval()
    install(network, ["act"])
    twin = pickle.loads(pickle.dumps(copy.deepcopy(network)))
    with tapped(network, ["act"]) as taps:
        network(images())
        twin(2 * images())
    assert torch.equal(taps["act"], network.norm(network.conv(images())).relu())
    with tapped(twin, ["act"]) as its:
        twin(2 * images())
    assert not torch.equal(its["act"], taps["act"])
    assert copy.deepcopy(network)(images()).shape == (6, 4)


def test_unknown_tap_lists_what_there_is_nearest_first() -> None:
    with pytest.raises(ValueError, match="no such submodule; it has, nearest first: norm, "):
        install(Net(), ["nrom"])


def test_a_tap_must_run_once_and_give_a_tensor() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x).mean() + x)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    network = Twice().eval()
    install(network, ["act"])
    with pytest.raises(ValueError, match="ran 2 times"), tapped(network, ["act"]):
        network(images())
    pair = nn.Sequential(Pair())
    install(pair, ["0"])
    with pytest.raises(ValueError, match="gives a tuple"), tapped(pair, ["0"]):
        pair(images())


def test_probe_leaves_no_trace() -> None:
    network, before = Net(), torch.random.get_rng_state()
    network.head.eval()
    state = copy.deepcopy(network.state_dict())
    assert probe(network, ["act", "head.1:in"], (3, 8, 8)) == {
        "act": (2, 5, 8, 8),
        "head.1:in": (2, 320),
        "logits": (2, 4),
    }
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert (network.training, network.head.training) == (True, False)
    with pytest.raises(ValueError, match=r"must return logits \[N, C\], got \(2, 3, 8, 8\)"):
        probe(nn.Identity(), [], (3, 8, 8))


def test_a_teacher_never_changes() -> None:
    class Owner(nn.Module):
        def __init__(self, teacher: FrozenTeacher) -> None:
            super().__init__()
            self.student, self.teacher = nn.Linear(1, 1), teacher

    network = Net().train()
    teacher = FrozenTeacher(network)
    teacher.setup(4, VIEWS, ["act", "logits"])
    owner = Owner(teacher).train()
    before = copy.deepcopy(network.state_dict())
    network.train()
    outputs = teacher(batch())
    assert not network.training
    assert not outputs.logits.requires_grad
    assert outputs.taps["act"].shape == (6, 5, 8, 8)
    assert teacher.shapes() == {"act": (2, 5, 8, 8), "logits": (2, 4)}
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert set(owner.state_dict()) == {"student.weight", "student.bias"}
    assert len(list(owner.parameters())) == 2
    assert copy.deepcopy(owner).teacher is teacher


def test_input_is_renormalised_and_resized() -> None:
    adapter = InputAdapter(VIEWS, ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2)), 16)
    # a pixel of 1 is (1 - 0.5) / 0.25 = 2 for the data, and (1 - 0.4) / 0.2 = 3 for the network
    assert torch.allclose(adapter(torch.full((1, 3, 8, 8), 2.0)), torch.full((1, 3, 16, 16), 3.0))
    assert torch.allclose(
        InputAdapter(VIEWS, None, 4)(images()),
        F.interpolate(images(), (4, 4), mode="bilinear", antialias=True),
    )
    assert torch.equal(InputAdapter(VIEWS, (VIEWS.mean, VIEWS.std), 8)(images()), images())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not say its own"):
        InputAdapter(Views((3, 8, 8)), ((0.4,), (0.2,)), None)


def test_half_precision_teacher() -> None:
    teacher = FrozenTeacher(Net(), dtype="bfloat16")
    teacher.setup(4, VIEWS, [])
    assert teacher(batch()).logits.dtype is torch.bfloat16


def test_what_a_teacher_must_be() -> None:
    with pytest.raises(ValueError, match="the teacher has 4 classes, the data 10"):
        FrozenTeacher(Net()).setup(10, VIEWS, [])
    with pytest.raises(ValueError, match="it would teach noise"):
        FrozenTeacher(Network("cifar_resnet8"))
    with pytest.raises(ValueError, match=r"expected_top1 must be in \(0, 1\], got 76.1"):
        FrozenTeacher(Net(), expected_top1=76.1)
    with pytest.raises(ValueError, match=r"check.images must be >= 1, got 0"):
        TeacherCheck(images=0)
    with pytest.raises(RuntimeError, match="setup must be called"):
        FrozenTeacher(Net())(batch())


def test_threshold_of_the_check() -> None:
    assert TeacherCheck(above_chance=2).threshold(100) == pytest.approx(0.02)
    assert TeacherCheck(above_chance=2).threshold(2) == pytest.approx(0.75)
