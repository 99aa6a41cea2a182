"""The loader of encoded images: decoded and augmented in worker processes, finished on the device."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from kd_lightning.batch import Batch
from kd_lightning.datamodules.encoded import BadImageError, Encoded, EncodedImages
from kd_lightning.datamodules.loader import Loader
from kd_lightning.datamodules.mixing import Mixing, mix, mix_targets
from kd_lightning.datamodules.named_transform import NamedErasing, NamedTransform
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.datamodules.timm_transforms import Colour
from kd_lightning.datamodules.views import normalise, scale_and_shift
from kd_lightning.seeds import hashed

Name = tuple[int, int]  # row and view number


class Sample(NamedTuple):
    """One view as a worker makes it: an image, uint8 ``[S, S, 3]``, or why there is none."""

    name: Name
    image: Tensor | None
    fault: Exception | None


class RawBatch(NamedTuple):
    """What a worker hands over: images, uint8 ``[N, S, S, 3]``; names, int64 ``[N, 2]``; the first fault among them."""

    images: Tensor
    names: Tensor
    fault: Exception | None


def collate(samples: list[Sample], size: int) -> RawBatch:
    """The samples of a batch, in order; none give a batch of 0 images of ``size`` pixels."""
    fault = next((sample.fault for sample in samples if sample.fault is not None), None)
    images = [sample.image for sample in samples if sample.image is not None]
    names = torch.tensor([sample.name for sample in samples], dtype=torch.int64).reshape(-1, 2)
    empty = torch.empty(0, size, size, 3, dtype=torch.uint8)
    return RawBatch(default_collate(images) if images else empty, names, fault)


class Samples(Dataset[Sample]):
    """The views of the images, by name."""

    def __init__(self, images: EncodedImages, transform: NamedTransform[Encoded]) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, name: Name) -> Sample:
        """The view that (row, number) names; a fault is returned, as an exception loses its form between processes."""
        try:
            view = self.transform(self.images.read(name[0]), *name)
        except (BadImageError, OSError) as fault:
            return Sample(name, None, fault)
        return Sample(name, view.permute(1, 2, 0), None)


class PlannedNames(Sampler[list[Name]]):
    """The names of each batch of the plan's epoch, from a position on; asked of the plan when iteration starts."""

    def __init__(self, plan: EpochPlan) -> None:
        self.plan, self.position = plan, 0

    def __iter__(self) -> Iterator[list[Name]]:
        for rows, numbers in self.plan.batches_from(self.position):
            yield list(zip(rows.tolist(), numbers.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.plan) - self.position


class FolderLoader(Loader):
    """Batches of encoded images.

    Workers decode and augment to uint8; this process moves to the device, normalises, erases and mixes. Erasing comes
    after normalising and mixing last, as in timm. Up to there a sample's pixels are a function of its name (see
    `NamedTransform`). What it is mixed with is not: its partner is in its place in the flipped batch of this rank. So
    mixed images depend on how samples fall into batches, and on the number of ranks; lambda and box do not.

    Training workers live from epoch to epoch until `close`; evaluation workers for one pass. One iteration at a time.

    Args:
        plan: Which samples come in which batch.
        device: Where the batches are wanted; images are pinned on the way to a CUDA device.
        images: What the rows of the plan are rows of.
        transform: Makes a view, uint8 ``[3, S, S]``, of an encoded image.
        size: S, in pixels.
        mean: Of each channel, in units of [0, 1].
        std: Of each channel, in units of [0, 1].
        workers: Processes that decode; with 0 this one does.
        erasing: Random erasing, if any.
        mixing: Mixup and CutMix, if any.

    Raises:
        ValueError: if ``workers`` is negative.
    """

    def __init__(
        self,
        plan: EpochPlan,
        device: torch.device,
        images: EncodedImages,
        transform: NamedTransform[Encoded],
        *,
        size: int,
        mean: Colour,
        std: Colour,
        workers: int,
        erasing: NamedErasing | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(plan, device)
        if workers < 0:
            raise ValueError(f"workers must be >= 0, got {workers}")
        self.encoded, self.samples, self.size, self.workers = images, Samples(images, transform), size, workers
        self.erasing, self.mixing = erasing, mixing
        self.scale, self.shift = (part.to(device) for part in scale_and_shift(mean, std))
        self._names = PlannedNames(plan)
        self._source: DataLoader[Sample] | None = None
        self._iteration: object = None

    def close(self) -> None:
        """Let the workers go; the next iteration starts new ones."""
        self._source = None

    def fetch(self, position: int) -> Iterator[Batch]:
        """The batches of the plan's epoch from ``position`` on; images of earlier ones are not read.

        Raises:
            BadImageError: if an image cannot be decoded; it is named.
            OSError: if an image cannot be read.
            RuntimeError: if the loader was iterated anew before this iteration went on.
        """
        self._names.position, self._iteration = position, (mine := object())
        if self._source is None:
            self._source = self._open()
        for raw in self._source:
            if self._iteration is not mine:
                raise RuntimeError("the loader was iterated anew before this iteration ended: one at a time")
            yield self.finish(raw)

    def _open(self) -> DataLoader[Sample]:
        return DataLoader(
            self.samples,
            batch_sampler=self._names,
            num_workers=self.workers,
            collate_fn=partial(collate, size=self.size),
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.plan.train and self.workers > 0,
            generator=torch.Generator(),  # else each iteration would draw a number from the global one
        )

    def finish(self, raw: RawBatch) -> Batch:
        """What a worker made, on the device, normalised, erased and mixed.

        Raises:
            BadImageError: if an image could not be decoded.
            OSError: if an image could not be read.
        """
        if raw.fault is not None:
            raise raw.fault
        pinned = raw.images.is_pinned()
        images = normalise(raw.images.to(self.device, non_blocking=pinned), self.scale, self.shift)
        index, number = raw.names.unbind(1)
        target = self.encoded.labels[index]
        target = (target.pin_memory() if pinned else target).to(self.device, non_blocking=pinned)
        if self.erasing is not None:
            self.erasing(images, index, number)
        index, number = raw.names.to(self.device, non_blocking=pinned).unbind(1)
        if self.mixing is None:
            return Batch({"default": images}, target, index, number)
        shares = self.mixing.draw(hashed(self.plan.seed, "mixing", index, number))
        mixed, lam = mix({"default": images}, {"default": images.flip(0)}, shares)
        return Batch(mixed, mix_targets(target, target.flip(0), lam, len(self.encoded.classes)), index, number)
