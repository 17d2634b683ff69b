"""classifier: one road for path, bytes and array; rows for bad files; nothing answers before the golden window fits."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from msgspec.structs import replace
from onnx import helper, numpy_helper

from soundmark import bundle, classifier
from soundmark.bundle import Bundle, Manifest
from soundmark.classifier import Classifier
from soundmark.config import AudioLimits, DecisionConfig, WindowConfig
from soundmark.errors import AudioError, BundleError, ConfigError
from soundmark.golden import golden
from soundmark.postprocess import Failure, Prediction
from tiny import TINY_FRONTEND, TINY_LABELS, TINY_SHAPE, TINY_WINDOW, tiny_graph

RATE = 16_000


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def test_path_bytes_file_and_array_give_the_same_scores(
    tiny_classifier: Classifier, make_wav: Callable[..., bytes], tmp_path: Path
) -> None:
    samples = noise(2.5)
    data = make_wav(samples)
    path = tmp_path / "x.wav"
    path.write_bytes(data)
    expected = tiny_classifier.classify(path)
    assert expected.n_windows == 3
    for source in (str(path), data, io.BytesIO(data), (samples, RATE), samples.astype(np.float64)):
        got = tiny_classifier.classify(source, array_rate=RATE if isinstance(source, np.ndarray) else None)
        np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(got.logits, expected.logits, atol=1e-5)
        assert (got.label, got.flags, got.duration_s) == (expected.label, expected.flags, expected.duration_s)


def test_a_prediction_says_where_it_comes_from(
    tiny_classifier: Classifier, make_wav: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(make_wav(noise(1.0)))
    got = tiny_classifier.classify(path, top_k=2)
    assert got.source == str(path)
    assert (got.model, got.model_digest) == ("tiny", tiny_classifier.digest)
    assert got.label in TINY_LABELS
    assert len(got.labels) == 2
    assert got.labels[0].score == got.score == pytest.approx(got.scores.max())
    assert got.scores.sum() == pytest.approx(1.0, abs=1e-5)
    assert got.logits.shape == (1, 4)
    assert set(got.timing_ms) == {"decode", "frontend", "model", "total"}
    assert got.timing_ms["total"] >= got.timing_ms["frontend"] + got.timing_ms["model"]
    assert tiny_classifier.classify(path, name="a dog").source == "a dog"


def test_names_of_sources(
    tiny_classifier: Classifier, make_wav: Callable[..., bytes], tmp_path: Path
) -> None:
    data = make_wav(noise(1.0))
    (tmp_path / "x.wav").write_bytes(data)
    assert tiny_classifier.classify(data).source == "<bytes>"
    assert tiny_classifier.classify((noise(1.0), RATE)).source == "<array>"
    assert tiny_classifier.classify(io.BytesIO(data)).source == "<stream>"
    with (tmp_path / "x.wav").open("rb") as file:
        assert tiny_classifier.classify(file).source == str(tmp_path / "x.wav")


def test_features_are_those_of_classify(tiny_classifier: Classifier) -> None:
    samples = noise(2.0)
    features = tiny_classifier.features(samples, array_rate=RATE)
    assert features.shape == (2, *TINY_SHAPE)
    expected = tiny_classifier.classify(samples, array_rate=RATE).logits
    np.testing.assert_allclose(tiny_classifier.runtime.logits(features), expected, atol=1e-5)
    np.testing.assert_allclose(tiny_classifier.logits(samples), expected, atol=1e-5)


def test_long_recordings_go_through_in_batches(
    tiny_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = noise(21.0)
    seen: list[int] = []
    run = tiny_classifier.runtime.logits
    monkeypatch.setattr(tiny_classifier.runtime, "logits", lambda x: (seen.append(len(x)), run(x))[1])
    together = tiny_classifier.classify(samples, array_rate=RATE)
    assert together.n_windows == 21
    assert max(seen) <= classifier.BATCH_WINDOWS
    for i in (0, 8, 20):
        alone = tiny_classifier.classify(samples[i * RATE : (i + 1) * RATE], array_rate=RATE)
        np.testing.assert_allclose(alone.logits[0], together.logits[i], atol=1e-5)


def test_overlapping_windows(make_bundle: Callable[..., Bundle]) -> None:
    model = Classifier(make_bundle(window=WindowConfig(window_s=1.0, hop_s=0.25)))
    assert (
        model.classify(noise(2.0), array_rate=RATE).n_windows == 7
    )  # the last two are padded by half or less


@pytest.mark.parametrize(
    ("seconds", "short"), [(0.3, True), (0.97, True), (0.99, False), (1.0, False), (1.3, False)]
)
def test_short_means_shorter_than_a_window_by_more_than_a_hop(
    tiny_classifier: Classifier, seconds: float, short: bool
) -> None:
    got = tiny_classifier.classify(noise(seconds), array_rate=RATE)
    assert ("short" in got.flags) == short
    assert got.n_windows == 1


def test_silence_is_unknown_with_uniform_scores(tiny_classifier: Classifier) -> None:
    got = tiny_classifier.classify(np.zeros(RATE, np.float32), array_rate=RATE)
    assert (got.label, got.unknown, got.reason) == (None, True, "silent")
    assert "silent" in got.flags
    np.testing.assert_allclose(got.scores, 0.25)
    assert np.isfinite(got.logits).all()
    assert len(set(got.logits[0].tolist())) > 1  # the raw answer is kept


def test_thresholds_of_the_bundle_are_used(make_bundle: Callable[..., Bundle]) -> None:
    got = Classifier(make_bundle(decision=DecisionConfig(threshold=1.0))).classify(
        noise(1.0), array_rate=RATE
    )
    assert (got.label, got.reason) == (None, "below_threshold")
    hot = Classifier(make_bundle(decision=DecisionConfig(temperature=50.0))).classify(
        noise(1.0), array_rate=RATE
    )
    assert hot.score < 0.3


def test_a_bundle_may_call_a_sound_unknown_by_its_energy(make_bundle: Callable[..., Bundle]) -> None:
    heard = Classifier(make_bundle()).classify(noise(2.0), array_rate=RATE)
    assert (heard.n_windows, heard.unknown) == (2, False)
    energy = float(np.log(np.exp(heard.logits.mean(axis=0, dtype=np.float64)).sum()))
    for away, unknown in ((-1e-3, False), (1e-3, True)):
        decision = DecisionConfig(unknown_score="energy", threshold=energy + away)
        got = Classifier(make_bundle(decision=decision)).classify(noise(2.0), array_rate=RATE)
        assert (got.unknown, got.reason) == (unknown, "below_threshold" if unknown else "")
        np.testing.assert_array_equal(got.scores, heard.scores)


def test_batch_rows_keep_order_and_bad_files_cost_nothing(
    tiny_classifier: Classifier, make_wav: Callable[..., bytes], tmp_path: Path
) -> None:
    good = [tmp_path / f"good{i}.wav" for i in range(4)]
    for i, path in enumerate(good):
        path.write_bytes(make_wav(noise(1.0, seed=i)))
    empty, junk = tmp_path / "empty.wav", tmp_path / "junk.wav"
    empty.write_bytes(b"")
    junk.write_bytes(b"<html>" * 100)
    missing = tmp_path / "missing.wav"
    sources = [good[0], empty, good[1], junk, missing, tmp_path, good[2], np.full(RATE, np.nan), good[3]]
    rows = list(tiny_classifier.classify_many(sources, array_rate=RATE))
    assert [row.source for row in rows] == [str(s) if isinstance(s, Path) else "<array>" for s in sources]
    assert [row.ok for row in rows] == [True, False, True, False, False, False, True, False, True]
    codes = [row.code for row in rows if isinstance(row, Failure)]
    assert codes[0] == "empty_file"
    assert codes[2:] == ["not_found", "not_regular_file", "nonfinite_samples"]
    for path, row in zip(good, (rows[0], rows[2], rows[6], rows[8]), strict=True):
        assert isinstance(row, Prediction)
        np.testing.assert_array_equal(row.scores, tiny_classifier.classify(path).scores)


def test_batches_are_lazy(tiny_classifier: Classifier) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        for i in itertools.count():
            taken += 1
            yield noise(1.0, seed=i)

    rows = tiny_classifier.classify_many(endless(), array_rate=RATE)
    assert taken == 0
    assert all(isinstance(row, Prediction) for row in itertools.islice(rows, 3))
    assert taken == 3


def test_a_broken_model_ends_a_batch(tiny_classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = BundleError("gone")
    monkeypatch.setattr(tiny_classifier.runtime, "logits", lambda x: (_ for _ in ()).throw(gone))
    with pytest.raises(BundleError):
        list(tiny_classifier.classify_many([noise(1.0)], array_rate=RATE))


def test_a_recording_that_overflows_the_model_is_a_row(
    tiny_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow = BundleError("not finite", code="nonfinite_logits")
    monkeypatch.setattr(tiny_classifier.runtime, "logits", lambda x: (_ for _ in ()).throw(overflow))
    (row,) = tiny_classifier.classify_many([noise(1.0)], array_rate=RATE)
    assert isinstance(row, Failure)
    assert row.code == "sample_out_of_range"


def test_limits_strict_and_top_k_reach_their_stage(
    tiny_classifier: Classifier, make_wav: Callable[..., bytes]
) -> None:
    with pytest.raises(AudioError) as caught:
        tiny_classifier.classify(noise(3.0), array_rate=RATE, limits=AudioLimits(max_seconds=2.0))
    assert caught.value.code == "too_long"
    cut = make_wav(noise(2.0))[:-20_000]
    assert tiny_classifier.classify(cut).flags
    with pytest.raises(AudioError):
        tiny_classifier.classify(cut, strict=True)
    with pytest.raises(ConfigError):
        tiny_classifier.classify(noise(1.0), array_rate=RATE, top_k=0)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.integers(0, 5000), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
    )
)
def test_any_float_array_gives_finite_scores_or_one_of_the_codes(
    tiny_classifier: Classifier, samples
) -> None:
    try:
        got = tiny_classifier.classify(samples, array_rate=RATE)
    except AudioError:
        return
    assert np.isfinite(got.scores).all()
    assert abs(got.scores.sum() - 1) < 1e-4


def test_m22_threads_share_a_classifier(tiny_classifier: Classifier) -> None:
    expected = [tiny_classifier.classify(noise(1.0, seed=i), array_rate=RATE).scores for i in range(16)]
    got: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        got[i] = tiny_classifier.classify(noise(1.0, seed=i), array_rate=RATE).scores

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(16):
        np.testing.assert_array_equal(got[i], expected[i])


def refused(make: Callable[[], object], code: str) -> BundleError:
    with pytest.raises(BundleError) as caught:
        make()
    assert caught.value.code == code, caught.value
    return caught.value


def test_m11_another_front_end_is_refused_and_shown(make_bundle: Callable[..., Bundle]) -> None:
    for change in (
        {"n_mels": 31},
        {"hop_length": 200},
        {"fmin": 50.0},
        {"mel_norm": "slaney"},
        {"center": False},
    ):
        other = make_bundle(frontend=replace(TINY_FRONTEND, **change))
        message = str(refused(lambda other=other: Classifier(other), "frontend_mismatch"))
        assert next(iter(change)) in message
        assert "soundmark tests" in message


def spoiled(index: int, values: np.ndarray) -> bytes:
    model = tiny_graph()
    tensor = model.graph.initializer[index]
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model.SerializeToString()


def probabilities() -> bytes:
    model = tiny_graph()
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("Softmax", ["raw"], ["logits"], axis=1))
    return model.SerializeToString()


def weights(name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in tiny_graph().graph.initializer if t.name == name)


SPOILED = {
    "M9 zero": lambda: spoiled(3, np.zeros((4, 8))),
    "M9 NaN": lambda: spoiled(4, np.full(4, np.nan)),
    "M9 infinite": lambda: spoiled(4, np.full(4, np.inf)),
    "M10 labels in another order": lambda: spoiled(3, weights("w2")[::-1]),
    "M13 probabilities": probabilities,
    "M13 scaled": lambda: spoiled(3, weights("w2") * 0.5),
    "other weights": lambda: tiny_graph(seed=3).SerializeToString(),
    "first layer damaged": lambda: spoiled(1, weights("w1")[::-1]),
}


@pytest.mark.parametrize("case", SPOILED)
def test_m9_m10_m13_other_weights_fail_the_golden_window(
    make_bundle: Callable[..., Bundle], case: str
) -> None:
    other = make_bundle(model=SPOILED[case]())
    assert "tiny" in str(refused(lambda: Classifier(other), "golden_mismatch"))


def test_other_golden_features_are_refused(
    make_bundle: Callable[..., Bundle], tiny_manifest: Manifest
) -> None:
    features = list(tiny_manifest.golden.features)
    features[40] += 0.01
    other = make_bundle(golden=replace(tiny_manifest.golden, features=tuple(features)))
    assert "feature 40" in str(refused(lambda: Classifier(other), "golden_mismatch"))


def test_another_window_length_does_not_fit_the_model(make_bundle: Callable[..., Bundle]) -> None:
    other = make_bundle(window=WindowConfig(window_s=1.5, hop_s=1.5))
    refused(lambda: Classifier(other), "bad_bundle")


def test_golden_is_what_the_classifier_checks(tiny_manifest: Manifest, tiny_model_bytes: bytes) -> None:
    again = golden(TINY_FRONTEND, TINY_WINDOW, tiny_model_bytes, n_labels=4)
    np.testing.assert_allclose(again.logits, tiny_manifest.golden.logits, atol=1e-5)
    assert len(again.features) == bundle.GOLDEN_FEATURES


def test_m23_a_loaded_classifier_outlives_its_directory(
    make_bundle: Callable[..., Bundle], tiny_manifest: Manifest, tiny_model_bytes: bytes
) -> None:
    path = make_bundle().path
    model = Classifier.load(path)
    before = model.classify(noise(1.0), array_rate=RATE).scores
    (path / "model.onnx").write_bytes(b"damaged")
    np.testing.assert_array_equal(model.classify(noise(1.0), array_rate=RATE).scores, before)
    refused(lambda: Classifier.load(path), "hash_mismatch")


def test_properties(tiny_classifier: Classifier, tiny_bundle: Path) -> None:
    assert tiny_classifier.labels == TINY_LABELS
    assert (tiny_classifier.name, tiny_classifier.sample_rate) == ("tiny", RATE)
    assert (tiny_classifier.window_samples, tiny_classifier.hop_samples) == (RATE, RATE)
    assert tiny_classifier.digest == bundle.read(tiny_bundle).digest
    assert tiny_classifier.manifest.golden.tolerance == 0.05
    assert Classifier(tiny_classifier.bundle, threads=2).runtime.threads == 2


def test_a_fresh_interpreter_classifies_without_torch_onnx_or_web(tiny_bundle: Path) -> None:
    code = (
        "import sys, numpy as np; from soundmark import Classifier; "
        f"p = Classifier.load({str(tiny_bundle)!r}).classify(np.sin(np.arange(16000) / 5.0), array_rate=16000); "
        "bad = {'torch', 'onnx', 'librosa', 'scipy', 'fastapi', 'streamlit', 'lightning_fabric'} & set(sys.modules); "
        "print(p.label, sorted(bad))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip().endswith("[]")
    assert out.stderr == ""
