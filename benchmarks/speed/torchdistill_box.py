"""torchdistill's box with its own configuration, hooks and loader, in float32."""

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from benchmarks.speed.images import one_by_one
from benchmarks.speed.networks import SGD, classifier_name, device, student_and_teacher
from benchmarks.speed.setting import SMALL, Setting
from benchmarks.speed.turns import Epoch, serve_quickest, turns
from kd_lightning.datamodules import CIFAR100DataModule

MISSING = "torchdistill is not installed"


def per_image(side: int) -> Compose:
    """The usual augmentation of torchvision, one image at a time."""
    crop = RandomCrop(side, padding=4) if side == SMALL else RandomResizedCrop(side)
    normal = Normalize(CIFAR100DataModule.mean, CIFAR100DataModule.std)
    return Compose([crop, RandomHorizontalFlip(), ToTensor(), normal])


def configuration(batch: int, workers: int, student: str, teacher: str) -> dict[str, Any]:
    """As in torchdistill's own files for soft targets; both classifiers are hooked.

    Args:
        batch: Images per step.
        workers: Of the loader.
        student: Name of its classifier.
        teacher: Name of its classifier.
    """
    from torch.utils.data import RandomSampler

    def hooked(name: str) -> dict[str, Any]:
        return {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": [name]}}

    loss = {"student_module_path": student, "teacher_module_path": teacher, "temperature": 4.0, "alpha": 0.1}
    loss |= {"student_module_io": "output", "teacher_module_io": "output", "reduction": "batchmean"}
    kwargs = {"batch_size": batch, "num_workers": workers, "pin_memory": device().type == "cuda"}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": kwargs,
        },
        "teacher": hooked(teacher) | {"requires_grad": False},
        "student": hooked(student) | {"requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}},
        },
    }


def run(setting: Setting) -> None:
    """Train with torchdistill, if it is there."""
    if importlib.util.find_spec("torchdistill") is None:
        turns().say(missing=MISSING)
        return
    from torchdistill.core.distillation import DistillationBox

    logging.disable(logging.INFO)
    student, teacher = student_and_teacher(setting)
    images, where = {"train": one_by_one(setting, per_image(setting.networks.side))}, device()

    names = classifier_name(student), classifier_name(teacher)
    devices = [0] if where.type == "cuda" else []
    plan = configuration(setting.batch, 0, *names)
    box = DistillationBox(teacher, student, images, plan, where, devices, False, 1)

    def make(workers: int) -> Epoch:
        box.setup_data_loaders(configuration(setting.batch, workers, *names))

        def epoch(number: int) -> Iterator[int]:
            box.pre_epoch_process(epoch=number)
            for image, target, more in box.train_data_loader:
                image, target = image.to(where), target.to(where)
                box.pre_forward_process()
                loss = box.forward_process(image, target, more)
                box.post_forward_process(loss=loss)
                yield len(target)

        return epoch

    serve_quickest(make, [0, setting.threads])
