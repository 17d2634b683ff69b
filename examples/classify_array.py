"""Name a sound that is an array already, from a microphone or another library: ``python ... [MODEL]``."""

import sys

import numpy as np

from soundmark import Classifier

rate = 22_050  # any rate; it is resampled to the model's
seconds = np.arange(3 * rate) / rate
samples = 0.3 * np.sin(2 * np.pi * (700 + 300 * np.sin(2 * np.pi * 0.5 * seconds)) * seconds)  # (n,) a wail

classifier = Classifier.load(*sys.argv[1:2])
prediction = classifier.classify((samples, rate), top_k=2, name="a wail")
print(f"{prediction.source}: {prediction.label or 'unknown'} {prediction.score:.2f}")

stereo = np.stack([samples, samples], axis=1)  # (n, channels) works too, and so do integers
assert classifier.classify((stereo, rate)).label == prediction.label
