"""The figures of docs/scaling.md follow from the package and from what was measured."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.models.output_codec import DenseCodec, TopKCodec
from kd_lightning.models.output_store import HEADER, Layout

REPOSITORY = Path(__file__).parents[1]
IMAGES, CLASSES, GPUS, BATCH = 14_197_122, 21_841, 64, 64
PEAK = 989e12  # of an H100 in bfloat16
BESIDE = 5  # bytes of a row's checksum and mark
DECODED = 661  # images a second and core; measured anew, it may differ a little
IMAGE = 92_000  # bytes
DENSE, TOP_32 = IMAGE + 2 * CLASSES + BESIDE, IMAGE + 128 + BESIDE  # bytes of an image and its row


@pytest.fixture(scope="module")
def page() -> str:
    return " ".join((REPOSITORY / "docs/scaling.md").read_text(encoding="utf-8").split())


def measured(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REPOSITORY / f"benchmarks/{name}.json").read_text(encoding="utf-8"))
    return content


def flops(name: str) -> tuple[int, int]:
    """Parameters, and operations of one image's forward pass."""
    with torch.device("meta"):
        network, image = timm.create_model(name, num_classes=CLASSES).eval(), torch.randn(1, 3, 224, 224)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(image)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops()


def test_bytes_of_stored_outputs(page: str) -> None:
    dense, some, one = DenseCodec(CLASSES), TopKCodec(CLASSES, 32), TopKCodec(CLASSES, 1)
    assert f"| {dense.row_bytes:,} bytes |" in page
    assert f"| {some.row_bytes} bytes |" in page
    assert f"| {one.row_bytes} bytes |" in page
    sizes = {
        (codec.name, views): Layout(IMAGES * views, codec.row_bytes).size / 1e9
        for codec in (dense, some, one)
        for views in (1, 4, 90)
    }
    assert Layout(IMAGES, dense.row_bytes).size == pytest.approx(IMAGES * (dense.row_bytes + BESIDE) + HEADER, abs=9000)
    assert f"| 1 | {sizes[dense.name, 1]:.1f} GB | {sizes[some.name, 1]:.1f} GB | {sizes[one.name, 1]:.1f} GB |" in page
    assert f"| {sizes[dense.name, 4] / 1e3:.1f} TB | {sizes[some.name, 4]:.1f} GB |" in page
    assert f"| {sizes[dense.name, 90] / 1e3:.1f} TB | {sizes[some.name, 90]:.1f} GB |" in page


def test_reads(page: str) -> None:
    files = {(row["classes"], row["row_bytes"]): row for row in measured("store")["files"]}
    dense, some = files[CLASSES, 2 * CLASSES], files[CLASSES, 128]
    rows = dense["read_rows_per_s"]["median"]
    assert f"dense | {rows:,} a second and core" in page
    assert f"`top_k: 32` | {some['read_rows_per_s']['median']:,} a second and core" in page
    assert f"dense | {dense['checksum_rows_per_s']['median']:,} a second and core" in page
    assert f"64 dense rows take {1e3 * BATCH / rows:.2f} ms" in page
    assert f"{rows * 2 * CLASSES / 1e9:.2f} GB/s of dense rows" in page
    now = measured("decoding")["1.5 times"]["loaders_images_per_s"]["ours, full"]["median"]
    assert pytest.approx(now, rel=0.25) == DECODED
    assert f"| {DECODED} images a second and core |" in page
    for r in (500, 1_500, 3_000):
        need = 8 * r
        beside = f"{need * (2 * CLASSES + BESIDE) / 1e9:.2f} GB/s | {need * (128 + BESIDE) / 1e6:.1f} MB/s"
        cores = f"{need / rows:.2f} | {need / DECODED:.1f} |"
        assert f"| {r:,} | {need:,} | {beside} | {need * IMAGE / 1e9:.2f} GB/s | {cores}" in page


def test_network_and_arithmetic(page: str) -> None:
    parameters, forward = flops("deit_base_distilled_patch16_224")
    _, teacher = flops("regnety_160")
    assert f"{parameters:,} parameters" in page
    assert f"{forward / 2e9:.1f} billion" in page
    assert f"{teacher / 2e9:.1f} billion" in page
    gradient = 4 * parameters / 1e6
    node = 2 * 7 / 8 * gradient
    assert f"{gradient:.1f} MB in float32" in page
    assert f"{2 * 63 / 64 * gradient:.1f} MB a GPU; " in page
    assert f"{node:.1f} MB a node" in page
    assert f"{3 * 63 / 64 * gradient:,.1f} MB a GPU" in page
    assert f"| arithmetic | {PEAK / (3 * forward):,.0f} |" in page
    assert f"online | {PEAK / (3 * forward + teacher):,.0f} |" in page
    assert f"{teacher / (3 * forward + teacher):.0%}".replace("%", " %") + " fewer images" in page
    for speed in (12.5, 50, 400):
        assert f"| network, {speed:g} GB/s a node | {BATCH * speed * 1e3 / node:,.0f} |" in page
    assert f"an epoch has {math.ceil(IMAGES / (GPUS * BATCH)):,} steps" in page
    assert f"{IMAGES * teacher / 1e15:.0f} PFLOP" in page


def test_images_and_rows_together(page: str) -> None:
    """A disk or a server that holds both gives both in the same second."""
    _, forward = flops("deit_base_distilled_patch16_224")
    _, teacher = flops("regnety_160")
    alone, online = 0.4 * PEAK / (3 * forward), 0.4 * PEAK / (3 * forward + teacher)
    for text, size in (("images", IMAGE), ("images and dense rows", DENSE), ("images and `top_k: 32` rows", TOP_32)):
        served, near = f"{10e9 / (64 * size):,.0f}", f"{3e9 / (8 * size):,.0f}"
        assert f"| {text} from a file server of 10 GB/s | {served} | 10 GB/s / (64 x {size:,} bytes)" in page
        assert f"| {text} from a disk of 3 GB/s in each node | {near} | 3 GB/s / (8 x {size:,} bytes)" in page
    assert f"; {alone:,.0f} at 40 % of it" in page
    assert f"fewer images; {online:,.0f} at 40 %" in page
    assert 3e9 / (8 * DENSE) < online < alone < 3e9 / (8 * TOP_32)
    assert f"dense rows need {8 * alone * DENSE / 1e9:.2f} GB/s for {alone:,.0f}" in page
    assert f"below {8 * online * DENSE / 1e9:.2f} GB/s they are slower than asking the teacher" in page
    assert f"with `top_k: 32` it is {8 * alone * TOP_32 / 1e9:.2f} GB/s" in page
    assert f"Together, images and dense rows at r = 3,000 are {24_000 * DENSE / 1e9:.2f} GB/s" in page
    assert 5 * DECODED < alone < 6 * DECODED  # "at least 6 cores a GPU"


def test_losses_that_look_at_all_ranks_are_named(page: str) -> None:
    files = (REPOSITORY / "kd_lightning/losses").glob("*.py")
    assert {file.stem for file in files if "kd_lightning.ranks" in file.read_text(encoding="utf-8")} == {"crd", "dino"}
    assert "`CRD` gathers" in page
    assert "`DINO` adds up" in page
