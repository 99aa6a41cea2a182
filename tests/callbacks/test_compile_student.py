from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from kd_lightning.callbacks import CompileStudent
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import OfflineDistiller
from kd_lightning.distillers.criteria import Term
from kd_lightning.losses import AttentionTransfer, CrossEntropy, SoftTarget
from kd_lightning.models import FrozenTeacher, Network


def fitted(folder: Path, *callbacks: pl.Callback) -> OfflineDistiller:
    pl.seed_everything(0)
    teacher = Network("cifar_resnet8").build(10, in_chans=1, seed=3)
    module = OfflineDistiller(
        student=Network("cifar_resnet8", {"widths": [2, 2, 4, 8]}),
        teacher=FrozenTeacher(teacher, check=False),
        criteria={
            "ce": Term(CrossEntropy(), teacher=None),
            "kd": Term(SoftTarget(4.0)),
            "at": Term(AttentionTransfer(), 10.0),
        },
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=4, limit_val_batches=1, default_root_dir=folder,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, DigitsDataModule())
    return module


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_student_learns_the_same(tmp_path: Path, backend: str) -> None:
    plain, compiled = fitted(tmp_path), fitted(tmp_path, CompileStudent(backend=backend))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def test_it_is_the_compiled_program_that_runs(tmp_path: Path) -> None:
    ran = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        ran.append(len(graph.graph.nodes))
        return graph.forward

    fitted(tmp_path, CompileStudent(backend=backend))  # type: ignore[arg-type]
    assert sum(ran) > 20  # the network's operations, in however many parts


def test_there_must_be_a_student() -> None:
    class Bare(pl.LightningModule):
        student: nn.Module | None = None

    with pytest.raises(ValueError, match="Bare has no student to compile"):
        CompileStudent().on_fit_start(pl.Trainer(accelerator="cpu", logger=False), Bare())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_mode_is_of_inductor_alone(backend: str) -> None:
    message = f"^mode must be default with the backend {backend}, got max-autotune: leave mode out, or take the backend"
    with pytest.raises(ValueError, match=message):
        CompileStudent("max-autotune", backend=backend)
    assert CompileStudent("max-autotune").mode == "max-autotune"
