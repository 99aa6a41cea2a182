"""Image files on one core: decoders of PyPI wheels, and the loader of image folders and shards against timm's.

Rates are images per second of processor time of a process with one thread and no workers, so that other processes of
the machine do not matter much; contenders take turns, and ratios are taken within a round. A loader's part is all from
the file to the normalised batch: reading, decoding, random resized crop to 224 pixels, flip, collating, normalising.
The images are given as they are, and enlarged to two other sizes. Writes ``benchmarks/decoding.json``, shows a table.

    pip install --constraint constraints.txt --editable ".[bench]"
    python benchmarks/decoding.py FOLDER [--rounds 7]

FOLDER has ``train/<class>/`` and ``val/<class>/``. NVIDIA DALI's pipeline for CPUs, which decodes the box alone, takes
part if it is installed (1.1 GB). How much the pixels of a view differ is given as the mean absolute
difference from Pillow's full decoding and resize, of 0 … 255.
"""

import argparse
import importlib.util
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torchvision.io import ImageReadMode, decode_jpeg

from kd_lightning.datamodules import ImageFolderDataModule, ShardsDataModule
from kd_lightning.datamodules.decoded_views import CropFirst, Decoded
from kd_lightning.datamodules.encoded import Encoded
from kd_lightning.datamodules.make_shards import make_shards
from kd_lightning.datamodules.named_transform import NamedTransform
from kd_lightning.datamodules.timm_transforms import Preprocessing, train_transform

RESULTS = Path(__file__).with_suffix(".json")
BATCH, PER_SHARD = 20, 25
ENLARGED = {"as they are": 1.0, "1.5 times": 1.5, "4 times": 4.0}  # 1.5: about the mean size of ImageNet's
KITS = (
    "pillow",
    "torch",
    "torchvision",
    "timm",
    "simplejpeg",
    "opencv-python-headless",
    "imagecodecs",
    "nvidia-dali-cuda120",
)
TIMM = "timm"  # what ratios are against


def by_torchvision(data: bytes) -> object:
    """Its libjpeg-turbo, from bytes to a tensor."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    "torchvision": by_torchvision,
    "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
    "imagecodecs": imagecodecs.jpeg8_decode,
    "simplejpeg": simplejpeg.decode_jpeg,
    "simplejpeg, fast transform": lambda data: simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True),
}


def by_draft(encoded: Encoded) -> torch.Tensor:
    """Pillow alone, decoding at 1/2, 1/4 or 1/8 where the crop stays as large as the view: ``Image.draft``."""
    first, *rest = TRANSFORM.transforms
    with Image.open(io.BytesIO(encoded.data)) as image:
        width, height = image.size
        top, left, rows, columns = first.get_params(image, first.scale, first.ratio)
        share = max(first.size[0] / rows, first.size[1] / columns)
        if share < 1:
            image.draft("RGB", (int(width * share) + 1, int(height * share) + 1))
        shown = image.convert("RGB")
    across, down = shown.width / width, shown.height / height
    box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
    view = shown.resize(first.size, Image.Resampling.BILINEAR, box)
    for part in rest:
        view = part(view)
    return view


TRANSFORM: Any = train_transform(Preprocessing())
VIEWS: dict[str, Callable[[Encoded], torch.Tensor]] = {
    "Pillow": Decoded(TRANSFORM),
    "Pillow with draft": by_draft,
    "ours, full": CropFirst(TRANSFORM),
    "ours, scaled": CropFirst(TRANSFORM, "scaled"),
}


def enlarged(source: Path, target: Path, factor: float) -> None:
    """Copies of the images, so many times as wide and high."""
    for path in source.rglob("*.JPEG"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if factor == 1:
            copy.write_bytes(path.read_bytes())
            continue
        with Image.open(path) as image:
            size = round(image.width * factor), round(image.height * factor)
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(copy, "JPEG", quality=90)


def timms(root: Path, **options: Any) -> Callable[[int], int]:
    """An epoch of timm's loader, as its training script makes it."""
    dataset = create_dataset("", root=str(root), split="train", is_training=True)
    loader = create_loader(
        dataset,
        (3, 224, 224),
        BATCH,
        is_training=True,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        **options,
    )
    return lambda epoch: sum(len(images) for images, _ in loader)


