"""What is measured of peers: the ensemble's figures, each peer's, and how far peers agree."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from kd_lightning.distillers.metrics import Evaluations


def pairwise_agreement(logits: Sequence[Tensor]) -> Tensor:
    """For each image the share of pairs that decide the same, ``[N]``, for logits ``[N, C]`` of two or more."""
    decided = [each.argmax(dim=1) for each in logits]
    pairs = [(one == other).float() for i, one in enumerate(decided) for other in decided[:i]]
    return torch.stack(pairs).mean(dim=0)


class PeerEvaluations(Evaluations):
    """Figures of the ensemble, those of each peer and branch under its name, and ``agreement``.

    ``agreement`` is the share of images on which two of the compared decide the same, mean over all pairs, in [0, 1].

    Args:
        parts: Names of peers and branches, and of ensembles of exits.
        compared: Those whose agreement is measured; fewer than two for none.
        num_classes: C.
        full: Also those figures that only the test reports.
    """

    def __init__(self, parts: Sequence[str], compared: Sequence[str], num_classes: int, *, full: bool) -> None:
        super().__init__(parts, num_classes, teacher=False, full=full)
        self.compared = list(compared)
        self.agreement = MeanMetric()

    def update(
        self, logits: Tensor, parts: Mapping[str, Tensor], target: Tensor, teacher: Tensor | None = None
    ) -> None:
        """Take in logits ``[N, C]`` of the ensemble and of each peer and branch, and labels."""
        super().update(logits, parts, target, teacher)
        if len(self.compared) > 1 and len(target):
            self.agreement.update(pairwise_agreement([parts[name] for name in self.compared]))

    def compute(self) -> dict[str, float]:
        """The figures over all ranks, and a fresh start."""
        figures = super().compute()
        if len(self.compared) > 1:
            figures["agreement"] = float(self.agreement.compute())
            self.agreement.reset()
        return figures
