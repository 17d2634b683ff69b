"""What goes in and out, as Pydantic models: options of a request, and the answers as they are documented."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from soundmark.config import UnknownScore

MAX_TOP_K = 50
MAX_POINTS = 4096


class Options(BaseModel):
    """Options of one classification, as JSON fields, form fields or query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="How many labels to list.")] = 3
    strict: Annotated[bool, Field(description="Refuse damaged recordings instead of flagging them.")] = False
    timeline: Annotated[bool, Field(description="Also the labels of every window.")] = False
    envelope: Annotated[
        int, Field(ge=0, le=MAX_POINTS, description="Also lowest and highest sample of this many stretches.")
    ] = 0
    mel: Annotated[Literal["none", "array", "png"], Field(description="Also the features of one window.")] = (
        "none"
    )
    feature_maps: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]],
        Field(max_length=64, description="Also the maps of these layers, or `all`; see /v1/model."),
    ] = []
    class_activation: Annotated[
        Literal["none", "array", "png"], Field(description="Also where in the window the evidence lies.")
    ] = "none"
    label: Annotated[
        str | None, Field(max_length=200, description="Label of the class activation; default: the best.")
    ] = None
    maps: Annotated[Literal["array", "png"], Field(description="How feature maps are given.")] = "png"
    window: Annotated[
        int, Field(ge=0, le=100_000, description="Window that mel, maps and activation are of.")
    ] = 0


class Label(BaseModel):
    """One label and its calibrated score."""

    label: str
    score: Annotated[float, Field(ge=0, le=1)]


class Window(BaseModel):
    """What was heard in one window."""

    start_s: float
    end_s: float
    label: str | None
    unknown: bool
    labels: list[Label]


class Array(BaseModel):
    """An array, compact: little-endian float16 in C order, base64."""

    shape: list[int]
    dtype: Literal["float16"]
    data: str


class Picture(BaseModel):
    """A PNG, base64: low values dark, high values bright; rows of frequency with the highest on top."""

    shape: list[int]
    low: float
    high: float
    png: str


class Envelope(BaseModel):
    """Lowest and highest sample of stretches of equal length."""

    low: list[float]
    high: list[float]
    duration_s: float


class Activation(BaseModel):
    """Share of each place of the last feature map in the logit of a label."""

    label: str
    logit: float
    map: Array | Picture


class Answer(BaseModel):
    """What was heard in one recording."""

    model_config = ConfigDict(extra="forbid")

    request_id: str
    label: Annotated[str | None, Field(description="The best label, null if unknown.")]
    score: Annotated[float, Field(ge=0, le=1, description="Calibrated score of the best label.")]
    labels: Annotated[list[Label], Field(description="The best top_k labels.")]
    unknown: Annotated[bool, Field(description="No label is good enough.")]
    reason: Annotated[str, Field(description="Why it is unknown: silent, below_threshold, or empty.")]
    flags: Annotated[list[str], Field(description="Quality flags of the recording; the result stands.")]
    duration_s: float
    n_windows: int
    timing_ms: dict[str, float]
    model: str
    model_digest: str
    timeline: list[Window] | None = None
    envelope: Envelope | None = None
    mel: Array | Picture | None = None
    feature_maps: dict[str, Array | Picture] | None = None
    class_activation: Activation | None = None


class Fault(BaseModel):
    """Why a recording of a batch has no answer."""

    code: str
    message: str


class BatchRow(BaseModel):
    """One recording of a batch: an answer, or an error."""

    name: str
    answer: Answer | None = None
    error: Fault | None = None


class BatchAnswer(BaseModel):
    """A row for each recording, in order; a bad one never costs another one's result."""

    request_id: str
    results: list[BatchRow]


class ProblemBody(BaseModel):
    """problem+json (RFC 9457) with the stable code."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str


class Labels(BaseModel):
    """Names in the order of the scores."""

    labels: list[str]


class ModelInfo(BaseModel):
    """What answers."""

    model: str
    model_digest: str
    n_labels: int
    sample_rate: int
    window_s: float
    hop_s: float
    unknown_score: Annotated[UnknownScore, Field(description="What the threshold is about.")]
    threshold: float
    provider: Annotated[Literal["cpu", "cuda"], Field(description="What runs the model.")]
    provider_fallback: Annotated[str, Field(description="Why it is not the provider that was asked for.")]
    licence: str
    created_by: str
    provenance: dict[str, Any]
    layers: Annotated[
        dict[str, Any], Field(description="Convolutions as a tree; leaves are numbers of maps.")
    ]


class Health(BaseModel):
    """Whether the service lives, or can answer."""

    status: Literal["ok"]


class OldPrediction(BaseModel):
    """A row of the compatibility route."""

    model_config = ConfigDict(populate_by_name=True)

    class_: Annotated[str, Field(alias="class")]
    confidence: Annotated[float, Field(ge=0, le=1)]


class OldAnswer(BaseModel):
    """Answer of the compatibility route; no prediction for silence."""

    predictions: list[OldPrediction]
