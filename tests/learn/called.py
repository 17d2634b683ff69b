"""What `test_tune` calls in processes of their own."""

from __future__ import annotations

import os

from soundmark.errors import TrainingError


def by_name(name: str) -> str:
    if name == "threads":
        return os.environ["OMP_NUM_THREADS"]
    if name == "error":
        raise TrainingError("bad", code="loss_not_finite")
    if name == "dies":
        os._exit(7)
    return str(1 // 0)
