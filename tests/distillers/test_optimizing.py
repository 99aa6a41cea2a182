import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, SequentialLR, StepLR

from kd_lightning.distillers import ShareCosineLR, ShareMultiStepLR
from kd_lightning.distillers.optimizing import check_unchanged, parameter_groups, quicken


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        self.again = self.fc
        self.fixed = nn.Linear(4, 4).requires_grad_(False)


def names(module: nn.Module, group: dict[str, Any]) -> list[str]:
    known = {parameter: name for name, parameter in module.named_parameters()}
    return [known[parameter] for parameter in group["params"]]


TRAINED = ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc.weight", "fc.bias"]


def test_all_parameters_are_one_group_that_leaves_the_decay_to_the_optimizer() -> None:
    net = Net()
    (group,) = parameter_groups(net, "all")
    assert group.keys() == {"params"}
    assert names(net, group) == TRAINED


def test_matrices_are_decayed_and_the_rest_is_not() -> None:
    net = Net()
    decayed, other = parameter_groups(net, "matrices")
    assert decayed.keys() == {"params"}
    assert names(net, decayed) == ["conv.weight", "fc.weight"]
    assert other["weight_decay"] == 0.0
    assert names(net, other) == ["conv.bias", "norm.weight", "norm.bias", "fc.bias"]


@pytest.mark.parametrize("name", ["student", ""])
def test_what_a_network_lists_itself_is_not_decayed(name: str) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_classes=3)
    module = nn.ModuleDict({name: vit, "criteria": nn.Linear(2, 2)}) if name else vit
    prefix = f"{name}." if name else ""
    decayed, other = parameter_groups(module, "matrices")
    assert {f"{prefix}pos_embed", f"{prefix}cls_token"} <= set(names(module, other))
    assert f"{prefix}head.weight" in names(module, decayed)


def test_a_network_of_matrices_alone_or_of_none() -> None:
    matrix, norm = nn.Linear(2, 2, bias=False), nn.LayerNorm(2)
    assert [names(matrix, group) for group in parameter_groups(matrix, "matrices")] == [["weight"]]
    assert "weight_decay" not in parameter_groups(matrix, "matrices")[0]
    (group,) = parameter_groups(norm, "matrices")
    assert names(norm, group) == ["weight", "bias"]
    assert group["weight_decay"] == 0.0


def test_an_optimizer_takes_the_groups() -> None:
    optimizer = AdamW(parameter_groups(Net(), "matrices"), lr=0.1, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize("decayed", ["all", "matrices"])
def test_nothing_to_train_is_an_error(decayed: Any) -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        parameter_groups(Net().requires_grad_(False), decayed)


def made(kind: str = "step", lr: float = 0.1, **options: Any) -> tuple[Optimizer, LRScheduler]:
    optimizer = SGD([nn.Parameter(torch.ones(2))], lr=lr, momentum=0.9, weight_decay=options.pop("decay", 0.01))
    if kind == "step":
        return optimizer, StepLR(optimizer, **({"step_size": 2, "gamma": 0.5} | options))
    if kind == "cosine":
        return optimizer, CosineAnnealingLR(optimizer, **({"T_max": 10} | options))
    if kind == "sequence":
        parts: list[LRScheduler] = [StepLR(optimizer, 1, 0.9), StepLR(optimizer, 2, options.get("gamma", 0.5))]
        return optimizer, SequentialLR(optimizer, parts, milestones=options.get("milestones", [2]))
    epochs = options.pop("epochs", 10)
    share: Any = ShareMultiStepLR(optimizer, options.pop("milestones", [0.2, 0.6]))
    if kind == "share cosine":
        share = ShareCosineLR(optimizer, **({"warmup_epochs": 2} | options))
    share.stretch(epochs)
    return optimizer, share


def kept(optimizer: Optimizer, scheduler: LRScheduler, epochs: int) -> tuple[list[Any], list[Any]]:
    for _ in range(epochs):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return [optimizer.state_dict()], [scheduler.state_dict()]


@pytest.mark.parametrize("kind", ["step", "cosine", "sequence", "share", "share cosine"])
@pytest.mark.parametrize("epochs", [0, 1, 5])
def test_the_same_settings_pass_wherever_the_training_stands(kind: str, epochs: int) -> None:
    states, schedules = kept(*made(kind), epochs)
    check_unchanged(*made(kind), states, schedules)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("step", {"lr": 0.3}, "optimizer SGD lr: 0.3 here, 0.1 in the checkpoint"),
        ("step", {"decay": 0.05}, "optimizer SGD weight_decay: 0.05 here, 0.01 in the checkpoint"),
        ("step", {"gamma": 0.1}, "scheduler StepLR gamma: 0.1 here, 0.5 in the checkpoint"),
        ("step", {"step_size": 3}, "scheduler StepLR step_size: 3 here, 2 in the checkpoint"),
        ("sequence", {"milestones": [3]}, "scheduler SequentialLR _milestones: [3] here, [2] in the checkpoint"),
        ("sequence", {"gamma": 0.7}, "'gamma': 0.7}] here"),
        ("cosine", {"T_max": 20}, "scheduler CosineAnnealingLR T_max: 20 here, 10 in the checkpoint"),
        ("share", {"milestones": [0.5]}, "scheduler ShareMultiStepLR milestones: [0.5] here, [0.2, 0.6] in the"),
        ("share", {"epochs": 20}, "scheduler ShareMultiStepLR epochs: 20 here, 10 in the checkpoint"),
        ("share cosine", {"warmup_epochs": 3}, "scheduler ShareCosineLR warmup_epochs: 3 here, 2 in the checkpoint"),
    ],
)
@pytest.mark.parametrize("epochs", [0, 5])
def test_another_setting_is_an_error_with_both_values(
    kind: str, options: dict[str, Any], message: str, epochs: int
) -> None:
    states, schedules = kept(*made(kind), epochs)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_unchanged(*made(kind, **options), states, schedules)


