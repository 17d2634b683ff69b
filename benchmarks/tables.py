"""Writes the figures of docs/results/*.json and docs/ablations/*.json into the marked blocks of README.md and docs.

    make results        # evaluates, times, then runs this

Nothing between the marks is typed by hand. With --check it writes nothing and fails if a page is not what they say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
LEAKS = ROOT / "docs" / "leaks"
"""Reports on leaking splits, kept only to show what a leak is worth: never a result."""
PUBLISHED = ROOT / "docs" / "published.json"
"""Figures of others on the official folds of ESC-50, as they published them, with how they were selected."""
OURS = (
    "yamnet-cosine-5folds.json",
    "edge-5folds.json",
    "tiny-5folds.json",
    "teacher-5folds.json",
    "yamnet-deep-5folds.json",
    "cosine-pair-5folds.json",
    "yamnet-finetuned-5folds.json",
    "edge-taught-5folds.json",
    "yamnet-transfer-5folds.json",
    "aisfx-transfer-5folds.json",
    "edge-scratch-5folds.json",
    "tiny-scratch-5folds.json",
)
"""Reports whose systems stand in the README; docs/results.md has all."""
SCORES = ("soundmark evaluate", "soundmark cv")
"""Commands whose reports are of systems on test folds."""
TAUGHT = ("edge-taught", "tiny")
"""Those with ablations."""
SMALL = ("edge", "tiny", "yamnet-cosine", "edge-taught")
"""Columns of the page on small models."""
RENAMED = {f"edge-taught{kind}-5folds.json": "edge-taught" for kind in ("", "-fp32")}
"""Reports of a preset that had another name then (`edge`)."""
LATENCY = {"latency.json": "AVX-512 and VNNI", "latency-avx2.json": "AVX2 alone"}
"""Reports of benchmarks/latency.py, and what the core had of each."""
LOOKED_AT = {"edge-taught": ("1", "2")}
"""Outer folds on which settings of a tier were compared, in part after looking at their scores (decision 10)."""
SELECTED = {
    "edge-5folds.json": "closed form; settings seen on these folds; layers and pooling chosen without the fold, "
    "nothing split, {nested} (decision 13)",
    "yamnet-cosine-5folds.json": "closed form; settings seen on these folds; layers and pooling chosen without the "
    "fold, {nested} (decision 16)",
    "cosine-pair-5folds.json": "fp32, closed form; one setting compared on the same folds (decision 12)",
    "edge-taught-5folds.json": "last epoch; masks decided by inner runs, after a look at folds 1 and 2 (decision 10)",
    "tiny-5folds.json": "last epoch; settings compared by inner runs that were scored on folds 1 and 2, "
    "layers of its teacher on all; published after a look at folds 1 and 2 (decisions 15, 18 and 20)",
    "yamnet-deep-5folds.json": "fp32, closed form; layers and pooling seen on the same folds (decision 13)",
    "edge-scratch-5folds.json": "last epoch; settings compared by inner runs that were scored on fold 4 (decision 5)",
    "tiny-scratch-5folds.json": "last epoch; settings compared by inner runs that were scored on fold 2 (decision 5)",
}
"""What has to be said of a figure instead of "nothing chosen on the test fold"."""
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def preset(report: dict[str, Any], name: str = "") -> str:
    """Return the name of the preset that the report in the file ``name`` is about, of the model where it has none."""
    return RENAMED.get(name) or str(report["training"].get("preset", report["model"]))


def read(name: str) -> dict[str, Any]:
    """Return one result file."""
    tree: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return tree


def accuracy() -> list[str]:
    """Return the accuracy table: our systems from their reports, then published figures of others, best first."""
    lines = [
        "| system | size | ESC-50 | 95 % interval | how the figure was selected |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in OURS if (RESULTS / name).exists()):
        report = read(name)
        if report["stamps"]:
            raise SystemExit(f"{name} is stamped {report['stamps']}: it does not belong in a table")
        low, high = report["figures"]["accuracy_interval_95"]
        folds = "all five folds" if len(report["folds"]) == 5 else f"fold {report['folds'][0]} alone"
        selected = SELECTED.get(name, "last epoch, nothing chosen on the test fold")
        selected = selected.format(nested=nested(name.removesuffix("-5folds.json")))
        int8 = "" if selected.startswith("fp32") else "int8 file in ONNX Runtime, "
        lines.append(
            f"| `{preset(report, name)}` | {report['model_bytes'] / 1e3:.0f} KB "
            f"| **{report['figures']['accuracy']:.2%}** "
            f"| {low:.1%} to {high:.1%} | {folds}, {int8}{selected} |"
        )
    for row in sorted(json.loads(PUBLISHED.read_text()), key=lambda row: -float(row["accuracy"])):
        lines.append(
            f"| {row['system']} | {row['size']} | {row['accuracy']:g}% | | {row['selected']} ({row['source']}) |"
        )
    return lines


def nested(name: str) -> str:
    """Return the accuracy of a head of cosines, in float and whole, if settings are chosen on the other folds alone."""
    path = ROOT / "docs" / "ablations" / f"{name}-layers.json"
    return f"{json.loads(path.read_text())['nested']['accuracy']:.2%} in fp32" if path.exists() else "-"


def timed(name: str) -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    """Return report, row and what the core had, of all reports on the speed of the model ``name`` as it is now."""
    model = ROOT / "models" / name / "fold5" / "model.onnx"
    size = model.stat().st_size if model.exists() else 0
    return [
        (report, row, core)
        for file, core in LATENCY.items()
        for report in [read(file)]
        for row in report["rows"]
        if row["what"] == f"models/{name}/fold5" and row["model_bytes"] == size
    ]


def speed() -> list[str]:
    """Return the sentence on speed, a ratio to a peer in the same run."""
    frontend, (latency, ours, core) = read("frontend.json"), timed("edge")[0]
    peer = next((row for row in latency["rows"] if row["what"].startswith("yamnet")), None)
    if peer is None:
        raise SystemExit(
            "the report on speed has no peer in it: SOUNDMARK_YAMNET has to name YAMNet's .tflite file"
        )
    edge = frontend["rows"][0]
    return [
        f"Speed, one thread of {latency['machine']['processor'].split(' Processor')[0]} with {core}: "
        f"a 5-s 44.1 kHz WAV file becomes a label in {ours['median_ms']:.1f} ms, "
        f"**{ours['ratio_to_yamnet']:.2f} times** what YAMNet's TFLite takes for the same file in the same run "
        f"({peer['median_ms']:.1f} ms, 9 patches). Its log-mel front end takes {edge['ours_ms']:.2f} ms, librosa "
        f"{edge['librosa_ms']:.2f} ms for equal output.",
        "",
        "Regenerate: `make results` (files in `docs/results/`).",
    ]


def systems() -> list[str]:
    """Return the table of all systems: what has most labels first, then by accuracy; leaking splits at the end."""
    reports = {
        path: json.loads(path.read_text())
        for folder in (RESULTS, LEAKS)
        for path in sorted(folder.glob("*.json"))
    }
    rows = {
        path: tree
        for path, tree in reports.items()
        if str(tree.get("report", "")).startswith(SCORES) and "synthetic" not in tree["data"]
    }
    lines = [
        "| system | labels | folds | accuracy | 95 % interval | top 3 | file | report |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path, report in sorted(rows.items(), key=_place):
        figures = report["figures"]
        low, high = figures["accuracy_interval_95"]
        folds = ", ".join(map(str, report["folds"]))
        labels = f"{len(figures['labels'])}{' (ESC-10)' if report['data'] == 'ESC-10' else ''}"
        lines.append(
            f"| `{preset(report, path.name)}`{' (leaks: random split)' if report['stamps'] else ''} | {labels} "
            f"| {folds if not report['stamps'] else 'none'} | **{figures['accuracy']:.2%}** | {low:.1%} to {high:.1%} "
            f"| {figures['top3']:.1%} | {report['model_bytes'] / 1e3:.0f} KB "
            f"| [{path.stem}]({path.relative_to(ROOT / 'docs')}) |"
        )
    return lines


def _place(row: tuple[Path, dict[str, Any]]) -> tuple[bool, int, float]:
    figures = row[1]["figures"]
    return bool(row[1]["stamps"]), -len(figures["labels"]), -figures["accuracy"]


def service() -> list[str]:
    """Return what the service did under load, and how it compares with the classifier in process."""
    tree = read("serve.json")
    answers, rush, mixed, slow, rate = (
        tree[name] for name in ("answers", "overload", "mixed", "slow", "throughput")
    )
    statuses = " and ".join(f"{count} x {status}" for status, count in sorted(rush["statuses"].items()))
    slopes = " and ".join(f"{slope:.0f}" for slope in mixed["rss_bytes_per_request"])
    health, growth = rush["health"], max(rush["rss_growth_mb"])
    lines = [
        "| what | measured |",
        "|---|---|",
        f"| {answers['clips']} clips by raw body, multipart and base64 against `soundmark classify` "
        f"| top 1 equal {min(answers['equal_top_1'].values())} of {answers['clips']}; "
        f"largest difference of a score {answers['largest_score_difference']:.0e} |",
        f"| {rush['bursts']} rushes of 1 000 parallel uploads of 1 MB, queue {rush['queue']} | {statuses}, no other "
        f"end; `/health/live` meanwhile p50 {health['p50_ms']:.0f} ms, p99 {health['p99_ms']:.0f} ms, worst "
        f"{health['max_ms']:.0f} ms; memory +{growth:.1f} MB afterwards |",
        f"| {mixed['requests']} requests, 30 % bad | {slopes} bytes of memory per request (HTTP process, worker); "
        f"descriptors {max(mixed['descriptors_growth']):+d} |",
        f"| {slow['connections']} trickling connections for 60 s "
        f"| `/health/live` p99 {slow['during']['p99_ms']:.1f} ms, {slow['p99_ratio']:.2f} times that without; "
        f"closed after {slow['headers_closed_after_s']:.0f} s (headers), {slow['body_closed_after_s']:.0f} s (body); "
        f"uploads meanwhile: {' and '.join(f'{n} x {status}' for status, n in slow['uploads'].items())} |",
    ]
    for name, words in (
        ("one core", "all of it on one core"),
        ("own core", "HTTP process and worker on a core each"),
        ("one core, wav", "on one core, the clips as WAV"),
    ):
        row, latency = rate[name], rate[name]["latency_at_4_connections"]
        if row["calm_rounds"] < 3:
            raise SystemExit("serve.json: the machine was too busy for a throughput")
        share, here = row["share_of_classify_many"], row["classify_many_per_s"]
        lines.append(
            f"| 4 clients, {words} | {row['requests_per_s']:.0f} requests/s, **{share:.2f}** of `classify_many` in "
            f"process ({here:.0f}/s); p50 {latency['p50_ms']:.0f} ms, p95 {latency['p95_ms']:.0f} ms |"
        )
    machine = tree["machine"]
    lines += ["", f"{machine['processor']}, {machine['cores_allowed']} cores, Python {machine['python']}."]
    return lines


def found(name: str) -> dict[str, Any] | None:
    """Return one result file, None where it is not there yet."""
    return read(name) if (RESULTS / name).exists() else None


def tiers() -> list[str]:
    """Return everything that is measured of small models, a column each."""
    columns = {tier: _tier(tier) for tier in SMALL if (RESULTS / f"{tier}-5folds.json").exists()}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    return [
        f"| | {' | '.join(f'`{tier}`' for tier in columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(
            f"| {name} | {' | '.join(column.get(name, '-') for column in columns.values())} |"
            for name in names
        ),
    ]


def _tier(tier: str) -> dict[str, str]:
    report = read(f"{tier}-5folds.json")
    figures, calibration = report["figures"], report["figures"]["calibration"]
    rows = {
        "largest file of the five": f"{max(member['model_bytes'] for member in report['members']) / 1e3:.0f} KB",
        "**ESC-50, five folds, int8**": f"**{figures['accuracy']:.2%}** ({_interval(figures)})",
        "fold 1, 2, 3, 4, 5": _folds(figures),
    }
    if tier in LOOKED_AT:
        rows["folds 3, 4, 5, on which no settings were compared"] = (
            f"{_without(figures, LOOKED_AT[tier]):.2%}"
        )
    else:
        rows["settings chosen on the other folds alone, nothing split in two"] = nested(tier)
    rows["top 3"] = f"{figures['top3']:.2%}"
    rows |= _beside_fp32(tier, figures)
    rows["calibration error without a temperature"] = f"{calibration.get('raw_ece', calibration['ece']):.1%}"
    if "raw_ece" in calibration:
        rows["calibration error with that of inner runs"] = f"{calibration['ece']:.1%}"
    for name, words in (("esc10", "ESC-10, five folds"), ("ten", "the ten classes of `tenclass-scratch`")):
        if few := found(f"{tier}-{name}-5folds.json"):
            rows[words] = f"{few['figures']['accuracy']:.2%} ({_interval(few['figures'])})"
    if scratch := found(f"{tier}-scratch-5folds.json"):
        alone = scratch["figures"]
        start = "no data but the training folds"
        rows[f"**{start}, int8**"] = f"`{preset(scratch)}` **{alone['accuracy']:.2%}** ({_interval(alone)})"
        rows[f"{start}: largest file, fold 1, 2, 3, 4, 5"] = (
            f"{max(member['model_bytes'] for member in scratch['members']) / 1e3:.0f} KB, {_folds(alone)}"
        )
        rows |= {f"{start}: {key}": value for key, value in _beside_fp32(f"{tier}-scratch", alone).items()}
    if unknown := found(f"{tier}-unknowns.json"):
        rows["draws of ten labels that are left out"] = str(len(unknown["draws"]))
        for score, means in unknown["figures"].items():
            if score != "accuracy_known":
                seen = ", ".join(
                    f"{what.replace('_', ' ')} {row['auroc']['mean']:.3f}" for what, row in means.items()
                )
                rows[f"AUROC of {score}, known against"] = seen
    if in_turn := found(f"{tier}-unknowns-in-turn.json"):
        means = in_turn["figures"]["pattern"]["left_out"]["auroc"]
        rows["AUROC of pattern, left out, each draw on the next of five folds"] = (
            f"{means['mean']:.3f} ({len(in_turn['draws'])} draws, {means['low']:.3f} to {means['high']:.3f})"
        )
    for _, row, core in timed(tier):
        rows[f"5-s WAV to label, one thread of a core with {core}, against YAMNet"] = (
            f"{row['median_ms']:.1f} ms, **{row['ratio_to_yamnet']:.3f}** of its time "
            f"(after others {row['ratio_after_others']:.3f})"
        )
        rows.setdefault("peak memory of the process", f"{row['peak_rss_mb']} MB")
    return rows


def ablations() -> list[str]:
    """Return what changes of taught models are worth, a table each."""
    lines: list[str] = []
    for tier in TAUGHT:
        tree = json.loads((ROOT / "docs" / "ablations" / f"{tier}.json").read_text())
        lines += [
            *([""] if lines else []),
            f"| `{tier}` | folds 1 and 2 | difference, in points (95 %) | file | epochs | minutes |",
            "|---|---|---|---|---|---|",
        ]
        for row in tree["rows"]:
            away = "-"
            if row["difference"] is not None:
                low, high = (100 * end for end in row["difference_interval_95"])
                away = f"{100 * row['difference']:+.2f} ({low:+.1f} to {high:+.1f})"
            lines.append(
                f"| {row['change']} | {row['accuracy']:.2%} | {away} | {row['model_bytes'] / 1e3:.0f} KB "
                f"| {row['epochs']} | {row['training_s'] / 60:.0f} |"
            )
    return lines


def _beside_fp32(name: str, figures: dict[str, Any]) -> dict[str, str]:
    whole = found(f"{name}-fp32-5folds.json")
    if whole is None:
        return {}
    there = whole["figures"]
    lost = [there["per_fold"][fold] - here for fold, here in figures["per_fold"].items()]
    return {
        "the same in fp32": f"{there['accuracy']:.2%} ({_interval(there)})",
        "lost by int8, in points: mean, worst fold": (
            f"{100 * (there['accuracy'] - figures['accuracy']):.2f}, {100 * max(lost):.2f}"
        ),
    }


def _folds(figures: dict[str, Any]) -> str:
    return ", ".join(f"{accuracy:.2%}" for _, accuracy in sorted(figures["per_fold"].items()))


def _without(figures: dict[str, Any], folds: tuple[str, ...]) -> float:
    """Return the mean over the other folds."""
    rest = [accuracy for fold, accuracy in figures["per_fold"].items() if fold not in folds]
    return sum(rest) / len(rest)


def _interval(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_interval_95"]
    return f"95 %: {low:.1%} to {high:.1%}"


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "README.md": lambda: [*accuracy(), "", *speed()],
    "docs/results.md": systems,
    "docs/serve.md": service,
    "docs/small-models.md": tiers,
    "docs/ablations.md": ablations,
}
"""Page -> what stands between its marks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name, block in BLOCKS.items():
        page = ROOT / name
        text = page.read_text()
        before, rest = text.split(BEGIN)
        new = f"{before}{BEGIN}\n" + "\n".join(block()) + f"\n{END}{rest.split(END)[1]}"
        if args.check and new != text:
            sys.exit(f"{name} is not what docs/results/*.json say; run: python benchmarks/tables.py")
        if not args.check:
            page.write_text(new)
            print(f"{name} written")


if __name__ == "__main__":
    main()
