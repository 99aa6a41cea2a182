"""What several devices make of a loss: CRD for real, and for all losses whether it is a mean over samples."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kd_lightning.losses as package
from kd_lightning.losses import (
    CATKD,
    CRD,
    CWTM,
    DINO,
    DIST,
    DKD,
    DKPP,
    FSP,
    NKD,
    NST,
    OFA,
    PKT,
    RKD,
    SRRL,
    VID,
    WSLD,
    Activation,
    ActivationBoundary,
    AttentionProbabilities,
    AttentionTransfer,
    BatchNormStatistics,
    ClassBalance,
    CorrelationCongruence,
    CrossEntropy,
    CurriculumTemperature,
    Discrepancy,
    FactorTransfer,
    HardLabel,
    Hint,
    InBatchCRD,
    Loss,
    MultiLevelKD,
    OneHot,
    OverhaulFeature,
    ReferenceSoftTarget,
    RelationalAngle,
    RelationalDistance,
    ReviewKD,
    Similarity,
    SoftTarget,
    TeacherFree,
)

# CRD in real processes

SCRIPT = '''
"""Three steps of CRD on one of several ranks, in float64."""
import json, os, sys

import torch
import torch.distributed as dist

from kd_lightning.losses import CRD

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
train_targets = torch.arange(40) * 7 % 5
seen = {}
for negatives in (3, 30):  # each of the two ways that similarities has
    torch.manual_seed(0)
    loss = CRD(4, negatives, temperature=0.2)
    loss.build([(2, 6)], [(2, 5)])
    loss.double()
    steps = []
    for step in range(3):
        student, teacher = torch.randn(7, 6).double(), torch.randn(7, 5).double()
        index = torch.randint(40, (7,))
        index[5] = index[1]  # twice in a batch; with two ranks once on each
        number = torch.full((7,), step)
        number[5] += 1
        # The last batch is all but empty on the second rank.
        cut = (4, 3, 6)[step]
        own = slice(None) if world == 1 else slice(cut) if rank == 0 else slice(cut, None)
        share = len(index[own]) / 7
        value = loss(student[own], teacher[own], train_targets[index[own]], index[own], number[own], train_targets)
        gradients = torch.autograd.grad(value * share, list(loss.parameters()))
        with torch.no_grad():  # by hand, as torch.optim takes seconds to import
            for parameter, gradient in zip(loss.parameters(), gradients, strict=True):
                if world > 1:
                    dist.all_reduce(gradient)
                parameter -= 0.1 * gradient
        state = loss.get_extra_state()
        steps.append({
            "value": value.item(), "share": share, "bank": state["bank"].tolist(),
            "constants": state["constants"].tolist(), "parameters": [p.tolist() for p in loss.parameters()],
        })
    seen[negatives] = steps
with open(f"{folder}/{world}-{rank}.json", "w") as file:
    json.dump(seen, file)
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process saw, and what each of two saw, at the same time."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PL_GLOBAL_SEED": "7", "OMP_NUM_THREADS": "1"}
    names = {"1-0": ("0", "1"), "2-0": ("0", "2"), "2-1": ("1", "2")}
    commands = [[sys.executable, str(folder / "script.py"), *which, str(folder)] for which in names.values()]
    ranks = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [rank.communicate(timeout=150)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0, 0], "\n".join(error[-3000:] for error in errors)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@pytest.mark.parametrize("negatives", ["3", "30"])
@pytest.mark.parametrize("what", ["bank", "constants", "parameters"])
def test_crd_on_two_ranks_keeps_what_one_process_keeps(seen: dict[str, Any], what: str, negatives: str) -> None:
    for alone, first, second in zip(*(seen[name][negatives] for name in ("1-0", "2-0", "2-1")), strict=True):
        assert first[what] == second[what]
        for one, two in zip(alone[what], first[what], strict=True):
            torch.testing.assert_close(
                torch.tensor(one, dtype=torch.float64), torch.tensor(two, dtype=torch.float64), rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize("negatives", ["3", "30"])
def test_crd_on_two_ranks_has_the_loss_of_one_process(seen: dict[str, Any], negatives: str) -> None:
    for alone, *ranks in zip(*(seen[name][negatives] for name in ("1-0", "2-0", "2-1")), strict=True):
        assert alone["share"] == 1
        assert sum(rank["share"] for rank in ranks) == pytest.approx(1)
        assert ranks[0]["value"] != ranks[1]["value"]
        mean = sum(rank["value"] * rank["share"] for rank in ranks)
        assert mean == pytest.approx(alone["value"], rel=1e-12)


@pytest.mark.parametrize("negatives", ["3", "30"])
def test_crd_changes_its_bank_at_each_step_and_its_constants_never(seen: dict[str, Any], negatives: str) -> None:
    steps = seen["1-0"][negatives]
    banks = [torch.tensor(step["bank"]) for step in steps]
    # 7 samples, of which one came twice, if not by chance others too.
    for before, after in pairwise(banks):
        assert 4 <= (before != after).any(dim=2).sum().item() / 2 <= 6
    assert steps[0]["constants"] == steps[1]["constants"] == steps[2]["constants"]


# Means over samples or not

SAMPLES, CLASSES, CHANNELS = 12, 5, 6
CUT = 7  # of the 12, so the halves are not equal
NUMBERS = torch.arange(SAMPLES)
TRAIN_TARGETS = torch.arange(40) * 7 % CLASSES
HEAD = nn.Linear(CHANNELS, CLASSES).double()
NORMS = [(torch.linspace(-1, 1, CHANNELS).double(), torch.ones(CHANNELS).double())] * 2


def logits() -> Tensor:
    return 2 * torch.randn(SAMPLES, CLASSES).double()


def uneven_logits() -> Tensor:
    """From samples that are hardly known to ones that are known for sure."""
    return torch.linspace(0.1, 3, SAMPLES)[:, None].double() * logits()


def vectors() -> Tensor:
    return torch.randn(SAMPLES, CHANNELS).double()


def map_of(side: int) -> Tensor:
    return torch.randn(SAMPLES, CHANNELS, side, side).double()


def one_map() -> Tensor:
    return map_of(4)


def maps() -> list[Tensor]:
    return [map_of(8), map_of(4)]


def attention() -> Tensor:
    return torch.randn(SAMPLES, 3, 5, 5).double().softmax(dim=-1)


def built(loss: Loss, *shapes: tuple[int, ...]) -> Loss:
    """With adapters whose batch normalisation does not look at the batch."""
    loss.build(shapes, shapes)
    return loss.double().eval()


def crd_in_use() -> CRD:
    """With constants, as any step but the first has them, and a bank that stays as it is."""
    loss = CRD(CHANNELS, 20, temperature=0.2)
    index = NUMBERS * 3
    loss(vectors(), vectors(), TRAIN_TARGETS[index], index, NUMBERS, TRAIN_TARGETS)
    return loss.eval()


Made = Tensor | list[Tensor]
Case = tuple[Callable[[], Loss], Callable[[], Made], dict[str, Any]]

PER_SAMPLE: dict[str, Case] = {
    "CrossEntropy": (CrossEntropy, logits, {}),
    "CrossEntropy smoothed": (lambda: CrossEntropy(0.1), logits, {}),
    "SoftTarget": (SoftTarget, logits, {}),
    "SoftTarget standardized": (lambda: SoftTarget(standardize=True), logits, {}),
    "ReferenceSoftTarget": (ReferenceSoftTarget, logits, {}),
    "HardLabel": (HardLabel, logits, {}),
    "TeacherFree": (TeacherFree, logits, {}),
    "DINO": (lambda: DINO().eval(), lambda: [logits(), logits()], {"epoch": 0}),
    "OneHot": (OneHot, logits, {}),
    "Activation": (Activation, logits, {}),
    "Discrepancy": (Discrepancy, logits, {}),
    "DKD": (DKD, logits, {}),
    "DKD standardized": (lambda: DKD(standardize=True), logits, {}),
    "DKPP": (DKPP, logits, {"index": NUMBERS * 3, "number": NUMBERS}),
    "NKD": (lambda: NKD(temperature=2.0), logits, {}),
    "OFA": (OFA, logits, {}),
    "WSLD": (WSLD, logits, {}),
    "CurriculumTemperature": (lambda: CurriculumTemperature(SoftTarget()), logits, {"epoch": 3}),
    "MultiLevelKD of instances": (lambda: MultiLevelKD(parts=["instance"]), logits, {}),
    "DIST of rows": (lambda: DIST(gamma=0.0), logits, {}),
    "Hint": (lambda: Hint("none"), one_map, {}),
    "Hint with a regressor": (lambda: built(Hint(), (2, CHANNELS, 4, 4)), one_map, {}),
    "AttentionTransfer": (AttentionTransfer, maps, {}),
    "NST": (NST, maps, {}),
    "FSP": (FSP, maps, {}),
    "VID": (lambda: built(VID(), (2, CHANNELS, 8, 8), (2, CHANNELS, 4, 4)), maps, {}),
    "ReviewKD": (lambda: built(ReviewKD(), (2, CHANNELS, 8, 8), (2, CHANNELS, 4, 4)), maps, {}),
    "ActivationBoundary": (ActivationBoundary, maps, {}),
    "OverhaulFeature": (OverhaulFeature, maps, {"teacher_norms": NORMS}),
    "FactorTransfer": (FactorTransfer, one_map, {}),
    "FactorTransfer of maps": (lambda: FactorTransfer(p=2, factor="map"), one_map, {}),
    "CATKD": (CATKD, one_map, {"student_classifier": HEAD, "teacher_classifier": HEAD}),
    "SRRL": (SRRL, vectors, {"teacher_classifier": HEAD}),
    "AttentionProbabilities": (lambda: AttentionProbabilities("all"), attention, {}),
    "CRD": (crd_in_use, vectors, {"index": NUMBERS * 3, "number": NUMBERS, "train_targets": TRAIN_TARGETS}),
}
RELATIONAL: dict[str, Case] = {
    "DIST": (DIST, logits, {}),
    "DIST of columns": (lambda: DIST(beta=0.0), logits, {}),
    "MultiLevelKD": (MultiLevelKD, logits, {}),
    "MultiLevelKD of batches": (lambda: MultiLevelKD(parts=["batch"]), logits, {}),
    "MultiLevelKD of classes": (lambda: MultiLevelKD(parts=["class"]), logits, {}),
    "CWTM": (CWTM, uneven_logits, {}),
    "ClassBalance": (ClassBalance, logits, {}),
    "Similarity": (Similarity, maps, {}),
    "PKT": (PKT, vectors, {}),
    "RKD": (RKD, vectors, {}),
    "RelationalDistance": (RelationalDistance, vectors, {}),
    "RelationalAngle": (RelationalAngle, vectors, {}),
    "CorrelationCongruence": (CorrelationCongruence, vectors, {}),
    "CorrelationCongruence of consecutive ones": (lambda: CorrelationCongruence("consecutive"), vectors, {}),
    "InBatchCRD": (InBatchCRD, vectors, {}),
}
OF_THE_LABELS = ["CrossEntropy", "DKD", "NKD", "OFA", "TeacherFree", "WSLD"]


def part(value: Any, rows: slice) -> Any:
    """The rows of what has one for each sample."""
    if isinstance(value, Tensor):
        return value[rows] if len(value) == SAMPLES else value
    if isinstance(value, list):
        return [part(each, rows) for each in value]
    return value


def whole_and_parts(case: Case, mixed: bool = False, cuts: Sequence[int] = (CUT,)) -> tuple[float, float]:
    """The loss of a batch, and the mean over its parts by their numbers of samples."""
    make, features, needed = case
    loss = make()
    target = TRAIN_TARGETS[NUMBERS * 3]
    if mixed:
        target = 0.6 * F.one_hot(target, CLASSES).double() + 0.4 * F.one_hot((target + NUMBERS) % CLASSES, CLASSES)
    given: list[Any] = [features(), features(), target]
    if isinstance(loss, SRRL):
        given[0] = map_of(4)
    ends = [0, *cuts, SAMPLES]
    parts = [slice(start, end) for start, end in pairwise(ends)]
    values = []
    for rows in [slice(None), *parts]:
        own = {name: x if name == "teacher_norms" else part(x, rows) for name, x in needed.items()}
        values.append(loss(*(part(x, rows) for x in given), **own).item())
    counts = [rows.stop - rows.start for rows in parts]
    return values[0], sum(v * n for v, n in zip(values[1:], counts, strict=True)) / SAMPLES


def classes(cases: dict[str, Case]) -> set[type[Loss]]:
    return {type(make()) for make, _, _ in cases.values()}


def test_every_loss_is_here() -> None:
    exported = {value for name in package.__all__ if isinstance(value := getattr(package, name), type)}
    losses = {value for value in exported if issubclass(value, Loss)} - {Loss, BatchNormStatistics}  # of a network's
    assert classes(PER_SAMPLE) | classes(RELATIONAL) == losses
    assert classes(PER_SAMPLE) & classes(RELATIONAL) == {DIST, MultiLevelKD}  # by their arguments


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_the_mean_over_two_parts_is_the_loss_of_the_whole(name: str) -> None:
    whole, parts = whole_and_parts(PER_SAMPLE[name])
    assert abs(whole) > 1e-6
    assert parts == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("name", OF_THE_LABELS)
def test_the_mean_over_two_parts_is_the_loss_of_the_whole_with_mixed_targets(name: str) -> None:
    whole, parts = whole_and_parts(PER_SAMPLE[name], mixed=True)
    assert parts == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_the_mean_over_single_samples_is_the_loss_of_the_whole(name: str) -> None:
    whole, parts = whole_and_parts(PER_SAMPLE[name], cuts=range(1, SAMPLES))
    assert parts == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("name", RELATIONAL)
def test_relations_among_the_samples_of_a_part_are_not_those_of_the_whole(name: str) -> None:
    whole, parts = whole_and_parts(RELATIONAL[name])
    assert abs(parts - whole) > 1e-3 * abs(whole)


@pytest.mark.parametrize("loss", sorted(classes(RELATIONAL), key=lambda loss: loss.__name__))
def test_relations_are_documented_to_be_each_device_s_own(loss: type[Loss]) -> None:
    assert "of the batch: on several devices, each device's own." in " ".join(str(loss.__doc__).split())


@pytest.mark.parametrize(
    "loss", sorted(classes(PER_SAMPLE) - classes(RELATIONAL), key=lambda loss: loss.__name__), ids=lambda x: x.__name__
)
def test_means_over_samples_are_not_documented_as_relations(loss: type[Loss]) -> None:
    assert "each device's own" not in " ".join(str(loss.__doc__).split())
