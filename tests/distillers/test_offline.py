import copy
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from kd_lightning.batch import Batch
from kd_lightning.callbacks import SafeCheckpointIO
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.datamodules.mixing import Mixing
from kd_lightning.distillers import Classifier, OfflineDistiller, Term, Window
from kd_lightning.losses import CrossEntropy, SoftTarget
from kd_lightning.models import FrozenTeacher, Network, TeacherCheck


class Net(nn.Module):
    """Something with BatchNorm, dropout, and a layer that a tap reaches before the head."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(36 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.body(image)))
        return logits


class Constant(nn.Module):
    """Answers class 0 whatever it sees: right for a tenth of the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        nn.init.zeros_(self.linear.weight)
        self.linear.bias.data = 5 * F.one_hot(torch.tensor(0), 10).float()

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.linear(image.flatten(1))
        return logits


class Pull(nn.Module):
    """Pulls a feature of the student towards 1."""

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return (student - 1).square().mean()


class Watch(pl.Callback):
    """Keeps the student's parameters before each step, the batches, and what is trained."""

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []
        self.batches: list[Batch] = []
        self.trained: set[Tensor] = set()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.before.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})
        self.batches.append(batch)
        self.trained = {p for group in trainer.optimizers[0].param_groups for p in group["params"]}


def sgd(lr: float = 0.05, decay: float = 0.0) -> Any:
    return lambda p: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=decay)


def formula() -> dict[str, Term]:
    return {"ce": Term(CrossEntropy(), 0.1), "kd": Term(SoftTarget(4.0), 0.9)}


