"""Frozen config types, one comment per field: the only place where defaults live.

A *preset* is a TOML file with some of these sections; what it leaves out has the default written here.
Unknown keys, wrong types, impossible values (``fmax`` above Nyquist, ``hop_length`` above ``win_length`` ...)
and non-finite numbers are refused by name. Command line options, `--print-config` and the file written beside
every output all come from here.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from soundmark.checked import Config as Config
from soundmark.checked import Fraction as Fraction
from soundmark.checked import NonNegative as NonNegative
from soundmark.checked import NonNegativeFloat as NonNegativeFloat
from soundmark.checked import Positive as Positive
from soundmark.checked import PositiveFloat as PositiveFloat
from soundmark.checked import describe as describe
from soundmark.checked import fields as fields
from soundmark.checked import from_dict as from_dict
from soundmark.checked import from_options as from_options
from soundmark.checked import numbers
from soundmark.checked import overridden as overridden
from soundmark.checked import to_dict as to_dict
from soundmark.checked import to_toml as to_toml

Provider: TypeAlias = Literal["auto", "cpu", "cuda"]
"""What runs a model: CUDA where it works for "auto", CUDA and a warning where it does not for "cuda"."""


UnknownScore: TypeAlias = Literal["probability", "max-logit", "energy", "pattern"]
"""What speaks for a recording being any known sound at all; `postprocess.unknown_score` has the formulas."""


class AudioLimits(Config, frozen=True, kw_only=True):
    """What the loader accepts. Limits are on decoded samples and seconds, never on header promises."""

    max_seconds: PositiveFloat = 600.0  # longest recording that is decoded whole, in seconds
    min_seconds: NonNegativeFloat = 0.01  # shorter ones are refused as too_short
    max_bytes: Positive | None = None  # largest input; None for the command line, 25 MB for uploads
    min_sample_rate: Positive = 1_000  # Hz; anything below is a broken header
    max_sample_rate: Positive = 768_000  # Hz; anything above is a broken header
    max_channels: Positive = 32  # more is refused as unsupported_channels

    def check(self) -> None:
        """Refuse limits that no recording can meet."""
        if self.min_sample_rate > self.max_sample_rate:
            raise ValueError("`min_sample_rate` is above `max_sample_rate`")
        if self.min_seconds >= self.max_seconds:
            raise ValueError("`min_seconds` must be below `max_seconds`")


class FrontendConfig(Config, frozen=True, kw_only=True):
    """Samples to features. Everything that changes a feature value is in here and in the bundle's fingerprint."""

    kind: Literal["logmel", "mfcc", "spectrogram", "wave"] = "logmel"  # what the features are
    sample_rate: Annotated[int, msgspec.Meta(gt=0, le=768_000)] = 44_100  # Hz; audio is brought to it
    level: Literal["none", "peak"] = "none"  # "peak": each window is scaled to peak 1 first (not for streams)
    n_fft: Annotated[int, msgspec.Meta(gt=0, le=32_768)] = 1024  # FFT length in samples, even
    win_length: Positive | None = (
        None  # periodic window in samples, None for n_fft; padded or folded to n_fft
    )
    hop_length: Positive = 441  # samples from one frame to the next
    window: Literal["hann", "hamming", "ones"] = "hann"  # periodic analysis window
    center: bool = True  # half a window of zeros at both ends: frame i is centred on i * hop_length
    power: Literal[1, 2] = 2  # 1: magnitude spectrum, 2: power spectrum
    n_mels: Annotated[int, msgspec.Meta(gt=0, le=2048)] = 64  # mel bands
    fmin: NonNegativeFloat = 0.0  # Hz, lower edge of the first band
    fmax: PositiveFloat | None = None  # Hz, upper edge of the last band, None for half the sample rate
    mel_scale: Literal["htk", "slaney"] = "htk"  # HTK: 2595 log10(1 + f/700); Slaney: linear below 1 kHz
    mel_norm: Literal["none", "slaney", "sum"] = "none"  # band weights: peak 1, unit area, or unit sum
    scale: Literal["linear", "db", "ln", "log10"] = "db"  # how large values are compressed
    offset: NonNegativeFloat = 1e-10  # "db": max(x, offset) in dB; "ln": ln(x + offset)
    gain: PositiveFloat = 1.0  # "log10": log10(1 + gain x); for "wave" the factor on the samples
    n_mfcc: Positive = 13  # cepstral coefficients kept (orthonormal DCT-II over the bands)
    mean: float | tuple[float, ...] = 0.0  # fixed normalisation (x - mean) / std, one number or one per row
    std: float | tuple[float, ...] = 1.0  # see mean

    @property
    def window_length(self) -> int:
        """Samples under the analysis window."""
        return self.win_length or self.n_fft

    @property
    def top_hz(self) -> float:
        """Upper edge of the last band in Hz."""
        return self.fmax if self.fmax is not None else self.sample_rate / 2

    @property
    def n_rows(self) -> int:
        """Rows of the feature array (bands, bins, coefficients, or 1 for a wave)."""
        return {
            "logmel": self.n_mels,
            "mfcc": self.n_mfcc,
            "spectrogram": self.n_fft // 2 + 1,
            "wave": 1,
        }[self.kind]

    def check(self) -> None:
        """Refuse impossible spectra, naming both keys."""
        if self.n_fft % 2:
            raise ValueError(f"`n_fft` {self.n_fft} is odd, an even number is wanted (best a power of two)")
        if self.window_length > 4 * self.n_fft:
            raise ValueError(f"`win_length` {self.win_length} is above 4 times `n_fft` {self.n_fft}")
        if self.hop_length > self.window_length:
            above = f"`{'win_length' if self.win_length else 'n_fft'}` {self.window_length}"
            raise ValueError(f"`hop_length` {self.hop_length} is above {above}: samples would be skipped")
        if self.top_hz > self.sample_rate / 2:
            raise ValueError(f"`fmax` {self.top_hz:g} is above half of `sample_rate` {self.sample_rate}")
        if self.fmin >= self.top_hz:
            raise ValueError(f"`fmin` {self.fmin:g} is not below `fmax` {self.top_hz:g}")
        if self.kind in ("logmel", "mfcc") and self.n_mels > self.n_fft // 2 + 1:
            raise ValueError(f"`n_mels` {self.n_mels} is above the number of bins of `n_fft` {self.n_fft}")
        if self.kind == "mfcc" and self.n_mfcc > self.n_mels:
            raise ValueError(f"`n_mfcc` {self.n_mfcc} is above `n_mels` {self.n_mels}")
        if self.kind == "mfcc" and self.scale == "linear":
            raise ValueError("`kind` mfcc needs a logarithmic `scale`")
        if self.scale in ("db", "ln") and self.offset <= 0:
            raise ValueError(f"`scale` {self.scale} needs an `offset` above 0, or silence is minus infinity")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if isinstance(values, tuple) and len(values) != self.n_rows:
                raise ValueError(f"`{name}` has {len(values)} numbers, the features have {self.n_rows} rows")
        if min(numbers(self.std)) <= 0:
            raise ValueError("`std` must be above 0")
        for name in ("offset", "gain", "mean", "std"):
            if any(x and not 1e-30 <= abs(x) <= 1e30 for x in numbers(getattr(self, name))):
                raise ValueError(f"`{name}` is outside 1e-30 ... 1e30, which float32 features can hold")


