"""The model card (README.md of a bundle), written from its manifest."""

from __future__ import annotations

from soundmark.bundle import Manifest


def model_card(manifest: Manifest, model_bytes: int) -> str:
    """Return the card as Markdown: what it is, what it was trained on, what it must not be used for."""
    training = manifest.provenance["training"]
    export = manifest.provenance["export"]
    agreement = export["agreement"]
    start = f"| started from | {training['start']} |\n" if "start" in training else ""
    took = f"| training took | {training['seconds']:,.0f} s |\n" if "seconds" in training else ""
    taught = "".join(
        f"| taught by | {one['name']} `{one['digest'][:16]}`, weight {one['weight']:g}, folds "
        f"{', '.join(map(str, one['train_folds']))}, outside data: {', '.join(one['external']) or 'none'} |\n"
        for one in training.get("teachers", [])
    )
    aside = training.get("test_fold")
    kept = (
        "none: it has learnt from every clip"
        if aside is None
        else f"{aside} (never looked at while training, choosing or calibrating)"
    )
    return f"""# {manifest.name}

Recognises {len(manifest.labels)} environmental sounds in windows of {manifest.window.window_s:g} s.
{export["arithmetic"]}, {model_bytes:,} bytes, written by {manifest.created_by}.

| | |
|---|---|
| preset, network | `{training["preset"]}`, {training["network"]} |
| data | {training["data"]}, folds {", ".join(map(str, training["train_folds"]))} ({training["n_clips"]} clips) |
| fold kept aside | {kept} |
| epochs, seed | {training["epochs"]}, {training["seed"]} |
| data digest | `{training["data_digest"][:16]}` |
{start}{taught}{took}| front end | {_front_end(manifest)} |
| int8 against fp32 | {agreement["int8_top1_agreement"]:.1%} equal top labels ({agreement["windows"]} windows) |

{_accuracy(manifest, aside)}

## Limits

It knows {len(manifest.labels)} sounds and gives every recording the nearest of them; what is not on that list is called
unknown only where `soundmark info` shows a threshold, and then not always. Trained on field recordings of 5 s
from one collection: expect less on other microphones, rooms and mixtures. Not for decisions about people's
safety on its own.

## Licence

{manifest.licence}. ESC-50: K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", ACM Multimedia 2015.

## Labels

{", ".join(manifest.labels)}
"""


def _accuracy(manifest: Manifest, aside: int | None) -> str:
    """Return what is known about its accuracy, or how to find out."""
    folds = manifest.provenance.get("folds")
    if folds:
        low, high = folds["accuracy_interval_95"]
        return (
            f"Made the same way without each of {len(folds['folds'])} folds in turn, and scored on that fold, its "
            f"like has named\n**{folds['accuracy']:.2%}** of {folds['n_clips']} clips (95 %: {low:.1%} to {high:.1%}; "
            f"int8; report\n`{folds['report']}`). This one has learnt from all of them, "
            "so nothing that it says about them is a figure."
        )
    run = (
        "`soundmark cv`, which makes the same without each fold in turn"
        if aside is None
        else f"`soundmark evaluate --model DIR --data ESC50 --folds {aside}`"
    )
    return f"Accuracy is not in this card, because it belongs to a report: run\n{run}."


def _front_end(manifest: Manifest) -> str:
    front = manifest.frontend
    if front.kind == "wave":
        return f"wave, {front.sample_rate} Hz"
    return f"{front.kind}, {front.sample_rate} Hz, n_fft {front.n_fft}, hop {front.hop_length}, {front.n_rows} rows"
