"""Tables and plots of a test for Weights & Biases."""

from collections.abc import Mapping, Sequence

import wandb
from torch import Tensor
from wandb.plot.custom_chart import CustomChart

from kd_lightning.distillers.notable_images import Notable

TEMPERATURES = (1.0, 4.0)
SHOWN = 5  # classes of a soft target
WHO = ("student", "teacher")


def soft_target(logits: Tensor, temperature: float, classes: Sequence[str]) -> str:
    """The largest probabilities of softmax(z / T), as ``cat 0.71, dog 0.20``."""
    top = (logits / temperature).softmax(dim=0).topk(min(SHOWN, len(logits)))
    return ", ".join(f"{classes[at]} {p:.2f}" for p, at in zip(top.values.tolist(), top.indices.tolist(), strict=True))


def image_table(kinds: Mapping[str, Sequence[Notable]], classes: Sequence[str]) -> wandb.Table:
    """A row for each image: why it is shown, label, decisions, soft targets of both at T = 1 and T = 4."""
    targets = [f"{who}, T = {temperature:g}" for who in WHO for temperature in TEMPERATURES]
    rows = []
    for kind, images in kinds.items():
        for each in images:
            picture = wandb.Image(each.image.permute(1, 2, 0).numpy())
            both = (each.student, each.teacher)
            decided = [None if logits is None else classes[int(logits.argmax())] for logits in both]
            soft = [None if z is None else soft_target(z, t, classes) for z in both for t in TEMPERATURES]
            rows.append([kind, each.row, picture, classes[each.target], *decided, *soft])
    return wandb.Table(["shown as", "row", "image", "label", *WHO, *targets], rows)


def reliability_plot(sums: dict[str, Tensor]) -> CustomChart:
    """Accuracy over mean confidence, a line for each network, from what `binned` says of it, and the diagonal."""
    lines = {"calibrated": ([0.0, 1.0], [0.0, 1.0])}
    for who, (count, confidence, right) in sums.items():
        filled = count > 0
        lines[who] = tuple((part / count)[filled].tolist() for part in (confidence, right))
    xs, ys = zip(*lines.values(), strict=True)
    return wandb.plot.line_series(xs, ys, list(lines), title="accuracy by confidence", xname="confidence")
