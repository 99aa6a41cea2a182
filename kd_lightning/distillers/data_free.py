"""Data-free distillation: the images are made by a generator, which learns from the teacher."""

from collections.abc import Set
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from kd_lightning.batch import Batch, as_batch
from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.criteria import Criteria, Term
from kd_lightning.distillers.generated_grid import write_grid
from kd_lightning.distillers.meter import TermMeter
from kd_lightning.distillers.optimizing import Decayed
from kd_lightning.distillers.synthesis import VIEW, Synthesis
from kd_lightning.distillers.teaching import (
    OF_THE_TEACHER,
    answers,
    begin,
    examine_first,
    known_of,
    require_question,
    set_up,
)
from kd_lightning.models import NetworkLike, Outputs, TapPlan, Teacher, Views
from kd_lightning.models.generator import GeneratorRecipe
from kd_lightning.models.open_teacher import OpenTeacher
from kd_lightning.models.tap_plan import plan

GRID = 64  # images
GENERATOR = "generator"  # key of a checkpoint, and what its terms are logged under


class DataFreeDistiller(Distiller):
    """A student that learns from a teacher's answers to generated images; no training image is read.

    In each step the generator first learns by ``generator_criteria``, ``generator_steps`` times, if it is its turn;
    then the student learns by ``criteria`` on fresh images that carry no gradient to it. Only the student's updates
    count: they alone are ``global_step``, and it is them that the scheduler and Trainer's gradient clipping act on. The
    generator's weights and its optimizer are in the checkpoint, under ``generator``, and not among the student's.

    The formula decides the method. DAFL (Chen et al., ICCV 2019): `OneHot`, `Activation`, `ClassBalance`. Adversarial,
    with statistics of batch normalisation (DFQ: Choi et al., 2020; Fast-Datafree: Fang et al., AAAI 2022):
    `BatchNormStatistics`, `OneHot`, `Discrepancy`. A label in ``generator_criteria`` is the one that an image was
    drawn for; a label in ``criteria`` is the teacher's largest class. The data module must be a `NoTrainingImages`.

    On several ranks each looks at its own part of the images: what is not a mean over images (balance, statistics)
    is taken of the part.

    Args:
        student: A recipe (in Python also a module).
        teacher: A `FrozenTeacher`.
        criteria: Name -> term of the student's loss.
        generator: How the generator is built.
        generator_criteria: Name -> term of the generator's loss; ``batch_norms`` is a further tap of the teacher.
        optimizer: Makes the student's optimizer from parameter groups.
        generator_optimizer: Makes the generator's optimizer.
        generator_steps: Updates of the generator when it is its turn, >= 1.
        generator_every: Its turn comes with every so many batches of an epoch, >= 1; the first is one.
        generator_clip: Largest norm of its gradient, > 0; None for no limit.
        grid_every: A picture of 64 images is written to ``generated/`` in the run's folder after so many epochs, >= 1.
        scheduler: Makes the student's learning-rate schedule; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the student's maps in channels_last.

    Raises:
        ValueError: if an argument is out of range, or a term looks at another view.
    """

    def __init__(
        self,
        student: NetworkLike,
        teacher: Teacher,
        criteria: dict[str, Term],
        generator: GeneratorRecipe,
        generator_criteria: dict[str, Term],
        optimizer: OptimizerCallable,
        generator_optimizer: OptimizerCallable,
        generator_steps: int = 1,
        generator_every: int = 1,
        generator_clip: float | None = None,
        grid_every: int = 10,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            student, criteria, optimizer, scheduler, scheduler_interval, weight_decay_on, num_classes, channels_last
        )
        require_question(self.criteria)
        whole = {"generator_steps": generator_steps, "generator_every": generator_every, "grid_every": grid_every}
        for name, value in whole.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if generator_clip is not None and not generator_clip > 0:
            raise ValueError(f"generator_clip must be > 0, got {generator_clip}")
        formulas = {"criteria": self.criteria, "generator_criteria": Criteria(generator_criteria)}
        for name, formula in formulas.items():
            if formula.views() != {VIEW}:
                raise ValueError(f"{name} must look at the view 'default' alone, got {sorted(formula.views())}")
        self.teacher, self.generator_recipe, self.make_generator_optimizer = teacher, generator, generator_optimizer
        self._formula = (formulas["generator_criteria"],)  # in a tuple: no submodule, as the generator is none
        self.generator_steps, self.generator_every, self.generator_clip = (
            generator_steps,
            generator_every,
            generator_clip,
        )
        self.grid_every = grid_every
        self.meter = TermMeter([*criteria, "loss", *(f"{GENERATOR}_{name}" for name in [*generator_criteria, "loss"])])
        self._told: Outputs | None = None

    @property
    def present_teacher(self) -> Teacher:
        """The teacher answers in the test too."""
        return self.teacher

    def prepare(self, num_classes: int, views: Views) -> TapPlan:
        """Set up the teacher, and build the generator for the data's images."""
        at = set_up(self.teacher, self.criteria, num_classes, views)
        (formula,) = self._formula
        seed = int(self.trainer.strategy.broadcast(self.seed))
        self.synthesis = Synthesis(
            self.generator_recipe.build(views, num_classes, seed),
            self.make_generator_optimizer,
            formula,
            OpenTeacher(self.teacher, formula.teacher_taps(), views.image_shape),
            plan(self._student(), formula.student_taps(), views.image_shape),
            num_classes,
            seed,
            self.generator_clip,
        )
        return at

    def fact(self, need: str, term: Term) -> object:
        """What a loss needs to know of the teacher, or of the run.

        Raises:
            ValueError: if it is not known.
        """
        return known_of(self.teacher, need, term) if need in OF_THE_TEACHER else super().fact(need, term)

    def on_fit_start(self) -> None:
        """Bring teacher and generator to the student's device."""
        begin(self.teacher, self.trainer, self.device)
        self.synthesis.start(self.device, next(self._student().parameters()).dtype)
        self.synthesis.criteria.inform(self.fact)
        super().on_fit_start()

    def on_test_start(self) -> None:
        """Bring the teacher to the student's device."""
        self.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Show the teacher's top-1, and stop here if it knows nothing.

        Raises:
            ValueError: if it is near chance, or there are no images to examine it on.
        """
        if self.teacher.check is not False and not self.trainer.val_dataloaders:
            raise ValueError(
                "teacher.check needs validation images, as there are none to train on: set validate_on_test of the "
                "data to true, or teacher.check to false"
            )
        examine_first(self.teacher, self.trainer, cast(int, self.num_classes), self._over_ranks)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The student's loss on images that were made for it, after the generator's turn.

        Raises:
            ValueError: if there are training images, or no names.
        """
        names = as_batch(batch)
        if names.images or names.index is None or names.number is None:
            raise ValueError("DataFreeDistiller makes its own images: give it a NoTrainingImages as the datamodule")
        if batch_idx % self.generator_every == 0:
            self._improve(names)
        with torch.no_grad():
            image, label = self.synthesis.made("student", names.index, names.number)
        self._told = self.teacher(Batch({VIEW: image}, label))
        return super().training_step(Batch({VIEW: image}, self._told.logits.argmax(dim=1)), batch_idx)

    def _improve(self, names: Batch) -> None:
        for step in range(self.generator_steps):
            loss, values = self.synthesis.improve(
                f"{GENERATOR} {step}", names, self.current_epoch, self._student(), self._averaged
            )
            figures = {f"{GENERATOR}_{name}": value for name, value in {**values, "loss": loss}.items()}
            self.meter.add(figures, len(names))

    def _averaged(self, value: Tensor) -> Tensor:
        return value if self.trainer.world_size == 1 else self._over_ranks(value) / self.trainer.world_size

    def teach(self, batch: Batch, views: Set[str]) -> dict[str, Outputs]:
        """The teacher's answer, which a training step has already asked for."""
        told, self._told = self._told, None
        return answers(self.teacher, batch, views, self.trainer.training) if told is None else {VIEW: told}

    def on_train_epoch_end(self) -> None:
        """Log the rest of the epoch, and write a picture of what the generator makes, where it is due."""
        super().on_train_epoch_end()
        due = (self.current_epoch + 1) % self.grid_every == 0
        if due and self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            write_grid(self.pictures(), Path(self.trainer.default_root_dir) / "generated" / self._picture())

    def _picture(self) -> str:
        return f"epoch-{self.current_epoch + 1:04}.png"

    def pictures(self, count: int = GRID) -> Tensor:
        """Generated images ``[count, C, H, W]`` in [0, 1], always of the same noise."""
        index = torch.arange(count, device=self.device)
        with torch.no_grad():
            image, _ = self.synthesis.made("grid", index, torch.zeros_like(index))
        return self.synthesis.generator.pixels(image)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the generator and its optimizer beside the student's state."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[GENERATOR] = self.synthesis.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the generator and its optimizer, with the student's state.

        Raises:
            ValueError: if the checkpoint has none, or it is of another generator or network.
        """
        super().on_load_checkpoint(checkpoint)
        self.synthesis.restore(checkpoint.get(GENERATOR))