def test_all_differences_are_named_at_once() -> None:
    states, schedules = kept(*made(), 3)
    with pytest.raises(ValueError, match="lr: 0.3 here.*weight_decay: 0.0 here.*gamma: 0.9 here"):
        check_unchanged(*made(lr=0.3, decay=0.0, gamma=0.9), states, schedules)


def test_a_schedule_that_came_or_went_is_an_error() -> None:
    states, schedules = kept(*made(), 1)
    with pytest.raises(ValueError, match="scheduler: NoneType here, 1 in the checkpoint"):
        check_unchanged(made()[0], None, states, schedules)
    with pytest.raises(ValueError, match="scheduler: StepLR here, 0 in the checkpoint"):
        check_unchanged(*made(), states, [])


def test_other_groups_are_an_error() -> None:
    whole = SGD(parameter_groups(Net(), "all"), lr=0.1)
    with pytest.raises(ValueError, match="parameter groups: 2 here, 1 in the checkpoint"):
        check_unchanged(SGD(parameter_groups(Net(), "matrices"), lr=0.1), None, [whole.state_dict()], [])


def test_a_checkpoint_of_weights_alone_has_nothing_to_compare() -> None:
    check_unchanged(made()[0], None, [], [])


@pytest.mark.parametrize(
    "made",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9)),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2),
    ],
)
def test_the_quick_form_takes_the_same_steps(made: Callable[[Any], torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    plain, other = (nn.Linear(5, 3).double() for _ in range(2))
    other.load_state_dict(plain.state_dict())
    optimizers = [
        made([{"params": [net.weight], "peer": "a"}, {"params": [net.bias], "weight_decay": 0.0}])
        for net in (plain, other)
    ]
    quicken(optimizers[1])
    for before, after in zip(optimizers[0].param_groups, optimizers[1].param_groups, strict=True):
        different = {key for key in before if key != "params" and before[key] != after[key]}
        assert different == ({"foreach"} if isinstance(optimizers[0], SGD) else {"fused"})
    for _ in range(3):
        for net, optimizer in zip((plain, other), optimizers, strict=True):
            optimizer.zero_grad()
            net(torch.ones(2, 5, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(list(other.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("stated", [{"fused": False}, {"foreach": True}])
def test_what_is_stated_stays(stated: dict[str, bool]) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, **stated)  # type: ignore[arg-type]
    quicken(optimizer)
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in ("fused", "foreach")} == {"fused": None, "foreach": None} | stated


def test_what_has_no_quick_form_stays_as_it_is() -> None:
    whole = torch.optim.LBFGS(nn.Linear(2, 2).parameters())
    quicken(whole)
    assert "fused" not in whole.param_groups[0]
    elsewhere = torch.optim.SGD([nn.Parameter(torch.zeros(2, device="meta"))], lr=0.1)
    quicken(elsewhere)
    assert elsewhere.param_groups[0]["foreach"] is None


@pytest.mark.parametrize("made", [SGD, AdamW])
def test_a_parameter_may_get_its_first_gradient_later(made: type[Optimizer]) -> None:
    first, later = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    options = {"momentum": 0.9} if made is SGD else {}
    optimizer = made([first, later], lr=0.1, **options)  # type: ignore[call-arg]
    quicken(optimizer)
    for reached in ([first], [first, later]):
        for parameter in reached:
            parameter.grad = torch.ones(2)
        optimizer.step()
    assert bool((later < 0).all())
