"""Transforms that draw from the global generators, made functions of a sample's name."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from kd_lightning.seeds import hashed_int, uniform

ErasingMode = Literal["const", "rand", "pixel"]
Transform = Callable[[Image.Image], Tensor]
Source = TypeVar("Source")


@contextmanager
def named_generators(*names: int | str, numpy: bool = True) -> Iterator[None]:
    """Inside, the CPU generators of `random`, numpy and torch are seeded by the names; outside, they are as they were.

    Stream ``s`` of (random, numpy, torch) gets the seed ``hashed(*names, s)``: numpy's and torch's twisters would agree
    if they shared one.

    Args:
        names: Of what is drawn.
        numpy: Seed numpy's too: to keep its state and bring it back takes 65 µs, that of the others 15 µs.
    """
    seeds = [hashed_int(*names, stream) for stream in range(3)]
    states = random.getstate(), np.random.get_state() if numpy else None, torch.default_generator.get_state()
    random.seed(seeds[0])
    if numpy:
        np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        if states[1] is not None:
            np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


class NamedTransform(Generic[Source]):
    """Makes the view of an image that (seed, view name, index, number) names, in any process and at any time.

    Args:
        transform: Image, encoded or not, to tensor; it may draw from `random`, numpy and torch as it likes, but not
            from generators of its own.
        seed: Of the views.
        view: Name of the view.
        numpy: Whether the transform may draw from numpy, which costs more than a flip.
    """

    def __init__(
        self, transform: Callable[[Source], Tensor], seed: int, view: str = "default", *, numpy: bool = True
    ) -> None:
        self.transform, self.seed, self.view, self.numpy = transform, seed, view, numpy

    def __call__(self, image: Source, index: int, number: int) -> Tensor:
        """View ``number`` of the image in row ``index``."""
        with named_generators(self.seed, self.view, index, number, numpy=self.numpy):
            return self.transform(image)


class NamedErasing:
    """Random erasing of normalised images, named by the sample.

    One rectangle of 2 % to 33 % of the area, of aspect ratio 0.3 to 3.3, is overwritten. Source: Zhong et al., "Random
    Erasing Data Augmentation", 2020, as timm does it; the noise is drawn on the CPU, so it is the same on any device.

    Args:
        probability: Share of the images, in [0, 1].
        mode: ``const`` fills with 0 (the mean colour), ``rand`` with one normal colour, ``pixel`` with normal noise
            (DeiT).
        seed: Of the views.
        view: Name of the view.

    Raises:
        ValueError: if ``probability`` is not in [0, 1].
    """

    def __init__(self, probability: float, mode: ErasingMode, seed: int, view: str = "default") -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"random_erasing must be a probability in [0, 1], got {probability}")
        self.probability, self.seed, self.view = probability, seed, view
        self.erase = RandomErasing(1.0, mode=mode, device="cpu")  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor, index: Tensor, number: Tensor) -> Tensor:
        """Erase in place.

        Args:
            images: Normalised, ``[N, C, H, W]``, on any device.
            index: Rows, int64 ``[N]``, on the CPU.
            number: View numbers, int64 ``[N]``, on the CPU.
        """
        chosen = uniform(self.seed, self.view, index, number, "erasing") < self.probability
        for i in chosen.nonzero().flatten().tolist():
            with named_generators(self.seed, self.view, int(index[i]), int(number[i]), "erasing"):
                self.erase(images[i])
        return images
