"""What is measured on held-out images: the student's figures, the teacher's, and how far they agree."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

ECE_BINS = 15


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p_t || p_s) of each sample, in nats, ``[N]``, for logits ``[N, C]`` at T = 1."""
    log_s, log_t = (F.log_softmax(z.float(), dim=1) for z in (student, teacher))
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)


class Evaluation(nn.Module):
    """Metrics over a set of images, by torchmetrics, so they are exact over ranks and uneven batches.

    ``top1`` and ``top5`` (for 5 classes or more) are in [0, 1]; ``loss`` is the mean cross entropy in nats; ``ece`` the
    expected calibration error in [0, 1] over 15 bins of confidence (Guo et al., ICML 2017). With a teacher also
    ``teacher_top1``; ``agreement``, the share of images on which both decide the same, in [0, 1]; and ``teacher_kl``,
    the mean KL(teacher || student) at T = 1 in nats.

    Args:
        num_classes: C.
        teacher: Whether a teacher's answers come too.
        full: Also those figures that only the test reports (``ece``).
    """

    def __init__(self, num_classes: int, *, teacher: bool, full: bool) -> None:
        super().__init__()
        metrics: dict[str, Metric] = {
            "top1": MulticlassAccuracy(num_classes, average="micro"),
            "loss": MeanMetric(),
        }
        if num_classes >= 5:
            metrics["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        if full:
            metrics["ece"] = MulticlassCalibrationError(num_classes, n_bins=ECE_BINS)
        if teacher:
            metrics["teacher_top1"] = MulticlassAccuracy(num_classes, average="micro")
            metrics["agreement"] = MulticlassAccuracy(num_classes, average="micro")
            metrics["teacher_kl"] = MeanMetric()
        self.metrics = nn.ModuleDict(metrics)

    def update(self, logits: Tensor, target: Tensor, teacher: Tensor | None = None) -> None:
        """Take in logits ``[N, C]`` and labels, int64 ``[N]``; the teacher's logits where there is one."""
        if not len(target):
            return
        logits = logits.float()
        metrics = cast(dict[str, Metric], self.metrics)
        metrics["top1"].update(logits, target)
        metrics["loss"].update(F.cross_entropy(logits, target, reduction="none"))
        if "top5" in metrics:
            metrics["top5"].update(logits, target)
        if "ece" in metrics:
            metrics["ece"].update(logits.softmax(dim=1), target)
        if teacher is not None:
            metrics["teacher_top1"].update(teacher.float(), target)
            metrics["agreement"].update(logits, teacher.argmax(dim=1))
            metrics["teacher_kl"].update(kl_divergence(logits, teacher))

    def compute(self) -> dict[str, float]:
        """The figures over all ranks, and a fresh start."""
        figures = {name: float(metric.compute()) for name, metric in cast(dict[str, Metric], self.metrics).items()}
        with torch.inference_mode(False):  # states made within could not be written to in a training's validation
            for metric in self.metrics.values():
                cast(Metric, metric).reset()
        return figures


class Evaluations(nn.Module):
    """An `Evaluation` of the student, and one of each of its parts, whose figures are prefixed by the part's name.

    Args:
        parts: Names of what is examined beside the student's own answer.
        num_classes: C.
        teacher: Whether a teacher's answers come too; it is compared with the student's own answer.
        full: Also those figures that only the test reports.
    """

    def __init__(self, parts: Sequence[str], num_classes: int, *, teacher: bool, full: bool) -> None:
        super().__init__()
        self.own = Evaluation(num_classes, teacher=teacher, full=full)
        self.parts = nn.ModuleDict({part: Evaluation(num_classes, teacher=False, full=full) for part in parts})

    def update(
        self, logits: Tensor, parts: Mapping[str, Tensor], target: Tensor, teacher: Tensor | None = None
    ) -> None:
        """Take in logits ``[N, C]`` of the student and of each part, labels, and the teacher's logits."""
        self.own.update(logits, target, teacher)
        for name, part in self.parts.items():
            cast(Evaluation, part).update(parts[name], target)

    def compute(self) -> dict[str, float]:
        """The figures over all ranks, and a fresh start."""
        figures = self.own.compute()
        for name, part in self.parts.items():
            figures |= {f"{name}_{figure}": value for figure, value in cast(Evaluation, part).compute().items()}
        return figures
