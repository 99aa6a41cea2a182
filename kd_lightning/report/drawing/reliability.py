"""Reliability diagram: how often a network is right, by how sure it is."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from kd_lightning.report.drawing.inks import BLUE, SKY, VERMILLION
from kd_lightning.report.drawing.svg import INK, WIDTH, inline, panel

LEFT, EDGE, TOP, SIDE, BELOW = 48, 12, 26, 220, 44  # px: margins, height of the diagram and of the histogram


def reliability(confidence: Tensor, accuracy: Tensor, share: Tensor) -> str:
    """Accuracy in bins of equal width over [0, 1], and below it where the images are.

    Args:
        confidence: Mean confidence of each bin, ``[B]``.
        accuracy: Share of right answers of each bin, ``[B]``.
        share: Share of the images that fall into each bin, ``[B]``; the other two of an empty bin do not matter.
    """
    edges = torch.linspace(0, 1, len(share) + 1)[:-1].numpy()
    filled, width = (share > 0).numpy(), 0.9 / len(share)
    sure, right = confidence.numpy()[filled], accuracy.numpy()[filled]

    def draw(figure: Figure) -> None:
        axes = panel(figure, LEFT, TOP, WIDTH - LEFT - EDGE, SIDE)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, dashes=(4, 3))
        accuracies = axes.bar(edges[filled], right, width, align="edge", color=BLUE)
        for number, bar in enumerate(accuracies):
            bar.set_gid(f"trace-{number}")
        marks = axes.hlines(sure, edges[filled], edges[filled] + width, color=VERMILLION, linewidth=2.5)
        marks.set_gid("trace-confidence")
        handles = [*accuracies.patches[:1], marks]
        figure.legend(handles, ["accuracy", "mean confidence"], loc="upper center", ncols=2, handlelength=1.2)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", xticks=[])
        below = panel(figure, LEFT, TOP + SIDE + 10, WIDTH - LEFT - EDGE, BELOW)
        below.bar(edges, share.numpy(), width, align="edge", color=SKY)
        below.set(xlim=(0, 1), ylim=(0, 1.05 * float(share.max())), xlabel="confidence", ylabel="share")

    return inline(draw, TOP + SIDE + BELOW + 54)
