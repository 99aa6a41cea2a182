"""Posterizing to no bits, which timm's policies ask for and Pillow 13 refuses."""

from collections.abc import Iterator

from PIL import Image, ImageOps
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment

BITS = 8  # of a channel


def posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """The highest bits of each channel; none of them (0 or fewer) leave a black image, as with Pillow before 13.

    Args:
        image: RGB.
        bits_to_keep: Of each channel.
        **_: What timm gives to all operations alike.
    """
    if bits_to_keep >= BITS:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep >= 1 else Image.new(image.mode, image.size)


def operations(part: object) -> Iterator[AugmentOp]:
    """The operations of a step of timm's transforms; none where it is not a policy."""
    if isinstance(part, RandAugment | AugMixAugment):
        yield from part.ops
    elif isinstance(part, AutoAugment):
        for subpolicy in part.policy:
            yield from subpolicy


def allow_no_bits(part: object) -> None:
    """Let the policy posterize to no bits, as ``rand-m9-mstd0.5-inc1`` does for one image in a thousand."""
    for operation in operations(part):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = posterize
