"""How fast stored outputs are read on one core from a warm page cache: rows of 1,000 and of 21,841 classes.

    python benchmarks/store.py

Times batches of random rows, in turns, of four formats: `OutputStore.read` (gather and checksum), the checksum alone,
and decoding to float32. Seconds are the processor's, so other programs on the machine matter little. Medians over the
rounds, with the least and the most. Writes ``benchmarks/store.json``.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd_lightning.models.output_codec import DenseCodec, OutputCodec, TopKCodec
from kd_lightning.models.output_store import Layout, OutputStore, row_sums

RESULTS = Path(__file__).with_suffix(".json")
CODECS: tuple[OutputCodec, ...] = (
    DenseCodec(1_000),
    TopKCodec(1_000, 32),
    DenseCodec(21_841),
    TopKCodec(21_841, 32),
)
FILE = 1 << 28  # bytes of rows of each file
BATCH, ROUNDS = 128, 9
SECONDS = 0.4  # that a measurement lasts


def filled(folder: Path, codec: OutputCodec) -> OutputStore:
    """A file of about `FILE` bytes, at most a million rows, all filled with noise."""
    rows = min(FILE // codec.row_bytes, 1_000_000)
    store = OutputStore(
        folder / f"{codec.classes}-{codec.row_bytes}", Layout(rows, codec.row_bytes), {"of": codec.name}
    )
    generator = np.random.default_rng(0)
    for start in range(0, rows, 4096):
        some = np.arange(start, min(start + 4096, rows))
        store.write(some, generator.integers(0, 256, (len(some), codec.row_bytes), dtype=np.uint8))
    return store


def rate(work: Callable[[], None]) -> float:
    """Rows that something which works on `BATCH` rows at a time does in a second of the processor's time."""
    work()
    times, start = 0, time.process_time()
    while (spent := time.process_time() - start) < SECONDS:
        work()
        times += 1
    return times * BATCH / spent


def works(store: OutputStore, codec: OutputCodec) -> dict[str, Callable[[], None]]:
    """What is timed on one file, by name."""
    generator = np.random.default_rng(1)
    logits = 3 * torch.randn(BATCH, codec.classes, generator=torch.Generator().manual_seed(0))
    encoded = codec.encode(logits)
    data = encoded.numpy()

    def read() -> None:
        _, there = store.read(generator.integers(0, store.layout.rows, BATCH))
        if not there.all():
            raise RuntimeError(f"{store.path} is damaged")

    def checksum() -> None:
        row_sums(data)

    def decode() -> None:
        codec.decode(encoded)

    return {"read": read, "checksum": checksum, "decode": decode}


def measured(rounds: int) -> list[dict[str, Any]]:
    """Rows per second of each work on each file."""
    with tempfile.TemporaryDirectory() as folder:
        stores = [filled(Path(folder), codec) for codec in CODECS]
        timed = [works(store, codec) for store, codec in zip(stores, CODECS, strict=True)]
        rates: list[dict[str, list[float]]] = [{name: [] for name in each} for each in timed]
        for _ in range(rounds):
            for each, found in zip(timed, rates, strict=True):
                for name, work in each.items():
                    found[name].append(rate(work))
    results = []
    for codec, found in zip(CODECS, rates, strict=True):
        row: dict[str, Any] = {"classes": codec.classes, "format": codec.name, "row_bytes": codec.row_bytes}
        for name, values in found.items():
            row[f"{name}_rows_per_s"] = {
                "median": round(statistics.median(values)),
                "min": round(min(values)),
                "max": round(max(values)),
            }
        results.append(row)
    return results


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    setting = {
        "device": f"CPU {platform.machine()}, 1 thread",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "batch": BATCH,
        "rounds": rounds,
        "page_cache": "warm",
    }
    results = measured(rounds)
    for row in results:
        speeds = ", ".join(
            f"{key.partition('_')[0]} {value['median']:,}/s" for key, value in row.items() if "_per_s" in key
        )
        print(f"{row['classes']:>6} classes, {row['format']:<14} {row['row_bytes']:>6} B a row: {speeds}")
    RESULTS.write_text(json.dumps({"setting": setting, "files": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
