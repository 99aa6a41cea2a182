from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from kd_lightning.export import Agreement, Checkpoint, Facts, Int8, Part, Preprocessing, card
from kd_lightning.models import Network

RECIPE = Network("resnet10t", {"drop_rate": 0.1})
FIGURES = {"test/top1": 0.9, "test/teacher_top1": 0.95, "test/a_top1": 0.7}


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts(
        file="model.safetensors",
        format="safetensors",
        part=Part("", RECIPE.build(2).eval(), RECIPE),
        data="digits",
        classes=["cat", "dog"],
        preprocessing=Preprocessing((3, 64, 64), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), 0.9, "center", "bicubic"),
        scheme="OfflineDistiller",
        formulas={"criteria": "0.1 CrossEntropy + 0.9 SoftTarget(temperature=4.0)"},
        teachers=["resnet50"],
        taught_first=False,
        figures=FIGURES,
        untested="",
        checkpoint=Checkpoint("last", "", True, epoch=60, step=240),
        config={"data": {"init_args": {"root": "/home/me/data", "mean": [0.5]}}},
        training={"seed": 3, "epochs": 60, "versions": {"torch": "2.12.0"}, "commit": "abc123"},
        agreement=Agreement(images=256, same=256, difference=0.0, scale=9.0),
    )


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_front_matter_is_the_hubs(facts: Facts) -> None:
    text = card(facts._replace(license="apache-2.0"))
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "timm", "image-classification")
    assert (data.datasets, data.metrics) == (["digits"], ["accuracy"])
    assert data.eval_results is not None
    assert (data.eval_results[0].metric_type, data.eval_results[0].metric_value) == ("accuracy", 0.9)


def test_a_license_that_nobody_stated_is_unknown(facts: Facts) -> None:
    text = card(facts)
    assert front(text)["license"] == "unknown"
    assert "Unknown: nobody has stated one, so ask before you use the weights." in text


def test_what_the_card_says(facts: Facts) -> None:
    text = card(facts)
    for said in (
        'timm.create_model("resnet10t", num_classes=2, in_chans=3, drop_rate=0.1)',
        "3 channels, 64x64 pixels, values in [0, 1], resized (bicubic) and cropped (center, 0.9), then normalised by "
        "mean [0.5, 0.4, 0.3] and std [0.2, 0.2, 0.1].",
        "- teacher: `resnet50`, test top-1 0.9500",
        "- criteria: `0.1 CrossEntropy + 0.9 SoftTarget(temperature=4.0)`",
        "| test/top1 | 0.9000 |",
        "256 of 256 decisions the same",
        "- checkpoint: last; of epoch 60, step 240",
        "- seed: 3",
        "- torch 2.12.0",
        "- commit: abc123",
        "```yaml\ndata:\n  init_args:\n    mean:\n    - 0.5\n```",
    ):
        assert said in text
    assert "import kd_lightning" not in text


def test_what_is_not_known_is_said(facts: Facts) -> None:
    unknown = facts._replace(figures={}, training={}, preprocessing=Preprocessing((1, 8, 8)))
    text = card(unknown)
    assert "model-index" not in front(text)
    assert "This checkpoint has not been tested; `kd-lightning test RUN` tests it." in text
    assert "normalised by figures that the data module does not say" in text
    assert "`resnet50`, its top-1 was not measured with this checkpoint" in text
    assert "- commit: not known" in text


@pytest.mark.parametrize(
    ("by", "on_test", "said"),
    [
        ("val/top1", True, "best, by val/top1, which was measured on the test set; of epoch 2, step 8"),
        ("val/top1", False, "best, by val/top1; of epoch 2, step 8"),
        ("train/loss", True, "best, by train/loss; of epoch 2, step 8"),
    ],
)
def test_the_best_checkpoint_says_by_what(facts: Facts, by: str, on_test: bool, said: str) -> None:
    best = Checkpoint("best", by, on_test, epoch=2, step=8)
    text = card(facts._replace(checkpoint=best, figures={}, untested=" on the whole test set, but on 5 of 9 images"))
    assert f"- checkpoint: {said}\n" in text
    assert "tested on the whole test set, but on 5 of 9 images; `kd-lightning test RUN --ckpt best` tests it." in text


def test_the_figure_of_a_generation_that_teaches_is_not_the_given_teachers(facts: Facts) -> None:
    text = card(facts._replace(taught_first=True))
    assert "- teacher of generation 0: `resnet50`, not measured here\n" in text


@pytest.mark.parametrize(("part", "top1"), [("", 0.9), ("a", 0.7), ("ensemble", 0.9), ("b", None)])
def test_the_top1_is_the_parts(facts: Facts, part: str, top1: float | None) -> None:
    assert facts._replace(part=facts.part._replace(name=part)).top1() == top1


def test_of_8_bit_weights_the_measured_top1_counts(facts: Facts) -> None:
    text = card(facts._replace(format="onnx", file="m.onnx", int8=Int8("dynamic", 0.91, 0.88, 0)))
    assert front(text)["library_name"] == "onnx"
    assert front(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.88
    assert "| test top-1 in int8 | 0.8800 |" in text
    assert "The float32 file was compared" in text
    assert "exported with torch" in text
    assert "onnxruntime" in text
