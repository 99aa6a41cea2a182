"""A frozen teacher through which gradients reach the images, and the statistics of its batch normalisation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_lightning.models.frozen import FrozenTeacher
from kd_lightning.models.tap_plan import plan
from kd_lightning.models.taps import LOGITS, install, tapped
from kd_lightning.models.teacher import Outputs, Teacher

BATCH_NORMS = "batch_norms"  # a tap of this teacher alone


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The batch normalisations of a network that know statistics of the training data, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def statistics(heard: Tensor, norm: _BatchNorm) -> Tensor:
    """(mean, biased variance) ``[2, 2, C]`` of an input ``[N, C, ...]``, and as the layer remembers them."""
    axes = [axis for axis in range(heard.ndim) if axis != 1]
    variance, mean = torch.var_mean(heard.float() if heard.itemsize < 4 else heard, dim=axes, correction=0)
    remembered = torch.stack([cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)])
    return torch.stack([torch.stack([mean, variance]), remembered.to(mean)])


class OpenTeacher:
    """Answers images with a graph back to them; the network stays frozen and in eval mode.

    Args:
        teacher: A `FrozenTeacher`, after `setup`.
        taps: As in a YAML, and ``batch_norms``: for each batch normalisation `statistics` of its input.
        image_shape: (C, H, W) of the data.

    Raises:
        ValueError: if the teacher is of another kind, or has nothing at a tap.
    """

    def __init__(self, teacher: Teacher, taps: Sequence[str], image_shape: tuple[int, int, int]) -> None:
        if not isinstance(teacher, FrozenTeacher):
            got = type(teacher).__name__
            raise ValueError(f"teacher must be a FrozenTeacher, through which gradients reach the images, got {got}")
        if teacher.network is None:
            raise RuntimeError("setup must be called before a teacher is opened")
        self.teacher, network = teacher, teacher.network
        side = teacher.adapter.size
        shape = image_shape if side is None else (image_shape[0], side, side)
        self.norms = batch_norms(network) if BATCH_NORMS in taps else {}
        if BATCH_NORMS in taps and not self.norms:
            raise ValueError(
                f"the teacher {type(network).__name__} has no batch normalisation with running statistics, which "
                "matching them needs: take a teacher that has, or leave that term out"
            )
        self._own = plan(network, [tap for tap in taps if tap != BATCH_NORMS], shape)
        self._heard = {f"{name}:in": norm for name, norm in self.norms.items()}
        install(network, [*self._heard])
        self._submodules = sorted({*self._own.submodules(), *self._heard})
        widths: list[tuple[int, ...]] = [(2, 2, norm.num_features) for norm in self.norms.values()]
        answered = teacher.plan().shapes[LOGITS]
        self.plan = replace(self._own, shapes={**self._own.shapes, LOGITS: answered, BATCH_NORMS: widths})

    def __call__(self, image: Tensor) -> Outputs:
        """Logits ``[N, C]`` and taps for images ``[N, C, H, W]`` of the data."""
        teacher = self.teacher
        network = cast(nn.Module, teacher.network).eval()
        image = teacher.adapter(image).to(dtype=teacher.dtype, memory_format=teacher.memory_format)
        network.to(image.dtype)
        with tapped(network, self._submodules) as taps:
            logits = network(image)
        logits = logits if teacher.class_map is None else teacher.class_map(logits)
        found = self._own.picked(taps)
        if self.norms:
            found[BATCH_NORMS] = [statistics(taps[name], norm) for name, norm in self._heard.items()]
        return Outputs(logits, found)
