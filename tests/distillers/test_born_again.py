import copy
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning import trust
from kd_lightning.batch import Batch
from kd_lightning.callbacks import Checkpoints, SafeCheckpointIO, StudentEMA
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import (
    BornAgainDistiller,
    Classifier,
    OfflineDistiller,
    ShareCosineLR,
    Term,
    Window,
    generation_seed,
)
from kd_lightning.losses import CRD, CWTM, DKPP, VID, CrossEntropy, CurriculumTemperature, Hint, Loss, SoftTarget
from kd_lightning.models import FrozenTeacher, Network
from kd_lightning.models.weights import read_weights
from kd_lightning.run_folder import RunFolder

SEED, EPOCHS, GENERATIONS = 7, 2, 3
STEPS = 3  # of an epoch: 1212 samples in batches of 404


class Net(nn.Module):
    """Something with BatchNorm, dropout, and a layer that a tap reaches before the head."""

    def __init__(self, num_classes: int, in_chans: int, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(36 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.body(image)))
        return logits


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "ALLOWED", {*trust.ALLOWED, __name__.split(".")[0]})


def net(weights: Path | None = None, width: int = 4) -> Network:
    return Network(f"{__name__}.Net", {"width": width}, None if weights is None else str(weights))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3)


def labels(weight: float = 1.0) -> dict[str, Term]:
    return {"ce": Term(CrossEntropy(), weight, teacher=None)}


def plain() -> dict[str, Term]:
    return {**labels(0.5), "kd": Term(SoftTarget(1.0))}


def permuted() -> dict[str, Term]:
    return {"dkpp": Term(DKPP()), "cwtm": Term(CWTM(), Window(1.0, start=0.5))}  # of a generation


def remembering() -> dict[str, Term]:
    """Adapters, a learnt temperature and a memory bank: all that a generation must begin anew."""
    return {
        **labels(),
        "hint": Term(Hint("linear"), 0.1, student="body", teacher="body"),
        "vid": Term(VID(), 0.1, student="body", teacher="body"),
        "crd": Term(CRD(dim=4, negatives=8), 0.1),
        "kd": Term(CurriculumTemperature(SoftTarget(), epochs=1.0)),
    }


def born_again(criteria: dict[str, Term] | None = None, **options: Any) -> BornAgainDistiller:
    options = {"generations": GENERATIONS, "scheduler": ShareCosineLR, **options}
    return BornAgainDistiller(net(), plain() if criteria is None else criteria, sgd, **options)


def digits(**options: Any) -> DigitsDataModule:
    return DigitsDataModule(global_batch_size=404, **options)


def trainer_of(root: Path, epochs: int = EPOCHS * GENERATIONS, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = {"enable_checkpointing": bool(options.get("callbacks"))}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=root,
        max_epochs=epochs,
        plugins=[SafeCheckpointIO()],
        **{**quiet, **saving, **options},
    )


def fit(module: pl.LightningModule, root: Path, seed: int = SEED, data: Any = None, **options: Any) -> pl.Trainer:
    pl.seed_everything(seed)
    checkpoint = options.pop("ckpt_path", None)
    trainer = trainer_of(root, **options)
    trainer.fit(module, data or digits(), ckpt_path=checkpoint)
    return trainer


def weights_of(root: Path, generation: int) -> dict[str, Tensor]:
    return read_weights(root / "generations" / f"{generation}.safetensors")


