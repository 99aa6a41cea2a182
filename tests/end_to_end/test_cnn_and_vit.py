"""Pairs of a convolutional network and a transformer: what is matched falls, and what cannot be matched says so."""

from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from kd_lightning.batch import Batch
from kd_lightning.datamodules import DigitsDataModule
from kd_lightning.distillers import OfflineDistiller, Term
from kd_lightning.losses import (
    CATKD,
    FSP,
    NST,
    OFA,
    PKT,
    RKD,
    SRRL,
    VID,
    ActivationBoundary,
    AttentionProbabilities,
    AttentionTransfer,
    Hint,
    InBatchCRD,
    OverhaulFeature,
    ReviewKD,
    Similarity,
    SoftTarget,
)
from kd_lightning.models import FrozenTeacher, Network

STEPS = 20
SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 3, "num_heads": 2}
CNN = Network("cifar_resnet8")
VIT = Network("vit_tiny_patch16_224", kwargs=SMALL)
SHALLOW = Network("vit_tiny_patch16_224", kwargs=SMALL | {"depth": 2})
COARSE = Network("vit_tiny_patch16_224", kwargs=SMALL | {"patch_size": 4})
NETWORKS = {"cnn": CNN, "vit": VIT, "shallow": SHALLOW, "coarse": COARSE}


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Some digits, always the same."""
    data = DigitsDataModule(global_batch_size=48, val_fraction=0.0, seed=0)
    data.setup()
    found: Batch = next(iter(data.train_dataloader()))
    return found


@pytest.fixture(scope="module")
def teachers(batch: Batch) -> dict[str, nn.Module]:
    """Networks, of which the first two know the digits of the batch."""
    found = {name: recipe.build(10, 1, seed=0) for name, recipe in NETWORKS.items()}
    for name, steps in {"cnn": 30, "vit": 150}.items():
        network = found[name]
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(batch.image), batch.target)
            torch.autograd.backward(loss)
            optimizer.step()
        right = network.eval()(batch.image).argmax(dim=1) == batch.target
        assert right.float().mean() > 0.8
    return found


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters start from the seed of the run."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")


def distilled(student: Network, teacher: nn.Module, term: Term, batch: Batch, steps: int = STEPS) -> list[float]:
    """Values of a term that a student learns by alone on one batch."""
    values: list[float] = []
    term.loss.register_forward_hook(lambda loss, given, value: values.append(float(value)))
    network = student.build(10, 1, seed=1)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    distiller = OfflineDistiller(
        network,
        FrozenTeacher(teacher, check=False),
        {"term": term},
        lambda parameters: torch.optim.Adam(parameters, lr=0.003),
        num_classes=10,
    )
    trainer = pl.Trainer(
        max_epochs=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(distiller, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert any(not torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    return values


LOSSES: dict[str, Callable[[], Term]] = {
    "soft targets": lambda: Term(SoftTarget(4.0)),
    "one for all": lambda: Term(OFA()),
    "hint": lambda: Term(Hint()),
    "hint by 1x1": lambda: Term(Hint("conv1x1"), student="last_stage", teacher="last_stage"),
    "hint of the embedding": lambda: Term(Hint("linear"), student="embedding", teacher="embedding"),
    "attention transfer": lambda: Term(AttentionTransfer()),
    "nst": lambda: Term(NST()),
    "vid": lambda: Term(VID()),
    "review": lambda: Term(ReviewKD()),
    "similarity": lambda: Term(Similarity()),
    "relations": lambda: Term(RKD()),
    "pkt": lambda: Term(PKT(), weight=30000.0, student="last_stage", teacher="last_stage"),
    "crd in the batch": lambda: Term(InBatchCRD(32)),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("teacher", "student"), [("cnn", "vit"), ("vit", "cnn")])
def test_what_is_matched_falls(
    teacher: str, student: str, loss: str, batch: Batch, teachers: dict[str, nn.Module]
) -> None:
    values = distilled(NETWORKS[student], teachers[teacher], LOSSES[loss](), batch)
    assert len(values) == STEPS
    assert values[-1] < values[0]


def test_attention_of_the_class_token_falls(batch: Batch, teachers: dict[str, nn.Module]) -> None:
    values = distilled(SHALLOW, teachers["vit"], Term(AttentionProbabilities("all")), batch)
    assert values[-1] < values[0]


MAPS_OR_VECTORS = "criteria.term: student and teacher must both be maps or both be vectors, got "
ERRORS: dict[str, tuple[str, str, Callable[[], Term], str]] = {
    "stages": (
        "cnn",
        "shallow",
        lambda: Term(AttentionTransfer()),
        "criteria.term: student and teacher must have as many taps as one another, got 2 and 3",
    ),
    "stages of review": (
        "shallow",
        "cnn",
        lambda: Term(ReviewKD()),
        "criteria.term: student and teacher must have as many taps as one another, got 3 and 2",
    ),
    "stage 3 of 2": (
        "cnn",
        "shallow",
        lambda: Term(Hint(), student="stage:3", teacher="stage:3"),
        "tap 'stage:3': VisionTransformer has 2 stages",
    ),
    "attention of a teacher": (
        "cnn",
        "vit",
        lambda: Term(AttentionProbabilities()),
        "tap 'attention': CifarResNet has no attention of timm",
    ),
    "attention of a student": (
        "vit",
        "cnn",
        lambda: Term(AttentionProbabilities()),
        "tap 'attention': CifarResNet has no attention of timm",
    ),
    "attention of other tokens": (
        "coarse",
        "vit",
        lambda: Term(AttentionProbabilities("all")),
        r"criteria.term: .* over sequences of one length, got \(48, 2, 17, 17\) and \(48, 2, 5, 5\)",
    ),
    "last map of a student": (
        "cnn",
        "vit",
        lambda: Term(SRRL()),
        "tap 'last_map': VisionTransformer has no map whose mean is the classifier's input",
    ),
    "last map of a teacher": (
        "vit",
        "cnn",
        lambda: Term(CATKD()),
        "tap 'last_map': VisionTransformer has no map whose mean is the classifier's input",
    ),
    "before an activation of a teacher": (
        "vit",
        "cnn",
        lambda: Term(ActivationBoundary()),
        "this stage of VisionTransformer does not end in an activation",
    ),
    "before an activation of a student": (
        "cnn",
        "vit",
        lambda: Term(OverhaulFeature()),
        "this stage of VisionTransformer does not end in an activation",
    ),
    "flow between other widths": (
        "cnn",
        "vit",
        lambda: Term(FSP()),
        r"criteria.term: FSP .* the same channels at their taps, got \[32, 32, 32, 32\] and \[16, 16, 32, 64\]",
    ),
    "vector to map": (
        "cnn",
        "vit",
        lambda: Term(Hint(), student="embedding", teacher="last_stage"),
        MAPS_OR_VECTORS + r"\(2, 32\) and \(2, 64, 2, 2\)",
    ),
    "tokens to map": (
        "cnn",
        "vit",
        lambda: Term(Hint(), student="blocks.1", teacher="stage:2"),
        MAPS_OR_VECTORS + r"\(2, 17, 32\) and \(2, 32, 4, 4\)",
    ),
    "linear of maps": (
        "cnn",
        "vit",
        lambda: Term(Hint("linear")),
        r"criteria.term: adapter linear is for vectors, got maps \(2, 32, 4, 4\)",
    ),
    "maps of other channels": (
        "cnn",
        "vit",
        lambda: Term(Hint("none"), student="stage:1", teacher="stage:1"),
        "criteria.term: adapter none needs as many channels in both, got 32 and 16: choose another",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_matched_says_why(name: str, batch: Batch, teachers: dict[str, nn.Module]) -> None:
    teacher, student, term, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        distilled(NETWORKS[student], teachers[teacher], term(), batch, steps=1)
