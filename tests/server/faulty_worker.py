"""A worker whose decoder does what a recording says: aborts, hangs, waits, exits. For tests."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from soundmark.classifier import Classifier
from soundmark.server import worker

MAGIC = b"FAULT:"  # anywhere in a recording, followed by what to do
_classify = Classifier.classify


def classify(self: Classifier, source: Any, **options: Any) -> Any:
    content = bytes(source) if isinstance(source, (bytes, memoryview)) else b""
    at = content.find(MAGIC)
    if at >= 0:
        what = content[at + len(MAGIC) :][:5]
        if what == b"abort":
            os.abort()
        elif what == b"hang!":
            time.sleep(60)
        elif what == b"exit0":
            os._exit(0)
        elif what == b"wait!":
            time.sleep(0.2)
        elif what == b"bug!!":
            raise RuntimeError("secret/path/of/this/machine.py")
    return _classify(self, source, **options)


Classifier.classify = classify

if __name__ == "__main__":
    worker.main(int(sys.argv[1]), int(sys.argv[2]))
