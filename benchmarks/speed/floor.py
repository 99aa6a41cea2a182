"""The floor: the student alone in a bare loop, over the same loader and in the same precision as ours."""

from collections.abc import Iterator

import torch

from benchmarks.speed.bare_step import bare_step
from benchmarks.speed.networks import device, student_and_teacher
from benchmarks.speed.setting import SMALL, Setting
from benchmarks.speed.turns import turns
from kd_lightning.cli.allocator import keep_freed_memory
from kd_lightning.cli.precision import gains_from_bfloat16
from kd_lightning.datamodules import CIFAR100DataModule, ImageFolderDataModule
from kd_lightning.datamodules.loader import Loader


def our_loader(setting: Setting, batch: int, where: torch.device) -> Loader:
    """The training loader of this package, on a device."""
    data: CIFAR100DataModule | ImageFolderDataModule
    if setting.networks.side == SMALL:
        data = CIFAR100DataModule(str(setting.root), global_batch_size=batch, seed=0)
    else:
        data = ImageFolderDataModule(setting.root, batch, seed=0, workers=setting.threads)
    data.prepare_data()
    data.setup("fit")
    return data.loader("train", data.plan("train", True), where)


def run(setting: Setting) -> None:
    """Train the student alone."""
    keep_freed_memory()  # as the command line does
    where, lower = device(), gains_from_bfloat16("auto")
    loader, (student, _) = our_loader(setting, setting.batch, where), student_and_teacher(setting)
    student = student.to(where, memory_format=torch.channels_last).train()
    step = bare_step(student, lower)

    def epoch(number: int) -> Iterator[int]:
        loader.plan.set_epoch(number)
        for batch in loader:
            step(batch.image, batch.target)
            yield len(batch)

    turns().serve(epoch)
