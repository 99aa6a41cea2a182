import copy
import logging
from pathlib import Path
from typing import Any, ClassVar

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
from kd_lightning.losses import CRD, SRRL, CrossEntropy, Hint, Loss, SoftTarget
from kd_lightning.models import (
    FrozenTeacher,
    Network,
    Outputs,
    SimKDStudent,
    TapPlan,
    Teacher,
    TeacherCheck,
    Views,
    load_weights,
    save_weights,
)
from kd_lightning.models.weights import read_weights


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
        teacher=FrozenTeacher(teacher, check=check, fold=False),
        criteria=formula() if criteria is None else criteria,
        **stated,
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


def hinted(**others: Term) -> dict[str, Term]:
    """Cross entropy, and a hint with a trained regressor between the convolutions of student and teacher."""
    hint = Term(Hint("conv_bn_relu"), 1.0, student="body.2", teacher="body.2")
    return {"ce": Term(CrossEntropy(), 0.1), "hint": hint, **others}


def adapters_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "criteria.losses.hint."
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def test_adapters_train_with_the_student(tmp_path: Path, trained: nn.Module) -> None:
    watch = Watch()
    run = trainer(tmp_path, watch, limit_val_batches=0)
    module = distiller(copy.deepcopy(trained), hinted())
    run.fit(module, DigitsDataModule())
    adapters = list(module.criteria.parameters())
    assert len(adapters) == 4  # a 1x1 convolution with bias, and a normalisation
    assert watch.trained == {*module.parameters()}
    assert set(adapters) <= watch.trained
    first, last = adapters_of(watch.before[0]), adapters_of(dict(module.named_parameters()))
    assert len(first) == 4
    moving = first.keys() - {"adapters.0.0.1.bias"}  # a normalisation follows this bias, whose gradient is so 0
    assert len(moving) == 3
    assert all(not torch.equal(first[name], last[name]) for name in moving)


def test_adapters_are_in_the_checkpoint_and_in_no_export(tmp_path: Path, trained: nn.Module) -> None:
    module, run = distiller(copy.deepcopy(trained), hinted()), trainer(tmp_path, limit_val_batches=0)
    run.fit(module, DigitsDataModule())
    run.save_checkpoint(tmp_path / "kept.ckpt")
    state = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in state} == {"student", "criteria"}
    kept = adapters_of(state)
    expected = module.criteria.losses["hint"].state_dict()
    assert kept.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in kept.items())
    plain = set(Net(2).state_dict())
    assert read_weights(tmp_path / "kept.ckpt").keys() == plain
    assert module.student is not None
    save_weights(module.student, tmp_path / "student.safetensors")
    assert read_weights(tmp_path / "student.safetensors").keys() == plain
    for file in ("kept.ckpt", "student.safetensors"):
        other = Net(2)
        load_weights(other, tmp_path / file)
        assert torch.equal(other.head.weight, module.student.get_parameter("head.weight"))


def test_an_interrupted_training_with_adapters_ends_where_the_whole_one_does(
    tmp_path: Path, trained: nn.Module
) -> None:
    def module() -> OfflineDistiller:
        torch.manual_seed(1)
        return distiller(copy.deepcopy(trained), hinted(), student=Net(2))

    pl.seed_everything(4)
    whole, first, second = module(), module(), module()
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(whole, DigitsDataModule())
    run = trainer(tmp_path, max_epochs=2, max_steps=3, limit_val_batches=0)
    run.fit(first, DigitsDataModule())
    run.save_checkpoint(tmp_path / "half.ckpt")
    run = trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    run.fit(second, DigitsDataModule(), ckpt_path=tmp_path / "half.ckpt")
    assert run.global_step == 6
    ends, half = (dict(m.state_dict()) for m in (whole, first))
    assert adapters_of(ends)
    assert all(torch.equal(value, ends[name]) for name, value in second.state_dict().items())
    assert any(not torch.equal(value, adapters_of(ends)[name]) for name, value in adapters_of(half).items())


def test_adapters_start_from_seed_and_term_whatever_else_is_built(tmp_path: Path, trained: nn.Module) -> None:
    more = {"more": Term(Hint("linear"), student="head:in", teacher="head:in"), "kd": Term(SoftTarget())}
    starts = []
    for seed, others, width in ((7, {}, 8), (7, more, 8), (8, {}, 8)):
        pl.seed_everything(seed)
        torch.manual_seed(len(others))  # and whatever was drawn before
        watch = Watch()
        module = distiller(copy.deepcopy(trained), {**others, **hinted()}, student=Net(width))
        run = trainer(tmp_path, watch, limit_train_batches=1, limit_val_batches=0)
        run.fit(module, DigitsDataModule())
        starts.append(adapters_of(watch.before[0]))
    alone, beside, other = starts
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert any(not torch.equal(alone[name], other[name]) for name in alone)


