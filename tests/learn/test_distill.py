"""distill: the loss by hand, a student that learns, resume bit for bit, nothing of the learner in what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import bundle  # noqa: E402
from soundmark.config import DistillConfig, NetworkConfig, TrainConfig, WaveConfig, to_toml  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.errors import ConfigError, TrainingError  # noqa: E402
from soundmark.learn import checkpoint, networks, views  # noqa: E402
from soundmark.learn.batches import label_loss  # noqa: E402
from soundmark.learn.distill import Lesson, distill  # noqa: E402
from soundmark.learn.export import export  # noqa: E402
from soundmark.learn.features import extract  # noqa: E402
from soundmark.learn.taught import Student, Taught, distill_loss  # noqa: E402
from soundmark.learn.teachers import open_teachers  # noqa: E402
from soundmark.preset import Preset  # noqa: E402

pytestmark = pytest.mark.train

THIN = (4, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 10, 10)


def preset(epochs: int = 3, **distilling: Any) -> Preset:
    tiny = synthetic.tiny_preset(epochs=epochs)
    return replace(
        tiny,
        network=NetworkConfig(kind="yamnet", keep=5, channels=THIN, batch_norm=True, dropout=0.1),
        waves=WaveConfig(roll=1.0, gain_db=6.0),
        distill=DistillConfig(**{"views": 3, **distilling}),
    )


def taught(made: Preset, dataset: Dataset, teacher: Path) -> Taught:
    given = ((teacher, 1.0),)
    lesson = Lesson(made, given, open_teachers(given, window_s=1.0), dataset.hashes())
    return lesson(dataset.in_folds([1, 2]), on_bad=pytest.fail)


def test_the_loss_is_the_formula() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]])
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    teacher = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]).log()
    z, labels, p = logits.numpy().astype(float), soft.numpy(), teacher.exp().numpy().astype(float)

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    hard = -(labels * log_softmax(z)).sum(axis=1).mean()
    softened = p ** (1 / 4)
    softened /= softened.sum(axis=1, keepdims=True)
    wanted = 0.8 * 16 * -(softened * log_softmax(z / 4)).sum(axis=1).mean() + 0.2 * hard
    of_labels = label_loss(logits, soft, TrainConfig(label_smoothing=0.0), torch.ones(3))
    found = distill_loss(logits, of_labels, teacher, soft=0.8, temperature=4.0)
    assert of_labels.item() == pytest.approx(hard, rel=1e-6)
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_labels_are_smoothed_and_weighted_where_the_preset_says_so() -> None:
    logits, soft = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weights = torch.tensor([3.0, 1.0])
    smooth = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    plain = torch.nn.functional.cross_entropy(logits, smooth)
    config = TrainConfig(label_smoothing=0.2)
    torch.testing.assert_close(label_loss(logits, soft, config, weights), plain)
    weighed = label_loss(logits, soft, replace(config, balance="weights"), weights)
    torch.testing.assert_close(weighed, torch.nn.functional.cross_entropy(logits, smooth, weight=weights))


def test_what_an_epoch_goes_through(dataset: Dataset, fp32_bundle: Path) -> None:
    source = taught(preset(views_per_epoch=2), dataset, fp32_bundle)
    assert len(source) == 2 * 40 == len(source.targets)
    assert source.weights.tolist() == [1.0] * 5
    x, told = source(torch.tensor([0, 1, 40]), torch.Generator().manual_seed(1))
    assert x.shape == (3, 32, 51)
    assert told.shape == (3, 10)
    np.testing.assert_allclose(told[:, :5].sum(dim=1), 1.0, atol=1e-5)
    again = source(torch.tensor([0, 1, 40]), torch.Generator().manual_seed(1))
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], told)
    seen = {str(source(torch.tensor([0]), torch.Generator().manual_seed(n))[1].tolist()) for n in range(30)}
    assert len(seen) == 3  # as many as there are views


def test_a_teacher_answers_for_the_view_that_the_student_sees(dataset: Dataset, fp32_bundle: Path) -> None:
    """Features and answers stand in the same row: the teacher is right about most views, by its own label."""
    source = taught(preset(mix=0.0), dataset, fp32_bundle)
    rows = torch.arange(len(source))
    _, told = source(rows, torch.Generator().manual_seed(0))
    assert (told[:, 5:].argmax(dim=1) == source.targets).float().mean() > 0.9
    assert torch.equal(told[:, :5].argmax(dim=1), source.targets)


@pytest.fixture(scope="module")
def teacher() -> Path:
    torch.set_num_threads(1)
    return synthetic.shared_bundle("fp32")


def learn(made: Preset, dataset: Dataset, out: Path, teacher: Path, **options: Any) -> Any:
    return distill(made, dataset, teachers=[(teacher, 1.0)], test_fold=5, out=out, **options)


class _Stopped(Exception):
    pass


def stop_after(epoch: int) -> Any:
    def on_epoch(report: Any) -> None:
        if report.epoch == epoch:
            raise _Stopped

    return on_epoch


@pytest.mark.parametrize("embedding", [0.0, 1.0])
def test_stopped_and_resumed_is_the_same_run(
    dataset: Dataset, tmp_path: Path, teacher: Path, embedding: float
) -> None:
    made = preset(embedding=embedding)
    learn(made, dataset, tmp_path / "whole", teacher)
    with pytest.raises(_Stopped):
        learn(made, dataset, tmp_path / "run", teacher, on_epoch=stop_after(2))
    learn(made, dataset, tmp_path / "run", teacher, resume=True)
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == two
    state = checkpoint.load_weights(tmp_path / "run" / "weights.safetensors")
    assert not [name for name in state if "projection" in name or name.startswith("network.")]
    networks.build(made.network, (32, 51), 5).load_state_dict(state)


def test_another_teacher_is_another_run(
    dataset: Dataset, tmp_path: Path, teacher: Path, int8_bundle: Path
) -> None:
    with pytest.raises(_Stopped):
        learn(preset(), dataset, tmp_path / "run", teacher, on_epoch=stop_after(1))
    notes: list[str] = []
    with pytest.raises(TrainingError, match="teachers was") as caught:
        learn(preset(), dataset, tmp_path / "run", int8_bundle, resume=True, on_note=notes.append)
    assert caught.value.code == "other_run"
    assert any("fp32" in note for note in notes)
    with pytest.raises(TrainingError, match=r"distill\.soft was 0\.9, now 0\.5"):
        learn(preset(soft=0.5), dataset, tmp_path / "run", teacher, resume=True)


def test_a_student_learns_from_its_teacher_and_says_whose_it_is(
    dataset: Dataset, tmp_path: Path, teacher: Path
) -> None:
    """Labels weigh nothing here: all that it knows, it has from the teacher."""
    done: list[int] = []
    made = preset(24, soft=1.0)
    run = learn(made, dataset, tmp_path / "run", teacher, on_clip=done.append)
    assert sum(done) == 80 * 3
    test = dataset.in_folds([5])
    store = extract(test, made.frontend, made.window)
    network = networks.build(made.network, (32, 51), 5).eval()
    network.load_state_dict(checkpoint.load_weights(run.path / "weights.safetensors"))
    with torch.no_grad():
        heard = network(torch.from_numpy(store.frontend.finish(store.linear[:].copy()))).argmax(1)
    assert (heard == torch.tensor(test.targets)).float().mean() >= 0.5  # 20 clips, chance is 0.2
    written, agreement = export(run, tmp_path / "bundle", data=dataset)
    assert agreement.torch_onnx_max_difference < 1e-4
    said = written.manifest.provenance["training"]["teachers"]
    assert [one["digest"] for one in said] == [bundle.read(teacher).digest]
    assert "taught by | tiny" in (tmp_path / "bundle" / "README.md").read_text()
    assert b"BatchNormalization" not in written.model


def test_processes_make_the_same_views(
    dataset: Dataset, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ((teacher, 1.0),)
    files = []
    for name, jobs in (("one", 1), ("two", 2)):
        monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / name))
        opened = open_teachers(given, window_s=1.0)
        lesson = Lesson(preset(views=2), given, opened, dataset.hashes(), jobs)
        done: list[int] = []
        lesson(dataset.in_folds([1]), progress=done.append, on_bad=pytest.fail)
        assert sum(done) == 2 * 20
        blocks = sorted((tmp_path / name).rglob("*.npy"))
        files.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in blocks])
    assert len(files[0]) == 4
    assert files[0] == files[1]


def test_inner_runs_want_inner_teachers(dataset: Dataset, tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(TrainingError, match="fold 4") as caught:
        learn(preset(), dataset, tmp_path / "run", teacher, train_folds=(1, 2, 3))
    assert caught.value.code == "leak"
    assert not (tmp_path / "run").exists()


def test_the_test_fold_is_never_read(dataset: Dataset, tmp_path: Path, teacher: Path) -> None:
    from dataclasses import replace as with_

    gone = tuple(
        with_(clip, path=tmp_path / "gone.wav") if clip.fold == 5 else clip for clip in dataset.clips
    )
    run = learn(preset(epochs=1), with_(dataset, clips=gone), tmp_path / "run", teacher)
    assert run.info["finished"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": TrainConfig(patience=2)}, "patience"),
        ({"network": NetworkConfig(channels=(8, 12)), "distill": DistillConfig(embedding=1.0)}, "embedding"),
    ],
)
def test_what_cannot_be_taught_is_refused(
    dataset: Dataset, tmp_path: Path, teacher: Path, changes: dict[str, Any], said: str
) -> None:
    made = replace(preset(), **changes)
    with pytest.raises(ConfigError, match=said):
        learn(made, dataset, tmp_path / "run", teacher)


def test_embeddings_need_a_teacher_with_one(dataset: Dataset, int8_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="fp32"):
        taught(preset(embedding=1.0), dataset, int8_bundle)


def test_embeddings_are_standardised_and_their_loss_is_added(dataset: Dataset, fp32_bundle: Path) -> None:
    source = taught(preset(embedding=2.0), dataset, fp32_bundle)
    drawn = [source(torch.arange(40), torch.Generator().manual_seed(n))[1][:, 10:] for n in range(8)]
    told = torch.cat(drawn)
    assert told.mean(dim=0).abs().max() < 0.3
    assert 0.5 < told.std(dim=0).median() < 1.5
    torch.manual_seed(0)
    network = networks.build(preset().network, (32, 51), 5)
    student = source.learner(network).eval()
    assert isinstance(student, Student)
    x, told = source(torch.arange(8), torch.Generator())
    out = student(x)
    torch.testing.assert_close(out[:, :5], network.eval()(x))
    plain = taught(preset(), dataset, fp32_bundle)
    extra = torch.nn.functional.huber_loss(out[:, 5:], told[:, 10:])
    torch.testing.assert_close(source.loss(out, told), plain.loss(out[:, :5], told[:, :10]) + 2 * extra)


def test_the_level_of_the_teachers_logits_is_learnt_where_it_says_something(
    dataset: Dataset, fp32_bundle: Path, make_bundle: Any
) -> None:
    source, plain = (taught(preset(logits=weight), dataset, fp32_bundle) for weight in (2.0, 0.0))
    _, told = source(torch.arange(8), torch.Generator())
    out = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    extra = torch.nn.functional.huber_loss(out, told[:, 5:])
    torch.testing.assert_close(source.loss(out, told), plain.loss(out, told) + 2 * extra)
    assert plain.loss(out, told + torch.tensor([0.0] * 5 + [9.0] * 5)) == pytest.approx(
        plain.loss(out, told).item(), rel=1e-5
    )


def test_the_verb(dataset: Dataset, tmp_path: Path, teacher: Path, call: Any) -> None:
    (tmp_path / "p.toml").write_text(to_toml(preset()))
    args = ["distill", tmp_path / "p.toml", "--data", dataset.root, "--teacher", f"{teacher}=0.5"]
    args += ["--teacher", f"{teacher}=1.5"]
    status, _, said = call(*args, "--test-fold", 4, "--out", tmp_path / "run")
    assert (status, said.split(":")[1].strip()) == (1, "leak")
    more = ["--test-fold", 5, "--out", tmp_path / "run", "--epochs", 1, "--views", 2]
    status, out, said = call(*args, *more, "--export", tmp_path / "bundle")
    assert status == 0, said
    assert "epoch 1/1" in said
    manifest = bundle.read(tmp_path / "bundle").manifest
    assert [one["weight"] for one in manifest.provenance["training"]["teachers"]] == [0.25, 0.75]
    status, out, _ = call(*args, *more, "--print-config")
    assert status == 0
    assert "views = 2" in out
    status, _, said = call("distill", tmp_path / "p.toml", "--data", dataset.root)
    assert (status, "--teacher" in said) == (2, True)


def test_views_are_not_made_twice(
    dataset: Dataset, fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(preset(), dataset, fp32_bundle)
    monkeypatch.setattr(views, "render", pytest.fail)
    taught(preset(soft=0.2, temperature=3.0), dataset, fp32_bundle)