class WindowConfig(Config, frozen=True, kw_only=True):
    """How a recording is cut into windows. The last one is kept, zero-padded, if it holds half a window or is alone."""

    window_s: PositiveFloat = 5.0  # seconds given to the model at once
    hop_s: PositiveFloat = 5.0  # seconds from one window to the next

    def check(self) -> None:
        """Refuse windows that would skip audio."""
        if self.hop_s > self.window_s:
            raise ValueError(f"`hop_s` {self.hop_s:g} is above `window_s` {self.window_s:g}: skips audio")


class DecisionConfig(Config, frozen=True, kw_only=True):
    """Logits to an answer: calibration, pooling over windows, and when to say "unknown"."""

    temperature: PositiveFloat = 1.0  # logits are divided by it before the softmax
    pooling: Literal["mean", "max"] = "mean"  # how window scores become one score per label
    unknown_score: UnknownScore = "probability"  # what the thresholds are about
    threshold: float = 0.0  # an answer whose `unknown_score` is below it is "unknown"
    label_thresholds: dict[str, float] = {}  # per-label thresholds that replace `threshold`
    patterns: str = ""  # what `unknown_score` pattern compares with, as `pattern.fit` gives it

    def check(self) -> None:
        """Refuse thresholds that no probability can have (other scores have any size), and a score without patterns."""
        if (self.unknown_score == "pattern") != bool(self.patterns):
            raise ValueError(
                "`unknown_score` pattern and `patterns` go together: `soundmark calibrate` fits them"
            )
        for name in ("threshold", "label_thresholds"):
            odd = [value for value in numbers(getattr(self, name)) if not 0 <= value <= 1]
            if odd and self.unknown_score == "probability":
                raise ValueError(f"`{name}` {odd[0]:g} is no probability, 0 to 1 is wanted")


