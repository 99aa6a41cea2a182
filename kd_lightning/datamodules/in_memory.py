"""Image sets that fit in memory: one uint8 tensor on the device, views made a batch at a time."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.datamodules.base import ImageDataModule, Split, held_out
from kd_lightning.datamodules.loader import Loader
from kd_lightning.datamodules.mixing import Mixing, mix, mix_targets
from kd_lightning.datamodules.node_memory import once_a_node
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.datamodules.views import PLAIN, View, pack, scale_and_shift, view_key
from kd_lightning.seeds import below, hashed

OF_FREE = 0.25  # of a GPU's free memory, for the images
PIXELS = "1"  # to be counted up when a view of the same name comes to have other pixels


class ImageArrays(NamedTuple):
    """A data set as it is read.

    Attributes:
        train_images: uint8 ``[M, H, W, C]``.
        train_labels: Class indices, int64 ``[M]``.
        test_images: uint8 ``[K, H, W, C]``.
        test_labels: Class indices, int64 ``[K]``.
        classes: Their names, in the order of the indices.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]


class ImageStore(NamedTuple):
    """Images and labels as the loader keeps them, on its device where they fit.

    Attributes:
        packed: ``[M, H, W]``, see `kd_lightning.datamodules.views.pack`.
        target: Class indices, int64 ``[M]``.
        channels: Of the images.
        num_classes: Of the data set.
    """

    packed: Tensor
    target: Tensor
    channels: int
    num_classes: int

    def to(self, device: torch.device) -> "ImageStore":
        """The same images and labels on a device; images that do not fit there stay where they are."""
        packed = self.packed.to(device) if fits(self.packed.nbytes, device) else self.packed
        return self._replace(packed=packed, target=self.target.to(device))


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes of images may go to a device: on a GPU, a quarter of what is free there at most."""
    return device.type != "cuda" or size <= OF_FREE * torch.cuda.mem_get_info(device)[0]


def image_store(images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, name: str) -> ImageStore:
    """Images and labels, checked and packed.

    Args:
        images: uint8 ``[M, H, W, C]``.
        labels: int64 ``[M]``, each in 0 … num_classes - 1.
        num_classes: Of the data set.
        name: Of the set, for errors.

    Raises:
        ValueError: if the numbers of images and labels differ, or a label is out of range.
    """
    if len(images) != len(labels):
        raise ValueError(f"the {name} set has {len(images)} images, but {len(labels)} labels")
    target = torch.from_numpy(np.array(labels, dtype=np.int64))
    wrong = ((target < 0) | (target >= num_classes)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"the label of row {row} of the {name} set must be in 0 … {num_classes - 1}, got {int(target[row])} "
            f"({len(wrong)} such labels)"
        )
    return ImageStore(pack(torch.from_numpy(images)), target, images.shape[3], num_classes)


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device; where they go from the host to a GPU, neither waits for the other."""
    if device.type != "cuda" or not values.is_cpu:
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)  # strided ones would go by unpinned memory


