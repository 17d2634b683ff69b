"""download: whole and checked, or refused with a reason and nothing at its place; all of it on the loopback."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("pooch")

from soundmark.data import download as module
from soundmark.data import transfer, unpack
from soundmark.data.download import download, manifest
from soundmark.dataset import ESC50_VARIABLE, load_esc50
from soundmark.errors import EXIT_DISK, EXIT_USAGE, DatasetError, SoundmarkError, StorageError
from synthetic import CLASSES, COLUMNS, table_rows

ROWS = table_rows(CLASSES, sources=1, takes=1)  # 25 clips; targets below 10 are ESC-10 here
RATE, SECONDS = 16_000, 0.5
TOP = "ESC-50-master"


def wav(row: dict[str, str], seconds: float = SECONDS) -> bytes:
    noise = np.random.default_rng(int(row["src_file"])).standard_normal(round(RATE * seconds))
    file = io.BytesIO()
    soundfile.write(file, 0.1 * noise, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


WAVS = {row["filename"]: wav(row) for row in ROWS}


def table(rows: list[dict[str, str]]) -> bytes:
    return "".join(
        ",".join(line) + "\n" for line in [COLUMNS, *([r[c] for c in COLUMNS] for r in rows)]
    ).encode()


def members(rows: list[dict[str, str]] = ROWS) -> dict[str, bytes]:
    """Return name -> bytes of a good archive, with things in it that nobody wants."""
    return {
        f"{TOP}/README.md": b"# ESC-50\n",
        f"{TOP}/LICENSE": b"who recorded what\n",
        f"{TOP}/tests/test_dataset.py": b"pass\n",
        f"{TOP}/meta/esc50.csv": table(rows),
        **{f"{TOP}/audio/{row['filename']}": WAVS[row["filename"]] for row in rows},
    }


def pack(files: dict[str, bytes], more: Callable[[zipfile.ZipFile], object] = lambda _: None) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # duplicate names are meant
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
        more(archive)
    return file.getvalue()


GOOD = pack(members())


class Server(ThreadingHTTPServer):
    """Serves ``answer(handler)`` and keeps the ranges that were asked for."""

    daemon_threads = True
    answer: Callable[[Any], None]
    ranges: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.server.answer(self)

    def log_message(self, *args: object) -> None:
        pass

    def send(self, data: bytes, status: int = 200, *, length: int | None = None, **head: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Type": "application/zip", **head}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.ranges = []
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the manifest be that of `ROWS`, and nobody wait."""
    lines = [
        f"{r['filename'][:-4]},{r['fold']},{r['category']},{r['esc10'] == 'True':d},{SECONDS}" for r in ROWS
    ]
    file = tmp_path / "manifest.csv"
    file.write_text("\n".join(["# made", "name,fold,label,esc10,length_s", *lines]))
    monkeypatch.setattr(module, "MANIFEST", file)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    monkeypatch.setattr(transfer, "STALL_S", 0.3)


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Any]:
    """Return a function: answer of the server -> the data set that was downloaded."""

    def got(answer: bytes | Callable[[Any], None], name: Any = "esc50", **options: Any) -> Any:
        server.answer = (lambda handler: handler.send(answer)) if isinstance(answer, bytes) else answer
        url = f"http://127.0.0.1:{server.server_port}/master.zip"
        return download(name, tmp_path / "data", url=url, **options)

    return got


@pytest.fixture
def refused(get: Callable[..., Any], tmp_path: Path) -> Callable[..., SoundmarkError]:
    """Return a function: answer, code, words -> the error, after which nothing is at the place."""

    def told(answer: Any, code: str, *words: str, keeps: bool = False, **options: Any) -> SoundmarkError:
        with pytest.raises(DatasetError) as caught:
            get(answer, **options)
        error = caught.value
        assert (error.code, error.exit_status) == (code, EXIT_USAGE), error
        for word in words:
            assert word in str(error)
        assert len(str(error)) < 700
        assert not (tmp_path / "data").exists()
        assert (tmp_path / ".data.download").exists() == keeps
        assert {path.name for path in tmp_path.iterdir()} <= {"manifest.csv", ".data.download"}
        return error

    return told


