"""Centred kernel alignment: how alike the features of two networks are."""

import torch
from torch import Tensor, nn

from kd_lightning.models.tap_plan import TapPlan, plan, several
from kd_lightning.models.taps import at_rest, tapped

STAGES = "stages"
LARGE = 2**16  # values of a map; 256 images of so many are 64 MiB in float32
BATCH = 64


def centred(features: Tensor) -> Tensor:
    """Features ``[N, ...]`` flattened to ``[N, D]``, in float64, with a mean of 0 over the samples."""
    flat = features.flatten(1).double()
    centre: Tensor = flat.mean(dim=0)
    return flat - centre


def norm(x: Tensor) -> Tensor:
    """The Frobenius norm."""
    found: Tensor = torch.linalg.matrix_norm(x)
    return found


def aligned(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> / (|x| |y|), Frobenius, of two kernels ``[N, N]``; nan where one is 0."""
    return torch.sum(x * y) / (norm(x) * norm(y))


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """|Y'X|^2 / (|X'X| |Y'Y|), Frobenius, of centred features.

    Between 0 and 1, which features have that are the same up to rotation and scale. Computed in float64, from
    ``[D, D]`` matrices where both have fewer features than samples, else from ``[N, N]`` ones.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, sec. 3.

    Args:
        x: Features ``[N, ...]`` of the samples, flattened.
        y: Others of the same samples, flattened; the number of them may differ.

    Returns:
        A scalar; nan where all samples have the same features.

    Raises:
        ValueError: if they are not of the same number of samples, two at least.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"features must be of the same samples, two at least, got {len(x)} and {len(y)}")
    x, y = centred(x), centred(y)
    if max(x.shape[1], y.shape[1]) < len(x):
        return norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    return aligned(x @ x.T, y @ y.T)


def stage_cka(student: nn.Module, teacher: nn.Module, images: Tensor, teacher_images: Tensor) -> Tensor:
    """Linear CKA between the maps at the ends of the stages of two networks.

    The maps are flattened; where one of them has more than `LARGE` values for an image, all are averaged over their
    positions instead. The networks are asked in eval mode without gradients; their modes come back, but taps stay
    installed, see `install`.

    Args:
        student: With S stages.
        teacher: With T stages.
        images: As the student sees them, float ``[N, C, H, W]``, on the device of the networks.
        teacher_images: The same images as the teacher sees them.

    Returns:
        float64 ``[S, T]`` on the CPU.

    Raises:
        ValueError: if a network has no stages, there are not as many images of one as of the other, or fewer than two.
    """
    if len(images) != len(teacher_images) or len(images) < 2:
        raise ValueError(f"two images at least are needed for both, got {len(images)} and {len(teacher_images)}")
    pairs = (student, images), (teacher, teacher_images)
    plans = [plan(network, [STAGES], tuple(seen.shape[1:])) for network, seen in pairs]
    pooled = any(torch.Size(shape[1:]).numel() > LARGE for each in plans for shape in several(each.shapes[STAGES]))
    own, others = (_kernels(*pair, each, pooled) for pair, each in zip(pairs, plans, strict=True))
    return torch.stack([torch.stack([aligned(kernel, other) for other in others]) for kernel in own])


def _kernels(network: nn.Module, images: Tensor, planned: TapPlan, pooled: bool) -> list[Tensor]:
    """The kernel ``[N, N]`` of each stage."""
    parts: list[list[Tensor]] = []
    with at_rest(network):
        for some in torch.split(images, BATCH):
            with tapped(network, planned.submodules()) as taps:
                network(some)
            maps = several(planned.picked(taps)[STAGES])
            parts.append([(each.mean(dim=(2, 3)) if pooled else each).cpu() for each in maps])
    features = [centred(torch.cat(stage)) for stage in zip(*parts, strict=True)]
    return [each @ each.T for each in features]
