"""The precision of a run that states none: bfloat16 where the hardware multiplies in it."""

import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

AMPERE = (8, 0)


def gains_from_bfloat16(accelerator: str) -> bool:
    """Whether the device that Lightning will choose has instructions for bfloat16.

    Args:
        accelerator: As Lightning takes it; ``auto`` is a GPU where there is one.
    """
    if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= AMPERE
    if accelerator in {"auto", "cpu"}:
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def choose_precision(trainer: Namespace) -> None:
    """State the precision of a training that does not, and say so; the configuration records it."""
    if trainer.get("precision") is None and gains_from_bfloat16(str(trainer.get("accelerator"))):
        trainer["precision"] = "bf16-mixed"
        rank_zero_info(
            "precision: bf16-mixed, in which this hardware is fastest; --trainer.precision=32-true for float32; maps "
            "in channels_last, unless model.channels_last is false"
        )
