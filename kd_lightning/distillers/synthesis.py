"""Synthesis: a generator that learns from a teacher's answers to its images, beside the student's own training."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.criteria import Criteria
from kd_lightning.distillers.optimizing import check_unchanged
from kd_lightning.models import Outputs, TapPlan
from kd_lightning.models.generator import Generator
from kd_lightning.models.open_teacher import OpenTeacher
from kd_lightning.models.taps import evaluating, tapped
from kd_lightning.models.weights import matched
from kd_lightning.seeds import below, hashed, uniform

VIEW = "default"


def named_noise(seed: int, purpose: str, index: Tensor, number: Tensor, size: int) -> Tensor:
    """Standard normal noise ``[N, size]``, float32: a function of its names alone.

    By the transform of Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.

    Args:
        seed: Of the run.
        purpose: What the images are for.
        index: Of each image, int64 ``[N]``.
        number: Of its epoch, int64 ``[N]``.
        size: Numbers for each image.
    """
    key = hashed(seed, "noise", purpose, index, number)[:, None]
    columns = torch.arange(size, device=index.device)
    radius = torch.sqrt(-2 * torch.log1p(-uniform(key, "radius", columns)))
    return radius * torch.cos(2 * torch.pi * uniform(key, "angle", columns))


class Synthesis:
    """A generator with its optimizer.

    It is no submodule of who uses it, so neither DDP nor the student's optimizer, averages or export know it, and
    ``global_step`` does not count its updates.

    Args:
        generator: In train mode.
        make_optimizer: Makes its optimizer.
        criteria: What its images are to be like.
        teacher: Who is asked.
        student_plan: Where the taps are that the criteria ask of the student.
        num_classes: Of the labels.
        seed: Of noise and labels, the same on all ranks.
        clip: Largest norm of the gradient; None for no limit.

    Raises:
        ValueError: if the criteria look at another view, or have parameters, which nobody would train.
    """

    def __init__(
        self,
        generator: Generator,
        make_optimizer: OptimizerCallable,
        criteria: Criteria,
        teacher: OpenTeacher,
        student_plan: TapPlan,
        num_classes: int,
        seed: int,
        clip: float | None,
    ) -> None:
        self.generator, self.make_optimizer, self.criteria = generator, make_optimizer, criteria
        self.teacher, self.student_plan = teacher, student_plan
        self.num_classes, self.seed, self.clip = num_classes, seed, clip
        criteria.build(student_plan, teacher.plan)
        if learnt := [name for name, loss in criteria.losses.items() if any(True for _ in loss.parameters())]:
            raise ValueError(f"generator_criteria.{learnt[0]}: the loss has parameters of its own, which nobody trains")
        self._restored: Mapping[str, Any] | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def start(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to where the student is, make the optimizer, and take up what was restored.

        Raises:
            ValueError: if the checkpoint's optimizer was set otherwise.
        """
        self.generator.to(device, dtype)
        self.optimizer = self.make_optimizer(list(self.generator.parameters()))
        if self._restored is not None:
            check_unchanged(self.optimizer, None, [self._restored["optimizer"]], [])
            self.generator.load_state_dict(self._restored["weights"])
            self.optimizer.load_state_dict(self._restored["optimizer"])
            self._restored = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        if self._restored is not None or self.optimizer is None:
            return dict(self._restored or {})
        return {"weights": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Remember the state of a checkpoint for `start`.

        Raises:
            ValueError: if there is none, or it is of another generator.
        """
        if not state:
            raise ValueError("the checkpoint holds no generator: it was made by another scheme")
        matched(state["weights"], self.generator, "the checkpoint's generator")
        self._restored = state

    def made(self, purpose: str, index: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[N, C, H, W]`` by their names, and the labels that they were drawn for, int64 ``[N]``."""
        label = below(self.num_classes, self.seed, "label", purpose, index, number)
        noise = named_noise(self.seed, purpose, index, number, self.generator.latent)
        with torch.autocast(index.device.type, enabled=False):
            image: Tensor = self.generator(noise.to(self.generator.project.weight.dtype), label)
        return image, label

    def improve(
        self, purpose: str, names: Batch, epoch: int, student: nn.Module, averaged: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One update of the generator, in the precision of its weights.

        Args:
            purpose: Part of the names.
            names: A batch with ``index`` and ``number``.
            epoch: Counted from 0.
            student: Asked in eval mode, where a term asks it; it gets no gradient.
            averaged: Means of a tensor over the ranks.

        Returns:
            The loss, and the terms' values.

        Raises:
            FloatingPointError: before the update, if the gradient is not finite.
        """
        if self.optimizer is None or names.index is None or names.number is None:
            raise RuntimeError("start must be called first, and a batch must have index and number")
        image, label = self.made(purpose, names.index, names.number)
        batch = Batch({VIEW: image}, label, names.index, names.number)
        with torch.autocast(image.device.type, enabled=False):
            told = self.teacher(image)
            answered = self._answer(student, image, epoch)
            loss, values = self.criteria({VIEW: answered}, {VIEW: told}, batch, epoch)
        parameters = list(self.generator.parameters())
        # Not backward(): that would reach the student's parameters, and DDP's hooks on them.
        gradients = torch.autograd.grad(loss, parameters)
        flat = averaged(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip if self.clip is not None else float("inf"))
        if not bool(torch.isfinite(norm)):
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            raise FloatingPointError(
                f"the gradient of the generator has the norm {float(norm)} in epoch {epoch} ({shown}): stopped before "
                "its weights changed; a lower rate of generator_optimizer, or other weights in generator_criteria, may "
                "help"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), values

    def _answer(self, student: nn.Module, image: Tensor, epoch: int) -> Outputs:
        asking = [name for name in self.criteria.active(epoch) if self.criteria.terms[name].student_taps()]
        if not asking:
            return Outputs(image.new_zeros(len(image), 0), {})
        with evaluating(student), tapped(student, self.student_plan.submodules()) as taps:
            logits = student(image)
        return Outputs(logits, self.student_plan.picked(taps))
