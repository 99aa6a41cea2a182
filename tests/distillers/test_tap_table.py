import torch
from torch import Tensor, nn

from kd_lightning.distillers import Criteria, Term
from kd_lightning.distillers.tap_table import WIDTH, parts, tap_table
from kd_lightning.losses import AttentionTransfer, CrossEntropy, Hint, SoftTarget
from kd_lightning.models import TapPlan

STUDENT = TapPlan(
    {"stages": ["stages.0", "stages.1"], "stage:2": "stages.1"},
    {"stages": [(2, 8, 16, 16), (2, 12, 8, 8)], "stage:2": (2, 12, 8, 8), "logits": (2, 10)},
)
TEACHER = TapPlan(
    {"stages": ["layer1:map", "layer2:map"], "stage:2": "layer2:map"},
    {"stages": [(2, 32, 16, 16), (2, 64, 8, 8)], "stage:2": (2, 64, 8, 8), "logits": (2, 10)},
)


class Gap(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return (student - teacher).mean()


def rows(table: str) -> list[list[str]]:
    """The cells of the rows, line by line."""
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_each_term_shows_places_shapes_and_adapters() -> None:
    terms = {
        "ce": Term(CrossEntropy(), 0.1),
        "kd": Term(SoftTarget()),
        "hint": Term(Hint("conv1x1")),
        "at": Term(AttentionTransfer(), 1000.0),
    }
    criteria = Criteria(terms)
    criteria.build(STUDENT, TEACHER)
    assert sum(p.numel() for p in criteria.parameters()) == 12 * 64  # a 1x1 convolution without bias
    table = tap_table(criteria, STUDENT, TEACHER)
    assert rows(table) == [
        ["ce", "CrossEntropy", "logits  10", "-", "-"],
        ["kd", "SoftTarget", "logits  10", "logits  10", "-"],
        ["hint", "Hint", "stages.1  12 x 8 x 8", "layer2:map  64 x 8 x 8", "768"],
        ["at", "AttentionTransfer", "stages.0  8 x 16 x 16", "layer1:map  32 x 16 x 16", "-"],
        ["", "", "stages.1  12 x 8 x 8", "layer2:map  64 x 8 x 8", ""],
    ]
    assert "what is matched" in table
    assert all(head in table for head in ("term", "loss", "student", "teacher", "adapter parameters"))
    assert max(map(len, table.splitlines())) <= WIDTH


def test_without_a_teacher_its_column_is_empty() -> None:
    table = tap_table(Criteria({"ce": Term(CrossEntropy(), teacher=None)}), TapPlan({}, {"logits": (2, 7)}), None)
    assert rows(table) == [["ce", "CrossEntropy", "logits  7", "-", "-"]]


def test_a_plain_module_is_shown_too_with_thousands_apart() -> None:
    loss = Gap()
    loss.linear = nn.Linear(100, 123)
    table = tap_table(Criteria({"gap": Term(loss)}), STUDENT, TEACHER)
    assert rows(table) == [["gap", "Gap", "logits  10", "logits  10", "12,423"]]


def test_parts_are_lines() -> None:
    assert parts(STUDENT, ["logits", "stages"]) == "logits  10\nstages.0  8 x 16 x 16\nstages.1  12 x 8 x 8"
    assert parts(STUDENT, []) == "-"
    assert parts(None, ["logits"]) == "-"
    assert parts(TapPlan({"a": "blocks.1:tokens"}, {"a": (2, 49, 8)}), ["a"]) == "blocks.1:tokens  49 x 8"


def test_the_table_is_plain_text() -> None:
    torch.manual_seed(0)
    assert "\x1b" not in tap_table(Criteria({"kd": Term(SoftTarget())}), STUDENT, TEACHER)
