"""Online distillation: peers that learn together, from the labels and from each other."""

from collections.abc import Mapping, Set
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.batch import Batch, as_batch, check_labels
from kd_lightning.distillers.base import Distiller
from kd_lightning.distillers.collaboration import Collaboration, Learner
from kd_lightning.distillers.criteria import Term
from kd_lightning.distillers.data_facts import classes_of, views_of
from kd_lightning.distillers.lessons import Lessons, checked_names
from kd_lightning.distillers.meter import TermMeter
from kd_lightning.distillers.optimizing import Decayed, parameter_groups
from kd_lightning.distillers.peer_evaluation import PeerEvaluations
from kd_lightning.distillers.peers import Peer, Peers, answers_of, build_peer, plans_of, shown_to, top1_of, untrained
from kd_lightning.distillers.scheduling import scheduled
from kd_lightning.models import Outputs, TapPlan, Views
from kd_lightning.models.memory_format import memory_format
from kd_lightning.models.peer_weights import TOP1
from kd_lightning.models.tap_plan import classifier_of, several
from kd_lightning.models.taps import LOGITS
from kd_lightning.seeds import run_seed

COLLABORATION = "collaboration"  # in a checkpoint: what the collaboration keeps


class OnlineDistiller(Distiller):
    """Peers that learn together; all of them answer before any is updated.

    The loss is the sum over the peers of their terms; a term with a teacher is the mean over those who teach the peer,
    through whom no gradient flows. The student is all peers, its answer their ensemble: the mean of the logits. Logged
    are ``train/<peer>_<term>``, ``val/<peer>_top1`` and so on for each peer and branch, ``val/top1`` of the ensemble,
    and ``val/agreement``: the share of images on which two peers (or branches of a single peer) decide the same, mean
    over all pairs. The optimizer has a parameter group, or several, for each peer, and ``gradient_clip_val`` of the
    trainer is the bound for each peer apart.

    A `MultiExitNetwork` is a peer whose exits are branches: alone, its deepest classifier is ``val/top1``, its exits
    are ``val/<peer>_1_top1`` and so on, and the mean of the logits of all of them is ``val/<peer>_ensemble_top1``.

    Args:
        peers: Name -> peer; equal or different architectures.
        collaboration: Who teaches whom: `DML`, `KDCL`, `ONE` or `Codistillation`.
        optimizer: Makes the optimizer from parameter groups.
        criteria: Name -> term, for all peers that have none of their own.
        scheduler: Makes a learning-rate schedule from the optimizer; None keeps the rate.
        scheduler_interval: Whether the schedule advances with epochs or with optimizer steps.
        weight_decay_on: ``all`` parameters, or ``matrices`` only (no biases and norms, as timm does).
        num_classes: Only where no data module says it.
        channels_last: Keep the peers' maps in channels_last.

    Raises:
        ValueError: if there is no peer, a name is no identifier, or a peer has no criteria.
    """

    def __init__(
        self,
        peers: dict[str, Peer],
        collaboration: Collaboration,
        optimizer: OptimizerCallable,
        criteria: dict[str, Term] | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        weight_decay_on: Decayed = "all",
        num_classes: int | None = None,
        channels_last: bool = True,
    ) -> None:
        if not peers:
            raise ValueError("peers must have at least one peer, got none")
        checked_names(list(peers))
        stated = {name: criteria if peer.criteria is None else peer.criteria for name, peer in peers.items()}
        if bare := sorted(name for name, terms in stated.items() if not terms):
            raise ValueError(f"peers {bare} have no criteria: give criteria for all, or each its own")
        terms = cast(dict[str, dict[str, Term]], stated)
        first = next(iter(peers))
        super().__init__(
            peers[first].network,
            terms[first],  # a stand-in until the peers' branches are known
            optimizer,
            scheduler,
            scheduler_interval,
            weight_decay_on,
            num_classes,
            channels_last,
        )
        self._peers, self._terms, self.collaboration = dict(peers), terms, collaboration

    @property
    def present_teacher(self) -> None:
        """Peers are examined as parts, not as a teacher."""

    def prepare(self, num_classes: int, views: Views) -> None:
        """Nobody but the peers answers."""

    def teach(self, batch: Batch, views: Set[str]) -> dict[str, Outputs]:
        """Nobody but the peers answers."""
        return {}

    def parts(self) -> list[str]:
        """Every peer and branch, and the ensembles of exits."""
        return [*(learner.name for learner in self._learners), *self._networks().ensembles()]

    def examined(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[N, C]`` of the ensemble of the peers, and of all `parts`."""
        answers = self._networks().answers(image.to(memory_format=self.memory_format))
        return torch.stack([answers[name] for name in self._peers]).mean(dim=0), answers

    def _networks(self) -> Peers:
        return cast(Peers, self._student())

    # Building

    def configure_model(self) -> None:
        """Build the peers for the data's classes, and the adapters for their shapes.

        Raises:
            ValueError: if nobody says the number of classes, a peer has others, or the collaboration has no use for the
                peers.
        """
        if self.student is not None:
            return
        self.seed = run_seed()
        num_classes, views = classes_of(self.trainer, self.num_classes), views_of(self.trainer)
        networks = {name: build_peer(name, peer, num_classes, views) for name, peer in self._peers.items()}
        peers = Peers(networks)
        self.memory_format = memory_format(peers, self.channels_last)
        self.student = peers.to(memory_format=self.memory_format)
        self._image_shape, self.num_classes = views.image_shape, num_classes
        self._learners = self._networks().learners()
        self._build_lessons(networks)
        owned = {name: self.owned(name) for name in networks}
        self.collaboration.begin(owned, self._plans)
        self._lessons.restrict([found.name for found in self._learners if self.collaboration.trains(found.peer)])
        self.meter = TermMeter([*dict.fromkeys(self._lessons.logged.values()), "loss"])
        branches = [learner.name for learner in self._learners if learner.branch is not None]
        compared = list(networks) if len(networks) > 1 else branches
        self.val_metrics = PeerEvaluations(self.parts(), compared, num_classes, full=False)
        self.test_metrics = PeerEvaluations(self.parts(), compared, num_classes, full=True)

    def _build_lessons(self, networks: Mapping[str, nn.Module]) -> None:
        terms = {learner.name: self._terms_of(learner) for learner in self._learners}
        teachers = {learner.name: self.collaboration.teachers_of(learner, self._learners) for learner in self._learners}
        self._lessons = Lessons(terms, teachers)
        self.criteria = self._lessons.criteria
        self._plans: dict[str, TapPlan] = {}
        for name, network in networks.items():
            mine = [learner for learner in self._learners if learner.peer == name]
            asked = {
                learner: {*self._lessons.student_taps([learner.name]), *self._lessons.teacher_taps(learner.name)}
                for learner in mine
            }
            made = plans_of(network, asked, self._image_shape)
            if (classes := several(made[name].shapes[LOGITS])[0][1]) != self.num_classes:
                raise ValueError(f"peer {name} has {classes} classes, the data {self.num_classes}")
            self._plans |= made
        self._lessons.build(self._plans, self._teacher_plan_of)

    def _terms_of(self, learner: Learner) -> dict[str, Term]:
        of_branches = self._peers[learner.peer].branch_criteria
        return self._terms[learner.peer] if learner.branch is None or of_branches is None else of_branches

    def _teacher_plan_of(self, teacher: str) -> TapPlan:
        return self.collaboration.teacher_plan(teacher, self._plans)

    def owned(self, peer: str) -> nn.ModuleDict:
        """All that is trained of a peer: its network, and the adapters of what it and its branches learn."""
        names = [learner.name for learner in self._learners if learner.peer == peer]
        return nn.ModuleDict({"network": self._networks().networks[peer], "losses": self._lessons.losses_of(names)})

    def fact(self, need: str, term: Term) -> object:
        """What a loss needs to know of the run, or of who teaches.

        Raises:
            ValueError: if it is not known.
        """
        lesson = self._lessons.by_key[term.view]
        if need == "student_classifier":
            return self._classifier(lesson.learner)
        if need == "teacher_classifier" and lesson.teacher is not None and lesson.teacher in self._peers:
            return untrained(self._classifier(lesson.teacher))
        return super().fact(need, term)

    def _classifier(self, learner: str) -> nn.Module:
        if learner not in self._peers:
            raise ValueError(f"the classifier of the branch {learner} is not known: take a loss of logits")
        return classifier_of(self._networks().networks[learner], self._image_shape)

    def trained_elsewhere(self) -> list[str]:
        """Names of the parameters and buffers of peers that other processes train."""
        parts = [self.owned(name) for name in self._peers if not self.collaboration.trains(name)]
        theirs = {id(value) for part in parts for value in (*part.parameters(), *part.buffers())}
        return [name for name, value in (*self.named_parameters(), *self.named_buffers()) if id(value) in theirs]

    def on_fit_start(self) -> None:
        """Tell the losses what they need to know, and show what is matched with what."""
        self.collaboration.require(self.trainer.strategy)
        self._lessons.inform(self.fact)
        for table in self._lessons.tables(self._plans, self._teacher_plan_of):
            rank_zero_info(table)
        for notice in self._lessons.notices():
            rank_zero_info(notice)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer, with the groups of each peer, which say whose they are."""
        groups = [
            {**group, "peer": name}
            for name in self._peers
            for group in parameter_groups(self.owned(name), self.weight_decay_on)
        ]
        optimizer = self.make_optimizer(groups)
        return scheduled(optimizer, self.make_scheduler, self.scheduler_interval, self._training_length, self._restored)

    # Training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Name what is random inside the step, and exchange what peers in other processes have learnt."""
        super().on_train_batch_start(batch, batch_idx)
        self.collaboration.advance(self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum over the peers of their terms, weighted by this rank's share of the batch."""
        batch = as_batch(batch)
        if batch.index is None:
            check_labels(batch.target, self.num_classes or 0, batch_idx)
        epoch = self.current_epoch
        shown = shown_to(self._peers, batch, self.memory_format)
        learners = [learner for learner in self._learners if self.collaboration.trains(learner.peer)]
        answers = answers_of(self._networks(), self._plans, learners, self._lessons.views(), shown)

        def ask(view: str) -> dict[str, Outputs]:
            images = {peer: shown(peer, view)[1] for peer in self._peers}
            return self.collaboration.teach(answers[view], batch.target, images)

        taught, criteria = self._lessons.taught(epoch, ask)
        loss, values = criteria(self._lessons.spoken(answers), taught, batch, epoch)
        values = self._lessons.means(values)
        self._watch.note(loss, values, batch, self)
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.meter.add({**values, "loss": loss.detach()}, len(batch))
        trained = (p for name in self._peers if self.collaboration.trains(name) for p in self.owned(name).parameters())
        tied = self._unreached.tied(loss, (epoch, tuple(values)), trained, self.trainer.world_size)
        return tied * self._share(len(batch), batch_idx)

    def _share(self, samples: int, position: int) -> float | Tensor:
        group = self.collaboration.group
        if group is None:
            return super()._share(samples, position)
        total = torch.tensor(float(samples), device=self.device)
        dist.all_reduce(total, group=group)
        return samples * dist.get_world_size(group) / total

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each peer apart, so that none is bounded by another's."""
        if not gradient_clip_val:
            return
        clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
        for name in self._peers:
            clip(list(self.owned(name).parameters()), gradient_clip_val)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep every peer as it is where it is trained, what the collaboration keeps, and each peer's last figure."""
        super().on_save_checkpoint(checkpoint)
        self.collaboration.unite()  # the entries of the checkpoint's state_dict are the peers' own tensors
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = [
                self.collaboration.united(each) for each in checkpoint["optimizer_states"]
            ]
        checkpoint[COLLABORATION] = self.collaboration.state()
        checkpoint[TOP1] = top1_of(self.trainer.callback_metrics, [learner.name for learner in self._learners])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the running means and what the collaboration keeps."""
        super().on_load_checkpoint(checkpoint)
        self.collaboration.restore(checkpoint.get(COLLABORATION))

    # Evaluation

    def on_validation_start(self) -> None:
        """Every process examines every peer."""
        self.collaboration.unite()

    def on_train_end(self) -> None:
        """Every process ends with every peer."""
        self.collaboration.unite()
