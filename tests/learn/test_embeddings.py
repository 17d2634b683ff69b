"""embeddings: computed once per trunk and window, equal to what the network says; a damaged cache costs time alone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from soundmark.errors import StorageError
from soundmark.learn.embeddings import Embedder

pytestmark = pytest.mark.train


class Halves(nn.Module):
    """Counts the windows that it embeds."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.head = nn.Linear(12, 5), nn.Linear(5, 3)
        self.seen = 0

    def embed(self, features: Tensor) -> Tensor:
        self.seen += len(features)
        embedding: Tensor = self.trunk(features.flatten(1)).tanh()
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        logits: Tensor = self.head(embedding)
        return logits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_window_is_embedded_once_and_alone(cache: Path) -> None:
    network = Halves().eval()
    features = torch.randn(7, 3, 4)
    features[5] = features[2]
    first = Embedder(network)(features)
    one_by_one = torch.cat([network.trunk(row.flatten()[None]).tanh() for row in features]).detach()
    assert torch.equal(first, one_by_one)
    assert network.seen == 7
    again = Embedder(network)(features.flip(0))
    assert torch.equal(again, first.flip(0))
    assert network.seen == 7


def test_another_head_shares_and_another_trunk_does_not(cache: Path) -> None:
    network, same, other = Halves(), Halves(), Halves(seed=1)
    nn.init.zeros_(same.head.weight)
    features = torch.randn(4, 3, 4)
    Embedder(network)(features)
    Embedder(same)(features)
    assert (same.seen, Embedder(other).path == Embedder(network).path) == (0, False)
    assert not torch.equal(Embedder(other)(features), Embedder(network)(features))
    assert other.seen == 4


def test_a_damaged_cache_is_made_again(cache: Path) -> None:
    network = Halves()
    features = torch.randn(2, 3, 4)
    expected = Embedder(network)(features)
    Embedder(network).path.write_bytes(b"no database at all" * 400)
    assert torch.equal(Embedder(network)(features), expected)
    assert network.seen == 4


def test_a_folder_that_cannot_be_written_is_said(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(StorageError, match="SOUNDMARK_CACHE"):
        Embedder(Halves())
