"""Parameter groups, and what a checkpoint may not change behind the command line's back."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

Decayed = Literal["all", "matrices"]
# What a schedule's state says of where it stands, not of how it was set.
RUNNING = {
    "last_epoch",
    "_step_count",
    "_last_lr",
    "_get_lr_called_within_step",
    "_is_initial",
    "lr_lambdas",
    "base_lrs",
}
# Of a parameter group: what it holds, where its schedule stands, and how the same numbers are computed.
NOT_SETTINGS = {"params", "lr", "initial_lr", "param_names", "fused", "foreach"}
QUICK = {"cpu", "cuda"}
PARTS = "_schedulers"  # of a SequentialLR or ChainedScheduler


@runtime_checkable
class ListsUndecayed(Protocol):
    """A network that says which of its parameters no weight decay should reach, as timm's transformers do."""

    def no_weight_decay(self) -> Collection[str]:
        """Their names."""


def parameter_groups(module: nn.Module, decayed: Decayed) -> list[dict[str, Any]]:
    """Parameter groups of what is trained, each parameter once.

    Args:
        module: Whose parameters that require a gradient are taken.
        decayed: ``all`` lets the optimizer's weight decay reach every parameter, as the CIFAR protocols have it;
            ``matrices`` leaves out biases, norms and what the network lists in ``no_weight_decay``, as timm does.

    Raises:
        ValueError: if nothing is to be trained.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("the student has no parameter that requires a gradient: there is nothing to train")
    if decayed == "all":
        return [{"params": trained}]
    groups = param_groups_weight_decay(module, weight_decay=1.0, no_weight_decay_list=_undecayed(module))
    with_decay = [{"params": group["params"]} for group in groups if group["weight_decay"]]
    return with_decay + [
        {"params": group["params"], "weight_decay": 0.0} for group in groups if not group["weight_decay"]
    ]


def quicken(optimizer: Optimizer) -> None:
    """Let one of torch's optimizers update all parameters at once: in one kernel, or by lists of them for SGD.

    SGD's one kernel fails where a parameter gets its first gradient later than another, as with a term that starts
    late. Left as it is: an optimizer whose ``fused`` or ``foreach`` was stated, one that has no such form, and one of
    parameters that it does not know.

    Args:
        optimizer: Fresh.
    """
    groups = optimizer.param_groups
    if not all("fused" in group and group["fused"] is None and group.get("foreach") is None for group in groups):
        return
    parameters = [parameter for group in groups for parameter in group["params"]]
    if all(parameter.is_floating_point() and parameter.device.type in QUICK for parameter in parameters):
        for group in groups:
            group["foreach" if isinstance(optimizer, SGD) else "fused"] = True


def lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give each state tensor the strides of its parameter, which the fused kernels take for granted.

    A checkpoint may hold others: channels_last may have been chosen otherwise, and FSDP keeps contiguous parts.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters that the networks inside a module list themselves."""
    networks = [(name, network) for name, network in module.named_modules() if isinstance(network, ListsUndecayed)]
    return {f"{name}.{own}".lstrip(".") for name, network in networks for own in network.no_weight_decay()}


def _set(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """How a schedule was set, and how its parts were."""
    own = {key: value for key, value in schedule.items() if key not in RUNNING}
    return own | {PARTS: [_set(part) for part in own[PARTS]]} if PARTS in own else own


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in group.items() if key not in NOT_SETTINGS}
    return settings | {"lr": group.get("initial_lr", group.get("lr"))}


def _differences(now: Mapping[str, Any], then: Mapping[str, Any], what: str) -> Iterable[str]:
    for key in now.keys() & then.keys():
        mine, its = now[key], then[key]
        if isinstance(mine, tuple | list):
            mine, its = list(mine), list(its)
        if mine != its:
            yield f"{what} {key}: {mine} here, {its} in the checkpoint"


def check_unchanged(
    optimizer: Optimizer, scheduler: LRScheduler | None, states: list[dict[str, Any]], schedules: list[dict[str, Any]]
) -> None:
    """Compare a fresh optimizer and schedule with those that a checkpoint is about to restore over them.

    Raises:
        ValueError: where they differ, naming both values: the checkpoint's would silently win.
    """
    found: list[str] = []
    if states:
        if len(states[0]["param_groups"]) != len(optimizer.param_groups):
            now, then = len(optimizer.param_groups), len(states[0]["param_groups"])
            found.append(f"parameter groups: {now} here, {then} in the checkpoint")
        for mine, its in zip(optimizer.param_groups, states[0]["param_groups"], strict=False):
            found += _differences(_settings(mine), _settings(its), f"optimizer {type(optimizer).__name__}")
    if bool(schedules) != (scheduler is not None):
        found.append(f"scheduler: {type(scheduler).__name__} here, {len(schedules)} in the checkpoint")
    elif scheduler is not None:
        here, there = _set(scheduler.state_dict()), _set(schedules[0])
        found += _differences(here, there, f"scheduler {type(scheduler).__name__}")
    if found:
        raise ValueError(
            "the checkpoint was made with other settings, which would silently replace the stated ones: "
            + "; ".join(sorted(set(found)))
            + ". State the checkpoint's values, or start a new run from its weights (model.student.weights)"
        )