def ranged(handler: Any, data: bytes = GOOD, etag: str = '"one"') -> None:
    """Answer as a server does that knows ranges."""
    asked = handler.headers.get("Range")
    if asked and handler.headers.get("If-Range") == etag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        handler.send(data[start:], 206, ETag=etag, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
    else:
        handler.send(data, ETag=etag)


def cut(at: int, then: Callable[[Any], None] = ranged, times: int = 1) -> Callable[[Any], None]:
    """Return an answer that stops ``at`` bytes from where it began, ``times`` times, and then another."""
    left = [times]

    def answer(handler: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            then(handler)
            return
        send, whole = handler.wfile.write, []
        handler.wfile.write = whole.append
        ranged(handler)
        handler.wfile.write = send
        data = b"".join(whole)
        head, _, body = data.partition(b"\r\n\r\n")
        handler.connection.sendall(head + b"\r\n\r\n" + body[:at])
        handler.close_connection = True

    return answer


# --- what goes well ----------------------------------------------------------------------------------------------


def test_a_good_archive_is_a_data_set(get: Callable[..., Any], tmp_path: Path) -> None:
    seen: dict[str, list[float]] = {}

    class Counting:
        def __init__(self, what: str, total: int | None) -> None:
            self.counts = seen.setdefault(what, [])

        def __enter__(self) -> Callable[..., None]:
            return lambda n, total=None: self.counts.append(n)

        def __exit__(self, *_: object) -> None:
            pass

    data = get(GOOD, progress=Counting)
    assert data.labels == tuple(CLASSES.values())
    assert len(data.clips) == 25
    assert data.root == tmp_path / "data"
    found = {p.relative_to(data.root).as_posix() for p in data.root.rglob("*") if p.is_file()}
    assert found == {n.removeprefix(f"{TOP}/") for n in members()} - {"tests/test_dataset.py"}
    assert (data.root / "audio" / ROWS[0]["filename"]).read_bytes() == WAVS[ROWS[0]["filename"]]
    assert sum(seen["download, MB"]) * 1e6 == pytest.approx(len(GOOD))
    assert sum(seen["unpack"]) == 28
    assert not (tmp_path / ".data.download").exists()


def test_esc10_is_those_clips_with_their_own_table(get: Callable[..., Any]) -> None:
    data = get(GOOD, "esc10")
    chosen = [row for row in ROWS if row["esc10"] == "True"]
    assert [clip.name for clip in data.clips] == [row["filename"][:-4] for row in chosen]
    assert len(list((data.root / "audio").iterdir())) == len(chosen) == 10
    assert load_esc50(data.root).clips == data.clips


def test_again_is_a_check_and_no_transfer(get: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    first = get(GOOD)
    assert get(GOOD) == first
    assert len(server.ranges) == 1
    (tmp_path / "data" / "audio" / ROWS[3]["filename"]).unlink()
    with pytest.raises(StorageError, match="holds something else") as caught:
        get(GOOD)
    assert caught.value.exit_status == EXIT_DISK
    assert len(server.ranges) == 1


def test_a_folder_with_something_in_it_is_left_alone(get: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="something else"):
        get(GOOD)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["thesis.tex"]
    (tmp_path / "data" / "thesis.tex").unlink()
    assert len(get(GOOD).clips) == 25  # an empty folder will do


# --- transfers that are cut --------------------------------------------------------------------------------------


def test_a_cut_transfer_goes_on_where_it_stopped(get: Callable[..., Any], server: Server) -> None:
    assert len(get(cut(200_000, times=2)).clips) == 25
    first, *later = server.ranges
    starts = [int(str(asked).removeprefix("bytes=").removesuffix("-")) for asked in later]
    assert first is None
    assert len(starts) == 2
    assert 0 < starts[0] <= 200_000
    assert starts[0] < starts[1] <= 400_000


def test_the_next_call_goes_on_too(
    get: Callable[..., Any], refused: Callable[..., Any], server: Server
) -> None:
    refused(
        cut(70_000, lambda handler: handler.send(b"", 503), times=1),
        "download_failed", "503", "bytes are kept", keeps=True,
    )  # fmt: skip
    assert len(server.ranges) == transfer.ATTEMPTS
    server.ranges.clear()
    assert len(get(ranged).clips) == 25
    assert len(server.ranges) == 1
    assert server.ranges[0] is not None


def test_a_server_without_ranges_sends_all_again(get: Callable[..., Any], server: Server) -> None:
    assert len(get(cut(200_000, lambda handler: handler.send(GOOD))).clips) == 25
    assert [bool(asked) for asked in server.ranges] == [False, True]


def test_a_file_that_changed_meanwhile_is_fetched_anew(get: Callable[..., Any]) -> None:
    assert len(get(cut(200_000, lambda handler: ranged(handler, etag='"two"'))).clips) == 25


@pytest.mark.parametrize("how", ["another range", "range not satisfiable"])
def test_a_wrong_range_is_not_glued_on(get: Callable[..., Any], how: str) -> None:
    def wrong(handler: Any) -> None:
        if not handler.headers.get("Range"):
            ranged(handler)
        elif how == "another range":
            handler.send(GOOD[5:], 206, ETag='"one"', Content_Range=f"bytes 5-{len(GOOD) - 1}/{len(GOOD)}")
        else:
            handler.send(b"", 416)

    assert len(get(cut(200_000, wrong)).clips) == 25


def test_a_server_that_stops_sending_does_not_hold_us_up(refused: Callable[..., Any], server: Server) -> None:
    release = threading.Event()

    def stall(handler: Any) -> None:
        handler.send(GOOD[:100_000], length=len(GOOD), ETag='"one"')
        release.wait(20)

    began = time.monotonic()
    refused(stall, "download_failed", "stopped sending", keeps=True)
    release.set()
    assert time.monotonic() - began < 15


def test_a_killed_unpacking_leaves_nothing_that_counts(get: Callable[..., Any], tmp_path: Path) -> None:
    left = tmp_path / ".data.download" / ".data.abc" / "audio"
    left.mkdir(parents=True)
    (left / ROWS[0]["filename"]).write_bytes(b"half")
    assert len(get(GOOD).clips) == 25
    assert not (tmp_path / ".data.download").exists()


def test_two_at_once_do_not_mix(get: Callable[..., Any], tmp_path: Path) -> None:
    import fcntl

    work = tmp_path / ".data.download"
    work.mkdir()
    with (work / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="in use by another download"):
            get(GOOD)


# --- answers that are no archive ---------------------------------------------------------------------------------


def test_an_error_of_the_server_is_said_at_once(refused: Callable[..., Any], server: Server) -> None:
    page = {"Content_Type": "text/html"}
    refused(lambda handler: handler.send(b"<html>", 404, **page), "download_failed", "404")
    assert len(server.ranges) == 1
    refused(lambda handler: handler.send(b"<html>" * 99, **page), "download_failed", "is a page (text/html)")
    assert len(server.ranges) == 2


@pytest.mark.parametrize("length", [True, False])
def test_a_body_without_end_is_left(
    refused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, length: bool
) -> None:
    monkeypatch.setattr(module, "MAX_ARCHIVE_BYTES", 500_000)
    sent = [0]

    def pour(handler: Any) -> None:
        if length:
            handler.send(b"", length=10 << 30)
            return
        handler.send_response(200)
        handler.end_headers()
        while sent[0] < 50 << 20:  # far beyond what sockets hold
            try:
                handler.wfile.write(bytes(1 << 16))
            except OSError:
                return
            sent[0] += 1 << 16

    refused(pour, "download_failed", "more than 500000 bytes")
    assert sent[0] < 50 << 20


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://127.0.0.1:1/x", "/again"]
)
def test_redirects_lead_nowhere_else(refused: Callable[..., Any], target: str) -> None:
    answer = lambda handler: handler.send(b"", 302, Location=target)  # noqa: E731
    refused(answer, "download_failed")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "ftp://x/y", "https://", "", "http:x"])
