"""Write the images of a folder with one folder per class into shards.

    python -m kd_lightning.datamodules.make_shards data/imagenet/train shards/train
    python -m kd_lightning.datamodules.make_shards data/imagenet/val shards/val

gives ``shards/train-000000.tar`` and so on, their indices, and ``shards/classes.txt``, for `ShardsDataModule`.
"""

import argparse
from pathlib import Path

import torch

from kd_lightning.datamodules.image_files import ImageFiles, list_images
from kd_lightning.datamodules.shard_index import indexed
from kd_lightning.datamodules.shards import CLASSES
from kd_lightning.seeds import hashed

PER_SHARD = 10_000  # about 1 GB of ImageNet


def require_classes(images: ImageFiles, folder: Path) -> None:
    """Write the names of the classes, or check that they are those of shards made before.

    Raises:
        ValueError: if they are not.
    """
    path, names = folder / CLASSES, list(images.classes)
    if not path.is_file():
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
    elif path.read_text(encoding="utf-8").splitlines() != names:
        raise ValueError(f"{path} names other classes than {images.folder} has: write into another folder")


def make_shards(folder: Path, prefix: Path, per_shard: int = PER_SHARD, shuffle: bool = True) -> list[Path]:
    """Write shards, their indices, and the names of the classes.

    The files go in as they are, under the number of their row in the folder. The same files give the same bytes.

    Args:
        folder: Of the class folders.
        prefix: What the shards' names begin with, before ``-000000.tar``; its folder is made.
        per_shard: Images in a shard.
        shuffle: Mix the classes (always in the same way), else the images are in the order of their rows.

    Returns:
        The shards.

    Raises:
        FileNotFoundError: if there is no such folder.
        FileExistsError: if there is a shard of such a name.
        ValueError: if a class has no images, ``per_shard`` is not positive, or other classes are in the target folder.
    """
    from webdataset import ShardWriter  # here, as it takes a second or two

    if per_shard < 1:
        raise ValueError(f"per_shard must be >= 1, got {per_shard}")
    images = list_images(folder)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    paths = [prefix.with_name(f"{prefix.name}-{n:06}.tar") for n in range(-(-len(images) // per_shard))]
    if there := [str(path) for path in paths if path.exists()]:
        raise FileExistsError(f"{there[0]} is there already: remove it, or choose another name")
    require_classes(images, prefix.parent)
    rows = torch.arange(len(images))
    order = hashed("shards", rows).argsort(stable=True) if shuffle else rows
    pattern = str(prefix).replace("%", "%%") + "-%06d.tar"
    with ShardWriter(pattern, maxcount=per_shard, maxsize=float("inf"), verbose=0, mtime=0) as writer:
        for row in order.tolist():
            name = images.path(row).suffix.lower().removeprefix(".")
            writer.write({"__key__": f"{row:08}", name: images.read(row).data, "cls": int(images.labels[row])})
    for path in paths:
        indexed(path)
    return paths


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m kd_lightning.datamodules.make_shards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="with one folder per class")
    parser.add_argument("prefix", type=Path, help="of the shards, with their folder")
    parser.add_argument("--per-shard", type=int, default=PER_SHARD, help="images in a shard (%(default)s)")
    parser.add_argument("--in-order", action="store_true", help="do not mix the classes")
    given = parser.parse_args()
    paths = make_shards(given.folder, given.prefix, given.per_shard, shuffle=not given.in_order)
    print(f"{len(paths)} shards from {paths[0]} on")


if __name__ == "__main__":
    main()
