"""pretrained: torchvision's names, colours summed, another head left alone, and nothing that does not fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from safetensors.torch import save_file  # noqa: E402

from soundmark.config import NetworkConfig  # noqa: E402
from soundmark.errors import TrainingError  # noqa: E402
from soundmark.learn import networks  # noqa: E402
from soundmark.learn.pretrained import load_into  # noqa: E402

pytestmark = pytest.mark.train

SHAPE = (64, 64)
THIN = (4, 6, 8, 10)


def resnet(n_labels: int = 5, **config: object) -> torch.nn.Module:
    return networks.build(NetworkConfig(kind="resnet", **{"channels": THIN, **config}), SHAPE, n_labels)  # type: ignore[arg-type]


def published(depth: int = 18) -> dict[str, torch.Tensor]:
    """Return a state dict as it is published: three colours, a thousand classes."""
    torch.manual_seed(5)
    state = resnet(1000, depth=depth).state_dict()
    state["conv1.weight"] = torch.randn(4, 3, 7, 7)
    return state


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_names_and_sizes_are_those_of_torchvision(depth: int, count: int) -> None:
    """Parameter counts of torchvision's documentation, whose input has three channels."""
    with torch.device("meta"):
        network = networks.build(NetworkConfig(kind="resnet", depth=depth), SHAPE, 1000)  # type: ignore[arg-type]
    assert sum(p.numel() for p in network.parameters()) + 2 * 64 * 49 == count
    names = set(network.state_dict())
    block = {18: "layer2.0", 34: "layer3.5", 50: "layer4.2"}[depth]
    assert {"conv1.weight", "bn1.running_var", "fc.weight", "fc.bias", f"{block}.conv2.weight"} <= names
    assert "layer2.0.downsample.0.weight" in names
    assert "layer2.0.downsample.1.num_batches_tracked" in names
    assert ("layer1.0.downsample.0.weight" in names) == (depth == 50)
    assert ("layer4.0.bn3.weight" in names) == (depth == 50)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("depth", [18, 50])
def test_colours_are_summed_and_the_head_is_left_alone(tmp_path: Path, suffix: str, depth: int) -> None:
    path, state = tmp_path / f"w{suffix}", published(depth)
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    network = resnet(depth=depth)
    head = network.fc.weight.detach().clone()
    assert len(load_into(network, path)) == 64
    own = network.state_dict()
    torch.testing.assert_close(own["conv1.weight"], state["conv1.weight"].sum(dim=1, keepdim=True))
    assert torch.equal(own["layer3.1.bn2.running_var"], state["layer3.1.bn2.running_var"])
    assert torch.equal(own["fc.weight"], head)


def test_a_grey_picture_gives_what_three_colours_gave(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "w.pth")
    network = resnet()
    load_into(network, tmp_path / "w.pth")
    x = torch.randn(2, *SHAPE)
    colours = torch.nn.functional.conv2d(
        x[:, None].expand(-1, 3, -1, -1), published()["conv1.weight"], None, 2, 3
    )
    torch.testing.assert_close(network.conv1(x[:, None]), colours, atol=1e-4, rtol=1e-4)


def test_the_same_head_and_files_of_old_are_taken_too(tmp_path: Path) -> None:
    state = resnet().state_dict()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": old}, tmp_path / "w.pth")
    network = resnet()
    load_into(network, tmp_path / "w.pth")
    assert torch.equal(network.fc.weight, state["fc.weight"])


class _Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "what", ["missing", "cut", "text", "list", "empty", "depth", "width", "code", "folder"]
)
def test_what_does_not_fit_is_refused(tmp_path: Path, what: str) -> None:
    path, canary, match = tmp_path / "w.pth", tmp_path / "canary", "cannot be read"
    state = published(34 if what == "depth" else 18)
    torch.save(state, path)
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif what == "text":
        path.write_text("weights")
    elif what == "code":
        torch.save({"conv1.weight": _Canary(str(canary))}, path)
    elif what == "folder":
        path.unlink()
        path.mkdir()
    elif what in ("list", "empty"):
        torch.save([1, 2] if what == "list" else {}, path)
        match = "no state dict"
    elif what == "depth":
        match = "layer1.2.conv1.weight unknown"
    elif what == "width":
        state["layer1.0.conv1.weight"] = torch.zeros(9, 4, 3, 3)
        torch.save(state, path)
        match = r"\[9, 4, 3, 3\] instead of \[4, 4, 3, 3\]"
    network = resnet()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(TrainingError, match=match) as caught:
        load_into(network, path)
    assert caught.value.code == "bad_weights"
    assert not canary.exists()
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
