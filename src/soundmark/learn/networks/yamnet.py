"""The `yamnet` network: YAMNet's MobileNet-v1 in float, run over a whole window at once, with a linear head of ours.

Its weights (`soundmark.learn.tflite_weights`) have batch norm folded in, so every convolution has a bias and nothing
else; ``config.batch_norm`` puts one behind each again, which changes nothing at first and makes learning on steadier.
Features must be those it was learnt on (the presets' ``[frontend]``, 16 kHz and 64 mel bands), or it has to learn on.
Source: Plakal and Ellis, YAMNet (tensorflow/models, Apache-2.0); Howard et al., MobileNets (arXiv 1704.04861).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from soundmark.config import NetworkConfig
from soundmark.errors import ConfigError
from soundmark.learn.cosine import CosineHead
from soundmark.learn.networks.edge import MomentsPool, SalientPool, StatisticsPool
from soundmark.learn.networks.few_levels import FewLevels
from soundmark.learn.networks.same import same

PLAN = (
    (32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
"""Width and stride: the first convolution, then 13 pairs of a depthwise one (it has the stride) and a 1x1."""
CONVOLUTIONS = 2 * len(PLAN) - 1


class YAMNet(nn.Module):
    """Logits ``(batch, n_labels)`` from features ``(batch, n_mels, n_frames)``.

    ``config.keep``: the first convolutions that are kept, 0 for all 27; ``config.channels``: widths as in `PLAN`, for
    a thinner one, which takes the strongest filters of published weights. ``config.rank``: a 1x1 convolution becomes
    two with so many channels between them, where that is fewer weights. ``config.weight_bits``: 4 for 1x1 convolutions
    whose weights have few levels (`FewLevels`). ``config.taps``: 1x1 convolutions on the way
    that are pooled, too. ``config.pool``: what is kept of the channels of a layer. ``config.head``: a linear layer, or
    cosines with the labels (`soundmark.learn.cosine`).

    Attributes:
        added: parts of names that this network has and a file of weights need not have.
        width: numbers in an embedding.
    """

    def __init__(self, config: NetworkConfig, shape: tuple[int, int], n_labels: int) -> None:
        super().__init__()
        widths = config.channels or tuple(width for width, _ in PLAN)
        keep = config.keep or CONVOLUTIONS
        if len(widths) != len(PLAN) or keep > CONVOLUTIONS or keep % 2 == 0 or min(shape) < 32:
            raise ConfigError(
                f"features of shape {shape}, `network.keep` {config.keep} and {len(widths)} widths",
                wanted=f"32 or more rows and frames, an odd number up to {CONVOLUTIONS} and {len(PLAN)} widths",
            )
        if list(config.taps) != sorted({*config.taps} & {*range(1, keep, 2)}):
            raise ConfigError(
                f"`network.taps` {config.taps}",
                wanted=f"odd numbers below {keep}, each once, the lowest first",
            )
        self._left_out = tuple(f"layers.{index}." for index in range(keep, CONVOLUTIONS))
        self.added = (".bn.",) if config.batch_norm else ()
        norm = config.batch_norm
        layers = [Convolution(1, widths[0], shape, kernel=3, stride=2, norm=norm)]
        for index, (_, stride) in enumerate(PLAN[1 : (keep + 1) // 2], start=1):
            before, after = widths[index - 1], widths[index]
            layers.append(
                Convolution(
                    before, before, layers[-1].shape, kernel=3, stride=stride, groups=before, norm=norm
                )
            )
            fewer = config.rank * (before + after) < before * after
            rank = config.rank if fewer else 0
            kind = FewLevels if config.weight_bits == 4 else nn.Conv2d
            layers.append(
                Convolution(before, after, layers[-1].shape, kernel=1, norm=norm, rank=rank, kind=kind)
            )
        self.layers = nn.Sequential(*layers)
        self.pool = _pool(config, layers[-1].shape[1])
        self.taps = nn.ModuleDict(
            {str(tap - 1): _pool(config, layers[tap - 1].shape[1]) for tap in config.taps}
        )
        self.dropout = nn.Dropout(config.dropout)
        self.width = self.pool.parts * sum(
            layers[place - 1].conv.out_channels for place in (*config.taps, keep)
        )
        cosine = config.head == "cosine"
        self.head = CosineHead(self.width, n_labels) if cosine else nn.Linear(self.width, n_labels)

    def adopt(self, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict without the convolutions and filters that are not kept.

        Of wider layers those filters stay whose weights have the largest sum of magnitudes, and of the layers behind
        them what listens to these. Source: Li et al., ICLR 2017 (arXiv 1608.08710), section 3.1.
        """
        kept = {n: t for n, t in published.items() if not (self._left_out and n.startswith(self._left_out))}
        rows: Tensor | None = None  # the channels that are left of the layer before
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Convolution)
            names = [f"layers.{index}.conv.{part}" for part in ("weight", "bias")]
            weight, bias = (kept.get(name) for name in names)
            if weight is None or bias is None or weight.ndim != 4 or bias.shape != weight.shape[:1]:
                return kept  # `load_into` says what is wrong with it
            if layer.conv.groups > 1:
                mine = rows if rows is not None else torch.arange(len(weight))
            else:
                if rows is not None and len(rows) < weight.shape[1]:
                    weight = weight[:, rows]
                mine = (
                    weight.abs()
                    .sum((1, 2, 3))
                    .topk(min(layer.conv.out_channels, len(weight)))
                    .indices.sort()
                    .values
                )
            if int(mine.max()) < len(weight):
                kept[names[0]], kept[names[1]] = weight[mine], bias[mine]
            rows = mine
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Convolution)
            name = f"layers.{index}"
            whole = kept[f"{name}.conv.weight"]
            if layer.rank and f"{name}.thin.weight" not in kept and layer.can_split(whole):
                layer.whole = whole
                kept[f"{name}.thin.weight"], kept[f"{name}.conv.weight"] = layer.split(whole)
        return kept

    def embed(self, features: Tensor) -> Tensor:
        """Return ``(batch, width)``: what is pooled of taps and the end."""
        x, parts = features[:, None], []
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if str(place) in self.taps:
                parts.append(self.taps[str(place)](x))
        last: Tensor = self.pool(x)
        return torch.cat([*parts, last], dim=1) if parts else last

    def classify(self, embedding: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)`` of embeddings ``(batch, width)``."""
        logits: Tensor = self.head(self.dropout(embedding))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(batch, n_labels)``."""
        return self.classify(self.embed(features))

    def settle(self, parts: Iterable[Tensor]) -> None:
        """Bring what the published weights know nothing of in line with features, some at a time.

        Convolutions that became two are split again, so that these features come out as like as can be. Every batch
        norm becomes an identity with their statistics: mean m, variance v, scale sqrt(v + eps) and shift m; nothing
        changes in eval mode, little in train mode.
        """
        parts = list(parts)
        self._split(parts)
        sums: dict[nn.BatchNorm2d, list[Tensor]] = {}

        def see(norm: nn.Module, given: tuple[Tensor]) -> None:
            assert isinstance(norm, nn.BatchNorm2d)
            x, over = given[0], (0, 2, 3)
            now = [
                x.sum(over, dtype=torch.float64),
                x.square().sum(over, dtype=torch.float64),
                torch.tensor(x[:, 0].numel()),
            ]
            sums[norm] = [a + b for a, b in zip(sums.get(norm, [torch.zeros(())] * 3), now, strict=True)]

        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(see) for norm in norms]
        was = self.training
        self.eval()
        with torch.no_grad():
            for features in parts if norms else ():
                self.embed(features)
            for norm, (total, square, n) in sums.items():
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(total / n)
                norm.running_var.copy_((square / n - (total / n).square()).clamp_min(0.0))
                norm.weight.copy_((norm.running_var + norm.eps).sqrt())
                norm.bias.copy_(norm.running_mean)
        for hook in hooks:
            hook.remove()
        self.train(was)

    @torch.no_grad()
    def _split(self, parts: list[Tensor]) -> None:
        """Split convolutions that became two, the first one first, since the next hears what is left of it."""
        layers = [layer for layer in self.layers if isinstance(layer, Convolution)]
        last = max((place for place, layer in enumerate(layers) if layer.whole is not None), default=-1)
        was = self.training
        self.eval()
        heard = [part[:, None] for part in parts]
        for layer in layers[: last + 1]:
            layer.settle(heard)
            heard = [layer(x) for x in heard]
        self.train(was)


