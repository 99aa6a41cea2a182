"""Born-again networks: generations of one student, each learning from the one before."""

import copy
from collections.abc import Set
from typing import Any, Literal, cast

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from kd_lightning.batch import Batch
from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.criteria import Criteria, Term
from kd_lightning.distillers.generation_answers import answer_names, answered
from kd_lightning.distillers.generations import (
    Handover,
    as_run_of,
    epochs_each,
    evaluated,
    generation_file,
    generation_seed,
    start_callbacks_over,
    start_loaders_over,
)
from kd_lightning.distillers.meter import TermMeter
from kd_lightning.distillers.metrics import Evaluations
from kd_lightning.distillers.optimizing import Decayed
from kd_lightning.distillers.succession import Succession, criteria_without_teacher
from kd_lightning.distillers.teaching import OF_THE_TEACHER, begin, examine_first, require_question
from kd_lightning.distillers.unreached import Unreached
from kd_lightning.models import Network, Outputs, TapPlan, Teacher, Views, load_weights, save_weights

GENERATIONS = "generations"  # the key of where a checkpoint stands among them


class BornAgainDistiller(Distiller):
    """Trains generations of one student in one fit; each is taught by the one before, the first by labels or a teacher.

    A generation is a training of its own: a fresh initialisation, optimizer, schedule and average; epochs count from
    its start, and what is stated in shares of the training is in shares of it. It equals, bit for bit, an
    `OfflineDistiller` with ``seed_everything: generation_seed(seed, k)``, the same seed of the data, and the weights of
    generation k - 1 as the teacher. Those of each finished generation are in the run's folder, as
    ``generations/K.safetensors``: of the student alone, or of its average where that is evaluated and so teaches.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018.

    Args:
        student: A recipe.
        criteria: Name -> term; their weighted sum is the loss of the generations that have a teacher.
        optimizer: Makes the optimizer of a generation from parameter groups.
        generations: How many, >= 1, with the one that no student taught.
        epochs_per_generation: >= 1; generations x epochs_per_generation must be ``trainer.max_epochs``. None takes as
            many as that gives each.
        teacher: Who teaches generation 0; None for nobody.
        first: The criteria of a generation 0 without a teacher: terms of logits and labels; None for those terms of
            ``criteria`` that ask no teacher.
        scheduler: Makes a generation's learning-rate schedule from the optimizer; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the student's maps in channels_last.

    Raises:
        ValueError: if an argument is out of range, or generation 0 has nothing to learn by.
    """

    def __init__(
        self,
        student: Network,
        criteria: dict[str, Term],
        optimizer: OptimizerCallable,
        generations: int,
        epochs_per_generation: int | None = None,
        teacher: Teacher | None = None,
        first: dict[str, Term] | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        if not isinstance(student, Network):
            raise ValueError(
                f"student must be a Network, which each generation builds anew, got {type(student).__name__}"
            )
        for name, value in {"generations": generations, "epochs_per_generation": epochs_per_generation}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        super().__init__(
            student, criteria, optimizer, scheduler, scheduler_interval, weight_decay_on, num_classes, channels_last
        )
        require_question(self.criteria)
        self.generations, self.epochs_per_generation = generations, epochs_per_generation
        self.succession = Succession(teacher, channels_last)
        # In tuples, so that their losses are no submodules of this one.
        self._first = (criteria_without_teacher(self.criteria, first, teacher),)
        self._pristine = (copy.deepcopy(self.criteria),)
        self.meter = TermMeter([*dict.fromkeys([*criteria, *(first or {})]), "loss"])
        self._written = -1
        self._epochs = 1
        self._earlier: tuple[nn.Module, ...] = ()

    # Who teaches

    @property
    def generation(self) -> int:
        """The present one, from 0."""
        return self.succession.generation

    @property
    def present_teacher(self) -> Teacher | None:
        """Who teaches the present generation."""
        return self.succession.present()

    def prepare(self, num_classes: int, views: Views) -> TapPlan:
        """Set up whoever will teach, with the taps that the criteria ask for."""
        self._run_seed, self._sizes = self.seed, (num_classes, views.image_shape[0])
        return self.succession.setup(self._network(), self.criteria, num_classes, views)

    def _network(self) -> nn.Module:
        (recipe,) = self._recipe
        return cast(Network, recipe).build(*self._sizes)

    def fact(self, need: str, term: Term) -> object:
        """What a loss needs to know of the present teacher, or of the run.

        Raises:
            ValueError: if it is not known.
        """
        return self.succession.known(need, term) if need in OF_THE_TEACHER else super().fact(need, term)

    def teach(self, batch: Batch, views: Set[str]) -> dict[str, Outputs]:
        """The present teacher's answer to each of these views."""
        return self.succession.answers(batch, views, self.trainer.training)

    def criteria_now(self) -> Criteria:
        """The criteria, or in a generation without a teacher those that do without."""
        return self._first[0] if self._first[0] is not None and self.generation == 0 else self.criteria

    # One generation after another

    @property
    def schedule_epoch(self) -> int:
        """The epoch of the generation, from 0."""
        return self.current_epoch % self._epochs

    @property
    def schedule_epochs(self) -> int:
        """Epochs of a generation."""
        return self._epochs

    def setup(self, stage: str) -> None:
        """Share the training's epochs out to the generations.

        Raises:
            ValueError: if the generations do not fill them.
        """
        if stage != "fit":
            return
        trainer = cast(Any, self.trainer)
        dry = bool(trainer.fast_dev_run)
        self._epochs = epochs_each(trainer.max_epochs, self.generations, self.epochs_per_generation, dry)
        if not any(isinstance(callback, Handover) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, Handover())  # before those that look at rates, students and epochs

    def _training_length(self) -> int:
        if self.scheduler_interval == "epoch":
            return self._epochs
        return super()._training_length() // max(cast(int, self.trainer.max_epochs) // self._epochs, 1)

    def on_fit_start(self) -> None:
        """Bring the teachers to the student's device, and tell the losses what they need to know."""
        self.succession.to(self.device)
        if self.succession.first is not None:
            begin(self.succession.first, self.trainer, self.device)
        super().on_fit_start()
        if (first := self._first[0]) is not None:
            first.inform(self.fact)

    def on_train_start(self) -> None:
        """Show the given teacher's top-1, and stop here if it knows nothing.

        Raises:
            ValueError: if it is near chance, or not what it is expected to be.
        """
        if self.succession.first is not None and self.generation == 0:
            examine_first(self.succession.first, self.trainer, cast(int, self.num_classes), self._over_ranks)

    def enter(self) -> None:
        """Be in the generation that the epoch belongs to; told at each epoch's start, and where a training goes on.

        Raises:
            ValueError: if the student is of another generation than this one or the one before.
        """
        # A training that was stopped after its very last step is over, yet it starts.
        generation = min(self.current_epoch // self._epochs, self.generations - 1)
        if generation == self.generation + 1:
            self._hand_over()
        elif generation != self.generation:
            raise ValueError(
                f"the student is of generation {self.generation}, but epoch {self.current_epoch} belongs to generation "
                f"{generation}: a new training needs a new {type(self).__name__}, one that goes on its checkpoint"
            )
        self.seed = generation_seed(self._run_seed, self.generation)
        start_loaders_over(self.trainer.train_dataloader, self._epochs, self.current_epoch)

    def _hand_over(self) -> None:
        """Let the student become the teacher, and start anew in its place."""
        self.succession.pass_on(self._keep())
        strategy = self.trainer.strategy
        with (
            as_run_of(generation_seed(self._run_seed, self.generation)),
            strategy.tensor_init_context(),
            self.trainer.precision_plugin.module_init_context(),
        ):
            student, criteria = self._network(), copy.deepcopy(self._pristine[0])
            criteria.build(self._plan, self.succession.previous.plan())
        self._student().load_state_dict(student.state_dict())
        self.criteria.load_state_dict(criteria.state_dict())
        self.criteria.inform(self.fact)
        self.zero_grad(set_to_none=True)
        self._unreached, self._restored = Unreached(), None
        strategy.setup_optimizers(self.trainer)
        start_callbacks_over(cast(Any, self.trainer).callbacks, self)
        rank_zero_info(f"generation {self.generation} begins")

    def _keep(self) -> dict[str, Tensor]:
        """The weights that the present generation is known by, the same on all ranks; in the run's folder too."""
        trainer = cast(Any, self.trainer)
        own = evaluated(trainer.callbacks, self, self._student())
        state: dict[str, Tensor] = trainer.strategy.broadcast(own)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            save_weights(state, generation_file(trainer.default_root_dir, self.generation))
        self._written = self.generation
        return state

    def on_train_end(self) -> None:
        """Keep the last generation."""
        self._keep()

    def on_fit_end(self) -> None:
        """Keep the last generation also where nothing was left to train, as after a stop in between."""
        if self._written != self.generation:
            self._keep()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of the present generation's criteria, under its seed."""
        with as_run_of(self.seed):
            return super().training_step(batch, batch_idx)

    def _to_loggers(self, figures: dict[str, float]) -> None:
        super()._to_loggers(figures | {"generation": float(self.generation)})

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the generation, and the weights of the one that teaches it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[GENERATIONS] = self.succession.state() | {"epochs": self._epochs}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the generation, and the weights of the one that teaches it.

        Raises:
            ValueError: if the checkpoint is of another scheme, or of generations of another length.
        """
        super().on_load_checkpoint(checkpoint)
        if GENERATIONS not in checkpoint:
            raise ValueError(
                f"the checkpoint does not say which generation it holds: it is of no {type(self).__name__}"
            )
        stands = checkpoint[GENERATIONS]
        if self.trainer.training and stands["epochs"] != self._epochs:
            raise ValueError(f"epochs_per_generation is {self._epochs} here, {stands['epochs']} in the checkpoint")
        self.succession.restore(stands)

    # Evaluation

    def on_test_start(self) -> None:
        """Read the earlier generations.

        Raises:
            FileNotFoundError: if one of them is not in the run's folder.
        """
        self.succession.to(self.device)
        self._earlier = tuple(self._read(number) for number in range(self.generation))
        names = answer_names(self.generation + 1)
        classes = cast(int, self.num_classes)
        self.test_metrics = Evaluations(names, classes, teacher=self.is_compared(), full=True).to(self.device)

    def _read(self, generation: int) -> nn.Module:
        network = self._network()
        load_weights(network, generation_file(self.trainer.default_root_dir, generation))
        return network.requires_grad_(False).eval().to(self.device).to(memory_format=self.memory_format)

    def examined(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[N, C]`` of the student; in the test also of each generation, and of the last ones together."""
        own = self(image)
        if not self.trainer.testing:
            return own, {}
        image = image.to(memory_format=self.memory_format)
        return own, answered([*(network(image) for network in self._earlier), own])
