"""The one exception tree of Soundmark: every error carries a stable code and says saw / wanted / likely cause.

The subclasses are named after *who must act*: the file, the preset, the model, the data, the install, the disk.
Codes are part of the public interface (command line rows, HTTP bodies, result files); they never change meaning.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_SERVER = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_DISK = 4
EXIT_MODEL = 5
EXIT_INTERRUPTED = 130

AUDIO_CODES = frozenset(
    {
        # the content of one file
        "empty_file",
        "too_short",
        "no_audio",
        "corrupt_header",
        "corrupt_audio",
        "nonfinite_samples",
        "sample_out_of_range",
        "unsupported_sample_rate",
        "unsupported_channels",
        "unsupported_format",
        "decode_timeout",
        "decoder_crashed",
        "too_long",
        "file_too_large",
        # the way to the file
        "not_found",
        "not_regular_file",
        "symlink_loop",
        "permission_denied",
        "outside_root",
        "io_error",
    }
)
"""Outcome codes that one recording can end with; see docs/reference/outcomes.md."""

FLAGS = frozenset(
    {
        "truncated",
        "header_length_wrong",
        "length_unknown",
        "short",
        "silent",
        "dc_offset",
        "clipped",
        "over_full_scale",
        "downmix_cancelled",
        "extension_mismatch",
        "chained",
    }
)
"""Quality flags: the result stands, and the user is told."""


class SoundmarkError(Exception):
    """Something the user can act on, with a stable code and an exit status.

    Args:
        saw: what was found, with the name of the file or key.
        wanted: what would have been accepted.
        cause: the likely cause or the next thing to try, where one is known.
        code: stable machine-readable code; each subclass has a default.
    """

    default_code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1

    def __init__(self, saw: str, *, wanted: str = "", cause: str = "", code: str | None = None) -> None:
        self.saw = saw
        self.wanted = wanted
        self.cause = cause
        self.code = code or self.default_code
        super().__init__(saw)

    def __str__(self) -> str:
        parts = [self.saw]
        if self.wanted:
            parts.append(f"wanted: {self.wanted}")
        if self.cause:
            parts.append(f"likely cause: {self.cause}")
        return "; ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keywords, so that an error crosses a process boundary unchanged."""
        return _rebuild, (type(self), self.saw, self.wanted, self.cause, self.code)

    def to_dict(self) -> dict[str, str]:
        """Return ``{"code", "message"}``, as written into result rows."""
        return {"code": self.code, "message": str(self)}


def _rebuild(cls: type[SoundmarkError], saw: str, wanted: str, cause: str, code: str) -> SoundmarkError:
    return cls(saw, wanted=wanted, cause=cause, code=code)


class AudioError(SoundmarkError):
    """One recording cannot be used; the codes are `AUDIO_CODES`. In a batch it becomes a row."""

    default_code = "corrupt_audio"
    exit_status = EXIT_SOME_FAILED


class ConfigError(SoundmarkError):
    """A preset, option or configuration value is not usable."""

    default_code = "bad_config"
    exit_status = EXIT_USAGE


class BundleError(SoundmarkError):
    """A model bundle is missing, damaged, mixed up or not allowed."""

    default_code = "bad_bundle"
    exit_status = EXIT_MODEL


class DatasetError(SoundmarkError):
    """A data set is incomplete, inconsistent or leaking."""

    default_code = "bad_dataset"
    exit_status = EXIT_USAGE


class StorageError(SoundmarkError):
    """An output could not be written; what was there before is intact."""

    default_code = "storage"
    exit_status = EXIT_DISK


class TrainingError(SoundmarkError):
    """A training run cannot go on (loss not finite, checkpoint of another run, folder in use)."""

    default_code = "training_stopped"
    exit_status = 1


class ServerError(SoundmarkError):
    """A Soundmark service does not answer, is busy, or refuses this client."""

    default_code = "no_answer"
    exit_status = EXIT_SERVER


class MissingExtraError(SoundmarkError):
    """An optional part is not installed; the message is the exact pip command."""

    default_code = "missing_extra"
    exit_status = EXIT_USAGE

    @classmethod
    def of(cls, extra: str, module: str) -> MissingExtraError:
        """Return the error for one missing ``module`` of one ``extra``."""
        return cls(
            f"the module {module!r} is not installed",
            wanted=f"the extra {extra!r}",
            cause=f"run: pip install 'soundmark[{extra}]'",
        )
