"""storage: wholly the old or wholly the new, at every fault of the disk."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from soundmark import storage
from soundmark.errors import EXIT_DISK, StorageError

OLD, NEW = b"old" * 100, b"new" * 200
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(real: Callable[..., Any], at: int, seen: list[int]) -> Callable[..., Any]:
    """Return ``real`` that fails at call ``at`` with "no space left"; ``seen`` counts the calls."""

    def call(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == at:
            raise FULL
        return real(*args, **kwargs)

    return call


def fill(folder: Path) -> None:
    (folder / "a").write_bytes(NEW)
    (folder / "b").write_bytes(NEW)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_bytes_are_written_replaced_and_parents_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.bin"
    for data in (OLD, NEW, b""):
        storage.write_bytes(path, data)
        assert path.read_bytes() == data
    assert names(path.parent) == ["x.bin"]


@pytest.mark.parametrize("proc", [True, False])
def test_many_threads_leave_the_umask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proc: bool
) -> None:
    def hidden(*_: object, **__: object) -> None:
        raise FileNotFoundError

    if not proc:  # a system that does not show it
        monkeypatch.setattr(storage, "open", hidden, raising=False)
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as threads:
            paths = [tmp_path / str(i) for i in range(200)]
            list(threads.map(lambda path: storage.write_bytes(path, NEW, sync=False), paths))
        after = os.umask(0o027)
    finally:
        os.umask(before)
    assert after == 0o027
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o640}


def test_pieces_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with storage.writing(path) as file:
        file.write(OLD)
        assert not path.exists()
        file.write(OLD)
    assert path.read_bytes() == 2 * OLD

    def break_off() -> None:
        with storage.writing(path) as file:
            file.write(NEW)
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        break_off()
    assert path.read_bytes() == 2 * OLD
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_bits_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        storage.write_bytes(tmp_path / "file", NEW)
        storage.write_folder(tmp_path / "folder", fill)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod", "open", "close"])
def test_bytes_survive_a_full_disk_at_each_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x.bin"
    for at in range(1, 5):
        path.write_bytes(OLD)
        seen: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(getattr(os, call), at, seen))
            try:
                storage.write_bytes(path, NEW)
                failed = None
            except StorageError as error:
                failed = error
        if len(seen) < at:  # every call was tried
            assert failed is None
            break
        if failed is not None:
            assert "No space left" in str(failed)
            assert (failed.code, failed.exit_status) == ("storage", EXIT_DISK)
        assert path.read_bytes() in (OLD, NEW)
        assert failed is not None or path.read_bytes() == NEW
        assert names(tmp_path) == ["x.bin"]
    else:
        pytest.fail("more calls than expected")


class _FullFile:
    """A file on a full disk."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __enter__(self) -> _FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def write(self, data: bytes) -> None:
        os.write(self.handle, data[:10])
        raise FULL


def test_bytes_survive_a_full_disk_in_mid_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda handle, _: _FullFile(handle))
        with pytest.raises(StorageError, match="No space left") as caught:
            storage.write_bytes(path, NEW)
    assert str(len(NEW)) in caught.value.wanted
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod", "mkdir"])
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_folders_survive_a_full_disk_at_each_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, exchange: bool, overwrite: bool
) -> None:
    folder = tmp_path / "folder"
    if not exchange:
        monkeypatch.setattr(storage.ctypes, "CDLL", lambda *_, **__: object())
    for at in range(1, 9):
        storage.shutil.rmtree(folder, ignore_errors=True)
        if overwrite:
            folder.mkdir()
            (folder / "a").write_bytes(OLD)
        seen: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(getattr(os, call), at, seen))
            try:
                storage.write_folder(folder, fill, overwrite=overwrite)
                failed = False
            except StorageError:
                failed = True
        if len(seen) < at:
            assert not failed
            break
        left = {name: (folder / name).read_bytes() for name in names(folder)} if folder.exists() else {}
        old, new = ({"a": OLD} if overwrite else {}), {"a": NEW, "b": NEW}
        assert left in (old, new), (call, at)
        assert failed or left == new
        assert [name for name in names(tmp_path) if name != "folder"] == [], (call, at)
    else:
        pytest.fail("more calls than expected")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(storage.ctypes, "CDLL", lambda *_, **__: object())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "stale").write_bytes(OLD)
    storage.write_folder(folder, fill, overwrite=True)
    assert names(folder) == ["a", "b"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_exists_is_refused_before_anything_is_filled(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    def never(_: Path) -> None:
        raise AssertionError

    with pytest.raises(StorageError, match="exists"):
        storage.write_folder(tmp_path / "folder", never)
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(StorageError, match="is a file"):
        storage.write_folder(tmp_path / "file", never, overwrite=True)
    assert (tmp_path / "file").read_bytes() == OLD


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), MemoryError()])
def test_whatever_stops_the_filling_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(OLD)

    def half(scratch: Path) -> None:
        fill(scratch)
        raise error

    with pytest.raises(type(error)):
        storage.write_folder(folder, half, overwrite=True)
    assert (folder / "a").read_bytes() == OLD
    assert names(tmp_path) == ["folder"]


def test_a_process_at_its_file_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(OLD)
    script = """
import resource, sys
from pathlib import Path
from soundmark import storage
from soundmark.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
def fill(folder):
    (folder / "a").write_bytes(b"x" * 100_000)
for write in (lambda: storage.write_bytes(path, b"x" * 100_000), lambda: storage.write_folder(path.parent / "f", fill)):
    try:
        write()
    except StorageError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("File too large") == 2, done
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["x.bin"]


def test_a_read_only_folder_is_a_storage_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write into read-only folders")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            storage.write_bytes(tmp_path / "x", NEW)
        with pytest.raises(StorageError, match="Permission denied"):
            storage.write_folder(tmp_path / "f", fill)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_takes_no_new_file_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(storage.tempfile, "mkdtemp", refuse)
    for write in (
        lambda: storage.write_bytes(tmp_path / "x", NEW),
        lambda: storage.write_folder(tmp_path / "f", fill),
    ):
        with pytest.raises(StorageError) as caught:
            write()
        assert os.strerror(code) in str(caught.value)
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(StorageError):
        storage.write_bytes(tmp_path / "file" / "x", NEW)
    with pytest.raises(StorageError):
        storage.write_folder(tmp_path / "file" / "x", fill)
    assert (tmp_path / "file").read_bytes() == OLD


def test_a_reader_sees_the_old_or_the_new_folder_and_never_none(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def write(value: bytes) -> None:
        storage.write_folder(folder, lambda s: (s / "a").write_bytes(value) and None, overwrite=True)

    write(OLD)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add((folder / "a").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        write(NEW if turn % 2 else OLD)
    stop.set()
    reader.join(10)
    assert seen
    assert seen <= {OLD, NEW}
