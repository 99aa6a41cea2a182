"""timm's distillation task over timm's loader: as it is, and as fast as it gets."""

from collections.abc import Iterator

import torch
from timm.data import create_loader
from timm.task import LogitDistillationTask
from torch import nn
from torchvision.transforms import RandomCrop

from benchmarks.speed.images import one_by_one
from benchmarks.speed.networks import device, sgd, student_and_teacher
from benchmarks.speed.setting import SMALL, Setting
from benchmarks.speed.turns import Epoch, serve_quickest
from kd_lightning.cli.allocator import keep_freed_memory


def train(setting: Setting, fast: bool) -> None:
    """Train with timm; ``fast`` is bfloat16 autocast, channels_last, an optimizer by lists, and our allocator."""
    where, side = device(), setting.networks.side
    if fast:
        keep_freed_memory()
    student, teacher = student_and_teacher(setting)
    layout = torch.channels_last if fast else torch.contiguous_format
    student, teacher = (network.to(where, memory_format=layout) for network in (student, teacher))
    task = LogitDistillationTask(
        student,
        teacher,
        nn.CrossEntropyLoss(),
        distill_loss_weight=0.9,
        task_loss_weight=0.1,
        temperature=4.0,
        device=where,
        verbose=False,
    ).train()
    optimizer = sgd(student, foreach=True if fast else None)

    def make(workers: int) -> Epoch:
        loader = create_loader(
            one_by_one(setting, None),
            input_size=(3, side, side),
            batch_size=setting.batch,
            is_training=True,
            color_jitter=None,
            mean=student.pretrained_cfg["mean"],
            std=student.pretrained_cfg["std"],
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=where.type == "cuda",
            device=where,
        )
        if side == SMALL:  # timm's own scripts do it so
            loader.dataset.transform.transforms[0] = RandomCrop(side, padding=4)

        def epoch(number: int) -> Iterator[int]:
            for image, target in loader:
                with torch.autocast(where.type, dtype=torch.bfloat16, enabled=fast):
                    loss = task(image.contiguous(memory_format=layout), target)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                yield len(target)

        return epoch

    serve_quickest(make, [0, setting.threads])


def default(setting: Setting) -> None:
    """float32, contiguous."""
    train(setting, fast=False)


def fastest(setting: Setting) -> None:
    """bfloat16 autocast, channels_last, and freed memory kept, which timm does not do by itself."""
    train(setting, fast=True)
