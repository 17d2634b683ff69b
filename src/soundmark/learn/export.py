"""A training run to a bundle: batch norm folded, ONNX, static per-channel int8, agreement checked, card written.

Ranges for int8 come from training clips only. The front end stays outside the graph, in float.
Sources: Jacob et al., CVPR 2018 (integer inference); ONNX Runtime's QDQ static quantisation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import soundmark
from soundmark import bundle
from soundmark.config import ExportConfig
from soundmark.dataset import Dataset
from soundmark.errors import TrainingError
from soundmark.frontend import fingerprint
from soundmark.golden import golden
from soundmark.learn.card import model_card
from soundmark.learn.features import FeatureStore
from soundmark.learn.finished import load_network, training_features, training_set
from soundmark.learn.networks.few_levels import FewLevels
from soundmark.learn.quantize import quantize, quiet
from soundmark.learn.quote import quote
from soundmark.learn.refit import refit
from soundmark.learn.run_folder import Run
from soundmark.postprocess import softmax
from soundmark.runtime import INPUT, OUTPUT, Runtime

OPSET = 20
MAX_TORCH_ONNX_DIFFERENCE = 1e-4
"""Largest accepted difference of a softmax score between torch and fp32 ONNX (RELIABILITY M27)."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How closely the exported graphs follow the network, on golden windows (training clips)."""

    windows: int
    torch_onnx_max_difference: float  # of softmax scores
    int8_top1_agreement: float  # share of windows
    int8_max_difference: float
    int8_mean_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, to four significant digits."""
        return {name: float(f"{getattr(self, name):.4g}") for name in self.__slots__} | {
            "windows": self.windows
        }


def export(
    run: Run,
    out: Path,
    *,
    data: str | Path | Dataset | None = None,
    config: ExportConfig | None = None,
    quoted: Path | None = None,
    overwrite: bool = False,
    on_clip: Callable[[int], None] | None = None,
) -> tuple[bundle.Bundle, Agreement]:
    """Write the bundle of a finished run and return it with the measured agreement.

    Args:
        run: a finished training run.
        out: the bundle directory.
        data: the data set that the run was trained on (or its folder), for int8 ranges; default is where it was.
        config: replaces the preset's export section.
        quoted: report over the folds of the same recipe, for the card of a run that has learnt from all clips.
        overwrite: replace a bundle that is there.
        on_clip: called with 1 per clip while features are read.

    Raises:
        ConfigError: a report that says nothing about this run; see `quote`.
        TrainingError: the run is not finished, the data changed, or the exported graph disagrees with the network.
        StorageError: ``out`` exists or cannot be written.
    """
    config = config or run.preset.export
    said = {"folds": quote(quoted, run)} if quoted else {}
    network = load_network(run)
    again = config.quantize and config.refit_head
    store = training_features(run, data, on_clip, all_clips=again)
    targets = training_set(run, data).targets if again else ()
    return write_bundle(run, network, store, out, config, targets=targets, said=said, overwrite=overwrite)


def write_bundle(
    run: Run,
    network: nn.Module,
    store: FeatureStore,
    out: Path,
    config: ExportConfig,
    *,
    targets: Sequence[int] = (),
    said: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> tuple[bundle.Bundle, Agreement]:
    """Write ``network`` as the bundle of ``run``.

    int8 ranges are from ``store``; with ``targets``, the labels of its clips, the head is fitted again (`refit`).
    ``said`` joins its provenance.
    """
    window_samples = round(run.preset.window.window_s * run.preset.frontend.sample_rate)
    shape = store.frontend.shape(window_samples)
    network = fold_batch_norm(network.eval())
    with tempfile.TemporaryDirectory(prefix="soundmark-export-") as scratch:
        fp32 = Path(scratch) / "fp32.onnx"
        to_onnx(network, shape, fp32)
        model = fp32.read_bytes()
        if config.quantize:
            calibration = _features(store, config.calibration_clips, offset=0)
            again = partial(refit, network=network, store=store, targets=targets) if targets else None
            model = quantize(fp32, calibration, config, again)
        agreement = _agreement(
            network, fp32.read_bytes(), model, _features(store, config.golden_windows, offset=1)
        )
    if agreement.torch_onnx_max_difference > MAX_TORCH_ONNX_DIFFERENCE:
        raise TrainingError(
            f"torch and ONNX differ by {agreement.torch_onnx_max_difference:.2g} in a score",
            wanted=f"at most {MAX_TORCH_ONNX_DIFFERENCE:g}",
            code="export_disagrees",
        )
    if 1 - agreement.int8_top1_agreement > config.max_int8_disagreement:
        raise TrainingError(
            f"int8 changes {1 - agreement.int8_top1_agreement:.1%} of the top labels",
            wanted=f"at most {config.max_int8_disagreement:.1%} (export.max_int8_disagreement)",
            cause="try export.calibration = 'percentile', or export.quantize = false",
            code="export_disagrees",
        )
    manifest = _manifest(run, model, config, agreement, said or {})
    stamps = "".join(f"**{stamp}**\n\n" for stamp in run.info.get("stamps", []))
    readme = stamps + model_card(manifest, len(model))
    return bundle.write(out, manifest=manifest, model=model, readme=readme, overwrite=overwrite), agreement


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return ``network`` (in eval mode) with every convolution and the batch norm behind it made one convolution.

    Weights that learnt with few levels are on them afterwards.

    A pair stands next to each other in a `Sequential`, or is named ``conv<x>`` and ``bn<x>`` in one module.
    """
    for module in network.modules():
        names = list(module._modules)
        pairs = list(pairwise(names)) if isinstance(module, nn.Sequential) else []
        pairs += [(name, f"bn{name[4:]}") for name in names if name.startswith("conv")]
        for first, second in pairs:
            convolution, norm = module._modules[first], module._modules.get(second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module._modules[first] = fuse_conv_bn_eval(convolution, norm)
                module._modules[second] = nn.Identity()
        for name, part in [*module.named_children()]:
            if isinstance(part, FewLevels):
                module._modules[name] = part.plain()
    return network


def to_onnx(network: nn.Module, shape: tuple[int, int], path: Path) -> None:
    """Write ``network`` as one ONNX file with input ``features`` (batch, rows, frames) and output ``logits``."""
    with quiet():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *shape),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    onnx.save(proto, path)