def student(module: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.student.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


# A generation is a training of its own


@pytest.mark.parametrize(("criteria", "interval"), [(plain, "epoch"), (permuted, "epoch"), (remembering, "step")])
def test_each_generation_equals_an_offline_fit_from_the_one_before(
    criteria: Any, interval: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"scheduler": ShareCosineLR, "scheduler_interval": interval}
    first = labels() if criteria is permuted else None
    fit(born_again(criteria(), first=first, **options), tmp_path)
    alone = Classifier(net(), sgd, **options, loss=CrossEntropy())
    if criteria is not plain:  # whose labels weigh a half in generation 0 too
        fit(alone, tmp_path / "alone", epochs=EPOCHS)
        assert_equal(student(alone), weights_of(tmp_path, 0))
    for generation in range(1, GENERATIONS):
        teacher = FrozenTeacher(net(tmp_path / "generations" / f"{generation - 1}.safetensors"), check=False)
        separate = OfflineDistiller(net(), teacher, criteria(), sgd, **options)
        own_seed = generation_seed(SEED, generation)
        fit(separate, tmp_path / "separate", own_seed, digits(seed=SEED), epochs=EPOCHS)
        assert_equal(student(separate), weights_of(tmp_path, generation))
    assert not torch.equal(weights_of(tmp_path, 1)["head.weight"], weights_of(tmp_path, 2)["head.weight"])


def test_the_weights_of_a_generation_do_not_depend_on_how_many_follow(tmp_path: Path) -> None:
    fit(born_again(generations=1), tmp_path / "one", epochs=EPOCHS)
    fit(born_again(generations=2), tmp_path / "two", epochs=2 * EPOCHS)
    assert_equal(weights_of(tmp_path / "one", 0), weights_of(tmp_path / "two", 0))
    assert [path.name for path in sorted((tmp_path / "two/generations").iterdir())] == [
        "0.safetensors",
        "1.safetensors",
    ]


def test_an_average_starts_anew_and_teaches(tmp_path: Path) -> None:
    fit(born_again(), tmp_path, callbacks=[StudentEMA(0.8)])
    ema = StudentEMA(0.8)
    teacher = FrozenTeacher(net(tmp_path / "generations/1.safetensors"), check=False)
    separate = OfflineDistiller(net(), teacher, plain(), sgd, scheduler=ShareCosineLR)
    data = digits(seed=SEED)
    fit(separate, tmp_path / "separate", generation_seed(SEED, 2), data, epochs=EPOCHS, callbacks=[ema])
    assert ema.average is not None
    assert_equal(ema.average.module.state_dict(), weights_of(tmp_path, 2))
    assert not torch.equal(student(separate)["head.weight"], weights_of(tmp_path, 2)["head.weight"])


def test_an_average_that_is_not_evaluated_does_not_teach(tmp_path: Path) -> None:
    fit(born_again(), tmp_path / "with", callbacks=[StudentEMA(0.8, evaluate=False)])
    fit(born_again(), tmp_path / "without")
    for generation in range(GENERATIONS):
        assert_equal(weights_of(tmp_path / "with", generation), weights_of(tmp_path / "without", generation))


def test_a_given_teacher_teaches_generation_0_with_all_criteria(tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = Net(10, 1, width=6)
    criteria = {"kd": Term(SoftTarget(1.0))}  # no labels
    fit(born_again(criteria, teacher=FrozenTeacher(copy.deepcopy(given), check=False)), tmp_path)
    separate = OfflineDistiller(net(), FrozenTeacher(given, check=False), criteria, sgd, scheduler=ShareCosineLR)
    fit(separate, tmp_path / "separate", epochs=EPOCHS)
    assert_equal(student(separate), weights_of(tmp_path, 0))


def test_a_given_teacher_is_examined(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="near chance"):
        fit(born_again(teacher=FrozenTeacher(Net(10, 1))), tmp_path)


def test_a_given_teacher_may_not_need_adapters_of_its_own(tmp_path: Path) -> None:
    module = born_again(remembering(), teacher=FrozenTeacher(Net(10, 1, width=6), check=False))
    with pytest.raises(
        ValueError, match=r"^criteria\.hint: its adapters would change with the teacher, whose taps are"
    ):
        fit(module, tmp_path)


class Norms(Loss):
    """Keeps what it is told of the teacher's batch normalisation."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_norms"})

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, teacher_norms: Any) -> Tensor:
        self.told.append(teacher_norms[0][0].clone())
        return student.square().mean()


def test_losses_are_told_of_the_present_teacher(tmp_path: Path) -> None:
    given, norms = Net(10, 1), Norms()
    nn.init.constant_(given.body[1].bias, 0.25)  # type: ignore[arg-type]
    criteria = {"norms": Term(norms, student="body.2:in", teacher="body.2:in"), "kd": Term(SoftTarget(1.0))}
    fit(born_again(criteria, teacher=FrozenTeacher(given, check=False)), tmp_path)
    biases = [torch.full((4,), 0.25), *(weights_of(tmp_path, generation)["body.1.bias"] for generation in (0, 1))]
    assert len(norms.told) == 3 * STEPS * EPOCHS
    for step, told in enumerate(norms.told):
        assert torch.equal(told, biases[step // (STEPS * EPOCHS)]), step


# Going on


class Everything(pl.Callback):
    """Saves each step, after it and after what follows the last one of an epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step}.ckpt")


def test_resumed_from_every_step_equals_uninterrupted(tmp_path: Path) -> None:
    whole = born_again(remembering(), generations=2)
    epochs = pl.callbacks.ModelCheckpoint(
        tmp_path / "saved", "epoch-{step}", save_top_k=-1, save_on_train_epoch_end=True, auto_insert_metric_name=False
    )
    fit(whole, tmp_path, epochs=2 * EPOCHS, callbacks=[StudentEMA(0.8), Everything(tmp_path / "saved"), epochs])
    saved = sorted((tmp_path / "saved").iterdir())
    assert len(saved) == 2 * EPOCHS * (STEPS + 1)
    for number, checkpoint in enumerate(saved):
        root = tmp_path / str(number)
        resumed = born_again(remembering(), generations=2)
        saving = {"enable_checkpointing": False, "ckpt_path": checkpoint}
        fit(resumed, root, epochs=2 * EPOCHS, callbacks=[StudentEMA(0.8)], **saving)
        for mine, its in ((student(whole), student(resumed)), (whole.state_dict(), resumed.state_dict())):
            flat = [{k: v for k, v in state.items() if isinstance(v, Tensor)} for state in (mine, its)]
            assert_equal(*flat)
        bank = "criteria.losses.crd._extra_state"
        assert torch.equal(whole.state_dict()[bank]["bank"], resumed.state_dict()[bank]["bank"])
        for written in (root / "generations").iterdir():
            assert_equal(weights_of(tmp_path, int(written.stem)), weights_of(root, int(written.stem)))
        step = int(checkpoint.stem.split("-")[1])
        finished = (step - (step % (STEPS * EPOCHS) == 0)) // (STEPS * EPOCHS)
        assert {int(path.stem) for path in (root / "generations").iterdir()} == set(range(finished, 2))


def test_a_new_training_needs_a_new_module(tmp_path: Path) -> None:
    module = born_again()
    fit(module, tmp_path)
    with pytest.raises(ValueError, match="the student is of generation 2, but epoch 0 belongs to generation 0"):
        fit(module, tmp_path)


def saved_last(module: pl.LightningModule, root: Path, **options: Any) -> Path:
    trainer = fit(module, root, **options)
    trainer.save_checkpoint(root / "last.ckpt")
    return root / "last.ckpt"


def test_a_checkpoint_of_another_scheme_is_refused(tmp_path: Path) -> None:
    checkpoint = saved_last(Classifier(net(), sgd, scheduler=ShareCosineLR), tmp_path, epochs=1)
    with pytest.raises(ValueError, match="does not say which generation it holds"):
        fit(born_again(), tmp_path, ckpt_path=checkpoint)


def test_a_checkpoint_of_other_generations_is_refused(tmp_path: Path) -> None:
    checkpoint = saved_last(born_again(), tmp_path)
    with pytest.raises(ValueError, match="epochs_per_generation is 3 here, 2 in the checkpoint"):
        fit(born_again(), tmp_path, epochs=3 * GENERATIONS, ckpt_path=checkpoint)


def test_a_finished_training_goes_on_with_further_generations(tmp_path: Path) -> None:
    fit(born_again(), tmp_path / "whole")
    checkpoint = saved_last(born_again(generations=2), tmp_path / "two", epochs=2 * EPOCHS)
    fit(born_again(), tmp_path / "two", ckpt_path=checkpoint)
    assert_equal(weights_of(tmp_path / "whole", 2), weights_of(tmp_path / "two", 2))


def test_the_teacher_is_beside_the_state_of_a_checkpoint(tmp_path: Path) -> None:
    module = born_again()
    checkpoint = torch.load(saved_last(module, tmp_path), weights_only=True)
    assert all(key.startswith("student.") for key in checkpoint["state_dict"])
    assert checkpoint["generations"]["generation"] == 2
    assert_equal(checkpoint["generations"]["previous"], weights_of(tmp_path, 1))
    first = torch.load(saved_last(born_again(generations=1), tmp_path, epochs=1), weights_only=True)
    assert first["generations"]["previous"] is None


# What belongs to a generation


class Watch(pl.Callback):
    """Keeps the rate and the active terms of each step, and what was validated."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.terms: list[set[str]] = []
        self.top1: list[float] = []
        self.numbers: list[list[int]] = []
        self.seeds: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        self.rates.append(pl_module.rate)
        assert batch.number is not None
        self.numbers.append(batch.number.unique().tolist())
        self.seeds.append(pl_module.seed)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        figures = trainer.callback_metrics
        self.terms.append({name for name in figures if name.startswith("train/")})
        self.top1.append(float(figures["val/top1"]))
        for name in self.terms[-1]:
            del figures[name]


def test_schedules_samples_and_seeds_start_anew(tmp_path: Path) -> None:
    watch = Watch()
    criteria = {**labels(), "kd": Term(SoftTarget(1.0), Window(1.0, start=1))}
    fit(born_again(criteria), tmp_path, callbacks=[watch], log_every_n_steps=STEPS)
    assert watch.rates == pytest.approx(([0.1] * STEPS + [0.05] * STEPS) * GENERATIONS)
    assert watch.numbers == ([[0]] * STEPS + [[1]] * STEPS) * GENERATIONS
    assert watch.seeds == [generation_seed(SEED, number // (STEPS * EPOCHS)) for number in range(18)]
    of_labels, of_both = {"train/ce", "train/loss"}, {"train/ce", "train/kd", "train/loss"}
    # Nobody teaches generation 0; the others are taught from their second epoch on.
    assert watch.terms == [of_labels, of_labels, of_labels, of_both, of_labels, of_both]


def test_a_schedule_of_steps_is_a_generations_too(tmp_path: Path) -> None:
    watch = Watch()
    fit(born_again(scheduler_interval="step"), tmp_path, callbacks=[watch])
    assert watch.rates == watch.rates[: STEPS * EPOCHS] * GENERATIONS
    assert watch.rates[:2] == pytest.approx([0.1, 0.1 * (1 + torch.cos(torch.tensor(torch.pi / 6)).item()) / 2])


def test_seeds_of_generations() -> None:
    seeds = [generation_seed(5, generation) for generation in range(50)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert generation_seed(6, 1) != seeds[1]


def test_the_best_checkpoint_is_of_the_last_generation(tmp_path: Path) -> None:
    watch = Watch()
    # Taught by next to nothing, the later generations stay at chance, below generation 0.
    criteria = {"kd": Term(SoftTarget(1.0), 1e-9)}
    best = Checkpoints().callbacks(RunFolder(tmp_path), validates=True)
    fit(born_again(criteria, first=labels(), generations=2), tmp_path, epochs=2 * 4, callbacks=[watch, *best])
    assert max(watch.top1[:4]) > max(watch.top1[4:])
    checkpoint = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["generations"]["generation"] == 1
    states = [state for key, state in checkpoint["callbacks"].items() if "'val/top1'" in key]
    assert float(states[0]["best_model_score"]) == max(watch.top1[4:])


class Log(pl.loggers.logger.DummyLogger):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:  # type: ignore[override]
        self.rows.append(dict(metrics))


def test_the_generation_is_logged_beside_the_epoch_and_the_rate_is_its_own(tmp_path: Path) -> None:
    log = Log()
    monitor = pl.callbacks.LearningRateMonitor("epoch")
    fit(born_again(), tmp_path, logger=log, callbacks=[monitor], log_every_n_steps=STEPS)
    of_epochs = [(row["epoch"], row["generation"]) for row in log.rows if "train/loss" in row]
    assert of_epochs == [(epoch, epoch // EPOCHS) for epoch in range(6)]
    assert {(row["epoch"], row["generation"]) for row in log.rows if "val/top1" in row} == set(of_epochs)
    rates = [row["lr-SGD"] for row in log.rows if "lr-SGD" in row]
    assert rates == pytest.approx([0.1, 0.05] * GENERATIONS)


def test_the_seed_of_the_run_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(born_again(), tmp_path)
    assert pl.seed_everything(workers=False) == SEED


# The test


def test_each_generation_and_the_last_ones_together_are_tested(tmp_path: Path) -> None:
    module = born_again()
    trainer = fit(module, tmp_path)
    (figures,) = trainer.test(module, digits(), verbose=False)
    data = digits()
    data.setup("test")
    batches = list(data.test_dataloader())
    image, target = torch.cat([batch.image for batch in batches]), torch.cat([batch.target for batch in batches])
    each = []
    for generation in range(GENERATIONS):
        network = Net(10, 1)
        network.load_state_dict(weights_of(tmp_path, generation))
        with torch.no_grad():
            each.append(network.eval()(image).softmax(dim=1))
    wanted = {f"generation_{number}": own for number, own in enumerate(each)}
    wanted |= {"ensemble_2": (each[1] + each[2]) / 2, "ensemble_3": sum(each) / 3}
    for name, probabilities in wanted.items():
        top1 = (probabilities.argmax(dim=1) == target).float().mean().item()
        assert figures[f"test/{name}_top1"] == pytest.approx(top1, abs=1e-6), name
        loss = F.nll_loss(probabilities.log(), target).item()
        assert figures[f"test/{name}_loss"] == pytest.approx(loss, abs=1e-5), name
    assert figures["test/top1"] == figures["test/generation_2_top1"]
    assert figures["test/teacher_top1"] == figures["test/generation_1_top1"]
    assert len({figures[f"test/{name}_loss"] for name in wanted}) == len(wanted)
    assert "test/ensemble_4_top1" not in figures


def test_generation_0_alone_has_no_teacher_and_no_ensemble(tmp_path: Path) -> None:
    module = born_again(generations=1)
    (figures,) = fit(module, tmp_path, epochs=1).test(module, digits(), verbose=False)
    assert figures["test/generation_0_top1"] == figures["test/top1"]
    assert not [name for name in figures if "ensemble" in name or "teacher" in name]


def test_a_generation_that_is_not_there_is_named(tmp_path: Path) -> None:
    module = born_again()
    trainer = fit(module, tmp_path)
    (tmp_path / "generations/0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.safetensors"):
        trainer.test(module, digits(), verbose=False)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    fit(born_again(), tmp_path, fast_dev_run=2, callbacks=None)
    assert list(tmp_path.iterdir()) == []


# Faults


@pytest.mark.parametrize(
    ("options", "epochs", "message"),
    [
        ({"epochs_per_generation": 2}, 7, r"= 3 x 2 = 6, got 7; with epochs_per_generation null it follows"),
        ({"epochs_per_generation": 2}, 4, r"max_epochs must be generations x epochs_per_generation = 3 x 2 = 6, got 4"),
        ({}, 7, "max_epochs must be a multiple of the 3 generations, got 7"),
        ({}, -1, "max_epochs must be a multiple of the 3 generations, got -1"),
    ],
)
def test_generations_must_fill_the_training(options: Any, epochs: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(born_again(**options), tmp_path, epochs=epochs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generations": 0}, "generations must be >= 1, got 0"),
        ({"epochs_per_generation": 0}, "epochs_per_generation must be >= 1, got 0"),
        ({"criteria": labels()}, "no term of criteria asks the teacher"),
        ({"criteria": {"kd": Term(SoftTarget())}}, "every term of criteria asks the teacher, so generation 0 has"),
        ({"first": {"kd": Term(SoftTarget())}}, r"first\.kd must be a loss of logits and labels alone"),
        ({"first": {"ce": Term(CrossEntropy(), student="body", teacher=None)}}, r"first\.ce must be a loss of logits"),
        (
            {"first": labels(), "teacher": FrozenTeacher(nn.Identity(), check=False)},
            "first is for a generation 0 without a teacher",
        ),
    ],
)
def test_a_bad_argument_is_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        born_again(**options)


class Timed(Loss):
    """Keeps the times that it is told."""

    needs: ClassVar[frozenset[str]] = frozenset({"epoch", "epochs"})
    teacher_tap = None
    told: ClassVar[set[tuple[int, int]]] = set()

    def forward(self, student: Tensor, teacher: None, target: Tensor, epoch: int, epochs: int) -> Tensor:
        self.told.add((epoch, epochs))
        return F.cross_entropy(student, target)


def test_a_loss_of_generation_0_may_ask_how_long_it_is(tmp_path: Path) -> None:
    Timed.told.clear()
    module = born_again(first={"ce": Term(Timed())}, generations=2)
    fit(module, tmp_path, epochs=6, limit_train_batches=1, limit_val_batches=0)
    assert Timed.told == {(0, 3), (1, 3), (2, 3)}


def test_a_module_cannot_be_born_again() -> None:
    with pytest.raises(ValueError, match="^student must be a Network, which each generation builds anew, got Net$"):
        BornAgainDistiller(Net(10, 1), plain(), sgd, 2)  # type: ignore[arg-type]
