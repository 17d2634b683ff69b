"""parity: torch, ONNX, int8 and every road into the classifier give the same answers (RELIABILITY M27)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

import soundfile  # noqa: E402

from soundmark.classifier import Classifier  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.evaluate import agreement, evaluate  # noqa: E402
from soundmark.learn import checkpoint, networks  # noqa: E402
from soundmark.learn.features import extract  # noqa: E402
from soundmark.learn.train import Run  # noqa: E402
from soundmark.postprocess import Prediction, softmax  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture
def features(run: Run, dataset: Dataset) -> np.ndarray:
    """Return the features of every clip, training and test, and of four windows of noise at other levels."""
    store = extract(dataset, run.preset.frontend, run.preset.window)
    noise = np.random.default_rng(0).standard_normal((4, 16_000)).astype(np.float32)
    levels = np.array([1e-4, 1e-2, 0.3, 2.0], dtype=np.float32)[:, None]
    more = np.stack([store.frontend(x) for x in levels * noise])
    return np.concatenate([store.frontend.finish(np.array(store.linear)), more])


@pytest.fixture
def by_torch(run: Run, features: np.ndarray) -> np.ndarray:
    """Return the scores that the network gives in torch, batch norm not folded."""
    network = networks.build(run.preset.network, features.shape[1:], len(run.labels)).eval()
    network.load_state_dict(checkpoint.load_weights(run.path / "weights.safetensors"))
    with torch.no_grad():
        return softmax(network(torch.from_numpy(features)).numpy())


def test_onnx_gives_the_scores_of_torch(
    by_torch: np.ndarray, features: np.ndarray, fp32_bundle: Path
) -> None:
    scores = softmax(Classifier.load(fp32_bundle).runtime.logits(features))
    assert np.abs(scores - by_torch).max() <= 1e-4
    np.testing.assert_array_equal(scores.argmax(1), by_torch.argmax(1))


def test_int8_hears_what_fp32_hears(features: np.ndarray, fp32_bundle: Path, int8_bundle: Path) -> None:
    fp32, int8 = (
        softmax(Classifier.load(path).runtime.logits(features)) for path in (fp32_bundle, int8_bundle)
    )
    assert (fp32.argmax(1) == int8.argmax(1)).mean() >= 0.95
    assert np.abs(fp32 - int8).mean() < 0.03


def test_int8_is_as_good_as_fp32_on_the_fold_kept_aside(
    dataset: Dataset, fp32_bundle: Path, int8_bundle: Path
) -> None:
    fp32, int8 = (evaluate(Classifier.load(path), dataset, folds=[5]) for path in (fp32_bundle, int8_bundle))
    assert abs(fp32.figures["accuracy"] - int8.figures["accuracy"]) <= 0.05
    assert agreement(fp32, int8) >= 0.95


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
@pytest.mark.parametrize("arithmetic", ["int8", "fp32"])
def test_the_batch_size_changes_nothing(
    features: np.ndarray, batch: int, arithmetic: str, int8_bundle: Path, fp32_bundle: Path
) -> None:
    runtime = Classifier.load({"int8": int8_bundle, "fp32": fp32_bundle}[arithmetic]).runtime
    one = softmax(np.concatenate([runtime.logits(x[None]) for x in features[:40]]))
    parts = [runtime.logits(features[i : i + batch]) for i in range(0, 40, batch)]
    np.testing.assert_allclose(softmax(np.concatenate(parts)[:40]), one, atol=1e-5)


def test_path_bytes_file_array_and_many_are_one_road(dataset: Dataset, int8_bundle: Path) -> None:
    model = Classifier.load(int8_bundle)
    paths = [clip.path for clip in dataset.clips[::9]]
    rows = list(model.classify_many(paths))
    for path, row in zip(paths, rows, strict=True):
        assert isinstance(row, Prediction)
        samples, rate = soundfile.read(path, dtype="float32")
        for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), (samples, rate)):
            got = model.classify(source)
            np.testing.assert_allclose(got.scores, row.scores, atol=1e-5)
            assert got.label == row.label


def test_training_and_serving_compute_the_same_features(
    run: Run, dataset: Dataset, int8_bundle: Path
) -> None:
    model = Classifier.load(int8_bundle)
    store = extract(dataset, run.preset.frontend, run.preset.window)
    for index in range(0, len(dataset.clips), 11):
        served = model.features(dataset.clips[index].path)
        np.testing.assert_array_equal(served[0], store.frontend.finish(np.array(store.linear[index])))
    trained = store.frontend.finish(torch.from_numpy(np.array(store.linear[:5])), torch).numpy()
    np.testing.assert_allclose(trained, store.frontend.finish(np.array(store.linear[:5])), atol=1e-5)