def _features(store: FeatureStore, count: int, *, offset: int) -> Array:
    """Return features of ``count`` windows evenly spread over the training set; ``offset`` picks other ones."""
    n = len(store.linear)
    rows = np.unique((np.arange(min(count, n)) * n // min(count, n) + offset) % n)
    finished: Array = store.frontend.finish(np.asarray(store.linear[rows]))
    return finished


def _agreement(network: nn.Module, fp32: bytes, model: bytes, features: Array) -> Agreement:
    shape, n_labels = features.shape[1:], None
    with torch.no_grad():
        by_torch = softmax(network(torch.from_numpy(features)).numpy())
    n_labels = by_torch.shape[1]
    by_onnx = softmax(Runtime(fp32, input_shape=shape, n_labels=n_labels).logits(features))
    by_model = softmax(Runtime(model, input_shape=shape, n_labels=n_labels).logits(features))
    return Agreement(
        windows=len(features),
        torch_onnx_max_difference=float(np.abs(by_torch - by_onnx).max()),
        int8_top1_agreement=float((by_model.argmax(1) == by_onnx.argmax(1)).mean()),
        int8_max_difference=float(np.abs(by_model - by_onnx).max()),
        int8_mean_difference=float(np.abs(by_model - by_onnx).mean()),
    )


def _manifest(
    run: Run, model: bytes, config: ExportConfig, agreement: Agreement, said: dict[str, Any]
) -> bundle.Manifest:
    preset = run.preset
    left_out = ("labels", "data_root", "finished", "skipped")
    training = {key: value for key, value in run.info.items() if key not in left_out}
    if str(run.info.get("start", "")).startswith("weights "):
        training["pretrained"] = preset.network.pretrained
    if "skipped" in run.info:
        training["n_skipped"] = len(run.info["skipped"])
    return bundle.Manifest(
        name=preset.name,
        created_by=f"soundmark {soundmark.__version__}",
        labels=run.labels,
        frontend=preset.frontend,
        frontend_fingerprint=fingerprint(preset.frontend),
        window=preset.window,
        decision=preset.decision,
        golden=golden(preset.frontend, preset.window, model, n_labels=len(run.labels)),
        licence=_licence(str(run.info["data"])),
        provenance={
            "training": {"preset": preset.name, "network": preset.network.kind, **training},
            "export": {
                "arithmetic": "int8" if config.quantize else "fp32",
                "calibration": config.calibration if config.quantize else "none",
                "onnxruntime": ort.__version__,
                "agreement": agreement.to_dict(),
            },
            **said,
        },
    )


LICENCE = (
    "Apache-2.0 (weights); trained on ESC-50, whose recordings are CC BY-NC 3.0 "
    "(ESC-10 subset CC BY 3.0): see README.md"
)


def _licence(data: str) -> str:
    if data.startswith(("ESC-50", "ESC-10")):
        return LICENCE
    return f"Apache-2.0 (weights); trained on {data}: whoever made those recordings may ask for more"
