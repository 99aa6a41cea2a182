from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.datamodules import DigitsDataModule, NoTrainingImages
from kd_lightning.distillers import DataFreeDistiller, Term
from kd_lightning.distillers.synthesis import evaluating, named_noise
from kd_lightning.losses import (
    Activation,
    BatchNormStatistics,
    ClassBalance,
    CrossEntropy,
    Discrepancy,
    Hint,
    OneHot,
    SoftTarget,
)
from kd_lightning.models import FrozenTeacher, Network
from kd_lightning.models.generator import GeneratorRecipe

SMALL = {"widths": [2, 2, 4, 8]}
Build = Callable[..., DataFreeDistiller]


def dafl() -> dict[str, Term]:
    return {"one_hot": Term(OneHot()), "act": Term(Activation(), 0.1), "balance": Term(ClassBalance(), 5.0)}


def adversarial() -> dict[str, Term]:
    return {"bn": Term(BatchNormStatistics()), "sure": Term(OneHot("drawn")), "adv": Term(Discrepancy())}


def distiller(generator_criteria: dict[str, Term] | None = None, **options: Any) -> DataFreeDistiller:
    given = {"teacher": FrozenTeacher(Network("cifar_resnet8", SMALL).build(10, 1), check=False), **options}
    return DataFreeDistiller(
        given.pop("student", Network("cifar_resnet8", SMALL)),
        criteria=given.pop("criteria", {"kd": Term(SoftTarget())}),
        generator=GeneratorRecipe(latent=8, width=4, conditional=True),
        generator_criteria=adversarial() if generator_criteria is None else generator_criteria,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.05),
        generator_optimizer=lambda parameters: torch.optim.Adam(parameters, 0.01),
        **given,
    )


def data(steps: int = 4, **options: Any) -> NoTrainingImages:
    return NoTrainingImages(DigitsDataModule(**{"val_fraction": 0.0, **options}), steps, 16)


def trainer(folder: Path, epochs: int = 1, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"enable_model_summary": False, "default_root_dir": folder, "accelerator": "cpu", **quiet, **options}
    return pl.Trainer(max_epochs=epochs, **options)


def parameters(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(before: list[Tensor], module: nn.Module) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]


@pytest.mark.parametrize("criteria", [dafl, adversarial])
def test_both_learn_and_only_the_students_updates_count(
    tmp_path: Path, criteria: Callable[[], dict[str, Term]]
) -> None:
    pl.seed_everything(0)
    module = distiller(criteria(), generator_steps=2)
    run = trainer(tmp_path, epochs=2)
    start: dict[str, list[Tensor]] = {}

    def remember() -> None:
        start.update(student=parameters(module._student()), generator=parameters(module.synthesis.generator))

    module.on_train_start = remember  # type: ignore[method-assign]
    run.fit(module, data(steps=3))
    assert run.global_step == 6
    assert len(run.optimizers) == 1
    assert module.synthesis.optimizer is not None
    assert {int(state["step"]) for state in module.synthesis.optimizer.state.values()} == {12}
    assert all(moved(start["student"], module._student()))
    assert all(moved(start["generator"], module.synthesis.generator))


def test_its_turn_comes_every_so_many_batches(tmp_path: Path) -> None:
    pl.seed_everything(0)
    module = distiller(generator_every=3)
    trainer(tmp_path).fit(module, data(steps=7))
    assert module.synthesis.optimizer is not None
    assert {int(state["step"]) for state in module.synthesis.optimizer.state.values()} == {3}


def test_the_generator_is_in_the_checkpoint_and_in_nothing_of_the_students(tmp_path: Path) -> None:
    pl.seed_everything(0)
    module, run = distiller(), trainer(tmp_path)
    run.fit(module, data())
    run.save_checkpoint(tmp_path / "c.ckpt")
    kept = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert all(key.startswith("student.") for key in kept["state_dict"])
    assert kept["generator"]["weights"].keys() == module.synthesis.generator.state_dict().keys()
    assert kept["generator"]["optimizer"]["state"]
    mine = {id(parameter) for group in run.optimizers[0].param_groups for parameter in group["params"]}
    assert mine == {id(parameter) for parameter in module._student().parameters()}


def test_the_student_is_asked_without_a_trace(tmp_path: Path) -> None:
    pl.seed_everything(0)
    module, run = distiller(), trainer(tmp_path)
    run.fit(module, data(steps=1))
    student = module._student().train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    for parameter in student.parameters():
        parameter.grad = None
    names = Batch({}, torch.zeros(8), torch.arange(8), torch.zeros(8, dtype=torch.int64))
    module.synthesis.improve("again", names, 0, student, lambda value: value)
    assert student.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_generator_lowers_its_loss() -> None:
    pl.seed_everything(0)
    module = distiller(dafl())
    run = trainer(Path("."), limit_val_batches=0)
    run.fit(module, data(steps=1))
    index = torch.arange(32)
    names = Batch({}, index, index, torch.zeros_like(index))
    losses = [
        float(module.synthesis.improve("same", names, 0, module._student(), lambda value: value)[0]) for _ in range(20)
    ]
    assert losses[-1] < losses[0] - 0.05, losses


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append(float(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]).norm()))

    pl.seed_everything(0)
    module = distiller(generator_clip=0.01)
    module.make_generator_optimizer = lambda parameters: Watching(parameters, 0.1)
    trainer(tmp_path).fit(module, data(steps=2))
    assert seen == pytest.approx([0.01, 0.01], rel=1e-3)


