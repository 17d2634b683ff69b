"""splits: no strategy lets a source or a copy stand on both sides, a leak is stamped for good, a split is a file."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from soundmark.dataset import ESC50_SHARED_SOURCES, Clip, Dataset
from soundmark.errors import DatasetError
from soundmark.sources import open_dataset
from soundmark.splits import apply_split, folded, make_split, read_split
from soundmark.strategies import STRATEGIES, TEST, TRAIN

CASES = 1000


def dataset(clips: list[Clip], **changes: Any) -> Dataset:
    labels = tuple(sorted({clip.label for clip in clips}))
    return replace(Dataset("mine", Path("mine"), labels, tuple(clips), "table"), **changes)


def clips(n: int, *, labels: int = 2, sources: int | None = None, **same: Any) -> list[Clip]:
    """Return clips whose source goes round in ``sources``, and whose label follows from it."""
    sources = sources or n
    return [
        replace(Clip(f"c{i}", Path(f"c{i}"), f"l{i % sources % labels}", 0, f"s{i % sources}"), **same)
        for i in range(n)
    ]


def own(data: Dataset) -> dict[str, str]:
    """Return hashes of files that all differ."""
    return {clip.name: clip.name for clip in data.clips}


def both_sides(data: Dataset, hashes: dict[str, str], sides: dict[str, int]) -> set[str]:
    """Return the sources and files that are on several sides: written down here anew, on purpose."""
    found: dict[str, set[int]] = defaultdict(set)
    for clip in data.clips:
        found[f"source {clip.source}"].add(sides[clip.name])
        found[f"file {hashes[clip.name]}"].add(sides[clip.name])
    return {what for what, on in found.items() if len(on) > 1}


def random_case(rng: random.Random) -> tuple[Dataset, dict[str, str]]:
    n = rng.randint(2, 40)
    n_labels, n_sources, n_files = rng.randint(1, 5), rng.randint(1, n), rng.randint(1, 2 * n)
    with_folds, with_times, by_source = rng.random() < 0.5, rng.random() < 0.3, rng.random() < 0.5
    of_source = {s: (rng.randrange(n_labels), rng.randint(1, 5)) for s in range(n_sources)}
    made = []
    for i in range(n):
        source = rng.randrange(n_sources)
        label, fold = of_source[source] if by_source else (rng.randrange(n_labels), rng.randint(1, 5))
        when = str(rng.randint(0, 50)) if with_times else ""
        made.append(Clip(f"c{i}", Path(f"c{i}"), f"l{label}", fold if with_folds else 0, f"s{source}", when))
    data = dataset(made)
    return data, {
        clip.name: str(rng.randrange(n_files)) if rng.random() < 0.2 else clip.name for clip in made
    }


def test_no_strategy_puts_a_source_or_a_copy_on_both_sides() -> None:
    """B4: over random metadata, every split that is made is clean; those that cannot be are refused."""
    rng = random.Random(4)
    made: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for case in range(CASES):
        data, hashes = random_case(rng)
        strategy = STRATEGIES[case % len(STRATEGIES)]
        options: dict[str, Any] = {
            "test_size": rng.choice([0.1, 0.2, 0.5]), "folds": rng.randint(2, 5), "seed": rng.randrange(99)
        }  # fmt: skip
        try:
            split = make_split(data, strategy, hashes=hashes, **options)
        except DatasetError as error:
            refused[f"{strategy} {error.code}"] += 1
            continue
        made[strategy] += 1
        assert both_sides(data, hashes, split.folds) == set()
        assert split.stamps == ()
        assert split.folds.keys() == {clip.name for clip in data.clips}
        applied = apply_split(data, split, hashes=hashes)
        assert [clip.fold for clip in applied.clips] == [split.folds[clip.name] for clip in data.clips]
        assert applied.split == split.sha256
    assert min(made[strategy] for strategy in ("group", "group-kfold", "time")) > 50, made
    assert made["official"] > 20
    assert made["stratified"] < 10  # hardly ever clean
    codes = {f"{strategy} bad_split" for strategy in STRATEGIES}
    assert (
        {"official leak", "stratified leak"} <= refused.keys() <= codes | {"official leak", "stratified leak"}
    )


def test_with_allow_leak_the_same_splits_are_stamped_exactly_where_they_leak() -> None:
    rng = random.Random(5)
    leaking = 0
    for _ in range(100):
        data, hashes = random_case(rng)
        try:
            split = make_split(data, "stratified", hashes=hashes, allow_leak=True)
        except DatasetError:  # too few clips of a label
            continue
        leaks = bool(both_sides(data, hashes, split.folds))
        assert bool(split.stamps) == leaks
        assert all(stamp.startswith("LEAKY: ") for stamp in split.stamps)
        assert apply_split(data, split, hashes=hashes).stamps == split.stamps
        leaking += leaks
    assert leaking > 20


def test_meaningless_labels_score_chance_unless_the_split_leaks() -> None:
    """B4: labels drawn per source, features that name the source: only a leak can tell the label (chance 10 %)."""
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    n_sources, takes, n_labels = 3000, 3, 10  # one standard deviation of the accuracy: 0.55 points
    label_of = rng.integers(0, n_labels, n_sources)
    voice = rng.standard_normal((n_sources, 6))
    source = np.repeat(np.arange(n_sources), takes)
    x = voice[source] + 0.01 * rng.standard_normal((len(source), 6))
    y = label_of[source]
    data = dataset([Clip(f"c{i}", Path(f"c{i}"), f"l{y[i]}", 0, f"s{s}") for i, s in enumerate(source)])

    def accuracy(strategy: Any, **options: Any) -> float:
        folds = np.array(list(make_split(data, strategy, hashes=own(data), **options).folds.values()))
        right = 0
        tests = (TEST,) if strategy == "stratified" else np.unique(folds)
        for fold in tests:
            model = KNeighborsClassifier(1).fit(x[folds != fold], y[folds != fold])
            right += int((model.predict(x[folds == fold]) == y[folds == fold]).sum())
        return right / int(np.isin(folds, tests).sum())

    assert abs(accuracy("group-kfold") - 1 / n_labels) < 0.02
    assert accuracy("stratified", allow_leak=True) > 0.9  # what a random split would have claimed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_arguments_give_the_same_split_and_another_seed_another(strategy: Any) -> None:
    data = dataset([replace(clip, fold=1 + i % 2) for i, clip in enumerate(clips(40))])
    one = make_split(data, strategy, hashes=own(data))
    assert make_split(data, strategy, hashes=own(data)) == one
    assert make_split(data, strategy, hashes=own(data)).sha256 == one.sha256
    other = make_split(data, strategy, hashes=own(data), seed=1)
    assert (other.folds == one.folds) == (strategy in ("official", "time"))
    assert other.sha256 != one.sha256


@pytest.mark.parametrize("strategy", ["stratified", "group"])
@pytest.mark.parametrize("size", [0.1, 0.25, 0.5])
def test_sides_have_the_size_that_was_asked_for_and_every_label_its_share(strategy: Any, size: float) -> None:
    data = dataset(clips(200, labels=4))
    sides = make_split(data, strategy, test_size=size, hashes=own(data)).folds
    tested = Counter(clip.label for clip in data.clips if sides[clip.name] == TEST)
    assert sum(tested.values()) == pytest.approx(200 * size, abs=2)
    tolerance = 1 if strategy == "stratified" else 8  # a grouped draw is the most even of fifty
    assert all(abs(tested[label] - 50 * size) <= tolerance for label in data.labels)


def test_folds_are_stratified_and_none_is_empty() -> None:
    data = dataset(clips(100, labels=4, sources=50))
    split = make_split(data, "group-kfold", folds=5, hashes=own(data))
    n = Counter((split.folds[clip.name], clip.label) for clip in data.clips)
    assert set(split.folds.values()) == {1, 2, 3, 4, 5}
    assert all(3 <= count <= 7 for count in n.values())
    assert len(n) == 20
    few = dataset(clips(6, labels=3, sources=6))
    assert set(make_split(few, "group-kfold", folds=5, hashes=own(few)).folds.values()) == {1, 2, 3, 4, 5}


def test_time_tests_on_what_came_last() -> None:
    dates = [f"2024-05-{1 + i:02d}T10:00:00" for i in range(20)]
    data = dataset([replace(clip, time=dates[19 - i]) for i, clip in enumerate(clips(20))])
    sides = make_split(data, "time", test_size=0.2, hashes=own(data)).folds
    assert {name for name, side in sides.items() if side == TEST} == {"c0", "c1", "c2", "c3"}
    plain = dataset(clips(20))  # no times: the last ones of every label
    sides = make_split(plain, "time", test_size=0.2, hashes=own(plain)).folds
    assert {name for name, side in sides.items() if side == TEST} == {"c16", "c17", "c18", "c19"}
    tied = dataset([replace(clip, source=f"s{i % 4}") for i, clip in enumerate(clips(20))])
    with pytest.raises(DatasetError, match="began earlier") as caught:
        make_split(tied, "time", hashes=own(tied))
    assert caught.value.code == "bad_split"
    for when in ("soon", "nan", ""):
        odd = dataset([replace(clip, time=when if i == 3 else "5") for i, clip in enumerate(clips(8))])
        with pytest.raises(DatasetError, match="c3: time"):
            make_split(odd, "time", hashes=own(odd))


def test_copies_in_two_folds_are_a_leak_of_the_official_folds() -> None:
    """D5: the same content under two names."""
    data = dataset([replace(clip, fold=1 + i % 2) for i, clip in enumerate(clips(8))])
    hashes = {**own(data), "c3": "same", "c4": "same"}
    with pytest.raises(DatasetError, match="c3") as caught:
        make_split(data, "official", hashes=hashes)
    assert caught.value.code == "leak"
    split = make_split(data, "official", hashes=hashes, allow_leak=True)
    assert split.stamps[0].startswith("LEAKY: 1 x file with copies")
    assert set(both_sides(data, hashes, make_split(data, "group", hashes=hashes).folds)) == set()


def test_the_four_sources_of_esc50_count_as_a_leak_under_any_folds_but_its_own() -> None:
    shared = sorted(ESC50_SHARED_SOURCES)
    made = [
        Clip(f"c{i}", Path(f"c{i}"), f"l{i % 2}", 1 + i % 2, shared[i // 2] if i < 8 else f"s{i}")
        for i in range(24)
    ]
    data = dataset(made, layout="ESC-50")
    assert make_split(data, "official", hashes=own(data)).stamps == ()
    with pytest.raises(DatasetError, match="source in more than one fold"):
        make_split(replace(data, layout="table"), "official", hashes=own(data))
    for strategy in ("group", "group-kfold"):
        split = make_split(data, strategy, hashes=own(data))  # type: ignore[arg-type]
        assert both_sides(data, own(data), split.folds) == set()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"test_size": 0.0}, "test size 0.0"),
        ({"test_size": 1.0}, "test size"),
        ({"test_size": float("nan")}, "test size"),
        ({"folds": 1}, "1 folds"),
        ({"folds": 21}, "at least 21"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed"),
        ({"strategy": "random"}, "random"),
        ({"strategy": "official"}, "has no official folds"),
    ],
)
def test_impossible_splits_are_refused_with_a_reason(options: dict[str, Any], word: str) -> None:
    data = dataset(clips(20))
    with pytest.raises(DatasetError, match=word) as caught:
        make_split(data, hashes=own(data), **options)
    assert caught.value.code == "bad_split"


def test_a_label_that_is_missing_on_a_side_is_a_warning() -> None:
    """D11: a class of one clip."""
    data = dataset([*clips(20), Clip("rare", Path("rare"), "rare", 0, "r")])
    split = make_split(data, "group", hashes=own(data))
    side = {TRAIN: "the test side", TEST: "the training side"}[split.folds["rare"]]
    assert any("rare" in warning and side in warning for warning in split.warnings)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(touch: Callable[..., Path]) -> Path:
    return touch(*(f"{label}/{i}.wav" for label in ("cat", "dog") for i in range(10)))


def test_a_split_is_a_file_that_says_everything(root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    file = tmp_path / "split.json"
    done = call("data", "split", root, "--out", file, "--seed", 3)
    assert done.status == 0
    assert done.out.count("fold ") == 5
    tree = json.loads(file.read_text())
    assert tree["soundmark_split"] == 1
    assert (tree["strategy"], tree["seed"], tree["data"]) == ("group-kfold", 3, "data")
    data = open_dataset(root)
    assert tree["data_digest"] == data.digest()
    split = read_split(file)
    assert split == make_split(data, seed=3)
    assert tree["sha256"] == split.sha256
    assert split.sha256[:12] in done.out
    assert apply_split(data, file).folds == (1, 2, 3, 4, 5)
    assert apply_split(data, file).name == "data (grouped split)"


def test_a_split_with_two_sides_reads_as_such(root: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    file = tmp_path / "split.json"
    assert "test side" in call("data", "split", root, "--strategy", "group", "--out", file).out
    assert set(json.loads(file.read_text())["clips"].values()) == {"train", "test"}
    assert apply_split(open_dataset(root), file).folds == (TRAIN, TEST)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(seed=9),
        lambda tree: tree.update(stamps=["LEAKY: gone"]),
        lambda tree: tree["clips"].update({"cat/0.wav": 9}),
        lambda tree: tree["clips"].update({"cat/0.wav": True}),
        lambda tree: tree["clips"].update({"cat/0.wav": 0}),
        lambda tree: tree["clips"].update({"cat/0.wav": "test"}),
        lambda tree: tree.update(clips=[]),
        lambda tree: tree.update(strategy="mine"),
        lambda tree: tree.pop("sha256"),
        lambda tree: tree.clear(),
    ],
)
def test_an_edited_split_is_refused(root: Path, tmp_path: Path, change: Callable[[Any], object]) -> None:
    file = tmp_path / "split.json"
    make_split(open_dataset(root)).write(file)
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(DatasetError) as caught:
        read_split(file)
    assert caught.value.code == "bad_split"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_split_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.json").write_bytes(content)
    for path in (tmp_path / "split.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(DatasetError) as caught:
            read_split(path)
        assert caught.value.code == "bad_split"


def test_a_split_is_for_the_data_that_it_was_made_for(root: Path) -> None:
    split = make_split(open_dataset(root))
    (root / "cat" / "new.wav").write_bytes(b"new")
    (root / "dog" / "3.wav").unlink()
    with pytest.raises(DatasetError, match=r"does not know: cat/new.wav.*is gone: dog/3.wav"):
        apply_split(open_dataset(root), split)
    (root / "cat" / "new.wav").unlink()
    (root / "dog" / "3.wav").write_bytes(b"other")
    with pytest.raises(DatasetError, match="files, labels, folds or sources changed") as caught:
        apply_split(open_dataset(root), split)
    assert caught.value.code == "bad_split"


def test_a_leak_cannot_be_washed_off(root: Path) -> None:
    """A split without its stamp is refused even where its hash fits."""
    (root / "cat" / "1.wav").write_bytes((root / "cat" / "0.wav").read_bytes())
    data = open_dataset(root)
    for seed in range(99):
        split = make_split(data, "stratified", allow_leak=True, seed=seed)
        if split.stamps:
            break
    with pytest.raises(DatasetError, match="does not say so"):
        apply_split(data, replace(split, stamps=()))


def test_data_without_folds_gets_the_same_five_every_time(root: Path) -> None:
    data, split = folded(open_dataset(root))
    assert split is not None
    assert data.folds == (1, 2, 3, 4, 5)
    assert folded(open_dataset(root)) == (data, split)
    with_folds = replace(
        data, split="", clips=tuple(replace(c, fold=1 + i % 2) for i, c in enumerate(data.clips))
    )
    again, none = folded(with_folds)
    assert none is None
    assert again.clips == with_folds.clips


def test_folds_of_ones_own_that_leak_are_refused_or_stamped(root: Path) -> None:
    (root / "cat" / "1.wav").write_bytes((root / "cat" / "0.wav").read_bytes())
    data = open_dataset(root)
    data = replace(data, clips=tuple(replace(c, fold=1 + i % 2) for i, c in enumerate(data.clips)))
    with pytest.raises(DatasetError, match=r"cat/0\.wav") as caught:
        folded(data)
    assert caught.value.code == "leak"
    assert folded(data, allow_leak=True)[0].stamps[0].startswith("LEAKY: ")


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from soundmark.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "sklearn", None)
    data = dataset(clips(20))
    with pytest.raises(MissingExtraError, match=r"pip install 'soundmark\[data\]'"):
        make_split(data, hashes=own(data))
