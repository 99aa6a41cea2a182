"""Folders of images, one folder per class: decoded and augmented by worker processes, as timm does it."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor

from kd_lightning.datamodules.bad_images import OnBadImage, bad_images, fingerprint
from kd_lightning.datamodules.base import ImageDataModule, Split, held_out
from kd_lightning.datamodules.decoded_views import CropFirst, Decoded, DecodeMode
from kd_lightning.datamodules.encoded import Encoded, EncodedImages, require_same_classes
from kd_lightning.datamodules.folder_loader import FolderLoader
from kd_lightning.datamodules.image_files import list_images
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.datamodules.named_transform import ErasingMode, NamedErasing, NamedTransform
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.datamodules.timm_transforms import (
    Colour,
    Interpolation,
    eval_transform,
    preprocessing,
    train_transform,
)


class ImageFolderDataModule(ImageDataModule):
    """Images under ``root/train/<class>/`` and ``root/val/<class>/``.

    The folder ``val`` is the *test* set here, as the official ImageNet validation set is in every publication; for
    validation during training hold out a part of ``train`` (``val_fraction``), or set ``validate_on_test``.

    Views are made by timm's transforms under generators named by the sample, so a view is the same for any number of
    workers, ranks and restarts; mixing alone depends on the batch (see `FolderLoader`). ``loader`` gives finished
    batches on its device, with or without a Trainer.

    Args:
        root: Folder of both sets.
        train_dir: Name of the folder of the training set.
        test_dir: Name of the folder of the test set.
        global_batch_size: Samples per optimizer step over all devices.
        eval_batch_size: Samples per evaluation step over all devices; ``global_batch_size`` by default.
        val_fraction: Share of the training set that is held out for validation, in [0, 1).
        validate_on_test: Validate on the test set during training.
        drop_last: Drop a last training batch that is smaller than the others.
        repeats: Views of one sample in an epoch (repeated augmentation; 3 in DeiT).
        seed: Of order and views; None takes the run's.
        model: A timm model: size, crop, interpolation, mean and std, where not given, are those of its weights.
        image_size: Height and width of a view, in pixels; 224 by default.
        crop_pct: Side of the evaluation crop over the shorter side of the resized image; 0.875 by default.
        interpolation: Of every resize; bilinear by default.
        mean: Of each channel, in units of [0, 1]; ImageNet's by default.
        std: Of each channel, in units of [0, 1]; ImageNet's by default.
        scale: Range of the area of the random crop, as a share of the image's.
        ratio: Range of the aspect ratio of the random crop.
        hflip: Probability of a horizontal flip.
        auto_augment: A policy in timm's notation, such as ``rand-m9-mstd0.5-inc1``.
        color_jitter: Strength of brightness, contrast and saturation jitter.
        random_erasing: Probability of random erasing.
        random_erasing_mode: What is written: ``const`` 0, ``rand`` one normal colour, ``pixel`` normal noise (DeiT).
        mixing: Mixup and CutMix; targets are then class probabilities.
        decode: ``full`` decodes training images in their full size; ``scaled`` lets libjpeg decode a large one at 1/2,
            1/4 or 1/8 if the crop is then still as large as the view (see `CropFirst`). The evaluation decodes in full.
        workers: Processes that decode, per device; with 0 the training process does.
        on_bad_image: ``error`` stops at a file that does not decode, and names it. ``skip`` decodes all files once in
            `setup`, on rank zero, and leaves the bad ones out on every rank; their number is ``skipped``. Row numbers
            stay as they are. The verdict is kept in a small file beside the data (see `bad_images`).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        global_batch_size: int = 256,
        *,
        train_dir: str = "train",
        test_dir: str = "val",
        eval_batch_size: int | None = None,
        val_fraction: float = 0.0,
        validate_on_test: bool = False,
        drop_last: bool = False,
        repeats: int = 1,
        seed: int | None = None,
        model: str | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        interpolation: Interpolation | None = None,
        mean: Colour | None = None,
        std: Colour | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        auto_augment: str | None = None,
        color_jitter: float | None = None,
        random_erasing: float = 0.0,
        random_erasing_mode: ErasingMode = "pixel",
        mixing: Mixing | None = None,
        decode: DecodeMode = "full",
        workers: int = 4,
        on_bad_image: OnBadImage = "error",
    ) -> None:
        super().__init__(
            global_batch_size,
            eval_batch_size=eval_batch_size,
            val_fraction=val_fraction,
            validate_on_test=validate_on_test,
            drop_last=drop_last,
            repeats=repeats,
            seed=seed,
        )
        if workers < 0:
            raise ValueError(f"workers must be >= 0, got {workers}")
        if not 0 <= random_erasing <= 1:
            raise ValueError(f"random_erasing must be a probability in [0, 1], got {random_erasing}")
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"on_bad_image must be 'error' or 'skip', got {on_bad_image!r}")
        self.root, self.train_dir, self.test_dir = Path(root), train_dir, test_dir
        self.workers, self.on_bad_image, self.mixing = workers, on_bad_image, mixing
        self.random_erasing, self.random_erasing_mode = random_erasing, random_erasing_mode
        self.wanted = preprocessing(model, image_size, crop_pct, interpolation, mean, std)
        self.eval_transform = eval_transform(self.wanted)
        self.train_transform = train_transform(
            self.wanted,
            scale=scale,
            ratio=ratio,
            hflip=hflip,
            auto_augment=auto_augment,
            color_jitter=color_jitter,
        )
        self._train_view, self._eval_view = CropFirst(self.train_transform, decode), Decoded(self.eval_transform)
        self.decode = decode
        self.skipped = 0
        self._files: tuple[EncodedImages, EncodedImages] | None = None
        self._good: tuple[Tensor, Tensor]
        self._loaders: list[FolderLoader] = []

    def setup(self, stage: str) -> None:
        """List the files of both sets, and leave out the bad ones if asked to; once.

        Raises:
            FileNotFoundError: if a folder is not there.
            ValueError: if a class has no (good) images, or the sets differ in their classes.
        """
        if self._files is not None:
            return
        if self.reads_training_set:
            train, test = self.find(self.train_dir), self.find(self.test_dir)
        else:
            test = self.find(self.test_dir)
            train = test.none()
        require_same_classes(train, test)
        self._good = self._good_rows(train), self._good_rows(test)
        self.skipped = sum(int((~good).sum()) for good in self._good)
        self._files = train, test

    def find(self, name: str) -> EncodedImages:
        """List the images of a set, by its name below the root.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if a class has no images.
        """
        return list_images(self.root / name)

    def _good_rows(self, files: EncodedImages) -> Tensor:
        """Whether the file in each row takes part, bool ``[M]``; rank zero decides."""
        good = torch.ones(len(files), dtype=torch.bool)
        if self.on_bad_image == "error":
            return good
        bad = bad_images(files) if self.trainer is None or self.trainer.is_global_zero else {}
        good[list(self.trainer.strategy.broadcast(bad) if self.trainer else bad)] = False
        if not len(files):
            return good
        gone = set(range(len(files.classes))) - set(files.labels[good].tolist())
        if gone:
            raise ValueError(f"class folder without good images: {files.folder / files.classes[min(gone)]}")
        return good

    def files(self, split: Split) -> EncodedImages:
        """The files of the set that a split is part of; its rows are rows of it.

        Raises:
            RuntimeError: before `setup`.
        """
        if self._files is None:
            raise RuntimeError("the image files are not listed yet: call setup first")
        return self._files[split == "test"]

    @property
    def train_targets(self) -> Tensor:
        """Class indices of the full training set by row, int64 ``[M]``; known after `setup`."""
        return self.files("train").labels

    def rows(self, split: Split) -> Tensor:
        """Row numbers of the good files of a split, int64, ascending."""
        count = len(self.files(split))
        parts = held_out(count, self.val_fraction)
        rows = torch.arange(count) if split == "test" else parts[split == "val"]
        return rows[self._good[split == "test"][rows]]

    @property
    def classes(self) -> Sequence[str]:
        """Names of the class folders, ascending."""
        return self.files("train").classes

    @property
    def mean(self) -> Colour:
        """Mean of each channel that the images are normalised by, in units of [0, 1]."""
        return self.wanted.mean

    @property
    def std(self) -> Colour:
        """Standard deviation of each channel that the images are normalised by, in units of [0, 1]."""
        return self.wanted.std

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a view."""
        return 3, self.wanted.image_size, self.wanted.image_size

    def pixel_facts(self) -> dict[str, str]:
        """The files by name and size, the transforms, and the versions of what decodes and augments.

        Raises:
            ValueError: with mixing, whose partners depend on the batch.
        """
        if self.mixing is not None:
            raise ValueError(
                f"the outputs of a teacher cannot be stored (StoredOutputs) with data.mixing {self.mixing} of image "
                "files: what an image is mixed with depends on its batch; set data.mixing to null, or take the "
                "teacher without StoredOutputs"
            )
        erasing = f"{self.random_erasing} {self.random_erasing_mode}"
        return {
            "data.images": fingerprint(self.files("train"), times=False),
            "data.transform": " ".join(repr(self.train_transform).split()),
            "data.decode": self.decode,
            "data.random_erasing": erasing,
            "data.versions": ", ".join(f"{kit.__name__} {kit.__version__}" for kit in (timm, torch, torchvision)),
        }

    def _named_view(self, plan: EpochPlan) -> NamedTransform[Encoded]:
        if plan.train:
            return NamedTransform(self._train_view, plan.seed, numpy=not self._train_view.on_tensors)
        return NamedTransform(self._eval_view, plan.seed, numpy=False)

    def loader(self, split: Split, plan: EpochPlan, device: torch.device) -> FolderLoader:
        """The loader of a split; ``plan.train`` says whether its views are augmented, erased and mixed."""
        erasing = NamedErasing(self.random_erasing, self.random_erasing_mode, plan.seed)
        loader = FolderLoader(
            plan,
            device,
            self.files(split),
            self._named_view(plan),
            size=self.wanted.image_size,
            mean=self.mean,
            std=self.std,
            workers=self.workers,
            erasing=erasing if plan.train and self.random_erasing else None,
            mixing=self.mixing if plan.train else None,
        )
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """Let the workers go; the next training has views of its own."""
        super().teardown(stage)
        while self._loaders:
            self._loaders.pop().close()