class Kept(Loss):
    """Keeps what it is told of the run."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"train_targets", "student_classifier", "teacher_classifier", "teacher_norms"}
    )
    student_tap: ClassVar[str] = "embedding"
    teacher_tap: ClassVar[str] = "body.2:in"

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, Any] = {}
        self.given: list[Tensor] = []

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, **told: Any) -> Tensor:
        self.told, self.given = told, [student, teacher]
        return student.square().mean()


def test_losses_are_told_what_they_need_of_student_teacher_and_data(tmp_path: Path, trained: nn.Module) -> None:
    loss, teacher, data = Kept(), copy.deepcopy(trained), DigitsDataModule()
    module = distiller(teacher, {"kept": Term(loss)})
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(module, data)
    assert module.student is not None
    assert torch.equal(loss.told["train_targets"], data.train_targets)
    assert loss.told["student_classifier"] is module.student.get_submodule("head")
    embedding = torch.randn(3, 36 * 8)
    torch.testing.assert_close(loss.told["teacher_classifier"](embedding), teacher.get_submodule("head")(embedding))
    ((mean, std),) = loss.told["teacher_norms"]
    norm = teacher.get_submodule("body.1")
    assert torch.equal(mean, norm.bias)
    assert torch.equal(std, norm.weight.abs())
    assert loss.given[0].shape[1:] == (36 * 2,)
    assert loss.given[1].shape[1:] == (8, 6, 6)
    assert (loss.given[1] < 0).any()


def test_what_is_matched_and_what_to_know_is_shown_before_the_training(
    tmp_path: Path, trained: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    crd = Term(CRD(dim=8, negatives=16), 0.1, student="head:in", teacher="head:in")
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(
            distiller(copy.deepcopy(trained), hinted(crd=crd)), DigitsDataModule()
        )
    assert "what is matched" in caplog.text
    assert "body.2  2 x 6 x 6" in caplog.text
    assert "body.2  8 x 6 x 6" in caplog.text
    assert "criteria.crd: " in caplog.text


def test_training_targets_that_nobody_knows_stop_before_step_0(tmp_path: Path, trained: nn.Module) -> None:
    loader = DataLoader(TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16) % 10), batch_size=8)
    criteria = {"crd": Term(CRD(dim=8, negatives=4), student="head:in", teacher="head:in")}
    module, run = distiller(copy.deepcopy(trained), criteria, num_classes=10), trainer(tmp_path)
    with pytest.raises(ValueError, match=r"criteria\.crd: the loss needs train_targets, the classes of all training"):
        run.fit(module, loader)
    assert run.global_step == 0


class Answers(Teacher):
    """A teacher that is no single network."""

    check = False
    expected_top1 = None

    def setup(self, num_classes: int, views: Views, taps: Any) -> None: ...

    def to(self, device: torch.device) -> None: ...

    def plan(self) -> TapPlan:
        return TapPlan({"embedding": "embedding"}, {"embedding": (2, 4), "logits": (2, 10)})

    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        return Outputs(torch.zeros(len(batch), 10), {"embedding": torch.zeros(len(batch), 4)})


def test_a_teacher_without_a_classifier_stops_a_loss_that_needs_one_before_step_0(tmp_path: Path) -> None:
    term = Term(SRRL(), student="body.2")
    module = OfflineDistiller(Net(2), Answers(), {"srrl": term}, sgd())
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"criteria\.srrl: a Answers has no single classifier that a loss could use"):
        run.fit(module, DigitsDataModule())
    assert run.global_step == 0


def test_a_classifier_that_no_teacher_has_stops_a_loss_that_needs_it(tmp_path: Path) -> None:
    class Needs(CrossEntropy):
        needs: ClassVar[frozenset[str]] = frozenset({"teacher_classifier"})

    run = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"criteria\.ce: the loss needs teacher_classifier, but Classifier has no tea"):
        run.fit(Classifier(Net(2), sgd(), loss=Needs()), DigitsDataModule())
    assert run.global_step == 0


def test_shapes_that_a_loss_cannot_match_are_an_error_that_names_the_term(tmp_path: Path, trained: nn.Module) -> None:
    criteria = {"hint": Term(Hint(), student="body.2", teacher="head:in")}
    with pytest.raises(ValueError, match=r"criteria\.hint: student and teacher must both be maps or both be vectors"):
        trainer(tmp_path).fit(distiller(copy.deepcopy(trained), criteria), DigitsDataModule())


@pytest.fixture
def simkd(tmp_path: Path) -> tuple[Network, Network]:
    """The recipes of SimKD's student and of its teacher."""
    torch.manual_seed(2)
    teacher = Network("cifar_resnet8").build(10, 1, "teacher")
    save_weights(teacher, tmp_path / "teacher.safetensors")
    fields = {"name": "cifar_resnet8", "weights": str(tmp_path / "teacher.safetensors")}
    kwargs = {"student": {"name": "cifar_resnet14"}, "teacher": fields}
    return Network("kd_lightning.models.SimKDStudent", kwargs=kwargs), Network(**fields)


def test_simkd_trains_backbone_and_projector_and_keeps_the_teachers_classifier(
    tmp_path: Path, simkd: tuple[Network, Network]
) -> None:
    student, teacher = simkd
    pl.seed_everything(5)
    hint = Term(Hint("none"), student="projector", teacher="last_map")
    module = OfflineDistiller(student, FrozenTeacher(teacher, check=False), {"hint": hint}, sgd(0.05, 0.1))
    watch = Watch()
    run = trainer(tmp_path, watch, limit_val_batches=0)
    run.fit(module, DigitsDataModule())
    net = module.student
    assert isinstance(net, SimKDStudent)
    assert watch.trained == {*net.backbone.parameters(), *net.projector.parameters()}
    plain = Network("cifar_resnet14").build(10, 1).state_dict()
    start = {name.removeprefix("student.backbone."): value for name, value in watch.before[0].items()}
    started = {name for name in plain if name in start}
    assert started == {name for name, _ in net.backbone.named_parameters()}
    assert all(torch.equal(plain[name], start[name]) for name in started)
    last = dict(module.named_parameters())
    changed = {name.split(".")[1] for name in last if not torch.equal(watch.before[0][name], last[name])}
    assert changed == {"backbone", "projector"}
    own = teacher.build(10, 1).get_submodule("fc")
    assert torch.equal(net.classifier.weight, own.weight)
    run.save_checkpoint(tmp_path / "kept.ckpt")
    twin = student.build(10, 1)
    load_weights(twin, tmp_path / "kept.ckpt")
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(twin.eval()(image), net.eval()(image))
