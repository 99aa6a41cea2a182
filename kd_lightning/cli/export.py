"""``kd-lightning export RUN``: a run's network as safetensors, ONNX or torch.export, checked, with a model card."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from kd_lightning import export
from kd_lightning.cli.commands import run_of
from kd_lightning.cli.exporter import IMAGES, Exporter, Wanted
from kd_lightning.cli.looking import check_options, look

AS_EXPORTED = ("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.inference_mode=false")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        "kd-lightning export",
        description="Write a run's student to a file that is read without this package, compare the file with the "
        "network on images of the run's test set, and write its model card, preprocessing and class names beside it.",
        epilog="Options of a test, as --data.init_args.root=DATA, are passed on to the test of the run.",
        allow_abbrev=False,
    )
    made.add_argument("run", metavar="RUN", help="folder of a run")
    made.add_argument("--format", choices=export.FORMATS, required=True)
    made.add_argument("--output", type=Path, required=True, metavar="FILE", help="in a folder of its own")
    made.add_argument("--ckpt", choices=["last", "best"], default="last", help="which checkpoint; last by default")
    made.add_argument("--part", metavar="NAME", help="a head, peer, branch, exit or generation; best: the best peer")
    made.add_argument("--int8", choices=["dynamic", "static"], help="8-bit weights; for onnx")
    made.add_argument("--calibration_images", type=int, metavar="N", help="training images for static; 512 by default")
    made.add_argument("--push_to_hub", "--push-to-hub", metavar="REPO_ID", help="also bring it to the Hugging Face hub")
    made.add_argument("--license", help="of the weights, as apache-2.0; unknown by default")
    return made


def asked(arguments: Sequence[str]) -> tuple[Wanted, str | None, list[str]]:
    """What is wanted, the repository to bring it to, and the options of the run's test.

    Raises:
        ValueError: for an unknown option, a value out of range, or what this format or computer cannot do.
        FileNotFoundError: for a folder that is no run's.
    """
    given, options = parser().parse_known_args(arguments)
    check_options("export", options)
    export.require(given.format, given.output)
    if given.int8 is not None and given.format != "onnx":
        raise ValueError(f"--int8 is for --format onnx, got {given.format}: onnxruntime quantises ONNX files alone")
    if given.calibration_images is not None and given.int8 != "static":
        raise ValueError("--calibration_images is for --int8 static: nothing else is calibrated")
    count = IMAGES if given.calibration_images is None else given.calibration_images
    if count < 1:
        raise ValueError(f"--calibration_images must be >= 1, got {count}")
    if given.push_to_hub is not None:
        validate_repo_id(given.push_to_hub)
    export.check_folder(given.output.parent, given.output.name)
    run = run_of(["export", given.run])
    wanted = Wanted(run, given.format, given.output, given.ckpt, given.part, given.int8, count, given.license)
    return wanted, given.push_to_hub, options


def command(arguments: list[str]) -> None:
    """Carry out the command."""
    wanted, repo_id, options = asked(arguments)
    exporter = Exporter(wanted)
    look(wanted.run, exporter, wanted.ckpt, [*AS_EXPORTED, *options], taught=False)
    print(f"wrote {wanted.output}: {exporter.facts.agreement}")
    if exporter.facts.int8 is not None:
        print(exporter.facts.int8)
    if exporter.facts.license is None:
        print(f"the license in {wanted.output.parent / export.CARD} is unknown: --license states it")
    if repo_id is not None:
        print(f"pushed to {export.push(repo_id, wanted.output.parent, exporter.files)}")
