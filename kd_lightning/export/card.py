"""The model card: what the network is, how it is used, how it was made, and what it is worth."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData

from kd_lightning.distillers.collaboration import ENSEMBLE
from kd_lightning.export.agreement import Agreement
from kd_lightning.export.formats import NEEDED, Format
from kd_lightning.export.int8 import Int8
from kd_lightning.export.part import Part
from kd_lightning.export.preprocessing import Preprocessing
from kd_lightning.export.stated import stated
from kd_lightning.export.use import library, usage

TOP1 = "top1"
UNKNOWN = "unknown"


class Checkpoint(NamedTuple):
    """Which checkpoint of a run was exported.

    Attributes:
        chosen: ``last`` or ``best``.
        by: The figure that the best one was chosen by; empty for the last one.
        on_test: Whether validation looks at the test set.
        epoch: In which it was written, counted from 1.
        step: After which.
    """

    chosen: str
    by: str
    on_test: bool
    epoch: int
    step: int

    @property
    def option(self) -> str:
        """What a command takes it by; the last one by nothing."""
        return "" if self.chosen == "last" else f" --ckpt {self.chosen}"

    def __str__(self) -> str:
        figure = f", by {self.by}" if self.by else ""
        where = ", which was measured on the test set" if self.by.startswith("val/") and self.on_test else ""
        return f"{self.chosen}{figure}{where}; of epoch {self.epoch}, step {self.step}"


class Facts(NamedTuple):
    """What a card says.

    Attributes:
        file: Name of the exported file.
        format: Of the file.
        part: What was exported.
        data: Name of the data set.
        classes: Names of the classes.
        preprocessing: Of the images.
        scheme: Class of the run's model.
        formulas: Who learns -> the formula of its loss.
        teachers: Names of their networks.
        taught_first: Whether they taught generation 0 alone, and this checkpoint is of a later one.
        figures: Of the run's test, ``test/...``; empty if this checkpoint was not tested, or in another way.
        untested: In which way it was not, as the end of a sentence.
        checkpoint: Which it is.
        config: The run's configuration.
        training: The run's record: seed, epochs, versions, commit.
        agreement: Of the file with the network.
        int8: Where the weights have 8 bits.
        license: None for unset.
    """

    file: str
    format: Format
    part: Part
    data: str
    classes: Sequence[str]
    preprocessing: Preprocessing
    scheme: str
    formulas: Mapping[str, str]
    teachers: Sequence[str]
    taught_first: bool
    figures: Mapping[str, float]
    untested: str
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    training: Mapping[str, Any]
    agreement: Agreement
    int8: Int8 | None = None
    license: str | None = None

    @property
    def name(self) -> str:
        """Of the network."""
        return self.part.recipe.name if self.part.recipe is not None else type(self.part.network).__name__

    def top1(self) -> float | None:
        """Top-1 in [0, 1] on the test set, of what the file holds, if it was measured."""
        if self.int8 is not None:
            return self.int8.after
        whole = self.part.name in ("", ENSEMBLE)  # of all peers, it is the answer that the test names by nobody
        return self.figures.get(f"test/{TOP1}" if whole else f"test/{self.part.name}_{TOP1}")


def front_matter(facts: Facts) -> str:
    """The metadata that the Hugging Face hub reads."""
    top1 = facts.top1()
    result = EvalResult(
        task_type="image-classification",
        dataset_type=facts.data,
        dataset_name=facts.data,
        dataset_split="test",
        metric_type="accuracy",
        metric_value=top1,
    )
    data = ModelCardData(
        license=facts.license or UNKNOWN,
        library_name=library(facts.format, facts.part),
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation", "kd-lightning"],
        datasets=[facts.data],
        metrics=["accuracy"],
        model_name=facts.name,
        eval_results=[result] if top1 is not None else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| figure | value |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _images(facts: Facts) -> str:
    wanted = facts.preprocessing
    channels, height, width = wanted.image_shape
    text = [f"{channels} channel{'s' * (channels > 1)}, {height}x{width} pixels, values in [0, 1]"]
    if wanted.interpolation is not None:
        text.append(f"resized ({wanted.interpolation}) and cropped ({wanted.crop_mode}, {wanted.crop_pct:g})")
    if wanted.mean is None or wanted.std is None:
        text.append("normalised by figures that the data module does not say")
    else:
        text.append(f"then normalised by mean {list(wanted.mean)} and std {list(wanted.std)}")
    return ", ".join(text) + "."


def _measured(facts: Facts) -> tuple[str, str]:
    """Whom the stated teachers taught, and what was measured of them."""
    if facts.taught_first:
        return " of generation 0", "not measured here"
    top1 = facts.figures.get(f"test/teacher_{TOP1}")
    return "", "its top-1 was not measured with this checkpoint" if top1 is None else f"test top-1 {top1:.4f}"


def _method(facts: Facts) -> list[str]:
    lines = [f"- scheme: `{facts.scheme}`"]
    if facts.part.name:
        lines.append(f"- part of the run: `{facts.part.name}`")
    if facts.teachers:
        whose, measured = _measured(facts)
        lines.append(f"- teacher{whose}: {', '.join(f'`{name}`' for name in facts.teachers)}, {measured}")
    lines += [f"- {where}: `{formula}`" for where, formula in facts.formulas.items()]
    return lines


def _figures(facts: Facts) -> list[str]:
    rows = {name: f"{value:.4f}" for name, value in sorted(facts.figures.items())}
    if facts.int8 is not None:
        rows |= {"test top-1 in float32": f"{facts.int8.before:.4f}", "test top-1 in int8": f"{facts.int8.after:.4f}"}
    advice = f"`kd-lightning test RUN{facts.checkpoint.option}` tests it"
    said = [_table(rows)] if rows else [f"This checkpoint has not been tested{facts.untested}; {advice}."]
    what = "The float32 file" if facts.int8 is not None else "The file"
    said.append(f"{what} was compared with the PyTorch network on images of the test set: {facts.agreement}.")
    return [*said, f"{facts.int8}."] if facts.int8 is not None else said


def _made(facts: Facts) -> list[str]:
    record = facts.training
    lines = [f"- checkpoint: {facts.checkpoint}"]
    lines += [f"- {name}: {record[name]}" for name in ("seed", "epochs") if name in record]
    lines += [f"- {package} {version}" for package, version in record.get("versions", {}).items()]
    lines.append(f"- commit: {record.get('commit') or 'not known'}")
    tools = ("torch", "timm", *(NEEDED if facts.format == "onnx" else ()))
    return [*lines, f"- exported with {', '.join(f'{name} {metadata.version(name)}' for name in tools)}"]


def _configuration(facts: Facts) -> list[str]:
    text = yaml.safe_dump(stated(facts.config), sort_keys=False, allow_unicode=True)
    return ["What the run states, without places on its machine (of weights, data, logs).", f"```yaml\n{text}```"]


def card(facts: Facts) -> str:
    """The card, as Markdown with front matter."""
    license = facts.license or "unknown: nobody has stated one, so ask before you use the weights"
    sections = {
        "Use": [usage(facts.file, facts.format, facts.part, len(facts.classes), facts.preprocessing)],
        "Images": [_images(facts), "The classes, in the order of the logits, are in `classes.json`."],
        "Method": ["\n".join(_method(facts))],
        "Figures": _figures(facts),
        "Training": ["\n".join(_made(facts))],
        "Configuration": _configuration(facts),
        "License": [f"{license[0].upper()}{license[1:]}." if facts.license is None else license],
    }
    about = f"`{facts.name}`, trained on {facts.data} ({len(facts.classes)} classes) with kd-lightning."
    body = "\n\n".join(f"## {title}\n\n" + "\n\n".join(parts) for title, parts in sections.items())
    return f"{front_matter(facts)}\n# {facts.file}\n\n{about}\n\n{body}\n"
