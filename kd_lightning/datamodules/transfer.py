"""Out-of-domain images as the transfer set: images of one data set, everything else of another."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.datamodules.base import ImageDataModule, Split
from kd_lightning.datamodules.borrowed import BorrowedDataModule
from kd_lightning.datamodules.loader import Loader
from kd_lightning.datamodules.plan import EpochPlan

UNLABELLED = -1  # no class: a loss that looks at it fails
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts to grey


def recoloured(pixels: Tensor, channels: int) -> Tensor:
    """Images ``[N, C, H, W]`` in [0, 1] with so many channels: grey of colours by BT.601, or grey repeated.

    Raises:
        ValueError: if it is neither.
    """
    has = pixels.shape[1]
    if has == channels:
        return pixels
    if has == 3 and channels == 1:
        return (pixels * pixels.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    if has == 1:
        return pixels.expand(-1, channels, -1, -1)
    raise ValueError(f"images of the transfer set with {has} channels cannot be given {channels}")


def fitted(
    images: Tensor,
    normalised: tuple[Sequence[float], Sequence[float]],
    wanted: tuple[Sequence[float], Sequence[float]],
    shape: tuple[int, int, int],
) -> Tensor:
    """Images of one data set as another's: its channels, size (bilinear, antialiased) and normalisation.

    Args:
        images: ``[N, C, H, W]``.
        normalised: (mean, std) that they are normalised by.
        wanted: (mean, std) that they are to be normalised by.
        shape: (channels, height, width) that they are to have.
    """
    (mean, std), (new_mean, new_std) = (
        [images.new_tensor(figures).view(1, -1, 1, 1) for figures in pair] for pair in (normalised, wanted)
    )
    pixels = recoloured(images * std + mean, shape[0])
    if pixels.shape[2:] != shape[1:]:
        pixels = F.interpolate(pixels, size=shape[1:], mode="bilinear", antialias=True)
    return (pixels - new_mean) / new_std


class TransferLoader(Loader):
    """The batches of another loader, fitted, without their labels.

    Args:
        plan: Which samples come in which batch.
        device: Where the batches are wanted.
        images: Whose images these are.
        data: As whose they are to look.
        loader: Of the images, with the same plan.
    """

    def __init__(
        self, plan: EpochPlan, device: torch.device, images: ImageDataModule, data: ImageDataModule, loader: Loader
    ) -> None:
        super().__init__(plan, device)
        self.inner = loader
        self._normalised, self._wanted = (images.mean, images.std), (data.mean, data.std)
        self._shape = data.image_shape

    def fetch(self, position: int) -> Iterator[Batch]:
        """The batches of the plan's epoch from ``position`` on."""
        for batch in self.inner.fetch(position):
            views = {
                name: fitted(view, self._normalised, self._wanted, self._shape) for name, view in batch.images.items()
            }
            none = torch.full((len(batch),), UNLABELLED, dtype=torch.int64, device=batch.target.device)
            yield Batch(views, none, batch.index, batch.number)


class TransferSet(BorrowedDataModule):
    """Training images of one data set; classes, normalisation, validation and test of another.

    For a teacher that was trained on ``data`` and a student that must learn without it. Labels of ``images`` are never
    looked at, so the criteria must ask the teacher alone; the training set of ``data`` is never read. The images are
    given the channels, size and normalisation of ``data``.

    Args:
        images: Whose training split is the transfer set, for instance an `ImageFolderDataModule` of any classes.
        data: Whose classes are to be learnt; ``val_fraction`` 0.
        seed: Of order and views; None takes the run's.
    """

    labelled = False
    unlabelled = "a transfer set has none"
    mixing_instead = "state it for the images"

    def __init__(self, images: ImageDataModule, data: ImageDataModule, seed: int | None = None) -> None:
        super().__init__(data, images.global_batch_size, drop_last=images.drop_last, repeats=images.repeats, seed=seed)
        self.images = images

    def prepare_data(self) -> None:
        """As both data sets do."""
        self.images.prepare_data()
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """Read the images, for training only, and the test set of the other data set.

        Raises:
            ValueError: if the validation set is a part of its training set, or its test set cannot be read alone.
        """
        super().setup(stage)
        if stage == "fit":
            self.images.trainer = self.trainer
            self.images.setup(stage)

    def teardown(self, stage: str) -> None:
        """As both data sets do."""
        self.images.teardown(stage)
        super().teardown(stage)

    def samples(self) -> int:
        """Rows of the transfer set; known after `setup`."""
        return self.images.samples()

    def view_names(self) -> Sequence[str]:
        """Names of the views."""
        return self.images.view_names()

    def pixel_facts(self) -> dict[str, str]:
        """Those of the images, and as what they are shown."""
        shown = {"data.shown_as": f"{self.data.image_shape}, mean {self.images.mean}, std {self.images.std}"}
        return self.images.pixel_facts() | shown

    def rows(self, split: Split) -> Tensor:
        """Row numbers of a split, int64; of the training in the transfer set."""
        return (self.images if split == "train" else self.data).rows(split)

    def loader(self, split: Split, plan: EpochPlan, device: torch.device) -> Loader:
        """The data set's own loader, of fitted images without labels for the training."""
        if split != "train":
            return self.data.loader(split, plan, device)
        return TransferLoader(plan, device, self.images, self.data, self.images.loader("train", plan, device))
