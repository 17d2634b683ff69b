"""Features to logits, through one ONNX Runtime session, on the CPU or, where asked for and possible, on a GPU.

ONNX Runtime answers NaN with NaN, checks shapes at the first request and raises six kinds of exception; this file
checks everything at load, refuses what is not finite before and after, and raises `BundleError`. No session sees a
model that `onnxgraph.check` has not allowed. All sessions of a process share one arena of at most `MEMORY_BYTES`, so
that a small file cannot ask for 16 GiB (RELIABILITY M17; measured: a 110-byte model can).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from soundmark import onnxgraph
from soundmark.config import Provider
from soundmark.errors import AudioError, BundleError, ConfigError

INPUT, OUTPUT = "features", "logits"
"""Names that every exported graph uses."""
MAX_BATCH = 32
"""Windows per run; larger batches are split, so memory does not grow with a recording."""
MAX_THREADS = 256
MEMORY_BYTES = 1 << 30
"""Most that the arena of all sessions holds; a model that needs more is refused when it runs."""
FOLDED_BYTES = 16 << 20
"""Largest constant that is computed when a model is loaded."""

CUDA = "CUDAExecutionProvider"
CUDA_OPTIONS = {
    "gpu_mem_limit": str(MEMORY_BYTES),
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would be made for every number of windows
    "use_tf32": "0",  # ten bits of mantissa are no float32
}

Array = npt.NDArray[np.float32]


class Runtime:
    """Logits ``(n, n_labels)`` float32 from features ``(n, n_rows, n_frames)`` float32. Safe to share between threads.

    Args:
        model: bytes of an ONNX file with input ``features`` (batch, n_rows, n_frames) and output ``logits``
            (batch, n_labels), both float32, with a batch dimension that is not fixed.
        input_shape: ``(n_rows, n_frames)`` that the front end gives.
        n_labels: width of the output.
        threads: threads of one run; 1 is best when several files or processes run side by side.
        provider: what runs the model; the CPU where CUDA is wanted and cannot be used, and `fallback` says why.
        name: what to call the model in errors.

    Raises:
        BundleError: the graph is not allowed, does not fit these shapes, or cannot be loaded.
        ConfigError: impossible ``threads``, or no such provider.
    """

    def __init__(
        self,
        model: bytes,
        *,
        input_shape: tuple[int, int],
        n_labels: int,
        threads: int = 1,
        provider: Provider = "cpu",
        name: str = "model",
    ) -> None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"`threads` is {threads!r}", wanted=f"1 to {MAX_THREADS}")
        if provider not in get_args(Provider):
            raise ConfigError(
                f"`provider` is {provider!r}", wanted=f"one of: {', '.join(get_args(Provider))}"
            )
        self.name, self.input_shape, self.n_labels, self.threads = name, input_shape, n_labels, threads
        graph = onnxgraph.parse(model, name=name)
        onnxgraph.check(graph, name=name)
        inputs, outputs = onnxgraph.input_output(graph)
        self._expect("input", inputs, INPUT, input_shape)
        self._expect("output", outputs, OUTPUT, (n_labels,))
        try:
            self._session, self.fallback = _session_on(provider, model, threads)
        except Exception as error:  # ONNX Runtime has no common type
            raise self._error("cannot be loaded", error) from None

    @property
    def provider(self) -> str:
        """What runs the model: "cpu" or "cuda"."""
        return "cuda" if self._session.get_providers()[0] == CUDA else "cpu"

    def logits(self, features: Array) -> Array:
        """Return logits ``(n, n_labels)`` of ``features`` ``(n, n_rows, n_frames)``; n may be 0 or large.

        Raises:
            AudioError: features that are not finite; code ``nonfinite_samples``.
            BundleError: features of another shape, a failing run, or logits that are not finite (``nonfinite_logits``).
        """
        if features.ndim != 3 or features.shape[1:] != self.input_shape:
            raise BundleError(
                f"{self.name}: features of shape {features.shape}",
                wanted=f"(n, {self.input_shape[0]}, {self.input_shape[1]})",
            )
        features = np.ascontiguousarray(features, dtype=np.float32)
        if not np.isfinite(features).all():
            raise AudioError(
                "features that are not finite",
                wanted="finite samples",
                cause="NaN or infinity in the recording",
                code="nonfinite_samples",
            )
        if len(features) <= MAX_BATCH:
            return self._run(features)
        parts = [
            self._run(features[start : start + MAX_BATCH]) for start in range(0, len(features), MAX_BATCH)
        ]
        return np.concatenate(parts)

    def _run(self, features: Array) -> Array:
        if not len(features):
            return np.empty((0, self.n_labels), dtype=np.float32)
        try:
            (logits,) = self._session.run([OUTPUT], {INPUT: features})
        except Exception as error:  # ONNX Runtime has no common type
            raise self._error("failed while running", error) from None
        if logits.shape != (len(features), self.n_labels) or logits.dtype != np.float32:
            raise BundleError(
                f"{self.name} gave logits {logits.dtype} {logits.shape}",
                wanted=f"float32 {(len(features), self.n_labels)}",
            )
        if not np.isfinite(logits).all():
            raise BundleError(
                f"{self.name} gave logits that are not finite",
                wanted="finite logits",
                cause="damaged weights, or input far outside of what the model was trained on",
                code="nonfinite_logits",
            )
        return logits  # type: ignore[no-any-return]

    def _expect(
        self, kind: str, found: Sequence[onnxgraph.TensorInfo], name: str, shape: tuple[int, ...]
    ) -> None:
        """Refuse inputs or outputs other than one float32 ``name`` of shape ``(batch, *shape)``."""
        wanted = f"one {kind}: float32 {name}{('batch', *shape)}"
        listed = ", ".join(f"{t.dtype} {t.name}{t.shape}" for t in found[:4]) or "none"
        fits = len(found) == 1 and found[0].name == name and found[0].dtype == "float32"
        fits = fits and len(found[0].shape) == 1 + len(shape) and not isinstance(found[0].shape[0], int)
        # a dimension that is not fixed must still take this size: the run checks it
        fits = fits and all(
            isinstance(a, str) or a == b for a, b in zip(found[0].shape[1:], shape, strict=True)
        )
        if not fits:
            raise BundleError(
                f"{self.name} has {len(found)} {kind}s: {listed}",
                wanted=wanted,
                cause="exported for another front end, other labels or a fixed batch",
            )

    def _error(self, what: str, error: Exception) -> BundleError:
        detail = " ".join(str(error).split())[:300]
        return BundleError(
            f"{self.name} {what}: {type(error).__name__}: {detail}",
            wanted="a model that this ONNX Runtime runs",
            cause=f"exported for another ONNX Runtime (this is {ort.__version__}), or larger than memory allows",
        )


def session(
    model: bytes, *, threads: int = 1, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> ort.InferenceSession:
    """Return a session, under the limits of this file, of a graph that `onnxgraph.check` has allowed."""
    return ort.InferenceSession(model, _options(threads), providers=list(providers))


def _session_on(provider: Provider, model: bytes, threads: int) -> tuple[ort.InferenceSession, str]:
    """Return a session, and why it is not on the provider that was wanted, "" if it is.

    ONNX Runtime lists CUDA whenever it was built for it, tries at the first session, and falls back with a page of log.
    """
    if provider != "cpu" and CUDA in ort.get_available_providers():
        ort.set_default_logger_severity(4)
        if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN from packages of NVIDIA, where those are installed
            with contextlib.redirect_stdout(None), contextlib.suppress(Exception):
                ort.preload_dlls()
        found = session(model, threads=threads, providers=[(CUDA, CUDA_OPTIONS), "CPUExecutionProvider"])
        if found.get_providers()[0] == CUDA:
            return found, ""
        why = "CUDA cannot be started: no GPU, no driver, or no CUDA and cuDNN libraries"
    else:
        found = session(model, threads=threads)
        why = (
            ""
            if provider == "cpu"
            else "this ONNX Runtime is built without CUDA: install onnxruntime-gpu instead"
        )
    return found, why if provider == "cuda" else ""


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # errors come back as exceptions; C++ must not write to stderr
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Folding allocates outside the arena: a chain of Concat took 2 GB and 12 s, with this limit 40 MB and 0.05 s.
    options.add_session_config_entry(
        "optimization.constant_folding_max_output_size_in_bytes", str(FOLDED_BYTES)
    )
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


_arena: list[bool] = []  # empty until the first session asks


def _share_arena() -> None:
    """Register the arena that caps memory, once per process."""
    if not _arena:
        where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        same_as_requested = 1  # grow by what is needed, not to the next power of two
        config = ort.OrtArenaCfg({"max_mem": MEMORY_BYTES, "arena_extend_strategy": same_as_requested})
        with contextlib.suppress(Exception):  # the host program has registered its own: then that one counts
            ort.create_and_register_allocator(where, config)
        _arena.append(True)
