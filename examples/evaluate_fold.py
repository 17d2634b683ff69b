"""Score a model on one fold of ESC-50: ``SOUNDMARK_ESC50=/path/to/ESC-50 python ... [FOLD] [MODEL]``."""

import sys

from soundmark import Classifier, SoundmarkError
from soundmark.dataset import load_esc50
from soundmark.evaluate import evaluate

fold = int(sys.argv[1]) if len(sys.argv) > 1 else 5
try:
    data = load_esc50()
    report = evaluate(Classifier.load(*sys.argv[2:3]), data, folds=[fold])
except SoundmarkError as error:  # no data set, no such fold, no model: the message says what is wanted
    sys.exit(f"{error.code}: {error}")

low, high = report.figures["accuracy_interval_95"]
print(f"fold {fold}: accuracy {report.figures['accuracy']:.1%} (95 %: {low:.1%} to {high:.1%})")
for stamp in report.stamps:
    print(f"not an honest figure: {stamp}")  # for example: the model was trained on this fold
