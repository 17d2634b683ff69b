"""A report as one HTML page that needs nothing else, see `soundmark.pages`; every figure in it is in its JSON.

With the recordings beside it, the most confident mistakes have players and spectrograms, `MAX_AUDIO_BYTES` together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import soundfile

from soundmark.breakdowns import worst_pairs
from soundmark.data.bands import mel_bands
from soundmark.data.measure import at_its_rate
from soundmark.dataset import Clip
from soundmark.errors import AudioError
from soundmark.evaluate import Report
from soundmark.pages import FOOT, Figures, flac, head, picture, player, table, tiles
from soundmark.plots import bars, curve, escape, matrix

MISTAKES = 20
WORST_PAIRS = 15
EXCERPT_S = 10.0
MAX_AUDIO_BYTES = 12 << 20


def page(
    report: Report,
    clips: Mapping[str, Clip] | None = None,
    *,
    on_clip: Callable[[int], None] | None = None,
) -> bytes:
    """Return the page, UTF-8; the same report gives the same bytes.

    Args:
        report: with the figures that the page shall have.
        clips: name -> recording, for the players; None leaves them out.
        on_clip: called with 1 after every recording that was read.
    """
    tree = report.to_dict()
    given = Figures(tree)
    title = f"{tree['model']} on {tree['data']}"
    parts = [head(f"{title}: report"), f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="stamp">{given.show(f"stamps.{i}")}</p>' for i in range(len(tree["stamps"]))]
    parts += [_headline(given), _protocol(given), _folds(given), _breakdowns(given)]
    parts += [_calibration(given), _confusion(given), _classes(given)]
    parts += [_mistakes(given, clips, on_clip), _failures(given), _made(given), FOOT]
    return "\n".join(part for part in parts if part).encode("utf-8")


def _headline(given: Figures) -> str:
    show = given.show
    cells = [
        ("accuracy", show("figures.accuracy", ".2%"), ""),
        ("95 % interval by source", given.interval("figures.accuracy_interval_95"), ""),
        ("top 3", show("figures.top3", ".2%"), ""),
        ("macro F1", show("figures.macro_f1", ".3f"), ""),
        ("calibration error", show("figures.calibration.ece", ".3f"), ""),
        ("clips", show("n_clips", ","), ""),
        ("without an answer", show("figures.failed"), "error" if given.at("figures.failed") else ""),
        ("model, bytes", show("model_bytes", ","), ""),
    ]
    return tiles(cells)


def _protocol(given: Figures) -> str:
    tree = given.tree
    training, scored = tree["training"], _listed(tree["folds"])
    told = [
        f"Scored: {escape(tree['data'])}, fold {scored}, each clip once, through the road of every recording."
    ]
    if folds := training.get("train_folds"):
        told.append(f"Trained on {escape(training.get('data', '?'))}, fold {escape(_listed(folds))}.")
    if tree["stamps"]:
        told.append('<b class="error">The stamps above say why these are not test figures.</b>')
    else:
        told.append("No scored fold was trained on, and no source stands on both sides of the split")
        shared = tree["data"].startswith("ESC") and not tree.get("split")
        told[-1] += ", but the four that official folds of ESC-50 share (9 clips)." if shared else "."
    return f"<h2>Protocol</h2><p>{' '.join(told)}</p>"


def _folds(given: Figures) -> str:
    folds = given.at("figures.per_fold")
    if len(folds) < 2:
        return ""
    rows = [(escape(fold), given.show(f"figures.per_fold.{fold}", ".2%")) for fold in folds]
    return f"<h2>Folds</h2>{table(['fold', 'accuracy'], rows)}"


def _breakdowns(given: Figures) -> str:
    kinds = (
        ("by_group", "Accuracy by group of classes", "The five groups of ESC-50."),
        ("by_loudness", "Accuracy by loudness", "Gated loudness (ITU-R BS.1770-4) of the recording."),
        ("by_silence", "Accuracy by silence", "Share of digital silence in the recording."),
    )
    out = []
    for key, title, note in kinds:
        rows = given.at("figures").get(key)
        if not rows:
            continue
        if key != "by_group" and not (given.tree.get("measured") or {}).get("same_files"):
            note += " Measured on files that are not byte for byte those that were scored."
        cells = [
            (
                escape(row["name"]),
                given.show(f"figures.{key}.{i}.clips"),
                given.show(f"figures.{key}.{i}.accuracy", ".1%") if row["clips"] else "-",
                given.interval(f"figures.{key}.{i}.interval_95") if row["clips"] else "-",
            )
            for i, row in enumerate(rows)
        ]
        shown = [(row["name"], row["accuracy"], f"{row['accuracy']:.1%}") for row in rows if row["clips"]]
        drawn = bars(shown, title="accuracy; the line is all clips", mark=given.at("figures.accuracy"))
        out.append(
            f'<h2>{title}</h2><p class="soft">{note} 95 % intervals by source.</p>{drawn}'
            + table([key.removeprefix("by_"), "clips", "accuracy", "95 % interval"], cells)
        )
    return "".join(out)


def _calibration(given: Figures) -> str:
    bins, answered = given.at("figures.calibration.bins"), given.at("figures.coverage")
    if "temperature" not in given.tree:
        told = "The report does not say the temperature of the scores; it is 1 unless it was fitted on an inner split."
    elif given.at("temperature") == 1:
        told = f"Temperature {given.show('temperature', 'g')}: the scores are as trained, nothing was fitted."
    else:
        told = f"Temperature {given.show('temperature', 'g')}, from the bundle: fitted on an inner split of training."
    if "raw_ece" in given.at("figures.calibration"):
        told += f" At temperature 1 the error is {given.show('figures.calibration.raw_ece', '.3f')}."
    at = "figures.calibration.bins"
    reliable = curve(
        [(b["score"], b["accuracy"], f"{b['clips']} clips") for b in bins if b["clips"]],
        title="reliability",
        across="mean score of a bin",
        up="accuracy",
        ideal=True,
    )
    covered = curve(
        [(row["coverage"], row["accuracy"], f"score {row['threshold']:.3f} and more") for row in answered],
        title="coverage and accuracy",
        across="share of clips that are answered",
        up="accuracy",
    )
    bin_rows = [
        (
            f"{given.show(f'{at}.{i}.above', '.3f')} to {given.show(f'{at}.{i}.up_to', '.3f')}",
            given.show(f"{at}.{i}.clips"),
            given.show(f"{at}.{i}.score", ".3f"),
            given.show(f"{at}.{i}.accuracy", ".1%"),
        )
        for i, row in enumerate(bins)
        if row["clips"]
    ]
    rows = [
        (
            given.show(f"figures.coverage.{i}.coverage", ".1%"),
            given.show(f"figures.coverage.{i}.threshold", ".3f"),
            given.show(f"figures.coverage.{i}.clips"),
            given.show(f"figures.coverage.{i}.accuracy", ".1%"),
        )
        for i in range(len(answered))
    ]
    return (
        f"<h2>Calibration and coverage</h2><p>Expected calibration error "
        f"{given.show('figures.calibration.ece', '.3f')} ({len(bins)} bins of equal width). {told}</p>"
        f'<div class="plots"><div>{reliable}</div><div>{covered}</div></div>'
        f"{table(['answered', 'lowest score', 'clips', 'accuracy'], rows, names=0)}"
        f"<details><summary>bins</summary>{table(['score', 'clips', 'mean score', 'accuracy'], bin_rows)}</details>"
    )


def _confusion(given: Figures) -> str:
    labels, counts = given.at("figures.labels"), given.at("figures.confusion")
    rows = [
        (escape(labels[i]), escape(labels[j]), given.show(f"figures.confusion.{i}.{j}"))
        for i, j, _ in worst_pairs(counts, WORST_PAIRS)
    ]
    pairs = table(["is", "heard as", "clips"], rows, names=2) if rows else "<p>None.</p>"
    drawn = matrix(counts, labels, title="confusion matrix")
    return (
        f'<h2>Confusions</h2>{pairs}<p class="soft">Rows: what it is; columns: what was heard; shade: share of the '
        f"row. The diagonal is right.</p>{drawn}"
    )


def _classes(given: Figures) -> str:
    rows = [
        (
            escape(row["label"]),
            given.show(f"figures.per_class.{i}.clips"),
            *(
                given.show(f"figures.per_class.{i}.{key}", spec)
                for key, spec in (("precision", ".1%"), ("recall", ".1%"), ("f1", ".3f"))
            ),
        )
        for i, row in sorted(enumerate(given.at("figures.per_class")), key=lambda pair: pair[1]["f1"])
        if row["clips"]
    ]
    return f"<h2>Classes, worst first</h2>{table(['class', 'clips', 'precision', 'recall', 'F1'], rows)}"


def mistakes(report_rows: list[dict[str, Any]], most: int = MISTAKES) -> list[int]:
    """Return the rows of the wrong answers with the highest scores, the most confident first."""
    wrong = [i for i, row in enumerate(report_rows) if row["rank"] > 0]
    return sorted(wrong, key=lambda i: -report_rows[i]["score"])[:most]


def _mistakes(given: Figures, clips: Mapping[str, Clip] | None, on_clip: Callable[[int], None] | None) -> str:
    rows: list[dict[str, Any]] = given.at("clips")
    out, room = [], MAX_AUDIO_BYTES
    for i in mistakes(rows):
        body = (
            f"<b>{given.show(f'clips.{i}.label')}</b> heard as <b>{given.show(f'clips.{i}.heard')}</b>, "
            f"score {given.show(f'clips.{i}.score', '.3f')}"
            f'<br><span class="soft">{given.show(f"clips.{i}.name")}, fold {given.show(f"clips.{i}.fold")}, '
            f"true label at place {rows[i]['rank'] + 1}</span>"
        )
        if clips is not None:
            heard, size = _heard(clips[rows[i]["name"]], room)
            body, room = body + heard, room - size
            if on_clip:
                on_clip(1)
        out.append(f"<div>{body}</div>")
    if not out:
        return "<h2>Most confident mistakes</h2><p>None.</p>"
    note = f"The first {EXCERPT_S:g} s; spectrograms from 50 Hz to 14 kHz, 80 dB."
    if clips is None:
        note = "Give --data for players and spectrograms."
    return (
        f'<h2>Most confident mistakes</h2><p class="soft">{note}</p><div class="players">{"".join(out)}</div>'
    )


def _heard(clip: Clip, room: int) -> tuple[str, int]:
    """Return spectrogram and player of a recording as HTML, and its bytes; "" where it cannot be or needs too much."""
    try:
        heard = at_its_rate(clip.path)
        samples = heard.samples[: int(EXCERPT_S * heard.sample_rate)]
        drawn = picture(mel_bands(samples, heard.sample_rate), title=f"spectrogram of {clip.name}")
        data = flac(samples, heard.sample_rate)
    except (AudioError, soundfile.SoundFileError):  # gone since, or a rate that FLAC does not have
        return '<p class="soft">cannot be played</p>', 0
    return (drawn, 0) if len(data) > room else (drawn + player(samples, data), len(data))


def _failures(given: Figures) -> str:
    n = len(given.at("failures"))
    rows = [
        (given.show(f"failures.{i}.error.code"), given.show(f"failures.{i}.error.message"))
        for i in range(min(n, 200))
    ]
    return f"<h2>Without an answer</h2>{table(['code', 'why'], rows, names=2)}" if n else ""


def _made(given: Figures) -> str:
    names = (
        ("command", "command"),
        ("page", "page_command"),
        ("model digest", "model_digest"),
        ("data digest", "data_digest"),
        ("split", "split"),
        ("soundmark", "soundmark"),
        ("ONNX Runtime", "onnxruntime"),
        ("numpy", "numpy"),
        ("machine", "machine"),
        ("seconds", "seconds"),
    )
    rows = [
        (text, f"<code>{given.show(key)}</code>")
        for text, key in names
        if given.tree.get(key) not in (None, "")
    ]
    training = given.tree["training"]
    rows += [
        (f"training: {escape(key.replace('_', ' '))}", f"<code>{escape(_listed(training[key]))}</code>")
        for key in sorted(training)
    ]
    rows.append(("bootstrap", "2000 rounds over sources, seed 0"))
    return f"<h2>How it was made</h2>{table(['what', ''], rows, names=2)}"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
