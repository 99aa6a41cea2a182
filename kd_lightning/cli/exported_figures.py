"""What a run's test measured of the checkpoint that is exported."""

import json
from pathlib import Path

from kd_lightning.models.weights import file_sha256
from kd_lightning.run_folder import RunFolder


def figures_of(run: RunFolder, checkpoint: Path, images: int) -> tuple[dict[str, float], str]:
    """The figures of a run's test, if it was of this checkpoint, as it was trained, on the whole test set.

    Args:
        run: The folder.
        checkpoint: The file that is exported.
        images: How many the test set has.

    Returns:
        The figures, ``test/...``; and where there are none but a test of this checkpoint, what it was instead, as the
        end of "has not been tested".
    """
    results = json.loads(run.results.read_text()) if run.results.is_file() else {}
    if results.get("checkpoint_sha256") != file_sha256(checkpoint):
        return {}, ""
    if results["images"] != images:
        return {}, f" on the whole test set, but on {results['images']} of {images} images"
    if otherwise := results["stated_otherwise"]:
        return {}, f" as it was trained: {', '.join(f'`{key}`' for key in otherwise)} was stated otherwise"
    return {name: value for name, value in results.items() if name.startswith("test/")}, ""