class NetworkConfig(Config, frozen=True, kw_only=True):
    """Which network, and its size. `kind` is a name in `soundmark.learn.networks`."""

    kind: str = "edge"  # architecture
    channels: tuple[Positive, ...] = ()  # widths of its stages, empty for the architecture's own
    dropout: Fraction = 0.2  # before the last layer
    depth: Literal[18, 34, 50] = 18  # layers of a resnet
    resize: tuple[Positive, ...] = ()  # rows and frames that a resnet sees, empty: as they are
    keep: NonNegative = 0  # first convolutions of a yamnet that are kept, an odd number, 0: all 27
    batch_norm: bool = False  # batch norm behind each convolution of a yamnet, at first changing nothing
    rank: NonNegative = 0  # 1x1 convolutions of a yamnet as two with this many channels between, 0: as one
    weight_bits: Literal[4, 8] = 8  # of 1x1 convolutions of a yamnet in an int8 file; 4: it learns with them
    taps: tuple[
        Positive, ...
    ] = ()  # convolutions of a yamnet that are pooled beside the last one, odd numbers
    pool: Literal["salient", "moments", "statistics"] = "salient"  # of a yamnet
    head: Literal["linear", "cosine"] = (
        "linear"  # of a yamnet; cosine begins as discriminants of the training clips
    )
    pretrained: str = ""  # what its weights were learnt from; without `--weights` it starts from random ones


class WaveConfig(Config, frozen=True, kw_only=True):
    """What training does to samples before the front end; where any of it is on, features are made in every step."""

    clip_s: NonNegativeFloat = 0.0  # windows are cut at random from this many seconds, 0: as when classifying
    roll: Fraction = 0.0  # circular shift by up to this share of the window
    speed: Annotated[float, msgspec.Meta(ge=1, le=4)] = 1.0  # tape speed 1/speed ... speed (pitch and tempo)
    stretch: Annotated[float, msgspec.Meta(ge=1, le=4)] = 1.0  # tempo alone, 1/stretch ... stretch
    pitch: Annotated[float, msgspec.Meta(ge=0, le=12)] = 0.0  # pitch alone, plus-minus semitones
    noise: Fraction = 0.0  # share of windows that get white noise
    snr_db: tuple[float, float] = (10.0, 40.0)  # lowest and highest signal-to-noise ratio of it
    background_share: Fraction = 0.0  # share of windows with another recording behind them
    background: str = ""  # folder of those recordings, empty: the other training clips
    background_snr_db: tuple[float, float] = (5.0, 25.0)  # lowest and highest ratio of a window to it
    gain_db: NonNegativeFloat = 0.0  # uniform gain within plus-minus this many dB
    polarity: Fraction = 0.0  # share of windows turned upside down

    def check(self) -> None:
        """Refuse ranges that are upside down, and a background that no window gets."""
        for name in ("snr_db", "background_snr_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` is the lowest ratio, then the highest")
        if self.background and not self.background_share:
            raise ValueError("`background` needs a `background_share` above 0")


