"""checkpoint: comes back bit for bit, or the one before it does, or says that none can be read. Never a pickle."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from soundmark import storage  # noqa: E402
from soundmark.errors import StorageError, TrainingError  # noqa: E402
from soundmark.learn import checkpoint  # noqa: E402

pytestmark = pytest.mark.train


def state(value: float = 1.0) -> checkpoint.State:
    return {"network": {"w": torch.full((3, 4), value)}, "optimizer": {"0": {"step": torch.tensor(value)}}}


def value_of(found: tuple[int, checkpoint.State] | None) -> float:
    assert found is not None
    return float(found[1]["network"]["w"][0, 0])


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_nested_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "bf16": torch.randn(5, 3).bfloat16(),
        "f16": torch.randn(4).half(),
        "f64": torch.randn(2, 2, dtype=torch.float64),
        "i64": torch.tensor([2**62, -1]),
        "u8": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "view": torch.arange(12.0).reshape(3, 4).T,
        "needs grad": torch.randn(2, requires_grad=True),
    }
    plain = {
        "none": None,
        "true": True,
        "int": 2**60,
        "float": 0.1,
        "text": "\u00fc",
        "list": [1, [2.5]],
        "empty": {},
    }
    listed = [tensors["bf16"], {"x": tensors["i64"]}]
    checkpoint.save(tmp_path, 3, {"a": {"b": tensors}, "plain": plain, "list": listed})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    epoch, got = found
    assert epoch == 3
    assert got["plain"] == plain
    for name, tensor in tensors.items():
        back = got["a"]["b"][name]
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        raw, wanted = (t.detach().contiguous().flatten().view(torch.uint8) for t in (back, tensor))
        assert torch.equal(raw, wanted), name
    assert torch.equal(got["list"][0], tensors["bf16"])
    assert torch.equal(got["list"][1]["x"], tensors["i64"])


def test_shared_memory_and_slashes_in_names_do_no_harm(tmp_path: Path) -> None:
    one = torch.arange(4.0)
    checkpoint.save(tmp_path, 1, {"a/b": one, "a": {"b": one[1:] * 2}, "same": one, "part": one[:2]})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert {k: v.tolist() for k, v in found[1].items() if k != "a"} == {
        "a/b": [0, 1, 2, 3],
        "same": [0, 1, 2, 3],
        "part": [0, 1],
    }
    assert found[1]["a"]["b"].tolist() == [2, 4, 6]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "none") is None
    for epoch in range(1, 12):
        checkpoint.save(tmp_path, epoch, state(epoch))
        assert value_of(checkpoint.latest(tmp_path)) == epoch
        assert names(tmp_path) == [f"epoch-{e:05d}" for e in range(max(1, epoch - 1), epoch + 1)]


def test_an_epoch_can_be_written_again(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    checkpoint.save(tmp_path, 1, state(2))
    assert value_of(checkpoint.latest(tmp_path)) == 2
    assert names(tmp_path) == ["epoch-00001"]


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= bit
    path.write_bytes(data)


DAMAGE = {
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-3]),
    "one bit at the end": lambda p: flip(p, -1),
    "one bit at the start": lambda p: flip(p, 0),
    "one bit in the middle": lambda p: flip(p, p.stat().st_size // 2),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "gone": lambda p: p.unlink(),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "null": lambda p: p.write_bytes(b"null"),
    "a list": lambda p: p.write_bytes(b"[]"),
    "no epoch": lambda p: p.write_bytes(b'{"state": {}, "sha256": ""}'),
    "deep": lambda p: p.write_bytes(b"[" * 100_000),
    "not text": lambda p: p.write_bytes(b"\xff\xfe{}"),
}


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    checkpoint.save(tmp_path, 2, state(2))
    DAMAGE[damage](tmp_path / "epoch-00002" / file)
    assert value_of(checkpoint.latest(tmp_path)) == 1
    DAMAGE[damage](tmp_path / "epoch-00001" / file)
    with pytest.raises(TrainingError, match="no checkpoint in"):
        checkpoint.latest(tmp_path)


def test_every_single_flipped_bit_of_the_numbers_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"w": torch.ones(2), "n": 5})
    checkpoint.save(tmp_path, 2, {"w": torch.ones(2), "n": 5})
    folder = tmp_path / "epoch-00002"
    for file in ("tensors.safetensors", "state.json"):
        whole = (folder / file).read_bytes()
        for at in range(0, len(whole), 3):
            flip(folder / file, at, 1 << at % 7)
            found = checkpoint.latest(tmp_path)
            assert found is not None
            assert found[0] == 1, (file, at)
            (folder / file).write_bytes(whole)


class _Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(_Canary(str(canary)))
    torch.save({"w": _Canary(str(canary))}, tmp_path / "zip.pt")
    for data in (payload, (tmp_path / "zip.pt").read_bytes()):
        folder = tmp_path / "checkpoints"
        checkpoint.save(folder, 1, state())
        (folder / "epoch-00001" / "tensors.safetensors").write_bytes(data)
        with pytest.raises(TrainingError):
            checkpoint.latest(folder)
        (tmp_path / "weights.safetensors").write_bytes(data)
        with pytest.raises(TrainingError, match="safetensors"):
            checkpoint.load_weights(tmp_path / "weights.safetensors")
    assert not canary.exists()
    pickle.loads(payload)  # the canary would have sung
    assert canary.exists()


def test_weights_come_back_and_missing_ones_are_an_error(tmp_path: Path) -> None:
    weights = {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "n": torch.tensor(3)}
    checkpoint.save_weights(tmp_path / "w.safetensors", weights)
    back = checkpoint.load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    with pytest.raises(TrainingError, match=r"none\.safetensors"):
        checkpoint.load_weights(tmp_path / "none.safetensors")


def test_a_full_disk_keeps_the_checkpoints_that_are_there(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    checkpoint.save(tmp_path, 2, state(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            checkpoint.save(tmp_path, 3, {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert value_of(checkpoint.latest(tmp_path)) == 2
    assert names(tmp_path) == ["epoch-00001", "epoch-00002"]


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    half = tmp_path / ".epoch-00001.abcdefgh"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 1, state())
    assert names(tmp_path) == ["epoch-00001"]


def test_the_swept_folder_is_not_one_of_another_name(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "notes.txt", b"mine")
    checkpoint.save(tmp_path, 1, state())
    assert names(tmp_path) == ["epoch-00001", "notes.txt"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from soundmark.learn import checkpoint
folder, rng = Path(sys.argv[1]), random.Random(4)
tensors = {str(i): torch.full((200, 250), 0.0) for i in range(10)}
done = 0
checkpoint.save(folder, 1, {"t": tensors, "epoch": 1})
for moment in range(50):
    child = os.fork()
    if child == 0:
        first = checkpoint.latest(folder)[0]
        for epoch in range(first + 1, first + 1000):
            for tensor in tensors.values():
                tensor.fill_(float(epoch))
            checkpoint.save(folder, epoch, {"t": tensors, "epoch": epoch})
        os._exit(1)
    while moment % 5 == 0 and max(int(p.name[6:]) for p in folder.glob("epoch-*")) == done:
        time.sleep(0.01)  # on a busy machine, let it come to save at all
    time.sleep(rng.uniform(0.0, 0.08))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    epoch, state = checkpoint.latest(folder)
    assert state["epoch"] == epoch >= done, (epoch, done)
    assert all((t == (0 if epoch == 1 else epoch)).all() for t in state["t"].values())
    done = epoch
print("readable after 50 kills, epoch", done, len(os.listdir(folder)))
"""


def test_sigkill_at_random_moments_leaves_a_readable_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "readable after 50 kills" in done.stdout
    assert int(done.stdout.split()[-2]) > 1, done.stdout
    assert int(done.stdout.split()[-1]) <= 4  # two checkpoints, one about to go, one half-written


def test_the_files_are_plain(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state())
    assert names(tmp_path / "epoch-00001") == ["state.json", "tensors.safetensors"]
    assert json.loads((tmp_path / "epoch-00001" / "state.json").read_text())["epoch"] == 1
