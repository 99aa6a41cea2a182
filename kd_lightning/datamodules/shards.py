"""Images in sharded tar archives, for data sets beyond one disk, with the names and views of image folders."""

from pathlib import Path
from typing import Any

from kd_lightning.datamodules.base import Split
from kd_lightning.datamodules.encoded import EncodedImages
from kd_lightning.datamodules.image_folder import ImageFolderDataModule
from kd_lightning.datamodules.plan import EpochPlan
from kd_lightning.datamodules.shard_images import ShardImages, open_shards

CLASSES = "classes.txt"


def read_classes(folder: Path) -> tuple[str, ...]:
    """Names of the classes in the order of their indices, from ``classes.txt``: one a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, or has a name twice.
    """
    path = folder / CLASSES
    if not path.is_file():
        raise FileNotFoundError(
            f"no {CLASSES} at {path.absolute()}: write the name of each class there, one a line, in the order of labels"
        )
    names = path.read_text(encoding="utf-8").splitlines()
    if not names or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path.absolute()} must name each class once, got {f'{twice} again' if names else 'none'}")
    return tuple(names)


class ShardsDataModule(ImageFolderDataModule):
    """Images in tar archives in webdataset's layout: ``000123.jpg`` and ``000123.cls`` (or a ``.json`` with a label).

    The archives lie on a local or shared disk. Each is read through once, for an index of its images that is kept
    beside it; from then on any image is read by itself, so everything holds that holds of `ImageFolderDataModule`: the
    index of a sample is its row in the whole set (shards in the order of their names, images as they lie in them), its
    views are named by it, ranks and nodes take turns in one global order, and training resumes at any batch.
    ``make_shards`` makes such archives of an image folder.

    Args:
        root: Folder of the shards and of ``classes.txt``, which has the name of each class on a line.
        train: Names of the training shards, with braces: ``train-{000000..000127}.tar``.
        test: Names of the test shards, or of a folder with one folder per class.
        global_batch_size: Samples per optimizer step over all devices.
        shuffle_window: Shards that are shuffled together: an epoch takes the shards in an order of its own, so many at
            a time, and all images of these in random order. So a disk that is slow to seek, and the cache of a file
            server, have few files to deal with; the classes should be mixed within the shards. None shuffles all.
        **arguments: See `ImageFolderDataModule`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        train: str,
        test: str,
        global_batch_size: int = 256,
        *,
        shuffle_window: int | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(root, global_batch_size, train_dir=train, test_dir=test, **arguments)
        if shuffle_window is not None and shuffle_window < 1:
            raise ValueError(f"shuffle_window must be >= 1, got {shuffle_window}")
        self.shuffle_window = shuffle_window

    def prepare_data(self) -> None:
        """Index the shards, once on each node."""
        for name in (self.train_dir, self.test_dir) if self.reads_training_set else (self.test_dir,):
            self.find(name)

    def find(self, name: str) -> EncodedImages:
        """The images of the shards, or of the folder, of a set.

        Raises:
            FileNotFoundError: if one is not there.
            ValueError: if a shard is damaged, or has samples without one image and one known label.
        """
        if (self.root / name).is_dir():
            return super().find(name)
        return open_shards(self.root, name, read_classes(self.root))

    def plan(self, split: Split, train: bool) -> EpochPlan:
        """The epochs of a split on this rank; in training the shards of a window are shuffled together."""
        plan, images = super().plan(split, train), self.files(split)
        if train and self.shuffle_window is not None and isinstance(images, ShardImages):
            plan.shuffle_within(images.shard_of(plan.rows), self.shuffle_window)
        return plan