def test_what_is_no_web_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatasetError, match="not a web address") as caught:
        download("esc50", tmp_path / "data", url=url)
    assert caught.value.code == "download_failed"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_https_is_not_left_for_http(tmp_path: Path) -> None:
    from types import SimpleNamespace

    sink = transfer._Sink("https://a.example/x.zip", tmp_path / "part", 10, None)
    response = SimpleNamespace(
        is_redirect=True,
        status_code=302,
        url="https://a.example/x.zip",
        headers={"location": "http://b.example/"},
    )
    with pytest.raises(DatasetError, match=r"leads to http://b[.]example"):
        sink.answered(response)  # type: ignore[arg-type]
    response.headers["location"] = "/y.zip"
    sink.answered(response)  # type: ignore[arg-type]


# --- archives that are refused -----------------------------------------------------------------------------------


def entry(
    name: str, data: bytes = b"x", *, mode: int = 0, system: int = 3
) -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = system, mode << 16
        archive.writestr(info, data)

    return add


def patched(old: bytes, new: bytes) -> bytes:
    """Return the good archive with a name of its own length changed, in both headers."""
    assert len(old) == len(new)
    return GOOD.replace(old, new)


FIRST = f"{TOP}/audio/{ROWS[0]['filename']}".encode()
BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "cut short": (GOOD[: len(GOOD) // 2], "no zip file"),
    "empty": (b"", "no zip file"),
    "something else": (os.urandom(70_000), "no zip file"),
    "damaged clip": (GOOD.replace(WAVS[ROWS[1]["filename"]][100:200], bytes(100)), "CRC"),
    "above the folder": (pack(members(), entry("../evil")), "out of the folder"),
    "above, below": (pack(members(), entry(f"{TOP}/audio/../../../evil")), "out of the folder"),
    "absolute": (pack(members(), entry("/etc/evil")), "out of the folder"),
    "drive": (pack(members(), entry("C:/evil")), "out of the folder"),
    "backslash": (patched(FIRST, FIRST.replace(b"/", b"\\")), "no plain name"),
    "NUL": (patched(FIRST, FIRST[:-4] + b"\0wav"), "no plain name"),
    "control": (pack(members(), entry(f"{TOP}/\x1b[2J")), "no plain name"),
    "link": (pack(members(), entry(f"{TOP}/audio/x.wav", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)), "a link"),
    "device": (pack(members(), entry(f"{TOP}/audio/x.wav", mode=stat.S_IFCHR | 0o666)), "a device"),
    "twice": (pack(members(), entry(f"{TOP}/LICENSE")), "one name on some systems"),
    "case": (pack(members(), entry(f"{TOP}/Audio/{ROWS[0]['filename'].upper()}")), "one name on some systems"),
    "Unicode": (
        pack(members(), lambda a: (entry(f"{TOP}/h\u00fc")(a), entry(f"{TOP}/hu\u0308")(a))),
        "one name on some systems",
    ),
    "below a file": (pack(members(), entry(f"{TOP}/LICENSE/x")), "below a file"),
    "two at the top": (pack(members(), entry("other/x")), "at its top"),
    "a file at the top": (pack(members(), entry("x")), "at its top"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_and_deleted(refused: Callable[..., Any], kind: str) -> None:
    archive, word = BAD_ARCHIVES[kind]
    refused(archive, "bad_archive", word)


def test_encryption_and_odd_methods_are_refused(refused: Callable[..., Any]) -> None:
    at = GOOD.index(b"PK\x01\x02")  # the first directory entry: flags at 8, method at 10
    encrypted = GOOD[: at + 8] + b"\x01\x00" + GOOD[at + 10 :]
    refused(encrypted, "bad_archive", "encrypted")
    other = GOOD[: at + 10] + struct.pack("<H", 14) + GOOD[at + 12 :]
    refused(other, "bad_archive", "method 14")


def test_bombs_are_refused_before_anything_is_written(
    refused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(unpack.shutil, "copyfileobj", lambda *a: written.append(a))

    def large(archive: zipfile.ZipFile) -> None:
        for i in range(3):
            archive.writestr(f"{TOP}/audio/{i}.wav", bytes(1 << 20), zipfile.ZIP_DEFLATED)

    monkeypatch.setattr(unpack, "MAX_BYTES", 3 << 20)
    refused(pack(members(), large), "bad_archive", "unpacks to")
    monkeypatch.setattr(unpack, "MAX_ENTRIES", 20)
    refused(GOOD, "bad_archive", "29 entries")
    monkeypatch.setattr(unpack, "MAX_ENTRIES", 1000)
    monkeypatch.setattr(unpack, "MAX_DIRECTORY_BYTES", 1000)
    refused(GOOD, "bad_archive", "directory of")
    assert not written


def test_a_directory_that_lies_about_its_size_is_not_read(refused: Callable[..., Any]) -> None:
    end = len(GOOD) - 22
    huge = GOOD[: end + 12] + struct.pack("<I", 1 << 31) + GOOD[end + 16 :]
    refused(huge, "bad_archive", "directory of 2147483648 bytes")
    locator = struct.pack("<IIQI", 0x07064B50, 0, 0, 1)
    refused(GOOD[:end] + locator + GOOD[end:], "bad_archive", "zip64")


def test_an_entry_gives_no_more_than_it_says(
    refused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip of zeros whose headers say 10 bytes: the rest is never unpacked (and the sum is wrong)."""
    data = pack({**members(), f"{TOP}/README.md": b""}, lambda a: a.writestr(
        f"{TOP}/audio/x.wav", bytes(1 << 22), zipfile.ZIP_DEFLATED))  # fmt: skip
    small = data.replace(struct.pack("<I", 1 << 22), struct.pack("<I", 10))
    sizes: list[int] = []
    copy = unpack.shutil.copyfileobj

    def copied(source: Any, sink: Any, size: int) -> None:
        try:
            copy(source, sink, size)
        finally:
            sizes.append(sink.tell())

    monkeypatch.setattr(unpack.shutil, "copyfileobj", copied)
    refused(small, "bad_archive", "damaged")
    assert max(sizes) < 1 << 20


# --- archives of something else ----------------------------------------------------------------------------------


def test_other_clips_are_named(refused: Callable[..., Any]) -> None:
    files = members()
    clips = [f"{TOP}/audio/{row['filename']}" for row in ROWS]
    shorter = {**files, clips[2]: wav(ROWS[2], SECONDS / 2), clips[3]: b"<html>not found</html>"}
    error = refused(
        pack(shorter), "wrong_clips", "2 of 25", ROWS[2]["filename"][:-4], "0.25 s instead of 0.5 s"
    )
    assert ROWS[3]["filename"][:-4] in str(error)
    refused(pack(members(ROWS[:-1])), "wrong_clips", "1 of 25", "is missing")
    extra = {**files, f"{TOP}/audio/9-9-Z-9.wav": WAVS[ROWS[0]["filename"]]}
    refused(pack(extra), "wrong_clips", "9-9-Z-9 is not part of it")
    renamed = [{**row, "category": row["category"].replace("hum", "dog")} for row in ROWS]
    refused(pack({**files, f"{TOP}/meta/esc50.csv": table(renamed)}), "wrong_clips", "5 of 25", "is 'dog'")


def test_a_table_that_is_wrong_is_said_as_for_any_data_set(refused: Callable[..., Any]) -> None:
    files = members()
    del files[f"{TOP}/meta/esc50.csv"]
    refused(pack(files), "no_table")
    refused(pack({**files, f"{TOP}/meta/esc50.csv": b"filename,fold\n"}), "bad_table", "target, category")
    refused(pack({**files, f"{TOP}/meta/esc50.csv": b""}), "bad_table", name="esc10")


def test_a_full_disk_is_a_storage_error(get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpack.shutil, "copyfileobj", full)
    with pytest.raises(StorageError, match="No space left"):
        get(GOOD)
    monkeypatch.setattr(transfer._Sink, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        get(GOOD)


# --- the manifest ------------------------------------------------------------------------------------------------


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANIFEST", Path(module.__file__).parent / "esc50-manifest.csv")


def test_the_manifest_is_that_of_esc50(official: None) -> None:
    from collections import Counter

    whole = manifest()
    assert len(whole) == 2000
    assert set(Counter(entry.label for entry in whole.values()).values()) == {40}
    assert Counter(entry.fold for entry in whole.values()) == dict.fromkeys(range(1, 6), 400)
    assert all(name.startswith(f"{entry.fold}-") for name, entry in whole.items())
    ten = manifest("esc10")
    assert len(ten) == 400
    assert len({entry.label for entry in ten.values()}) == 10


@pytest.mark.data
def test_the_manifest_agrees_with_the_real_table(official: None) -> None:
    if not os.environ.get(ESC50_VARIABLE):
        pytest.skip(f"{ESC50_VARIABLE} is not set")
    known = manifest()
    assert {(c.name, c.fold, c.label) for c in load_esc50().clips} == {
        (entry.name, entry.fold, entry.label) for entry in known.values()
    }
