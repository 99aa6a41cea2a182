"""Looks at the test of a run, takes its network out, and writes the files of an export."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor

from kd_lightning import export
from kd_lightning.cli.exported_data import (
    name_of,
    preprocessing_of,
    test_batches,
    test_images,
    training_images,
    validates_on_test,
)
from kd_lightning.cli.exported_figures import figures_of
from kd_lightning.datamodules import ImageDataModule
from kd_lightning.distillers import BornAgainDistiller, Distiller
from kd_lightning.distillers.data_facts import class_names, views_of
from kd_lightning.distillers.evaluating import Answers
from kd_lightning.distillers.formula import formulas_of
from kd_lightning.distillers.onlooker import Onlooker
from kd_lightning.models.peer_weights import TOP1
from kd_lightning.run_folder import RunFolder
from kd_lightning.whole_file import write_json, write_text

IMAGES = 512  # of the test set, on which an export is compared with its network


def is_whole(limit: int | float | None) -> bool:
    """Whether a limit of batches is none: the share 1.0 or nothing, but not the number 1."""
    return limit is None or (isinstance(limit, float) and limit == 1)


class Wanted(NamedTuple):
    """What is to be exported, and how; see ``kd-lightning export --help``."""

    run: RunFolder
    format: export.Format
    output: Path
    ckpt: str
    part: str | None
    int8: export.Mode | None
    calibration_images: int
    license: str | None


class Exporter(Onlooker):
    """Exports a part of a run while it is tested, an average in the student's place where one is evaluated.

    Args:
        wanted: What, and how.

    Attributes:
        files: Names of the files that were written, the exported one first.
        facts: What the card says of them; there after the test.
    """

    facts: export.Facts

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.files: list[str] = []
        self._checkpoint: Mapping[str, Any] = {}
        self._seen: list[Answers] = []
        self._shown = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the test end when there are images enough, unless the command line says when."""
        data = cast(Any, trainer).datamodule
        if isinstance(data, ImageDataModule) and is_whole(trainer.limit_test_batches):
            trainer.limit_test_batches = math.ceil(IMAGES / data.eval_batch_size)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember when it was written, and which of several networks was the best."""
        self._checkpoint = {key: checkpoint.get(key) for key in ("epoch", "global_step", TOP1)}

    def note(self, answers: Answers) -> None:
        """Keep the images and what was answered, until there are enough."""
        if self._shown < IMAGES:
            self._seen.append(answers)
        self._shown += len(answers.batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write all files, or none.

        Raises:
            ValueError: if there is no such part, or the file does not answer as the run does.
        """
        module, wanted, data = cast(Distiller, pl_module), self.wanted, cast(Any, trainer).datamodule
        config = yaml.safe_load(wanted.run.config.read_text())
        stated, views = config["model"], views_of(trainer)
        init_args = stated["init_args"]
        classes = class_names(data, cast(int, module.num_classes))
        networks = export.recipes(init_args)
        top1 = self._checkpoint[TOP1] or {}
        part = export.choose(export.Origin(module, networks, wanted.run.path, views.image_shape[0], top1), wanted.part)
        figures, untested = figures_of(wanted.run, wanted.run.checkpoint(wanted.ckpt), test_images(data) or self._shown)
        images, expected = self._checked(part)
        with export.filling(wanted.output.parent) as folder:
            file = folder / wanted.output.name
            answer = export.write(part, wanted.format, views.image_shape, len(classes), file)
            agreement = export.compare(export.answered(answer, images), expected).required(file.name)
            self.facts = export.Facts(
                file=file.name,
                format=wanted.format,
                part=part,
                data=name_of(data),
                classes=classes,
                preprocessing=preprocessing_of(data, views),
                scheme=stated["class_path"].rpartition(".")[2],
                formulas=formulas_of(stated),
                teachers=list(export.networks(init_args.get("teacher"))),
                taught_first=isinstance(module, BornAgainDistiller) and module.generation > 0,
                figures=figures,
                untested=untested,
                checkpoint=self._taken(config, data),
                config=config,
                training=json.loads(wanted.run.record.read_text()) if wanted.run.record.is_file() else {},
                agreement=agreement,
                int8=None if wanted.int8 is None else self._quantised(wanted.int8, file, answer, trainer),
                license=wanted.license,
            )
            self._describe(folder)
            self.files = [file.name, *sorted(each.name for each in folder.iterdir() if each != file)]

    def _taken(self, config: Mapping[str, Any], data: object) -> export.Checkpoint:
        chosen, kept = self.wanted.ckpt, self._checkpoint
        by = (config.get("checkpoints") or {}).get("best") or "" if chosen == "best" else ""
        return export.Checkpoint(chosen, by, validates_on_test(data), kept["epoch"] + 1, kept["global_step"])

    def _checked(self, part: export.Part) -> tuple[Tensor, Tensor]:
        """The images that were seen and what the part answers, if that is what the run did but for rounding."""
        images = torch.cat([answers.batch.image for answers in self._seen])[:IMAGES]
        said = torch.cat([answers.parts.get(part.name, answers.student) for answers in self._seen])[:IMAGES]
        alone = export.answered(part.network, images)
        agreement = export.compare(alone, said)
        if not agreement.close:
            raise ValueError(f"the network {part.name or 'of the run'} answers otherwise alone than in it: {agreement}")
        return images, alone

    def _quantised(self, mode: export.Mode, file: Path, answer: export.Answer, trainer: pl.Trainer) -> export.Int8:
        before = export.top1(answer, test_batches(trainer))
        data, count = cast(Any, trainer).datamodule, self.wanted.calibration_images
        calibration = list(training_images(data, count)) if mode == "static" else []
        export.to_int8(file, mode, calibration)
        after = export.top1(export.onnx_answer(file), test_batches(trainer))
        return export.Int8(mode, before, after, sum(map(len, calibration)))

    def _describe(self, folder: Path) -> None:
        facts = self.facts
        write_text(folder / export.CARD, export.card(facts))
        write_json(folder / export.PREPROCESSING, facts.preprocessing.as_json())
        write_text(folder / export.CLASSES, json.dumps(facts.classes, indent=2) + "\n")
        if facts.format == "safetensors" and export.is_timms(facts.part):
            config = export.timm_config(facts.part, facts.preprocessing, facts.classes, facts.file)
            write_json(folder / export.CONFIG, config)
