"""What images a network was made for, where the data gives others."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.models.named_views import NamedViews


class Views(NamedTuple):
    """What the data gives.

    Attributes:
        image_shape: (channels, height, width).
        mean: What each channel is normalised by; None if unknown.
        std: The same for the standard deviation.
        named: Where the views of a training come from, if they have names; None outside of one.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    named: NamedViews | None = None


class InputAdapter:
    """Turns images as the data gives them into images as a network was trained on.

    Args:
        views: What the data gives.
        normalisation: (mean, std) of the network; None if it is the data's.
        size: Side of its images in pixels; None if it is the data's.

    Raises:
        ValueError: if the normalisations cannot be related.
    """

    def __init__(
        self, views: Views, normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None, size: int | None
    ) -> None:
        self.size = None if size is None or (size, size) == views.image_shape[1:] else size
        self.scale: Tensor | None = None
        self.shift: Tensor | None = None
        if normalisation is None or normalisation == (views.mean, views.std):
            return
        if views.mean is None or views.std is None:
            raise ValueError(
                f"the teacher was trained with mean and std {normalisation}, but the data does not say its own: "
                "give the datamodule mean and std, or leave the teacher's out if they are the same"
            )
        mean, std = (torch.tensor(figures).view(1, -1, 1, 1) for figures in normalisation)
        data_mean, data_std = (torch.tensor(figures).view(1, -1, 1, 1) for figures in (views.mean, views.std))
        self.scale, self.shift = data_std / std, (data_mean - mean) / std

    def __call__(self, image: Tensor) -> Tensor:
        """Float images ``[N, C, H, W]``, renormalised and resized (bilinear, antialiased)."""
        if self.scale is not None and self.shift is not None:
            self.scale, self.shift = self.scale.to(image.device), self.shift.to(image.device)
            image = image * self.scale.to(image.dtype) + self.shift.to(image.dtype)
        if self.size is not None:
            image = F.interpolate(image, size=(self.size, self.size), mode="bilinear", antialias=True)
        return image
