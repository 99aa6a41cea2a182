"""Loaders alone: ours against torchvision's transforms of one PIL image at a time."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from benchmarks.speed.floor import our_loader
from benchmarks.speed.images import one_by_one
from benchmarks.speed.networks import device
from benchmarks.speed.setting import Setting
from benchmarks.speed.torchdistill_box import per_image
from benchmarks.speed.turns import Epoch, serve_quickest, turns

PASSES = 10  # of ours, which is over too soon to be timed


def ours(setting: Setting) -> None:
    """Whole batches."""
    loader = our_loader(setting, setting.batch, device())

    def epoch(number: int) -> Iterator[int]:
        for part in range(PASSES):
            loader.plan.set_epoch(number * PASSES + part)
            for batch in loader:
                yield len(batch)

    turns().serve(epoch)


def torchvision(setting: Setting) -> None:
    """One image at a time."""
    images = one_by_one(setting, per_image(setting.networks.side))

    def make(workers: int) -> Epoch:
        loader = DataLoader(images, setting.batch, True, num_workers=workers, persistent_workers=workers > 0)

        def epoch(number: int) -> Iterator[int]:
            for _, target in loader:
                yield len(target)

        return epoch

    serve_quickest(make, [0, setting.threads])