def distiller(teacher: nn.Module, criteria: dict[str, Term] | None = None, **options: Any) -> OfflineDistiller:
    stated: dict[str, Any] = {"student": Net(2), "optimizer": sgd(), "check": False} | options
    check = stated.pop("check")
    return OfflineDistiller(
        teacher=FrozenTeacher(teacher, check=check), criteria=formula() if criteria is None else criteria, **stated
    )


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=list(callbacks),
        plugins=[SafeCheckpointIO()],
        **({"max_epochs": 1, "log_every_n_steps": 1, "limit_train_batches": 3} | options),
    )


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network that knows the digits well enough to teach; copied by who changes it."""
    torch.manual_seed(0)
    net = Net(8)
    data = DigitsDataModule(seed=0)
    data.setup("fit")
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for batch in [*data.train_dataloader()] * 2:
        optimizer.zero_grad()
        F.cross_entropy(net(batch.image), batch.target).backward()
        optimizer.step()
    return net


def test_the_teacher_does_not_change(tmp_path: Path, trained: nn.Module) -> None:
    teacher = copy.deepcopy(trained).train()
    before = copy.deepcopy(teacher.state_dict())
    module, data, run = distiller(teacher, optimizer=sgd(0.1, 0.1)), DigitsDataModule(), trainer(tmp_path)
    run.fit(module, data)
    module.train()
    run.validate(module, data, verbose=False)
    run.test(module, data, verbose=False)
    after = teacher.state_dict()
    assert any("running_mean" in name for name in after)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(part.training for part in teacher.modules())


def test_the_teacher_is_in_no_optimizer_and_no_checkpoint(tmp_path: Path, trained: nn.Module) -> None:
    teacher, watch, run = copy.deepcopy(trained), Watch(), trainer(tmp_path)
    run = trainer(tmp_path, watch)
    module = distiller(teacher)
    run.fit(module, DigitsDataModule())
    assert watch.trained == set(module.student.parameters() if module.student else [])
    assert not watch.trained & set(teacher.parameters())
    assert not set(module.modules()) & set(teacher.modules())
    run.save_checkpoint(tmp_path / "kept.ckpt")
    state = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in state} == {"student"}
    assert {key.removeprefix("student.") for key in state} == set(Net(2).state_dict())


def test_global_step_is_the_number_of_optimizer_steps(tmp_path: Path, trained: nn.Module) -> None:
    steps: list[int] = []

    def counted(parameters: Any) -> Optimizer:
        optimizer = torch.optim.SGD(parameters, 0.01)
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    run = trainer(tmp_path, accumulate_grad_batches=2, max_epochs=2, limit_train_batches=5)
    run.fit(distiller(copy.deepcopy(trained), optimizer=counted), DigitsDataModule())
    assert run.global_step == len(steps) == 6


def test_student_starts_from_the_same_weights_with_and_without_teacher(tmp_path: Path, trained: nn.Module) -> None:
    recipe, watches = Network("cifar_resnet14"), [Watch(), Watch(), Watch()]
    modules = [
        Classifier(recipe, sgd()),
        distiller(copy.deepcopy(trained), student=recipe),
        Classifier(recipe, sgd()),
    ]
    for seed, module, watch in zip((7, 7, 8), modules, watches, strict=True):
        pl.seed_everything(seed)
        trainer(tmp_path, watch, limit_train_batches=1, limit_val_batches=0).fit(module, DigitsDataModule())
    alone, taught, other = (watch.before[0] for watch in watches)
    assert alone.keys() == taught.keys()
    assert all(torch.equal(alone[name], taught[name]) for name in alone)
    assert any(not torch.equal(alone[name], other[name]) for name in alone)


def test_teacher_near_chance_stops_before_step_0(tmp_path: Path) -> None:
    student, run = Net(2), trainer(tmp_path)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=r"teacher's top-1 is 0\.\d{4} on 135 images, near chance \(1/10\)"):
        run.fit(distiller(Constant(), student=student, check=TeacherCheck()), DigitsDataModule())
    assert run.global_step == 0
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())


def test_without_a_check_it_teaches_all_the_same(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(distiller(Constant(), check=False), DigitsDataModule())
    assert run.global_step == 3


def test_teacher_that_knows_something_is_shown_and_passes(
    tmp_path: Path, trained: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    data, run = DigitsDataModule(), trainer(tmp_path)
    with caplog.at_level(logging.INFO):
        run.fit(distiller(copy.deepcopy(trained), check=TeacherCheck()), data)
    right = sum(int((trained.eval()(b.image).argmax(1) == b.target).sum()) for b in data.val_dataloader())
    assert f"teacher: top-1 {right / 135:.4f} on 135 images" in caplog.text
    assert run.global_step == 3


def test_the_examination_does_not_change_what_is_trained(tmp_path: Path, trained: nn.Module) -> None:
    students = []
    for check in (TeacherCheck(), False):
        torch.manual_seed(3)
        student = Net(2)
        data = DataLoader(TensorDataset(torch.randn(64, 1, 8, 8), torch.arange(64) % 10), batch_size=8, shuffle=True)
        teacher = copy.deepcopy(trained)
        check = TeacherCheck(above_chance=0.0) if check else False
        module = distiller(teacher, student=student, check=check, num_classes=10)
        trainer(tmp_path, limit_train_batches=8).fit(module, data)
        students.append(student.state_dict())
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_student_of_other_classes_is_an_error_with_both_numbers(tmp_path: Path, trained: nn.Module) -> None:
    with pytest.raises(ValueError, match="the student has 100 classes, the data 10"):
        trainer(tmp_path).fit(distiller(copy.deepcopy(trained), student=Net(2, 100)), DigitsDataModule())


def test_teacher_of_other_classes_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the teacher has 100 classes, the data 10"):
        trainer(tmp_path).fit(distiller(Net(2, 100)), DigitsDataModule())


def test_criteria_that_ask_no_teacher_are_an_error() -> None:
    with pytest.raises(ValueError, match="no term of criteria asks the teacher: add one, or train a Classifier"):
        distiller(Constant(), {"ce": Term(CrossEntropy())})


def test_a_view_that_the_batch_lacks_is_an_error(tmp_path: Path) -> None:
    module = distiller(Constant(), {"kd": Term(SoftTarget(), view="strong")})
    with pytest.raises(ValueError, match=r"views \['strong'\], the batch has \['default'\]"):
        trainer(tmp_path).fit(module, DigitsDataModule())


def test_a_plain_loader_of_images_and_labels_works(tmp_path: Path, trained: nn.Module) -> None:
    loader = DataLoader(TensorDataset(torch.randn(24, 1, 8, 8), torch.arange(24) % 10), batch_size=8)
    module, run = distiller(copy.deepcopy(trained), num_classes=10), trainer(tmp_path)
    run.fit(module, loader, loader)
    assert run.global_step == 3
    (figures,) = run.test(module, loader, verbose=False)
    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    top1 = (trained.eval()(images).argmax(1) == labels).float().mean().item()
    assert figures["test/teacher_top1"] == pytest.approx(top1, abs=1e-6)


def test_the_distillation_term_falls(tmp_path: Path, trained: nn.Module) -> None:
    teacher, student = copy.deepcopy(trained), Net(4)
    data = DigitsDataModule()
    data.setup("test")
    image = next(iter(data.test_dataloader())).image

    def distance() -> float:
        with torch.no_grad():
            log_s, p_t = (student.eval()(image) / 4).log_softmax(1), (trained.eval()(image) / 4).softmax(1)
        return float((p_t * (p_t.log() - log_s)).sum(1).mean())

    before = distance()
    run = trainer(tmp_path, max_epochs=3, limit_train_batches=10)
    run.fit(distiller(teacher, {"kd": Term(SoftTarget(4.0))}, student=student), DigitsDataModule())
    assert run.global_step == 30
    assert distance() < before / 2


def test_what_no_active_term_reaches_keeps_its_values(tmp_path: Path, trained: nn.Module) -> None:
    criteria = {
        "pull": Term(Pull(), Window(1.0, start=1, end=2), student="body", teacher=None),
        "kd": Term(SoftTarget(), Window(1.0, end=1)),
        "ce": Term(CrossEntropy(), Window(1.0, start=2)),
    }
    watch = Watch()
    module = distiller(copy.deepcopy(trained), criteria, optimizer=sgd(0.1, decay=0.1))
    trainer(tmp_path, watch, max_epochs=3, limit_val_batches=0).fit(module, DigitsDataModule())
    before = watch.before
    assert len(before) == 9
    moved = [{name for name in before[0] if not torch.equal(before[i][name], before[i + 1][name])} for i in range(8)]
    body = {name for name in before[0] if name.startswith("student.body")}
    head = {"student.head.weight", "student.head.bias"}
    assert moved == [body | head] * 3 + [body] * 3 + [body | head] * 2


def test_teacher_and_student_see_the_same_pixels(tmp_path: Path, trained: nn.Module) -> None:
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    teacher, student = copy.deepcopy(trained), Net(2)
    run = trainer(tmp_path, limit_val_batches=0)
    hooks = {"teacher": teacher, "student": student}
    for name, net in hooks.items():
        net.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].clone()))
    run.fit(distiller(teacher, student=student), DigitsDataModule())
    assert len(seen["student"]) == 4  # the first is the probe of the shapes
    assert all(torch.equal(one, other) for one, other in zip(seen["teacher"], seen["student"], strict=True))


def test_mixed_targets_are_learnt_as_they_are(tmp_path: Path, trained: nn.Module) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, image: Tensor) -> Tensor:
            return self.linear(image.flatten(1))  # type: ignore[no-any-return]

    student, watch = Linear(), Watch()
    run = trainer(tmp_path, watch, limit_train_batches=1, limit_val_batches=0)
    module = distiller(copy.deepcopy(trained), student=student, optimizer=sgd(0.0))
    run.fit(module, DigitsDataModule(mixing=Mixing(mixup_alpha=1.0)))
    (batch,) = watch.batches
    assert batch.target.shape == (64, 10)
    assert (batch.target.max(dim=1).values < 0.99).any()
    ce = -(batch.target * student(batch.image).log_softmax(1)).sum(1).mean().item()
    log_s, log_t = ((net(batch.image) / 4).log_softmax(1) for net in (student, trained.eval()))
    kd = 16 * (log_t.exp() * (log_t - log_s)).sum(1).mean().item()
    figures = {name: value.item() for name, value in run.callback_metrics.items() if name.startswith("train/")}
    assert figures == pytest.approx({"train/ce": ce, "train/kd": kd, "train/loss": 0.1 * ce + 0.9 * kd}, rel=1e-5)


def test_logged_names(tmp_path: Path, trained: nn.Module) -> None:
    module, data, run = distiller(copy.deepcopy(trained)), DigitsDataModule(), trainer(tmp_path)
    run.fit(module, data)
    assert set(run.callback_metrics) == {
        *("train/ce", "train/kd", "train/loss"),
        *("val/top1", "val/top5", "val/loss"),
    }
    (figures,) = run.test(module, data, verbose=False)
    assert figures.keys() == {
        f"test/{name}" for name in ("top1", "top5", "loss", "ece", "teacher_top1", "agreement", "teacher_kl")
    }


def test_a_teacher_that_is_the_student_agrees_with_it(tmp_path: Path, trained: nn.Module) -> None:
    module = distiller(copy.deepcopy(trained), student=copy.deepcopy(trained))
    (figures,) = trainer(tmp_path).test(module, DigitsDataModule(), verbose=False)
    assert figures["test/agreement"] == 1.0
    assert figures["test/teacher_kl"] == pytest.approx(0.0, abs=1e-6)
    assert figures["test/teacher_top1"] == figures["test/top1"] > 0.5
