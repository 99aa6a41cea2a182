"""Networks with a class head and a distillation head: how to get both answers, and how to make one of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.models.taps import at_rest

CLASS_HEAD, DISTILLATION_HEAD = "class_head", "distillation_head"
HEADS = (CLASS_HEAD, DISTILLATION_HEAD)
Inference = Literal["softmax", "logits", "class", "distillation"]
INFERENCES: tuple[Inference, ...] = get_args(Inference)


@runtime_checkable
class TwoHeaded(Protocol):
    """A network with a distillation head, as timm's distilled ones; with it on, training returns a pair of logits."""

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether a forward in train mode returns (class head, distillation head), each ``[N, C]``."""


@runtime_checkable
class ReturnsPair(Protocol):
    """The submodule, often the network itself, that returns the pair where this is on and it is in train mode."""

    distilled_training: bool


@contextmanager
def returning_pair(network: nn.Module) -> Iterator[None]:
    """Inside, the network returns the pair in eval mode too.

    The mode of those submodules alone is changed that choose what is returned: not that of anything inside them, so
    dropout, drop path and BatchNorm keep theirs.
    """
    choosing = () if network.training else network.modules()  # in train mode they choose the pair anyway
    modes = {module: module.training for module in choosing if isinstance(module, ReturnsPair)}
    for module in modes:
        module.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def two_heads(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` of the class head and of the distillation head, in train mode and in eval mode.

    Args:
        network: Prepared by `prepare_heads`.
        image: ``[N, 3, H, W]``, or as many channels as the network takes.

    Raises:
        ValueError: if the network returns something else.
    """
    with returning_pair(network):
        answer: object = network(image)
    match answer:
        case (Tensor() as class_head, Tensor() as distillation_head):
            return class_head, distillation_head
    raise ValueError(
        f"{type(network).__name__} returns a {type(answer).__name__} with set_distilled_training(True), not a pair of "
        "logits: build its variant with a distillation head"
    )


def prepare_heads(network: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Let a network return the pair where it is trained.

    Args:
        network: The student.
        image_shape: (C, H, W) of its images.

    Raises:
        ValueError: if it has no two heads.
    """
    if not isinstance(network, TwoHeaded):
        raise ValueError(
            f"student {type(network).__name__} has no distillation head: take a network that offers "
            "set_distilled_training, such as deit_tiny_distilled_patch16_224, pit_ti_distilled_224, levit_128s, "
            "efficientformer_l1 or repvit_m0_9"
        )
    network.set_distilled_training(True)
    parameter = next(network.parameters(), torch.empty(0))
    with at_rest(network):
        two_heads(network, torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype))


def combined(class_head: Tensor, distillation_head: Tensor, inference: Inference) -> Tensor:
    """One answer of two heads, as logits ``[N, C]``.

    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
    sec. 4 ("Classification with our approach: joint classifiers").

    Args:
        class_head: Logits ``[N, C]``.
        distillation_head: Logits ``[N, C]``.
        inference: ``softmax``: the mean of both softmaxes, as the paper says, as its logarithm (float32 at least);
            ``logits``: the mean of both logits, as the reference code and timm have it; ``class`` or
            ``distillation``: that head alone.
    """
    if inference == "softmax":
        dtype = torch.promote_types(class_head.dtype, torch.float32)
        one, other = (F.log_softmax(head, dim=1, dtype=dtype) for head in (class_head, distillation_head))
        return torch.logaddexp(one, other) - math.log(2)
    if inference == "logits":
        return (class_head + distillation_head) / 2
    return class_head if inference == "class" else distillation_head
