import pytest
import torch

from kd_lightning.models.output_codec import DenseCodec, TopKCodec


def test_dense_keeps_half_precision() -> None:
    logits = torch.randn(64, 10) * 12
    codec = DenseCodec(10)
    rows = codec.encode(logits)
    assert (rows.dtype, rows.shape) == (torch.uint8, (64, 20))
    assert torch.equal(codec.decode(rows), logits.half().float())


def test_dense_takes_rows_of_a_larger_table() -> None:
    codec, logits = DenseCodec(3), torch.randn(8, 3)
    table = codec.encode(logits)
    assert torch.equal(codec.decode(table[torch.tensor([5, 2])]), logits[[5, 2]].half().float())


def test_top_k_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]])
    codec = TopKCodec(5, 2)
    rows = codec.encode(p.log())
    assert rows.shape == (1, 8)
    back = codec.decode(rows).softmax(dim=1)
    torch.testing.assert_close(back, torch.tensor([[0.5, 0.25, 0.25 / 3, 0.25 / 3, 0.25 / 3]]), atol=1e-3, rtol=0)


def test_top_k_of_many_classes_sums_to_one() -> None:
    codec = TopKCodec(60_000, 7)
    logits = torch.randn(3, 60_000)
    logits[0, 59_999] = 30.0
    back = codec.decode(codec.encode(logits))
    torch.testing.assert_close(back.exp().sum(dim=1), torch.ones(3), atol=2e-3, rtol=0)
    assert back[0].argmax() == 59_999
    assert torch.isfinite(back).all()


def test_what_is_lost_grows_with_the_temperature() -> None:
    logits = torch.randn(256, 100, generator=torch.Generator().manual_seed(0)) * 3
    back = TopKCodec(100, 32).decode(TopKCodec(100, 32).encode(logits))

    def error(temperature: float) -> float:
        p, q = (logits / temperature).softmax(1), (back / temperature).softmax(1)
        return float((p - q).abs().sum() / 2 / len(p))

    assert error(1) < 0.1 < error(4)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 7e4])
@pytest.mark.parametrize("codec", [DenseCodec(4), TopKCodec(4, 2)])
def test_what_half_precision_cannot_hold_is_refused(codec: DenseCodec | TopKCodec, wrong: float) -> None:
    logits = torch.zeros(2, 4)
    logits[1, 2] = wrong
    with pytest.raises(ValueError, match="the teacher's logits must be finite and within ±65504"):
        codec.encode(logits)


@pytest.mark.parametrize("k", [0, 10, 11])
def test_k_is_checked(k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k must be in 1 … 9 for 10 classes, got {k}"):
        TopKCodec(10, k)


def test_classes_must_fit_in_two_bytes() -> None:
    with pytest.raises(ValueError, match="top_k takes at most 65536 classes, got 70000"):
        TopKCodec(70_000, 5)
