"""Show the features that the model sees in a recording: ``python examples/features.py dog.wav [MODEL]``."""

import sys

from soundmark import Classifier

if len(sys.argv) < 2:
    sys.exit(__doc__)
classifier = Classifier.load(*sys.argv[2:3])
features = classifier.features(sys.argv[1])  # (n_windows, n_rows, n_frames) float32
config = classifier.frontend.config
print(f"{config.kind} {features.shape}: {features.min():.2f} to {features.max():.2f}")
print(
    f"hop_length {config.hop_length} at {config.sample_rate} Hz: {1e3 * config.hop_length / config.sample_rate:g} ms"
)
window = features[0]
for row in range(0, len(window), max(1, len(window) // 8))[::-1]:  # high rows first, as in a spectrogram
    level = window[row].mean()
    print(f"row {row:3d}  {level:+.2f}  {'#' * max(0, round(10 * (level - features.min())))}"[:72])