def dalis(root: Path) -> Callable[[int], int]:
    """An epoch of DALI's pipeline on the CPU; its boxes and flips are its own."""
    from nvidia.dali import fn, pipeline_def, types

    paths = sorted(str(path) for path in (root / "train").rglob("*.JPEG"))

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def pipeline() -> Any:
        encoded, label = fn.readers.file(files=paths, random_shuffle=True)
        image = fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        view = fn.resize(image, size=[224, 224], interp_type=types.INTERP_TRIANGULAR)
        flip, mean, std = fn.random.coin_flip(), [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]
        return fn.crop_mirror_normalize(
            view, dtype=types.FLOAT, output_layout="HWC", mirror=flip, mean=mean, std=std
        ), label

    built = pipeline()
    built.build()
    return lambda epoch: sum(len(built.run()[0]) for _ in range(len(paths) // BATCH))


def ours(data: ImageFolderDataModule) -> Callable[[int], int]:
    """An epoch of a data module of image files."""
    data.setup("fit")
    loader = data.train_dataloader()

    def run(epoch: int) -> int:
        loader.batch_sampler.set_epoch(epoch)
        return sum(len(batch) for batch in loader)

    return run


def loaders(root: Path) -> dict[str, Callable[[int], int]]:
    """The contenders; all but one make crop and flip only."""
    shards = make_shards(root / "train", root / "shards/train", PER_SHARD)
    make_shards(root / "val", root / "shards/val", PER_SHARD)
    names = f"train-{{000000..{len(shards) - 1:06}}}.tar"
    common: Any = {"global_batch_size": BATCH, "workers": 0, "seed": 0, "drop_last": True}
    dali = {"DALI": dalis(root)} if importlib.util.find_spec("nvidia.dali") else {}
    return dali | {
        TIMM: timms(root, color_jitter=None),
        "timm, with its default colour jitter": timms(root),
        "ours, full": ours(ImageFolderDataModule(root, **common)),
        "ours, scaled": ours(ImageFolderDataModule(root, decode="scaled", **common)),
        "ours, from shards": ours(ShardsDataModule(root / "shards", names, "val-000000.tar", **common)),
    }


def spread(values: Sequence[float], digits: int = 0) -> dict[str, float]:
    """Median, least and greatest."""
    kinds = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in kinds.items()}


def turns(contenders: Mapping[str, Callable[[int], int]], rounds: int) -> dict[str, list[float]]:
    """Images per second of processor time of each contender in each round; a round before the first is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.process_time()
            count = run(turn)
            if turn:
                rates[name].append(count / (time.process_time() - start))
    return rates


def decodes(decode: Callable[[bytes], object], images: Sequence[Encoded]) -> Callable[[int], int]:
    """All images, decoded once."""
    return lambda turn: len([decode(image.data) for image in images])


def differences(images: Sequence[Encoded]) -> dict[str, dict[str, float]]:
    """Of each way to a view from Pillow's full one, over one view of each image: mean, and that of the worst view."""
    made: dict[str, list[float]] = {name: [] for name in VIEWS}
    for row, image in enumerate(images):
        views = {name: NamedTransform(view, 0)(image, row, 0).float() for name, view in VIEWS.items()}
        for name, view in views.items():
            made[name].append(float((view - views["Pillow"]).abs().mean()))
    return {name: {"mean": round(statistics.mean(d), 3), "worst": round(max(d), 3)} for name, d in made.items()}


def measured(root: Path, rounds: int) -> dict[str, Any]:
    """What there is to know of a folder's images."""
    data = ImageFolderDataModule(root)
    data.setup("fit")
    images = [data.files("train").read(row) for row in data.rows("train").tolist()]
    plain = [image for image in images if simplejpeg.decode_jpeg_header(image.data)[2] == "YCbCr"]
    sizes = [simplejpeg.decode_jpeg_header(image.data)[:2] for image in plain]
    decoding = turns({name: decodes(decode, plain) for name, decode in DECODERS.items()}, rounds)
    loading = turns(loaders(root), rounds)
    against = {name: [a / b for a, b in zip(rates, loading[TIMM], strict=True)] for name, rates in loading.items()}
    return {
        "images": len(images),
        "median_pixels": statistics.median(height * width for height, width in sizes),
        "mean_bytes": round(statistics.mean(len(image.data) for image in images)),
        "decoders_images_per_s": {name: spread(rates) for name, rates in decoding.items()},
        "loaders_images_per_s": {name: spread(rates) for name, rates in loading.items()},
        "loaders_over_timm": {name: spread(ratios, 2) for name, ratios in against.items()},
        "difference_from_pillow": differences(images),
    }


def versions() -> dict[str, str]:
    """Of what is installed of those that take part."""
    found = {}
    for kit in KITS:
        with suppress(PackageNotFoundError):
            found[kit] = version(kit)
    return found


def main() -> None:
    """Measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found: dict[str, Any] = {"versions": versions(), "rounds": chosen.rounds}
    for name, factor in ENLARGED.items():
        with tempfile.TemporaryDirectory() as folder:
            enlarged(chosen.folder, Path(folder), factor)
            found[name] = measured(Path(folder), chosen.rounds)
        print(
            f"\nimages {name}: {found[name]['median_pixels'] / 1e6:.2f} megapixels, {found[name]['mean_bytes']} bytes"
        )
        for key in ("decoders_images_per_s", "loaders_images_per_s", "loaders_over_timm"):
            for contender, rate in found[name][key].items():
                print(f"  {key:24} {contender:38} {rate['median']:8g} ({rate['min']:g} … {rate['max']:g})")
        for contender, values in found[name]["difference_from_pillow"].items():
            print(f"  {'difference_from_pillow':24} {contender:38} {values['mean']:8g} (worst {values['worst']:g})")
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
