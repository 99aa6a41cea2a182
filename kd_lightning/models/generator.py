"""A generator of small images from noise."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.models.input_adapter import Views
from kd_lightning.seeds import seeded

SIDES = (8, 64)
STARTS = (4, 5, 6, 7)  # sides of the first map


def doublings(side: int) -> int:
    """How often the first map is doubled to reach a side in pixels.

    Raises:
        ValueError: if no first map reaches it.
    """
    times = next((n for n in range(1, 5) if side % 2**n == 0 and side // 2**n in STARTS), None)
    if times is None or not SIDES[0] <= side <= SIDES[1]:
        raise ValueError(
            f"a generator's images must have a side of 4, 5, 6 or 7 times a power of 2, from {SIDES[0]} to {SIDES[1]} "
            f"pixels, got {side}"
        )
    return times


def normed(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation by the batch alone, so that there is no running average to differ between ranks."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Generator(nn.Module):
    """Noise in, images out: a linear layer to a small map, then upsampling and 3x3 convolutions, as DCGAN and DAFL.

    After Radford et al., "Unsupervised Representation Learning with DCGANs", ICLR 2016, with nearest upsampling in
    place of transposed convolutions, as Chen et al. (DAFL, ICCV 2019) have it. The last layer is a sigmoid, an image in
    [0, 1], normalised as the data is. An image depends on the others of its batch, by batch normalisation.

    Args:
        image_shape: (C, H, W), square, H as `doublings` takes it.
        mean: That the data is normalised by, of each channel, in units of [0, 1].
        std: The same for the standard deviation.
        latent: Length of the noise.
        width: Channels of the last map; the others have twice as many.
        labels: Number of classes, if the label is an input too; 0 if not.

    Raises:
        ValueError: if images of this shape cannot be made.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        latent: int = 100,
        width: int = 64,
        labels: int = 0,
    ) -> None:
        super().__init__()
        channels, height, side = image_shape
        if height != side:
            raise ValueError(f"a generator's images must be square, got {height}x{side} pixels")
        if not len(mean) == len(std) == channels:
            raise ValueError(f"mean and std must have one number for each of {channels} channels, got {mean} and {std}")
        times = doublings(side)
        self.latent, self.labels, self.start, self.wide = latent, labels, side // 2**times, 2 * width
        self.project = nn.Linear(latent + labels, self.wide * self.start**2)
        widths = [self.wide] * times + [width]
        blocks: list[nn.Module] = [normed(self.wide)]
        for before, after in itertools.pairwise(widths):
            blocks += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                normed(after),
                nn.LeakyReLU(0.2),
            ]
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(width, channels, 3, padding=1))
        for name, figures in {"mean": mean, "std": std}.items():
            self.register_buffer(name, torch.tensor(figures).view(1, -1, 1, 1), persistent=False)

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        """Images ``[N, C, H, W]``, normalised, for noise ``[N, latent]`` and classes, int64 ``[N]``."""
        if self.labels:
            noise = torch.cat([noise, F.one_hot(label, self.labels).to(noise.dtype)], dim=1)
        first = self.project(noise).view(-1, self.wide, self.start, self.start)
        pixels: Tensor = torch.sigmoid(self.blocks(first))
        return (pixels - self.mean) / self.std

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images ``[N, C, H, W]`` in [0, 1] again."""
        return (images * self.std + self.mean).clamp(0, 1)


@dataclass(frozen=True)
class GeneratorRecipe:
    """A generator for the data's images.

    Args:
        latent: Length of the noise, >= 1.
        width: Channels of the last map, >= 1; the others have twice as many.
        conditional: Whether the drawn label is an input beside the noise.
    """

    latent: int = 100
    width: int = 64
    conditional: bool = False

    def __post_init__(self) -> None:
        for name, value in {"latent": self.latent, "width": self.width}.items():
            if value < 1:
                raise ValueError(f"generator.{name} must be >= 1, got {value}")

    def build(self, views: Views, num_classes: int, seed: int) -> Generator:
        """A new generator; its initialisation is a function of the seed.

        Raises:
            ValueError: if the data does not say its mean and std, or its images cannot be made.
        """
        if views.mean is None or views.std is None:
            raise ValueError("a generator needs the data's mean and std: use a datamodule that has them")
        labels = num_classes if self.conditional else 0
        with seeded(seed, "initialisation", "generator"):
            made = Generator(views.image_shape, views.mean, views.std, self.latent, self.width, labels)
        return made.train()
