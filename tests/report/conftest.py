from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.report.examined import Examined
from kd_lightning.report.profile import Profile
from kd_lightning.run_folder import RunFolder

LARGE = Profile(1000, 50_000, 4_200, {"cpu, batch 1": 4.0, "cpu, batch 64": 100.0})
SMALL = Profile(100, 5_000, 440, {"cpu, batch 1": 2.0, "cpu, batch 64": 10.0})


def decided(classes: list[int], confidence: float = 5.0) -> Tensor:
    """Logits ``[M, 3]`` that decide for these classes."""
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float() * confidence


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Makes an examined run from decisions on five images, whose labels are 0, 1, 2, 0, 1."""

    def made(
        name: str,
        decisions: list[int],
        teacher: list[int] | None = None,
        best: float | None = None,
        parts: Mapping[str, list[int]] | None = None,
        **model: Any,
    ) -> Examined:
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.metrics.write_text("step,epoch,train/loss,val/top1\n10,0,1.5,0.5\n20,1,1.0,0.6\n")
        scheme = "Classifier" if teacher is None else "OfflineDistiller"
        init = {"student": {"name": "small", "kwargs": None}} | model
        return Examined(
            run=folder,
            config={
                "seed_everything": 0,
                "model": {"class_path": f"kd_lightning.distillers.{scheme}", "init_args": init},
            },
            classes=["a", "b", "c"],
            rows=torch.arange(5),
            target=torch.tensor([0, 1, 2, 0, 1]),
            student=decided(decisions),
            teacher=None if teacher is None else decided(teacher),
            parts={part: decided(its_own) for part, its_own in (parts or {}).items()},
            missed=[],
            unsure=[],
            student_profile=SMALL,
            teacher_profile=None if teacher is None else LARGE,
            cka=None,
            soft_targets=False,
            temperature=None,
            best_top1=best,
        )

    return made
