"""bundle: what was exported is what is read, or nothing is (RELIABILITY M1-M4, M10, M11, M23, M24, M28, M29)."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from soundmark import bundle, storage
from soundmark.bundle import Bundle, Manifest
from soundmark.config import DecisionConfig, from_dict, to_dict
from soundmark.errors import BundleError, ConfigError, StorageError
from tiny import TINY_FRONTEND, TINY_LABELS, tiny_graph

FILES = ("bundle.json", "model.onnx", "README.md")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def refused(path: Path | str | None, *codes: str) -> BundleError:
    with pytest.raises(BundleError) as caught:
        bundle.read(path)
    assert caught.value.code in (codes or ("bad_bundle",)), caught.value
    assert caught.value.exit_status == 5
    return caught.value


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change bundle.json as an attacker would: with a digest that fits."""
    tree = json.loads((path / "bundle.json").read_text())
    change(tree)
    tree["digest"] = bundle.digest_of(tree)
    (path / "bundle.json").write_bytes(bundle.canonical(tree))


def test_what_is_written_is_what_is_read(make_bundle: Callable[..., Bundle], tiny_model_bytes: bytes) -> None:
    written = make_bundle()
    again = bundle.read(written.path)
    assert again == written
    assert again.manifest.labels == TINY_LABELS
    assert again.manifest.frontend == TINY_FRONTEND
    assert again.model == tiny_model_bytes
    assert sorted(p.name for p in written.path.iterdir()) == sorted(FILES)
    assert len(again.digest) == 64
    assert again.manifest.provenance["training"] == {"preset": "none", "seed": 0}
    assert (again.manifest.window_samples, again.manifest.hop_samples) == (16_000, 16_000)
    assert written.path.stat().st_mode & 0o777 == 0o755


def test_writing_twice_gives_the_same_bytes(make_bundle: Callable[..., Bundle]) -> None:
    a, b = make_bundle(), make_bundle()
    for name in FILES:
        assert (a.path / name).read_bytes() == (b.path / name).read_bytes()


def test_the_digest_covers_labels_order_and_decision(make_bundle: Callable[..., Bundle]) -> None:
    digests = {
        make_bundle().digest,
        make_bundle(labels=TINY_LABELS[::-1]).digest,
        make_bundle(decision=DecisionConfig(temperature=2.0)).digest,
        make_bundle(model=tiny_graph(seed=1).SerializeToString()).digest,
    }
    assert len(digests) == 4


def test_m1_cut_and_trailing_files(copy: Path) -> None:
    for name in FILES:
        good = (copy / name).read_bytes()
        for data in (b"", good[:1], good[: len(good) // 10], good[: len(good) // 2], good[:-1], good + b"\n"):
            (copy / name).write_bytes(data)
            assert name in str(refused(copy, "bad_bundle", "hash_mismatch"))
        (copy / name).unlink()
        assert name in str(refused(copy))
        (copy / name).write_bytes(good)
    bundle.read(copy)


@pytest.mark.parametrize("name", FILES)
def test_m2_any_flipped_byte_is_refused(copy: Path, name: str, rng: np.random.Generator) -> None:
    good = (copy / name).read_bytes()
    for _ in range(100):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        (copy / name).write_bytes(data)
        refused(copy, "hash_mismatch", "bad_bundle")


def test_m3_sidecars_that_do_not_belong(copy: Path, make_bundle: Callable[..., Bundle]) -> None:
    other = make_bundle(model=tiny_graph(seed=1).SerializeToString()).path
    good = (copy / "bundle.json").read_bytes()
    (copy / "bundle.json").write_bytes((other / "bundle.json").read_bytes())
    assert "another bundle" in str(refused(copy, "hash_mismatch"))
    (copy / "bundle.json").write_bytes(good)
    reseal(copy, lambda tree: tree["files"].pop("model.onnx"))
    refused(copy)
    for change in (
        lambda tree: tree.update(files={}),
        lambda tree: tree["files"].update({"model.onnx": "0" * 63}),
        lambda tree: tree["files"].update({"../x": "0" * 64}),
        lambda tree: tree["files"].update({"/etc/passwd": "0" * 64}),
        lambda tree: tree["files"].update({"bundle.json": "0" * 64}),
        lambda tree: tree["files"].update({f"f{i}": "0" * 64 for i in range(100)}),
        lambda tree: tree.pop("files"),
        lambda tree: tree.update(format=2),
        lambda tree: tree.update(format="1"),
        lambda tree: tree.pop("format"),
        lambda tree: tree.update(surprise=1),
        lambda tree: tree.update(resampler="linear"),
        lambda tree: tree.update(name="../../x"),
    ):
        (copy / "bundle.json").write_bytes(good)
        reseal(copy, change)
        refused(copy)


def test_m3_a_sidecar_without_or_with_a_wrong_digest(copy: Path) -> None:
    tree = json.loads((copy / "bundle.json").read_text())
    for digest in ("", "0" * 64, None, 5):
        (copy / "bundle.json").write_bytes(bundle.canonical({**tree, "digest": digest}))
        refused(copy, "hash_mismatch")
    del tree["digest"]
    (copy / "bundle.json").write_bytes(bundle.canonical(tree))
    refused(copy, "hash_mismatch")


@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b"[]",
        b'"x"',
        b'{"format": 1, "format": 1}\n',
        b'{"format": NaN}',
        b'{"format": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b"1" * 5_000,
        '{"format": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b'{"format": 1, "labels": ["\\ud800"]}',
    ],
    ids=range(13),
)
def test_m3_odd_json(copy: Path, text: bytes) -> None:
    (copy / "bundle.json").write_bytes(text)
    refused(copy, "bad_bundle", "hash_mismatch")


