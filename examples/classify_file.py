"""Name the sound in one recording: ``python examples/classify_file.py dog.wav [MODEL]``."""

import sys

from soundmark import Classifier, SoundmarkError

if len(sys.argv) < 2:
    sys.exit(__doc__)
path, *model = sys.argv[1:]
try:
    prediction = Classifier.load(*model).classify(path)
except SoundmarkError as error:  # a bad recording, or a bad model; the code says which
    sys.exit(f"{error.code}: {error}")

print(f"{prediction.label or 'unknown'}  ({prediction.duration_s:.2f} s, {prediction.n_windows} windows)")
for one in prediction.labels:
    print(f"  {one.score:.3f}  {one.label}")
for flag in prediction.flags:
    print(f"  note: {flag}")  # what each means: docs/reference/outcomes.md