class InMemoryLoader(Loader):
    """Cuts the batches of a plan out of an `ImageStore`.

    A training sample's views are drawn from (seed, view name, row, number), its mixing partner and share from
    (seed, row, number); the partner is any row of the plan and is shown in the same views with the same number. In
    evaluation every view is the image as it is.

    Args:
        plan: Which samples come in which batch.
        device: Where the batches are wanted.
        store: Labels on the same device, and images there or on the host, where they are then cut out.
        views: View name -> how it is made.
        mixing: Of training samples; None for none.
        mean: Of each channel, in units of [0, 1].
        std: Of each channel, in units of [0, 1].
    """

    def __init__(
        self,
        plan: EpochPlan,
        device: torch.device,
        store: ImageStore,
        views: Mapping[str, View],
        mixing: Mixing | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(plan, device)
        self.store, self.views, self.mixing = store, views, mixing
        scale, shift = scale_and_shift(mean, std)
        self._scale, self._shift = scale.to(device), shift.to(device)
        self._partners = plan.rows.to(store.packed.device)

    def fetch(self, position: int) -> Iterator[Batch]:
        """The batches of the plan's epoch from ``position`` on."""
        for rows, numbers in self.plan.batches_from(position, self.store.packed.device):
            yield self.batch(rows, numbers)

    def batch(self, rows: Tensor, numbers: Tensor) -> Batch:
        """The batch of the samples with these names, two int64 ``[N]`` where the images are kept."""
        index, number = moved(rows, self.device), moved(numbers, self.device)
        images, target = self.make_views(rows, numbers), self.store.target[index]
        if self.plan.train and self.mixing is not None:
            key = hashed(self.plan.seed, "mixing", rows, numbers)
            partners = self._partners[below(len(self._partners), key, "partner")]
            shares = self.mixing.draw(moved(key, self.device))
            images, lam = mix(images, self.make_views(partners, numbers), shares)
            theirs = self.store.target[moved(partners, self.device)]
            target = mix_targets(target, theirs, lam, self.store.num_classes)
        return Batch(images, target, index, number)

    def make_views(self, rows: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """View name -> unmixed views of the samples, float32 ``[N, C, H, W]``."""
        packed, index, number = self._images_of(rows), moved(rows, self.device), moved(numbers, self.device)

        def made(view: View, key: Tensor) -> Tensor:
            return view.make(packed, key, self.store.channels, self._scale, self._shift)

        if not self.plan.train:
            return dict.fromkeys(self.views, made(PLAIN, index))
        return {name: made(view, view_key(self.plan.seed, name, index, number)) for name, view in self.views.items()}

    def _images_of(self, rows: Tensor) -> Tensor:
        whole = self.store.packed
        rows = rows.to(whole.device)
        if self.device.type != "cuda" or not whole.is_cpu:
            return whole.index_select(0, rows).to(self.device)
        packed = whole.new_empty((len(rows), *whole.shape[1:]), pin_memory=True)
        return torch.index_select(whole, 0, rows, out=packed).to(self.device, non_blocking=True)


class InMemoryDataModule(ImageDataModule):
    """Serves what `read` reads; both sets go to the device once and are shared by the loaders.

    Of several ranks on a node one reads, and the others map its copy. Images that would take more than a quarter of a
    GPU's free memory stay on the host, and batches of them are moved.

    Args:
        global_batch_size: See `ImageDataModule`.
        views: View name -> how it is made; ``"default"`` must be among them. Views of different names are drawn
            independently.
        mixing: Mixup or CutMix of training samples; their targets become float ``[N, C]``. None for none.
        options: See `ImageDataModule`.

    Raises:
        ValueError: if an argument is out of range, or there is no default view.
    """

    def __init__(
        self, global_batch_size: int, *, views: dict[str, View], mixing: Mixing | None = None, **options: Any
    ) -> None:
        super().__init__(global_batch_size, **options)
        if "default" not in views:
            raise ValueError(f"views must have a view named 'default', got {sorted(views)}")
        self.views, self.mixing = dict(views), mixing
        self._classes: tuple[str, ...] = ()
        self._stores: dict[tuple[str, torch.device], ImageStore] = {}

    @abstractmethod
    def read(self) -> ImageArrays:
        """The data set, read or decoded; called once by `setup`, in one rank of a node."""

    def read_test_set(self) -> ImageArrays:
        """The data set with no training images, which are not even read; called once by `setup`.

        Raises:
            ValueError: if this data set cannot be read so.
        """
        raise ValueError(f"{type(self).__name__} cannot read its test set alone: give it a method read_test_set")

    def setup(self, stage: str | None = None) -> None:
        """Read both sets, check and pack them; a second call does nothing.

        Raises:
            ValueError: if a set is empty, a label is out of range, or the channels are not those of `mean` and `std`.
        """
        if self._stores:
            return
        tensors, facts = once_a_node(self._packed, self.trainer)
        classes = json.loads(facts["classes"])
        self._classes, self._stores = tuple(classes), {}
        for name in ("train", "test") if self.reads_training_set else ("test",):
            packed, target = tensors[f"{name}.packed"], tensors[f"{name}.target"]
            self._stores[name, torch.device("cpu")] = ImageStore(packed, target, int(facts["channels"]), len(classes))

    def _packed(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        arrays = self.read() if self.reads_training_set else self.read_test_set()
        classes = len(arrays.classes)
        stores = {"test": image_store(arrays.test_images, arrays.test_labels, classes, "test")}
        if self.reads_training_set:
            stores["train"] = image_store(arrays.train_images, arrays.train_labels, classes, "training")
        for name, store in stores.items():
            if not len(store.target):
                raise ValueError(f"the {'training' if name == 'train' else 'test'} set is empty")
            if not store.channels == len(self.mean) == len(self.std):
                raise ValueError(
                    f"mean and std must have one number for each of the {store.channels} channels, "
                    f"got {self.mean} and {self.std}"
                )
        packed = {f"{name}.packed": store.packed for name, store in stores.items()}
        target = {f"{name}.target": store.target for name, store in stores.items()}
        return packed | target, {"classes": json.dumps(arrays.classes), "channels": str(stores["test"].channels)}

    def store(self, split: Split, device: torch.device) -> ImageStore:
        """The full set that a split is a part of, on a device; moved there once.

        Raises:
            RuntimeError: before `setup`.
        """
        if not self._stores:
            raise RuntimeError(f"{type(self).__name__} has no data yet: call prepare_data() and setup() first")
        name = "test" if split == "test" else "train"
        if name == "train" and not self.reads_training_set:
            raise RuntimeError(f"the training set of {type(self).__name__} is not read, and was asked for")
        if (name, device) not in self._stores:
            self._stores[name, device] = self._stores[name, torch.device("cpu")].to(device)
        return self._stores[name, device]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices; empty before `setup`."""
        return self._classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a view; known after `setup`."""
        store = self.store("train" if self.reads_training_set else "test", torch.device("cpu"))
        _, height, width = store.packed.shape
        return store.channels, height, width

    @property
    def train_targets(self) -> Tensor:
        """Class indices of the full training set by row, int64 ``[M]``; known after `setup`."""
        return self.store("train", torch.device("cpu")).target

    def view_names(self) -> Sequence[str]:
        """Names of the views."""
        return list(self.views)

    def pixel_facts(self) -> dict[str, str]:
        """Images, labels, views and mixing; the partners come from the rows that are trained on."""
        store = self.store("train", torch.device("cpu"))
        digest = hashlib.sha256(store.packed.numpy().data)
        digest.update(store.target.numpy().data)
        facts = {f"data.views.{name}": repr(view) for name, view in self.views.items()}
        if self.mixing is not None:
            facts |= {"data.mixing": repr(self.mixing), "data.val_fraction": repr(self.val_fraction)}
        return facts | {"data.images": digest.hexdigest(), "data.pixels": PIXELS}

    def rows(self, split: Split) -> Tensor:
        """Row numbers of the samples of a split, int64, in the full training or test set."""
        count = len(self.store(split, torch.device("cpu")).target)
        if split == "test":
            return torch.arange(count)
        train, val = held_out(count, self.val_fraction)
        return train if split == "train" else val

    def loader(self, split: Split, plan: EpochPlan, device: torch.device) -> InMemoryLoader:
        """The loader of a split; ``plan.train`` says whether its views are augmented."""
        return InMemoryLoader(plan, device, self.store(split, device), self.views, self.mixing, self.mean, self.std)