def test_the_student_learns_from_the_teachers_largest_class(tmp_path: Path) -> None:
    targets: list[Tensor] = []

    class Seen(CrossEntropy):
        def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
            targets.append(target)
            return super().forward(student, teacher, target)

    class Kept(SoftTarget):
        def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
            assert torch.equal(teacher.argmax(dim=1), target)
            assert not teacher.requires_grad
            return super().forward(student, teacher, target)

    pl.seed_everything(0)
    module = distiller(criteria={"ce": Term(Seen(), teacher=None), "kd": Term(Kept())})
    trainer(tmp_path).fit(module, data(steps=2))
    assert [len(target) for target in targets] == [16, 16]


def test_grids_are_written_every_so_many_epochs(tmp_path: Path) -> None:
    pl.seed_everything(0)
    module = distiller(grid_every=2)
    trainer(tmp_path, epochs=5).fit(module, data(steps=1))
    assert sorted(path.name for path in (tmp_path / "generated").iterdir()) == ["epoch-0002.png", "epoch-0004.png"]
    pictures = module.pictures()
    assert pictures.shape == (64, 1, 8, 8)
    assert 0 <= pictures.min() < pictures.max() <= 1


def test_noise_is_normal_and_a_function_of_its_names() -> None:
    index, number = torch.arange(2000), torch.zeros(2000, dtype=torch.int64)
    noise = named_noise(0, "student", index, number, 50)
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=0.15)
    assert torch.corrcoef(noise[:, :4].T).sub(torch.eye(4)).abs().max() < 0.1
    part = named_noise(0, "student", index[7:9], number[7:9], 50)
    assert torch.equal(part, noise[7:9])  # whatever else is in the batch, so on whatever rank
    for other in (
        named_noise(1, "student", index, number, 50),
        named_noise(0, "generator 0", index, number, 50),
        named_noise(0, "student", index + 2000, number, 50),
        named_noise(0, "student", index, number + 1, 50),
    ):
        assert not torch.isclose(noise, other).all(dim=1).any()


def test_evaluating_restores_each_mode() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    network[1].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator_steps": 0}, r"^generator_steps must be >= 1, got 0$"),
        ({"generator_every": 0}, r"^generator_every must be >= 1, got 0$"),
        ({"grid_every": 0}, r"^grid_every must be >= 1, got 0$"),
        ({"generator_clip": 0.0}, r"^generator_clip must be > 0, got 0.0$"),
        ({"criteria": {"ce": Term(CrossEntropy(), teacher=None)}}, r"^no term of criteria asks the teacher"),
        ({"criteria": {"kd": Term(SoftTarget(), view="weak")}}, r"^criteria must look at the view 'default' alone"),
    ],
)
def test_faults_of_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distiller(**options)


def bare() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("options", "source", "message"),
    [
        ({"teacher": FrozenTeacher(bare(), check=False)}, data, "Sequential has no batch normalisation"),
        ({"generator_criteria": {"hint": Term(Hint("conv1x1"))}}, data, r"hint: the loss has parameters of its own"),
        ({"teacher": FrozenTeacher(bare())}, data, r"^teacher.check needs validation images"),
        ({}, lambda: DigitsDataModule(), r"^DataFreeDistiller makes its own images"),
        ({}, lambda: data(val_fraction=0.1), r"^val_fraction must be 0 where the training set is not read, got 0.1"),
    ],
)
def test_faults_of_a_run(
    tmp_path: Path, options: dict[str, Any], source: Callable[[], pl.LightningDataModule], message: str
) -> None:
    pl.seed_everything(0)
    if message.startswith("^teacher.check"):
        options = {**options, "generator_criteria": {"sure": Term(OneHot())}}
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(distiller(**options), source())


def test_a_checkpoint_without_a_generator_or_with_other_settings(tmp_path: Path) -> None:
    pl.seed_everything(0)
    module, run = distiller(), trainer(tmp_path)
    run.fit(module, data(steps=1))
    run.save_checkpoint(tmp_path / "c.ckpt")
    again = distiller()
    again.make_generator_optimizer = lambda parameters: torch.optim.Adam(parameters, 0.02)
    with pytest.raises(ValueError, match=r"lr: 0.02 here, 0.01 in the checkpoint"):
        trainer(tmp_path, 2).fit(again, data(steps=1), ckpt_path=tmp_path / "c.ckpt")
    kept = torch.load(tmp_path / "c.ckpt", weights_only=True)
    del kept["generator"]
    torch.save(kept, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"^the checkpoint holds no generator"):
        trainer(tmp_path, 2).fit(distiller(), data(steps=1), ckpt_path=tmp_path / "none.ckpt")


def test_a_generator_that_goes_astray_stops_before_its_weights_do(tmp_path: Path) -> None:
    class Astray(OneHot):
        def forward(self, student: object, teacher: Tensor, target: Tensor) -> Tensor:
            return super().forward(student, teacher, target) * float("nan")

    pl.seed_everything(0)
    module = distiller({"astray": Term(Astray())})
    with pytest.raises(FloatingPointError, match=r"of the generator has the norm nan in epoch 0 \(astray nan\)"):
        trainer(tmp_path).fit(module, data(steps=1))
    assert all(parameter.isfinite().all() for parameter in module.synthesis.generator.parameters())
