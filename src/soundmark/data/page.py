"""An `Inspection` as one HTML page that needs nothing else, see `soundmark.pages`.

Players are FLAC excerpts as data URIs, at most
`MAX_PLAYERS` and `MAX_AUDIO_BYTES` together, so the page of any data set stays below about 10 MB.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import soundfile

from soundmark.data.findings import CODES, SEVERITIES, Finding
from soundmark.data.inspect import Inspection
from soundmark.data.measure import at_its_rate
from soundmark.dataset import Clip
from soundmark.errors import AudioError
from soundmark.pages import FOOT, flac, head, player, tiles
from soundmark.plots import bars, escape, histogram

EXCERPT_S = 5.0
MAX_PLAYERS = 40
PLAYERS_PER_CODE = 3
MAX_AUDIO_BYTES = 6 << 20
MAX_NAMES = 2000  # per code; the rest is in the JSON report
OPEN_UP_TO = 12  # longer lists are folded
NOT_HEARD = frozenset(
    {"odd_sample_rate", "odd_channels", "odd_encoding", "odd_duration", "extension_mismatch"}
)
"""Findings on clips that sound like any other."""

_PLOTS = (
    ("duration_s", "duration", "s", True),
    ("silent_share", "digital silence, share of the clip", "", True),
    ("peak_dbfs", "peak", "dBFS", False),
    ("rms_dbfs", "RMS", "dBFS", False),
    ("loudness_lufs", "loudness", "LUFS", False),
    ("bandwidth_hz", "effective bandwidth", "Hz", False),
    ("noise_floor_dbfs", "noise floor", "dBFS", False),
    ("snr_db", "signal to noise", "dB", False),
    ("clipped_share", "clipped samples, share", "", True),
    ("dc", "DC offset", "full scale", True),
)


def page(inspection: Inspection) -> bytes:
    """Return the page, UTF-8; the same inspection of the same files gives the same bytes.

    The recordings of up to `MAX_PLAYERS` findings are decoded once more.
    """
    dataset = inspection.dataset
    title = f"{dataset.name}: data report"
    parts = [head(title), f"<h1>{escape(dataset.name)}</h1>"]
    parts += [f'<p class="stamp">{escape(stamp)}</p>' for stamp in dataset.stamps]
    parts += [_tiles(inspection), _leaks(inspection), _findings(inspection), _listen(inspection)]
    parts += [_plots(inspection), _shortcut(inspection), _classes(inspection), _formats(inspection)]
    parts.append(f'<p class="soft">Made by soundmark data inspect. Folder: {escape(dataset.root)}</p>{FOOT}')
    return "\n".join(part for part in parts if part).encode("utf-8")


def _tiles(inspection: Inspection) -> str:
    dataset, counts = inspection.dataset, inspection.counts
    cells = [
        ("clips", f"{len(dataset.clips):,}", ""),
        ("hours", f"{inspection.hours:.2f}", ""),
        ("labels", str(len(dataset.labels)), ""),
        ("sources", f"{len({clip.source for clip in dataset.clips}):,}", ""),
        ("folds", str(len(dataset.folds)) if dataset.has_folds else "none", ""),
        ("cannot be used", str(len(inspection.errors)), "error" if inspection.errors else ""),
        *((f"{name}s", f"{counts[name]:,}", name if counts[name] else "") for name in SEVERITIES),
    ]
    return f'<p class="soft">{escape(dataset.layout)} layout</p>{tiles(cells)}'


def _leaks(inspection: Inspection) -> str:
    dataset, leaks = inspection.dataset, inspection.leaks()
    if not dataset.has_folds:
        return "<h2>Leaks</h2><p>The clips are in no folds, so nothing stands on two sides yet.</p>"
    if not any(leaks.values()):
        return "<h2>Leaks</h2><p>No source and no copy stands in more than one fold.</p>"
    label = {clip.name: clip.label for clip in dataset.clips}
    rows = []
    for kind, text in (
        ("sources", "source, a leak"),
        ("known_sources", "source, known of the official folds"),
    ):
        for source, row in leaks[kind].items():
            rows.append((f"{source} ({text})", row["folds"], row["clips"]))
    for copy in leaks["copies"]:
        text = "same audio" if copy["exact"] else f"nearly the same audio, match {copy['match']:.2f}"
        rows.append((text, copy["folds"], copy["clips"]))
    body = "".join(
        f"<tr><td>{escape(what)}</td><td>{', '.join(map(str, folds))}</td>"
        f"<td>{escape(', '.join(f'{name} {label[name]}' for name in names[:20]))}</td></tr>"
        for what, folds, names in rows[:MAX_NAMES]
    )
    return f"<h2>Leaks</h2><table><tr><th>what</th><th>folds</th><th>clips</th></tr>{body}</table>"


def _findings(inspection: Inspection) -> str:
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in inspection.findings:
        groups[finding.code].append(finding)
    out = ["<h2>Findings</h2>"] + ([] if groups else ["<p>None.</p>"])
    for code, found in groups.items():
        meaning = CODES[code][1] if code in CODES else ""
        head = f'<b class="{found[0].severity}">{len(found)} x {escape(code)}</b> {escape(meaning)}'
        rows = "".join(f"<li><b>{escape(f.clip)}</b> {escape(f.message)}</li>" for f in found[:MAX_NAMES])
        more = f"<li>and {len(found) - MAX_NAMES} more</li>" if len(found) > MAX_NAMES else ""
        opened = " open" if len(found) <= OPEN_UP_TO else ""
        out.append(f"<details{opened}><summary>{head}</summary><ul>{rows}{more}</ul></details>")
    return "".join(out)


def _listen(inspection: Inspection) -> str:
    """Return players for the first clips of every kind of finding, as long as there is room."""
    out, room = [], MAX_AUDIO_BYTES
    for clip, why in _worth_hearing(inspection):
        try:
            heard = at_its_rate(clip.path)
            samples = heard.samples[: int(EXCERPT_S * heard.sample_rate)]
            data = flac(samples, heard.sample_rate)
        except (AudioError, soundfile.SoundFileError):  # gone since, or a rate that FLAC does not have
            continue
        room -= len(data)
        if room < 0:
            break
        out.append(
            f"<div><b>{escape(clip.name)}</b> {escape(clip.label)}<br>"
            f'<span class="soft">{escape(why)}</span>{player(samples, data)}</div>'
        )
    if not out:
        return ""
    return (
        f'<h2>Listen</h2><p class="soft">The first {EXCERPT_S:g} s of clips that stand out, '
        f'{PLAYERS_PER_CODE} of a kind at most.</p><div class="players">{"".join(out)}</div>'
    )


def _worth_hearing(inspection: Inspection) -> Iterator[tuple[Clip, str]]:
    clips = {clip.name: (i, clip) for i, clip in enumerate(inspection.dataset.clips)}
    per_code: dict[str, int] = defaultdict(int)
    seen: set[str] = set()
    for finding in inspection.findings:
        if finding.code in NOT_HEARD or per_code[finding.code] >= PLAYERS_PER_CODE:
            continue
        names = [name for name in (finding.clip, *finding.others) if name in clips and name not in seen]
        names = [name for name in names if inspection.measures[clips[name][0]] is not None][:4]
        per_code[finding.code] += bool(names)
        for name in names:
            seen.add(name)
            yield clips[name][1], f"{finding.code}: {finding.message}"[:300]
            if len(seen) >= MAX_PLAYERS:
                return


def _plots(inspection: Inspection) -> str:
    found = inspection.readable
    if not found:
        return ""
    drawn = "".join(
        f"<div>{histogram([getattr(one, name) for one in found], title=title, unit=unit, log=log)}</div>"
        for name, title, unit, log in _PLOTS
    )
    return (
        '<h2>Measures</h2><p class="soft">Clips per value; the outermost bars hold everything beyond them. Heights of '
        f'duration, silence, clipping and DC are logarithmic.</p><div class="plots">{drawn}</div>'
    )


def _shortcut(inspection: Inspection) -> str:
    check = inspection.shortcut
    if check is None:
        return ""
    rows = [(name, value, f"{value:.1%}") for name, value in check.accuracy.items()]
    low, high = check.interval_95
    return (
        "<h2>Shortcut check</h2><p>How many labels a classifier guesses that hears nothing and sees these columns, "
        f"on held-out {check.held_out}. The line is chance, {check.chance:.1%}; with all three, the 95 % interval is "
        f"{low:.1%} to {high:.1%}.</p>{bars(rows, title='accuracy without hearing', mark=check.chance)}"
    )


def _classes(inspection: Inspection) -> str:
    rows = inspection.classes()
    shown = [(r["label"], float(r["clips"]), f"{r['clips']} from {r['sources']}") for r in rows[:MAX_NAMES]]
    drawn = bars(shown, title="clips and sources per class") if shown else ""
    folds = list(rows[0]["folds"]) if rows else []
    if not folds:
        return f"<h2>Classes</h2>{drawn}"
    heads = "".join(f"<th>fold {escape(fold)}</th>" for fold in folds)
    body = "".join(
        f"<tr><td>{escape(r['label'][:60])}</td>"
        + "".join(f'<td class="n">{r["folds"][f]}</td>' for f in folds)
        + "</tr>"
        for r in rows[:MAX_NAMES]
    )
    return (
        f"<h2>Classes</h2>{drawn}<details><summary>clips per class and fold</summary>"
        f"<table><tr><th>class</th>{heads}</tr>{body}</table></details>"
    )


def _formats(inspection: Inspection) -> str:
    body = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>"
        f"{escape(', '.join(f'{value} ({n})' for value, n in list(sizes.items())[:30]))}</td></tr>"
        for name, sizes in inspection.formats().items()
    )
    return f"<h2>Files</h2><table>{body}</table>"