def test_m3_files_over_their_caps(copy: Path) -> None:
    for name, cap in bundle.CAPS.items():
        good = (copy / name).read_bytes()
        with (copy / name).open("r+b") as file:
            file.truncate(cap + 1)  # sparse: no disk is used
        assert "larger than" in str(refused(copy))
        (copy / name).write_bytes(good)
    with (copy / "model.onnx").open("r+b") as file:
        file.truncate(10 << 30)  # M28: 10 GB
    assert "larger than" in str(refused(copy))


class Payload:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "pkl", "npy", "joblib", "safetensors", "onnx"])
def test_m4_pickles_never_run(copy: Path, tmp_path: Path, suffix: str) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps(Payload(str(canary)))
    (tmp_path / f"model.{suffix}").write_bytes(data)
    refused(tmp_path / f"model.{suffix}", "model_not_found")
    (copy / f"extra.{suffix}").write_bytes(data)
    assert "does not list" in str(refused(copy))
    (copy / f"extra.{suffix}").unlink()
    (copy / "model.onnx").write_bytes(data)
    reseal(copy, lambda tree: tree["files"].update({"model.onnx": bundle._sha256(data)}))
    refused(copy)
    assert not canary.exists()


BAD_LABELS = {
    "M10 none": [],
    "M10 three": list(TINY_LABELS[:3]),
    "M10 five": [*TINY_LABELS, "cat"],
    "M10 duplicate": ["dog", "dog", "rain", "siren"],
    "M29 1 MB": ["x" * (1 << 20), "b", "c", "d"],
    "M29 newline": ["a\nb", "b", "c", "d"],
    "M29 escape": ["\x1b[31m", "b", "c", "d"],
    "M29 bidi": ["a\u202eb", "b", "c", "d"],
    "M29 empty": ["", "b", "c", "d"],
    "M29 blank": [" ", "b", "c", "d"],
    "M29 number": [1, "b", "c", "d"],
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_m10_m29_labels(copy: Path, case: str) -> None:
    reseal(copy, lambda tree: tree.update(labels=BAD_LABELS[case]))
    assert "labels" in str(refused(copy)) or "logits" in str(refused(copy))
    assert len(str(refused(copy))) < 1000


def test_m10_labels_missing_or_reordered(copy: Path) -> None:
    tree = json.loads((copy / "bundle.json").read_text())
    tree["labels"].reverse()
    (copy / "bundle.json").write_bytes(bundle.canonical(tree))
    refused(copy, "hash_mismatch")
    reseal(copy, lambda tree: tree.pop("labels"))
    assert "labels" in str(refused(copy))


def test_labels_of_any_language_and_html_are_kept_as_they_are(make_bundle: Callable[..., Bundle]) -> None:
    labels = ("<b>dog</b>", "дождь", "サイレン", "=cmd()")
    assert bundle.read(make_bundle(labels=labels).path).manifest.labels == labels


@pytest.mark.parametrize("key", sorted(to_dict(TINY_FRONTEND)))
def test_m11_no_front_end_parameter_is_defaulted(copy: Path, key: str) -> None:
    reseal(copy, lambda tree: tree["frontend"].pop(key))
    message = str(refused(copy))
    assert "frontend" in message or key in message


@pytest.mark.parametrize("section", ["frontend", "window", "decision", "golden", "provenance"])
@pytest.mark.parametrize("value", [None, 3, "x", [], {"what": 1}, {"training": [1]}])
def test_sections_of_other_types_are_refused(copy: Path, section: str, value: object) -> None:
    reseal(copy, lambda tree: tree.update({section: value}))
    refused(copy)


def test_a_bundle_from_before_scores_for_unknown_sounds_reads_as_it_was(copy: Path) -> None:
    def older(tree: dict[str, Any]) -> None:
        del tree["decision"]["unknown_score"]
        tree["decision"]["threshold"] = 0.4

    reseal(copy, older)
    decision = bundle.read(copy).manifest.decision
    assert (decision.unknown_score, decision.threshold) == ("probability", 0.4)
    reseal(copy, lambda tree: tree["decision"].update(threshold=7.5))
    assert "threshold" in str(refused(copy))
    reseal(copy, lambda tree: tree["decision"].update(unknown_score="energy"))
    assert bundle.read(copy).manifest.decision.threshold == 7.5


def test_thresholds_for_strangers_are_refused(tiny_manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="label_thresholds"):
        replace(tiny_manifest, decision=DecisionConfig(label_thresholds={"cat": 0.5})).check()


def test_m28_what_is_not_a_bundle_directory(copy: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file.onnx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("fifo", "file.onnx", "loop", "nothing"):
        refused(tmp_path / name, "model_not_found")
    for text in ("", "-", "http://example.com/model", "nul\0byte", "x" * 5000, "s3://b/k", "../nothing"):
        refused(text, "model_not_found")
    refused(tmp_path / "empty")
    for name in FILES:
        good = (copy / name).read_bytes()
        for make in (
            os.mkfifo,
            os.mkdir,
            lambda p: os.symlink("/dev/zero", p),
            lambda p: os.symlink(p, p),
            bind,
        ):
            (copy / name).unlink()
            make(copy / name)
            assert name in str(refused(copy))
            os.rmdir(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
            (copy / name).write_bytes(good)
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").symlink_to(tmp_path / "file.onnx")
    refused(copy)


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # socket paths are short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_m28_unreadable(copy: Path) -> None:
    (copy / "model.onnx").chmod(0)
    refused(copy)
    copy.chmod(0)
    refused(copy)
    copy.chmod(0o755)


def test_a_missing_model_lists_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "available", lambda: ["edge", "small"])
    assert "edge, small" in str(refused("egde", "model_not_found"))


def test_shipped_names_are_found(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "models" / "edge")
    monkeypatch.setattr(bundle.resources, "files", lambda package: tmp_path)
    monkeypatch.chdir(tmp_path / "models")
    for name in (None, "default", "edge"):
        assert bundle.find(name) == tmp_path / "models" / "edge"
    assert bundle.available() == ["edge"]
    refused("egde", "model_not_found")


def test_a_directory_may_be_reached_through_a_link(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tiny_bundle)
    assert bundle.read(tmp_path / "current").manifest.name == "tiny"


def test_hidden_files_of_the_desktop_are_ignored(copy: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"x")
    bundle.read(copy)


def test_notices_travel_along(tmp_path: Path, tiny_manifest: Manifest, tiny_model_bytes: bytes) -> None:
    path = tmp_path / "b"
    bundle.write(
        path, manifest=tiny_manifest, model=tiny_model_bytes, readme="x", extra={"NOTICE": b"Apache-2.0 ..."}
    )
    assert "NOTICE" in bundle.read(path).manifest.files
    (path / "NOTICE").write_bytes(b"other")
    refused(path, "hash_mismatch")


def test_write_refuses_what_read_would(tmp_path: Path, tiny_manifest: Manifest) -> None:
    with pytest.raises(BundleError):
        bundle.write(tmp_path / "b", manifest=tiny_manifest, model=b"no model", readme="")
    assert list(tmp_path.iterdir()) == []


def test_write_replaces_only_when_asked_and_only_bundles(
    copy: Path, tmp_path: Path, tiny_manifest: Manifest, tiny_model_bytes: bytes
) -> None:
    with pytest.raises(StorageError, match="exists"):
        bundle.write(copy, manifest=tiny_manifest, model=tiny_model_bytes, readme="new")
    new = bundle.write(copy, manifest=tiny_manifest, model=tiny_model_bytes, readme="new", overwrite=True)
    assert (copy / "README.md").read_text() == "new"
    assert new.digest == bundle.read(copy).digest
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years")
    with pytest.raises(StorageError, match="not a bundle"):
        bundle.write(home, manifest=tiny_manifest, model=tiny_model_bytes, readme="", overwrite=True)
    assert (home / "thesis.txt").read_text() == "years"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "home"]


@pytest.mark.parametrize("step", range(7))
def test_a_full_disk_never_destroys_the_old_bundle(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tiny_manifest: Manifest, tiny_model_bytes: bytes, step: int
) -> None:
    before = bundle.read(copy)
    calls = 0

    def full(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle.os, "fsync", full)
    if step == 5:
        monkeypatch.setattr(storage.tempfile, "mkdtemp", full)
        calls = 5
    if step == 6:
        monkeypatch.setattr(storage, "_replace", full)
        monkeypatch.setattr(bundle.os, "fsync", lambda descriptor: None)
        calls = 6
    with pytest.raises(StorageError, match="No space left") as caught:
        bundle.write(copy, manifest=tiny_manifest, model=tiny_model_bytes, readme="new", overwrite=True)
    assert str(copy) in str(caught.value)
    assert caught.value.exit_status == 4
    after = bundle.read(copy)
    assert after.manifest.labels == before.manifest.labels  # step 4 fails after the new one is in place
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_a_write_that_is_cut_short_leaves_the_old_bundle(
    copy: Path, tiny_manifest: Manifest, tiny_model_bytes: bytes
) -> None:
    before, limits = bundle.read(copy), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            bundle.write(copy, manifest=tiny_manifest, model=tiny_model_bytes, readme="new", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert bundle.read(copy) == before
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_write_into_a_file_or_nowhere(
    tmp_path: Path, tiny_manifest: Manifest, tiny_model_bytes: bytes
) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "b", tmp_path / "file", Path("/proc/b")):
        with pytest.raises(StorageError):
            bundle.write(target, manifest=tiny_manifest, model=tiny_model_bytes, readme="", overwrite=True)


def test_m23_m24_readers_see_the_old_or_the_new_one(
    copy: Path, tiny_manifest: Manifest, tiny_model_bytes: bytes
) -> None:
    seen, stop = set(), threading.Event()

    def reader() -> None:
        while not stop.is_set():
            try:
                seen.add(bundle.read(copy).digest)
            except BundleError as error:
                seen.add(error.code if "No such file" in str(error) else str(error))

    thread = threading.Thread(target=reader)
    thread.start()
    digests = {bundle.read(copy).digest}
    for i in range(20):
        manifest = replace(tiny_manifest, licence=f"licence {i % 3}")
        digests.add(
            bundle.write(copy, manifest=manifest, model=tiny_model_bytes, readme="", overwrite=True).digest
        )
    stop.set()
    thread.join()
    assert seen - digests <= {"bad_bundle"}  # the old one, deleted while it was read


def test_manifest_is_frozen_and_strict(tiny_manifest: Manifest) -> None:
    with pytest.raises(AttributeError):
        tiny_manifest.name = "other"  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**to_dict(tiny_manifest), "labels": "dog"}, Manifest)
    with pytest.raises(ConfigError):
        from_dict({**to_dict(tiny_manifest), "lables": []}, Manifest)