class AugmentConfig(Config, frozen=True, kw_only=True):
    """What training does to a batch, in the feature domain: power is mixed before the logarithm."""

    mix_probability: Fraction = 0.8  # share of clips mixed with another one (mixup / between-class)
    mix_alpha: PositiveFloat = 0.4  # Beta(alpha, alpha) draws the share of each
    mix_loudness: Literal["power", "a-weighted"] = "power"  # made equal before mixing; a-weighted for waves
    mix_labels: Literal["any", "different"] = "any"  # which partners a clip may have
    gain_db: NonNegativeFloat = 6.0  # uniform gain within plus-minus this many dB
    roll: Fraction = 1.0  # circular shift in time, up to this share of the clip
    tilt_db: NonNegativeFloat = 0.0  # filter augmentation: random gain over rows within plus-minus this
    tilt_bands: Literal["even", "random"] = "even"  # its pieces: four even ones, or 3 to 5 drawn per batch
    stretch: Annotated[float, msgspec.Meta(ge=1)] = 1.0  # time is resized by 1/stretch ... stretch
    shift_bands: NonNegative = 0  # mel rows shifted up or down by at most this many (a pitch shift)
    time_masks: NonNegative = 2  # SpecAugment: masks over time
    time_mask_frames: NonNegative = 40  # widest time mask in frames
    freq_masks: NonNegative = 2  # SpecAugment: masks over rows
    freq_mask_rows: NonNegative = 10  # widest frequency mask in rows
    style_probability: Fraction = 0.0  # freq-mix-style: share of batches whose rows trade mean and deviation
    style_alpha: PositiveFloat = 0.4  # Beta(alpha, alpha) draws how much of its own a clip keeps


class TrainConfig(Config, frozen=True, kw_only=True):
    """One fixed schedule: nothing is chosen on the test fold, the last epoch's averaged weights are the result."""

    epochs: NonNegative = 100  # passes over the training clips; 0: a head of cosines stays as it begins
    batch_size: Annotated[int, msgspec.Meta(ge=2)] = 32  # clips per step
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"  # update rule
    lr: Annotated[float, msgspec.Meta(gt=0, le=10)] = 3e-3  # peak learning rate
    schedule: Literal["one-cycle", "cosine", "constant", "step"] = "one-cycle"  # course of the learning rate
    warmup: Fraction = 0.15  # share of the run in which it rises first (not in "cosine" and "constant")
    drops: tuple[Fraction, ...] = (0.3, 0.6, 0.9)  # "step": shares of the run after which the rate is a tenth
    weight_decay: NonNegativeFloat = 0.02  # on weights of two or more dimensions
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1  # share of the target spread evenly
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.995  # decay of the averaged weights, 0: none
    clip_norm: NonNegativeFloat = 5.0  # gradients are scaled down to this norm, 0 for no limit
    frozen_epochs: NonNegative = 0  # first epochs in which the last layer alone learns
    frozen_layers: NonNegative = 0  # first convolutions, with their batch norm, that never learn
    trunk_lr: Fraction = 1.0  # after them: learning rate of all other layers, as a share of `lr`
    refit_head: bool = False  # a head of cosines is fitted once more, to what the other layers have learnt
    patience: NonNegative = 0  # stop this many epochs after the best inner loss, 0: never, last weights
    inner: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.15  # share of clips, by source, for `patience`
    max_bad_batches: NonNegative = 5  # this many non-finite losses are skipped, then the run stops
    balance: Literal["none", "weights", "sampler"] = "none"  # rare labels: weigh or draw more
    seed: NonNegative = 0  # every random number of a run follows from it
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"  # arithmetic of the training steps
    devices: Positive = 1  # processes (GPUs or CPUs); more than one is DDP through Lightning Fabric
    num_nodes: Positive = 1  # machines


class DistillConfig(Config, frozen=True, kw_only=True):
    """What `soundmark distill` shows to teachers and student, and how the student is judged by it."""

    views: Annotated[int, msgspec.Meta(ge=1, le=1000)] = (
        10  # of every clip: the plain one, others changed by `waves`
    )
    views_per_epoch: Positive = 1  # of every clip that an epoch draws
    view_seed: NonNegative = 0  # another seed, other views
    mix: Fraction = 0.7  # share of views (but the plain ones) mixed with another clip of the same fold
    mix_alpha: PositiveFloat = 1.0  # Beta(alpha, alpha) draws the share of each
    temperature: Annotated[float, msgspec.Meta(ge=0.1, le=100)] = 2.0  # softens the answers of both
    soft: Fraction = 0.9  # weight of the teachers' answers; the rest is that of the labels
    embedding: NonNegativeFloat = 0.0  # weight of the regression of the teachers' embeddings, 0: none
    logits: NonNegativeFloat = (
        0.0  # weight of the regression of the teachers' logits, whose level it keeps; 0: none
    )


