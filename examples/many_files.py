"""Classify many recordings; a bad file is a row, never the end: ``python ... PATH... [--model MODEL]``."""

import json
import sys

from soundmark import Classifier, Failure

paths, model = sys.argv[1:], []
if "--model" in paths:
    at = paths.index("--model")
    model, paths = paths[at + 1 : at + 2], paths[:at]
if not paths:
    sys.exit(__doc__)

failed = []
for row in Classifier.load(*model).classify_many(paths):  # lazily: rows come as they are ready
    print(json.dumps(row.to_dict()))
    if isinstance(row, Failure):
        failed.append(row.code)
print(f"{len(paths)} recordings, {len(failed)} failed {failed or ''}".rstrip(), file=sys.stderr)
