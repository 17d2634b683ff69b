"""The HTTP service: one process that speaks HTTP, and worker processes that decode and classify (extra ``serve``).

The HTTP process never looks into what was uploaded: it counts bytes, keeps deadlines and a bounded queue, and hands
bodies to `pool.Pool`. A `worker` parses and classifies through `Classifier`, and may die of it.
"""

from __future__ import annotations

from importlib.util import find_spec

from soundmark.errors import MissingExtraError

for _module in (
    "fastapi",
    "uvicorn",
    "httptools",
    "python_multipart",
    "prometheus_client",
    "fastapi_offline",
):
    if find_spec(_module) is None:
        raise MissingExtraError.of("serve", _module)