class ExportConfig(Config, frozen=True, kw_only=True):
    """Network to bundle: ONNX, batch norm folded, static per-channel int8."""

    quantize: bool = True  # int8 (QDQ, per channel); False ships fp32
    calibration_clips: Positive = 200  # training clips whose activations set the int8 ranges
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"  # how ranges follow from activations
    float_first: bool = (
        True  # first convolution, and a depthwise one behind it, stay in float (int8 costs most there)
    )
    float_last: bool = False  # keep the weights of linear layers in float, too
    linear_bits: Literal[4, 8] = 8  # of the weights of linear layers, if not in float
    refit_head: bool = False  # a head of cosines is fitted once more, to what int8 layers give of the clips
    golden_windows: Positive = 64  # windows on which torch, ONNX and int8 are compared
    max_int8_disagreement: Fraction = 0.1  # share of golden windows whose top-1 may change, else export fails


class EnsembleConfig(Config, frozen=True, kw_only=True):
    """Members of a preset that is an ensemble; of its other sections, none is used then."""

    members: tuple[str, ...] = ()  # presets; "a + b": frozen ones side by side under one layer
    layer: Literal["linear", "cosine"] = (
        "linear"  # one regression over all, or each its cosines with the labels
    )
    l2: PositiveFloat = 0.01  # linear: penalty on the weights
    shrink: Annotated[float, msgspec.Meta(gt=0, le=1)] = (
        0.1  # cosine: how far covariance is drawn to equal variances
    )
    scale: PositiveFloat = 8.0  # cosine: factor on every member's cosines
    fit: bool = True  # weights and temperatures from inner answers; false: equal weights, temperature 1
    quantize: bool = True  # as the members' presets say; false: all members are fp32

    def check(self) -> None:
        """Refuse an entry without a name."""
        if any(not name.strip() for entry in self.members for name in entry.split(" + ")):
            raise ValueError("`members` has an entry without the name of a preset")


class UnknownsConfig(Config, frozen=True, kw_only=True):
    """What `soundmark unknowns` leaves out of its trainings, and what else the bundles are to hear."""

    draws: Positive = 5  # times that labels are drawn, a training each
    left_out: Positive = 10  # labels that are left out of each
    seed: NonNegative = 0  # another seed, other labels left out and other sounds made in code
    made: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 50  # sounds made in code, of each kind


class PrepareConfig(Config, frozen=True, kw_only=True):
    """What `soundmark data prepare` makes of every recording: one channel, 16 bits."""

    sample_rate: Annotated[int, msgspec.Meta(ge=1_000, le=192_000)] = 44_100  # Hz of what is written
    trim: bool = True  # cut quiet off both ends
    trim_db: Annotated[float, msgspec.Meta(ge=-120, lt=0)] = -60.0  # quiet: that far below the peak, in dB
    normalise: Literal["none", "peak", "loudness"] = (
        "peak"  # to full scale, to `loudness_lufs`, or not at all
    )
    loudness_lufs: Annotated[float, msgspec.Meta(ge=-70, le=0)] = -23.0  # BS.1770; peaks stay in full scale
    format: Literal["wav", "flac"] = "wav"  # of the files


class SynthConfig(Config, frozen=True, kw_only=True):
    """What a synthetic data set consists of; the same values give the same samples."""

    classes: Annotated[int, msgspec.Meta(ge=2, le=16)] = 10  # labels
    clips: Annotated[int, msgspec.Meta(ge=5, le=10_000)] = 40  # clips per label, spread over five folds
    seconds: Annotated[float, msgspec.Meta(ge=1, le=60)] = 5.0  # length of every clip
    sample_rate: Annotated[int, msgspec.Meta(ge=16_000, le=96_000)] = 44_100  # rate of the files, in Hz
    seed: NonNegative = 0  # another seed, another set
