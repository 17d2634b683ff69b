"""networks: shapes, sizes, and that no clip sees another one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from soundmark.config import NetworkConfig, load_preset  # noqa: E402
from soundmark.errors import ConfigError  # noqa: E402
from soundmark.frontend import Frontend  # noqa: E402
from soundmark.learn import networks  # noqa: E402

pytestmark = pytest.mark.train


def build(shape: tuple[int, int] = (32, 51), n_labels: int = 5, **config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return networks.build(NetworkConfig(**{"channels": (4, 6, 8), **config}), shape, n_labels).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 8), (8, 500), (64, 251), (33, 47), (9, 15), (128, 8)])
@pytest.mark.parametrize("n_labels", [1, 2, 50])
def test_logits_have_one_row_per_clip_and_one_column_per_label(shape: tuple[int, int], n_labels: int) -> None:
    network = build(shape, n_labels)
    for batch in (1, 3):
        logits = network(torch.randn(batch, *shape))
        assert logits.shape == (batch, n_labels)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((7, 51), (4, 6, 8)), ((32, 7), (4, 6, 8)), ((1, 1), (4, 6)), ((32, 51), (4,)), ((31, 200), ())],
)
def test_features_too_small_for_the_stages_are_refused(
    shape: tuple[int, int], channels: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="stages"):
        build(shape, channels=channels)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'transformer'.*edge"):
        build(kind="transformer")


def test_the_edge_preset_has_less_than_a_million_parameters() -> None:
    preset = load_preset("edge")
    shape = Frontend(preset.frontend).shape(round(preset.window.window_s * preset.frontend.sample_rate))
    network = networks.build(preset.network, shape, 50)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 100_000 < count < 1_000_000
    assert network.eval()(torch.zeros(1, *shape)).shape == (1, 50)


def test_no_clip_sees_another_one_in_eval() -> None:
    network = build()
    batch = torch.randn(5, 32, 51, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = network(batch)
        for i in range(5):
            torch.testing.assert_close(network(batch[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-5)
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(network(batch[order]), together[order], atol=1e-5, rtol=1e-5)
        assert torch.equal(network(batch), together)  # dropout is off


def test_the_same_seed_gives_the_same_network() -> None:
    one, two = build().state_dict(), build().state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_parameter_is_trained() -> None:
    network = build().train()
    network(torch.randn(4, 32, 51)).logsumexp(dim=1).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