@pytest.mark.parametrize(("rate", "n"), [(16_000, 16_000), (44_100, 220_500), (8_000, 1), (16_000, 0)])
def test_the_golden_signal_is_bounded_and_repeatable(rate: int, n: int) -> None:
    x = bundle.golden_signal(rate, n)
    assert (x.shape, x.dtype) == ((n,), np.float32)
    assert np.abs(x).max(initial=0.0) <= 0.5
    assert n == 0 or np.abs(x).max() == 0.5
    np.testing.assert_array_equal(x, bundle.golden_signal(rate, n))


def test_the_golden_signal_is_this_one_on_every_machine() -> None:
    x = bundle.golden_signal(16_000, 16_000)
    assert bundle._sha256(x.tobytes()) == GOLDEN_SHA256


GOLDEN_SHA256 = "8f7f9428f3764c340d37f5e054aac63d194bdb38a96abd3711d574669f11ae63"


@pytest.mark.parametrize("size", [1, 63, 64, 2016, 64 * 501, 32_064])
def test_golden_indices_are_inside_and_spread(size: int) -> None:
    at = bundle.golden_indices(size)
    assert len(at) == bundle.GOLDEN_FEATURES
    assert (at[0], at[-1]) == (0, size - 1)
    if size == 64 * 501:
        assert len(set((at % 501).tolist())) > 32  # not one column only