def _pool(config: NetworkConfig, frames: int) -> SalientPool | MomentsPool:
    if config.pool == "salient":
        return SalientPool(frames)
    return MomentsPool() if config.pool == "moments" else StatisticsPool()


class Convolution(nn.Module):
    """A convolution with bias and ReLU6, padded as `same` says; two of them, if a rank is given.

    Attributes:
        shape: rows and frames that come out.
        rank: channels between the two; 0: there is one.
        whole: published weights ``(after, before, 1, 1)`` that the two stand for, until they are settled.
    """

    def __init__(
        self,
        before: int,
        after: int,
        shape: tuple[int, int],
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        norm: bool = False,
        rank: int = 0,
        kind: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.shape, self.pad, padding = same(shape, kernel=kernel, stride=stride)
        self.rank = rank
        self.whole: Tensor | None = None
        if rank:
            self.thin = kind(before, rank, 1, bias=False)
        self.conv = kind(rank or before, after, kernel, stride, padding, groups=groups)
        self.bn: nn.Module = nn.Identity()  # named so that export folds it into the convolution
        if norm:
            batch_norm = nn.BatchNorm2d(after)
            nn.init.constant_(batch_norm.weight, (1 + batch_norm.eps) ** 0.5)  # an identity, exactly
            self.bn = batch_norm
        self.act = nn.ReLU6()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        assert self.conv.bias is not None
        torch.nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, after, *self.shape)``."""
        y: Tensor = self.act(self.bn(self.conv(self.thin(x) if self.rank else self.pad(x))))
        return y

    def can_split(self, whole: Tensor) -> bool:
        """Return whether ``whole`` is weights of the convolution that became two; `load_into` says what others are."""
        shape = (self.conv.out_channels, self.thin.in_channels, 1, 1)
        return whole.shape == shape and bool(whole.isfinite().all())

    def split(self, whole: Tensor, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return two weights ``(rank, before, 1, 1)`` and ``(after, rank, 1, 1)`` that stand for ``whole``.

        They are the projection on the principal directions of what ``whole`` gives: of inputs with the covariance
        ``spread`` (before, before), default all alike. What is between them spreads by 1 in each direction, which int8
        likes. Source: Zhang et al., TPAMI 2016 (arXiv 1505.06798), section 3.1.
        """
        weight = whole[:, :, 0, 0].double()
        given = weight @ weight.T if spread is None else weight @ spread @ weight.T
        variances, directions = torch.linalg.eigh(given)
        size = variances[-self.rank :].clamp_min(1e-12).sqrt()
        main = directions[:, -self.rank :]
        thin, wide = (main.T @ weight) / size[:, None], main * size
        return thin.float()[:, :, None, None], wide.float()[:, :, None, None]

    def settle(self, parts: list[Tensor]) -> None:
        """Split ``whole`` again, for inputs like ``parts`` (batch, before, rows, frames); without one, do nothing."""
        if self.whole is None:
            return
        x = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1).double()  # (before, n)
        mean = x.mean(dim=1)
        thin, wide = self.split(self.whole, (x @ x.T) / x.shape[1] - torch.outer(mean, mean))
        left = self.whole[:, :, 0, 0] - wide[:, :, 0, 0] @ thin[:, :, 0, 0]
        assert self.conv.bias is not None
        self.thin.weight.copy_(thin)
        self.conv.weight.copy_(wide)
        self.conv.bias += left @ mean.float()
        self.whole = None
