"""Dark knowledge: what soft targets say beyond the label, and which classes they take for similar."""

from math import log
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor


class Information(NamedTuple):
    """What a target says of an image, in bits, mean over the images.

    Attributes:
        label: Entropy of the labels, what a one-hot target tells; at most log2 C.
        entropy: Entropy of the soft target: 0 for a one-hot one, log2 C for one that is equal for all classes.
        effective_classes: 2^entropy, between how many equal classes such a target would be split; from 1 to C.
        beyond: What the soft target tells of the image that its label does not: the mutual information of image and
            soft class, given the label; 0 where all images of a class have the same target.
    """

    label: float
    entropy: float
    effective_classes: float
    beyond: float


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities softmax(z / T) of logits ``[M, C]``, in float64.

    Raises:
        ValueError: if the temperature is not > 0, or the logits are not ``[M, C]``.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if logits.ndim != 2:
        raise ValueError(f"logits must be [M, C], got {tuple(logits.shape)}")
    return (logits.double() / temperature).softmax(dim=1)


def bits(probabilities: Tensor) -> Tensor:
    """Entropy over the last axis, in bits."""
    nats: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return nats / log(2)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy in bits of the outputs for each image at a temperature, float64 ``[M]``, for logits ``[M, C]``."""
    return bits(softened(logits, temperature))


def class_similarity(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean soft target of the images of each class, float64 ``[C, C]``; a row is nan where a class has no image.

    Source: the "dark knowledge" of Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, sec. 1:
    a 2 that looks like a 3 has other wrong answers than one that looks like a 7.

    Args:
        logits: ``[M, C]``.
        target: Labels, int64 ``[M]``.
        temperature: T > 0.

    Raises:
        ValueError: if the shapes do not fit or T is not > 0.
    """
    soft = softened(logits, temperature)
    if target.shape != soft.shape[:1]:
        raise ValueError(f"target must have shape {tuple(soft.shape[:1])}, got {tuple(target.shape)}")
    count = target.bincount(minlength=soft.shape[1])
    return torch.zeros(len(count), soft.shape[1], dtype=soft.dtype).index_add(0, target, soft) / count[:, None]


def information(logits: Tensor, target: Tensor, temperature: float) -> Information:
    """The information of soft targets beside that of labels.

    Hinton et al. 2015, sec. 1: soft targets of high entropy provide much more information per training case than hard
    ones. Entropy alone is no knowledge, though: a smoothed label has it too, and no image tells another there. So
    ``beyond`` counts what differs between images of one class, which is what shuffling the wrong answers takes away
    (DKPP; Furlanello et al., "Born-Again Neural Networks", ICML 2018, eq. 10, ask whether a student needs it).

    Args:
        logits: ``[M, C]``, M >= 1.
        target: Labels, int64 ``[M]``.
        temperature: T > 0, of the soft targets.

    Raises:
        ValueError: if the shapes do not fit, there are no images, or T is not > 0.
    """
    if not len(logits):
        raise ValueError("logits must be of one image at least, got none")
    share = target.bincount(minlength=logits.shape[1]).double() / len(target)
    mean = float(entropy(logits, temperature).mean())
    per_class = bits(class_similarity(logits, target, temperature))
    beyond = float((share * per_class)[share > 0].sum()) - mean
    return Information(float(bits(share)), mean, 2**mean, max(beyond, 0.0))


def clustered_order(similarity: Tensor) -> list[int]:
    """An order of the classes in which similar ones are neighbours; classes without images come last.

    Average linkage of the distances 1 - (S + S^T) / 2, and of its orders the one with the least distance between
    neighbours (Bar-Joseph et al., "Fast optimal leaf ordering for hierarchical clustering", 2001).

    Args:
        similarity: ``[C, C]`` in [0, 1], see `class_similarity`.
    """
    seen = similarity.isfinite().all(dim=1)
    known, unknown = seen.nonzero()[:, 0], (~seen).nonzero()[:, 0]
    if len(known) < 3:  # any order is as good
        return [*known.tolist(), *unknown.tolist()]
    mutual = similarity.double()[known][:, known].numpy()
    distance = squareform(1 - (mutual + mutual.T) / 2 * (1 - np.eye(len(mutual))), checks=False)
    order = leaves_list(linkage(distance, "average", optimal_ordering=True))
    return [*known[order.tolist()].tolist(), *unknown.tolist()]
