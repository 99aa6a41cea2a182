"""The thin front of the command line: what needs no torch is answered at once."""

import os
import sys
from collections.abc import Sequence

from kd_lightning import __version__

ASKING = {"-h", "--help"}
EXPLAINED = {"fit", "validate", "test", "predict", "resume"}  # the help of the others is their own
HELP = f"""kd-lightning {__version__}: knowledge distillation of image classifiers

usage:
  kd-lightning fit      --config CONFIG [--experiment NAME] [--run NAME] [--KEY VALUE ...]
  kd-lightning validate --config CONFIG --ckpt_path FILE
  kd-lightning test     --config CONFIG --ckpt_path FILE
  kd-lightning predict  --config CONFIG --ckpt_path FILE
  kd-lightning test     RUN_DIR [--ckpt last|best]     test a run; last is the default
  kd-lightning predict  RUN_DIR [--ckpt last|best]     write its predictions.csv
  kd-lightning resume   RUN_DIR                        go on where a run was stopped
  kd-lightning report   RUN [RUN ...]                  compare runs, in tables and an HTML page
  kd-lightning export   RUN --format FORMAT --output FILE    the student alone, for use without this package
  kd-lightning sweep    FILE                           a grid of runs, on this computer
  kd-lightning list     models|losses|schemes|configs [PATTERN]    what a configuration may name

A configuration states who learns, from whom, what is matched, and on which views: a file, or the name of one that comes
with the package, as digits/offline/kd.yaml. Any key of it can be set:
  --trainer.max_epochs 8   --model.criteria.kd.weight 0.5   --data.global_batch_size 128
Several --config are laid over each other, for instance logger/wandb.yaml.

options:
  --allow MODULE   let the configuration name classes of this module (your own networks, losses, data)
  --version        the version
  --help           this text; kd-lightning COMMAND --help is about one command,
                   kd-lightning fit --help TOPIC about one part of a configuration, or one class,
                   kd-lightning fit --config CONFIG --print_config prints the complete configuration

A run leaves runs/<experiment>/<run>/ with config.yaml, metrics.csv, checkpoints/, and results.json after its test.
"""


def topic_of(arguments: Sequence[str]) -> str | None:
    """The word after ``--help``."""
    position = next(index for index, argument in enumerate(arguments) if argument in ASKING)
    after = arguments[position + 1 : position + 2]
    return after[0] if after and not after[0].startswith("-") else None


def answer(arguments: Sequence[str]) -> str | None:
    """What needs no torch to be told; None for everything else.

    Raises:
        ValueError: if it is asked for what there is not.
    """
    if not arguments or arguments[0] in {*ASKING, "help"}:
        return HELP
    if arguments[0] in {"--version", "-V", "version"}:
        return f"kd-lightning {__version__}\n"
    asking = not ASKING.isdisjoint(arguments)
    if arguments[0] == "list":
        from kd_lightning.cli import listing

        return listing.HELP if asking else listing.answer(arguments[1:])
    if arguments[0] not in EXPLAINED or not asking:
        return None
    topic = None if arguments[0] == "resume" else topic_of(arguments)
    if topic == "all":  # LightningCLI's own
        return None
    from kd_lightning.cli.help import answer as explained

    return explained(arguments[0], topic)


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer what needs no torch; go on into the command line for the rest, in the same process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        told = answer(given)
    except ValueError as error:
        print(f"kd-lightning: error: {error}", file=sys.stderr)
        sys.exit(2)
    if told is not None:
        try:
            print(told, end="", flush=True)
        except BrokenPipeError:  # of `| head`; what is left must not be flushed at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    from kd_lightning.cli.commands import run

    sys.exit(run(given))
