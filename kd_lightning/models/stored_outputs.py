"""A teacher whose answers are kept in a file, so that each view of an image is asked once for all epochs and runs."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_lightning.batch import Batch
from kd_lightning.models.input_adapter import Views
from kd_lightning.models.named_views import NamedViews
from kd_lightning.models.output_codec import DenseCodec, OutputCodec, TopKCodec
from kd_lightning.models.output_store import Layout, OutputStore, Rows, written_as
from kd_lightning.models.tap_plan import TapPlan
from kd_lightning.models.taps import LOGITS
from kd_lightning.models.teacher import Outputs, Teacher
from kd_lightning.ranks import summed, world_size

FOLDER = Path("stored_outputs")
KEPT_NEAR = 2 << 30  # bytes of a filled file that are kept in the memory of the host, where the student is there
OF_FREE = 0.25  # of a GPU's free memory, for a filled file


def default_path(facts: Mapping[str, str]) -> Path:
    """A file of its own for each teacher, data set, augmentation and seed."""
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
    return FOLDER / f"{digest[:16]}.outputs"


def room(device: torch.device) -> float:
    """Bytes of a filled file that may be kept on a device."""
    return OF_FREE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else KEPT_NEAR


def picked(batch: Batch, view: str, where: Tensor) -> Batch:
    """Some samples of one view of a batch, by a mask, bool ``[N]``."""
    index, number = batch.index, batch.number
    return Batch(
        {view: batch.images[view][where]},
        batch.target[where],
        None if index is None else index[where],
        None if number is None else number[where],
    )


class StoredOutputs(Teacher):
    """Keeps the logits of another teacher in one memory-mapped file.

    Epoch e shows view e mod ``views`` of each sample: the first ``views`` epochs ask the teacher and store, later ones,
    and later runs with other students, losses, weights and temperatures, read. With as many views as epochs the
    training is the exact protocol; fewer are a trade of variety for time (FKD). Where an epoch does not show every
    sample (``repeats``, ``drop_last``), what is missing is asked and stored when it comes. Runs of several seeds share
    a file if ``data.seed`` fixes the views. The teacher is built when it is first needed; its taps are not stored, so
    where a term looks at them it answers every batch. Stored values are used in every epoch, also in the one that
    computes them, so a run that fills the file equals one that reads it. They are as precise as the run that stored
    them. Images in files are known by their names and sizes.

    Several ranks and runs may fill a file at once. A file of another teacher (by the hash of its weights, or timm's
    name of them), data set, augmentation, normalisation or seed is refused with the difference named; a damaged row is
    computed anew.

    Source: Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022 (FKD); Beyer et
    al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent", CVPR 2022, on views that both see.

    Args:
        teacher: Whose answers are kept: frozen, or an ensemble of such.
        views: How many different views of each sample there are, >= 1.
        path: The file; None for one in ``stored_outputs/`` that is named by all that its content depends on.
        top_k: Keep so many of the largest log-probabilities, and spread the rest evenly (see `TopKCodec`), for very
            many classes; None for all logits.
        allow_top_k_above_1: Let terms with a temperature above 1, or none that is known, read ``top_k``, which distorts
            them.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        teacher: Teacher,
        views: int,
        path: str | None = None,
        top_k: int | None = None,
        allow_top_k_above_1: bool = False,
    ) -> None:
        if views < 1:
            raise ValueError(f"views must be >= 1, got {views}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {top_k}")
        self.teacher, self.views, self.path = teacher, views, None if path is None else Path(path)
        self.top_k, self.allow_top_k_above_1 = top_k, allow_top_k_above_1
        self.check, self.expected_top1 = teacher.check, teacher.expected_top1
        self.store: OutputStore | None = None
        self._device = torch.device("cpu")
        self._near: Tensor | None = None
        self._built, self._answered = False, 0

    def identity(self) -> dict[str, str]:
        """The teacher's."""
        return self.teacher.identity()

    def require_temperatures(self, temperatures: Mapping[str, float | None]) -> None:
        """Let terms with these temperatures pass, by name; None is one that nobody knows.

        Raises:
            ValueError: if the remainder of ``top_k`` would distort one.
        """
        above = {name: value for name, value in temperatures.items() if value is None or value > 1}
        if self.top_k is not None and above and not self.allow_top_k_above_1:
            name, value = next(iter(above.items()))
            raise ValueError(
                f"teacher.top_k {self.top_k} spreads the rest of the probability evenly, which a temperature above 1 "
                f"makes wrong by tens of per cent, and criteria.{name} has {'none' if value is None else value}: leave "
                "top_k out, or ask for it with allow_top_k_above_1: true"
            )

    def setup(self, num_classes: int, views: Views, taps: Sequence[str]) -> None:
        """Get ready; the teacher is built later, if it is needed."""
        self._wanted = num_classes, views, taps
        self._tapped = [tap for tap in taps if tap != LOGITS]
        self.codec: OutputCodec = DenseCodec(num_classes)
        if self.top_k is not None:
            self.codec = TopKCodec(num_classes, self.top_k)
        if self._tapped:
            self._ask()

    def begin(self, views: Views) -> None:
        """Open the file for the data of this training.

        Raises:
            OSError: if there is no room for the file.
            ValueError: if the views depend on more than their names, or the file is of something else.
        """
        self.store, self._near, self._answered = None, None, 0
        if views.named is not None:
            self._open(views.named)

    def _open(self, named: NamedViews) -> None:
        named.repeat_views_after(self.views)
        self._view_names, self._samples = list(named.view_names()), named.samples()
        self._numbers = self.views * named.repeats
        facts = {f"teacher.{key}": text for key, text in self.identity().items()} | dict(named.view_facts())
        facts |= {"views": str(self.views), "format": self.codec.name, "classes": str(self.codec.classes)}
        facts["samples"] = str(self._samples)
        rows = len(self._view_names) * self._numbers * self._samples
        self.store = OutputStore(self.path or default_path(facts), Layout(rows, self.codec.row_bytes), facts)
        self._training = named.training_rows().numpy()
        self._often = max(-(-len(self._training) // world_size()), 1)

    def _ask(self) -> Teacher:
        """The teacher, ready to answer."""
        if not self._built:
            with torch.inference_mode(False):  # a test may be the first to ask
                self.teacher.setup(*self._wanted)
                self.teacher.to(self._device)
            self._built = True
        return self.teacher

    def to(self, device: torch.device) -> None:
        """Answer on a device."""
        self._device = device
        if self._built:
            self.teacher.to(device)

    def plan(self) -> TapPlan:
        """Where the taps are, and the shapes of them and of ``logits``; known after `setup`."""
        return self._ask().plan() if self._tapped else TapPlan({}, {LOGITS: (2, self.codec.classes)})

    def members(self) -> dict[str, Teacher]:
        """Who is examined."""
        return self.teacher.members()

    def remembered(self) -> dict[str, tuple[float, int]]:
        """What the file says of their examination, if that of every rank says it; else the teacher is built for it."""
        told: dict[str, Any] = {} if self.store is None else self.store.notes().get("examined", {})
        known = [name in told for name, member in self.members().items() if member.check is not False]
        everywhere = summed(torch.tensor([float(all(known))], device=self._device))
        if int(everywhere) == world_size():
            return {name: (float(top1), int(images)) for name, (top1, images) in told.items()}
        self._ask()
        return {}

    def examined(self, results: Mapping[str, tuple[float, int]]) -> None:
        """Remember in the file what the examination has shown."""
        shown = {name: [*figures] for name, figures in results.items()}
        if self.store is not None and results and self.store.notes().get("examined") != shown:
            self.store.note(examined=shown)

    def notices(self) -> list[str]:
        """How large the file is and how much of it is there, and what the teacher is asked all the same.

        Raises:
            ValueError: if there is no file, because the views of this data have no names.
        """
        if self.store is None:
            raise ValueError(
                "StoredOutputs needs a data module whose views have names, as those of this package are: a plain "
                "DataLoader cannot show the same view again"
            )
        self._keep_near()
        self.store.damaged = 0  # who asks for those rows counts them again
        share = float(np.mean([self.store.filled[rows].mean() for rows in self._needed()]))
        names = "" if len(self._view_names) == 1 else f" of {len(self._view_names)} kinds"
        lines = [
            f"stored outputs: {self.store.path}, {self._samples} samples x {self._numbers} views{names} x "
            f"{self.codec.classes} classes ({self.codec.name}), {written_as(self.store.layout.size)}, {share:.0%} there"
        ]
        if self._tapped:
            lines.append(f"the teacher answers every batch, for its taps {', '.join(self._tapped)} are not stored")
        return lines

    def _needed(self) -> Iterator[Rows]:
        """The rows of the file that a training looks at, one view of all its samples at a time."""
        for start in range(0, self._stored().layout.rows, self._samples):
            yield start + self._training

    def _count(self, rows: int) -> None:
        """Once in as many answers as an epoch has, bring what is new to the disk, and see whether all is there."""
        self._answered += rows
        if self._answered >= self._often:
            self._answered = 0
            self._stored().flush()
            self._keep_near()
            self._tell_of_damage()

    def _tell_of_damage(self) -> None:
        """Say how many rows were not what had been written, since this was last said."""
        store = self._stored()
        if store.damaged:
            warnings.warn(
                f"{store.damaged} rows of {store.path} did not match their checksums and were computed anew: if no "
                "other run was writing them, look at the disk",
                stacklevel=2,
            )
            store.damaged = 0

    def _keep_near(self) -> None:
        """Where all that a training needs is there, whole, and fits, copy it to the device.

        A step then waits for nobody; one that reads from the file waits for the host.
        """
        store = self._stored()
        if store.layout.rows * store.layout.row_bytes > room(self._device):
            return
        if not all(store.filled[rows].all() for rows in self._needed()):
            return
        near = torch.empty(store.layout.rows, store.layout.row_bytes, dtype=torch.uint8)
        for rows in self._needed():
            data, there = store.read(rows)
            if not there.all():
                return
            near[torch.from_numpy(rows)] = torch.from_numpy(data)
        self._near = near.to(self._device)

    def unlabelled(self, batch: Batch, view: str = "default") -> Outputs:
        """The teacher's own answer, to images that are no training images."""
        return self._ask().unlabelled(batch, view)

    @torch.no_grad()
    def __call__(self, batch: Batch, view: str = "default") -> Outputs:
        """Stored logits ``[N, C]``, float32, and the teacher's taps where they are asked for.

        Raises:
            ValueError: if the samples of the batch have no names.
        """
        rows = self._rows(batch, view)
        if self._near is not None:
            kept = self._near[rows]
            return Outputs(self.codec.decode(kept), self._ask()(batch, view).taps if self._tapped else {})
        store, host = self._stored(), rows.cpu().numpy()
        data, there = store.read(host)
        content, missing = torch.from_numpy(data), torch.from_numpy(~there)
        taps = {}
        if self._tapped:
            answer = self._ask()(batch, view)
            logits, taps = answer.logits[missing.to(answer.logits.device)], answer.taps
        elif not there.all():
            logits = self._ask()(picked(batch, view, missing.to(rows.device)), view).logits
        if not there.all():
            fresh = self.codec.encode(logits.float().cpu())
            content[missing] = fresh
            store.write(host[~there], fresh.numpy())
        self._count(len(host))
        return Outputs(self.codec.decode(content.to(rows.device)), taps)

    def _rows(self, batch: Batch, view: str) -> Tensor:
        if batch.index is None or batch.number is None:
            raise ValueError("StoredOutputs needs the index and number of each sample, which this batch has not")
        self._stored()
        kind = self._view_names.index(view) * self._numbers
        return (kind + batch.number % self._numbers) * self._samples + batch.index

    def _stored(self) -> OutputStore:
        if self.store is None:
            raise RuntimeError("the file of stored outputs is open in a training only")
        return self.store
