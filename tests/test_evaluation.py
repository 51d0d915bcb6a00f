"""Evaluation: the same numbers however often it was interrupted, and none without its conditions."""

import dataclasses
import json
import re
import subprocess
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
import scipy.stats
from helpers import Factors, Labelled, fails, run_of

from ddpm_jax.cli import main
from ddpm_jax.cli.evaluate import choose_source
from ddpm_jax.data import Arrays, Digits, Folder, Npz
from ddpm_jax.data.deferred import Deferred
from ddpm_jax.data.splits import held_out_split
from ddpm_jax.devices import precision
from ddpm_jax.errors import RunError
from ddpm_jax.evaluation import evaluate as evaluations
from ddpm_jax.evaluation import provenance, samples, scores
from ddpm_jax.evaluation import reference as references
from ddpm_jax.evaluation.chart import Line, chart, log_ticks, ticks
from ddpm_jax.evaluation.evaluate import Evaluation, evaluate
from ddpm_jax.evaluation.labels import ClassCounts
from ddpm_jax.evaluation.reference import Reference, class_counts
from ddpm_jax.evaluation.report import Report, Score, read_report
from ddpm_jax.evaluation.samples import Drawing, Features, draw
from ddpm_jax.evaluation.scores import Comparison
from ddpm_jax.features.extractor import of_function
from ddpm_jax.metrics import kernel
from ddpm_jax.metrics.frechet import load_moments, save_moments
from ddpm_jax.run import Run
from ddpm_jax.storage.paths import cache_folder
from ddpm_jax.storage.pictures import save_png

ALL = Evaluation(metrics=evaluations.METRICS, num_samples=40, batch_size=16, bound_terms=2)


@pytest.fixture(scope="module")
def run(tiny, one):
    """Of a network that takes no time to compile."""
    return run_of(tiny, Labelled(), one)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def flat(images):
    """Features of a test: the mean of each quarter of an image, and ten scores for classes."""
    quarters = images.reshape(len(images), 2, 4, 2, 4).mean((2, 4)).reshape(len(images), 4)
    return quarters, np.pad(quarters, ((0, 0), (0, 6)))


@pytest.fixture(scope="module")
def extractor():
    return of_function(flat)


@pytest.fixture(scope="module")
def reported(run, extractor, tmp_path_factory):
    """(report, place) of an evaluation that nothing interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return *evaluate(run, folder, extractor, ALL), folder


@pytest.mark.slow
def test_image_i_is_the_same_however_many_are_drawn_and_from_wherever_one_goes_on(run, tmp_path):
    drawing = Drawing(run, seed=3)
    few, all_at_once = draw(drawing, tmp_path / "few", 16, 16), draw(drawing, tmp_path / "all", 48, 16)
    assert (len(few), len(all_at_once)) == (16, 48)
    more = draw(drawing, tmp_path / "few", 40, 16)
    np.testing.assert_array_equal(more[:], all_at_once[:])
    expected = run.sample(jax.random.key(3), 16, first_index=16)
    np.testing.assert_allclose(all_at_once[16:32], 127.5 * (expected + 1), atol=0.51)


def test_the_digest_of_a_drawing_changes_with_all_that_changes_an_image(run):
    def digest(**changes):
        return provenance.digest(Drawing(**{"run": run, **changes}).conditions)

    experiment = dataclasses.replace(run.experiment, sampler=dataclasses.replace(run.experiment.sampler, num_steps=3))
    params = jax.tree.map(lambda leaf: leaf + 1e-3, run.params)
    others = [
        digest(seed=1),
        digest(guidance=2.0),
        digest(run=dataclasses.replace(run, experiment=experiment)),
        digest(run=dataclasses.replace(run, params=params)),
    ]
    assert len({digest(), *others}) == 5
    longer = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, num_steps=7, batch_size=3))
    assert digest(run=longer) == digest()


# Labels.


def with_labels(counts, **changes):
    return ClassCounts(**{"counts": counts, "of": "some", **changes})


def test_labels_are_drawn_image_by_image_as_frequently_as_the_classes_are(key):
    counts = with_labels((0, 30, 10, 0, 60, 0))
    whole = counts.draw(key, 0, 5000)
    np.testing.assert_array_equal(np.concatenate([counts.draw(key, 0, 7), counts.draw(key, 7, 100)]), whole[:107])
    np.testing.assert_array_equal(np.unique(whole), [1, 2, 4])
    assert scipy.stats.chisquare(np.bincount(whole)[[1, 2, 4]], [1500, 500, 3000]).pvalue > 1e-3
    assert np.any(whole != counts.draw(jax.random.key(1), 0, 5000))
    pairs = np.bincount(6 * whole[:-1] + whole[1:], minlength=36).reshape(6, 6)[[1, 2, 4]][:, [1, 2, 4]]
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-3  # images are independent


@pytest.mark.parametrize("counts", [(0, 0, 5, 0, 0, 0, 0, 5, 0, 0), None], ids=["drawn", "in turn"])
def test_the_images_have_the_labels_that_were_drawn(run, tmp_path, monkeypatch, counts):
    """In the order of the images, also where the drawing goes on."""
    given, counts = [], counts and with_labels(counts)

    def drawn(self, key, n, *, labels, first_index, **_):
        given.append((first_index, labels))
        return np.zeros((n, 8, 8, 1), np.float32)

    monkeypatch.setattr(Run, "sample", drawn)
    for n in (16, 64):
        draw(Drawing(run, seed=3, counts=counts), tmp_path, n, 16)
    assert [first for first, _ in given] == [0, 16, 32, 48]
    expected = np.arange(64) % 10 if counts is None else counts.draw(jax.random.key(3), 0, 64)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in given]), expected)


def test_images_of_other_labels_are_not_taken(run):
    counts = [None, with_labels((1,) * 10), with_labels((1,) * 9 + (2,))]
    assert len({provenance.digest(Drawing(run, counts=of).conditions) for of in counts}) == 3


class Named:
    """Stands for a `Reference`."""

    def __init__(self, name, labels):
        self.name, self.labels = name, None if labels is None else np.array(labels, np.int32)


def test_labels_follow_the_reference_else_the_training_data_else_nothing(unchecked):
    reference, training, without = Named("a", [0, 2, 2]), Named("b", [1]), Named("c", None)
    assert class_counts(3, reference, training).counts == (1, 0, 2)
    found = class_counts(3, without, training)
    assert (found.counts, found.of) == ((0, 1, 0), "b, as c has no labels")
    for training in (None, without):
        assert class_counts(3, without, training) == ClassCounts((1, 1, 1), "equal shares, as c has no labels")
    with pytest.raises(ValueError, match="the label of image 1 of a is 2; expected 0 to 1, a class of the network"):
        class_counts(2, reference, training)


def test_labels_of_a_source_on_disk_are_read_once(tmp_path, extractor, monkeypatch):
    for i in range(6):
        (tmp_path / str(i % 3)).mkdir(exist_ok=True)
        save_png(tmp_path / str(i % 3) / f"{i}.png", Digits().arrays["image"][i])
    source = Folder(str(tmp_path), labels=True)
    np.testing.assert_array_equal(Reference(source, extractor).labels, [0, 0, 1, 1, 2, 2])
    monkeypatch.setattr(references.stream, "gather", lambda *_: pytest.fail("read again"))
    np.testing.assert_array_equal(Reference(source, extractor).labels, [0, 0, 1, 1, 2, 2])
    assert Reference(Folder(str(tmp_path)), extractor).labels is None


@pytest.mark.parametrize("how", ["reference", "balanced", "unconditional"])
def test_the_kernel_distance_knows_which_rows_are_not_independent(run, extractor, monkeypatch, how):
    """The reference's, whose class frequencies the labels follow; the samples', where the classes come in turn."""
    given = []
    monkeypatch.setattr(kernel, "kernel_distance", lambda *_, **options: given.append(options) or Kernel)
    if how == "unconditional":
        run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, net=Factors()))
    reference, held_out = (Reference(Digits(split=split), extractor) for split in ("train", "test"))
    for of in (reference, held_out):
        vars(of)["features"] = Features(np.zeros((len(of.source), 4)))
        vars(of)["about"] = {"count": len(of.source)}
    counts = with_labels((1,) * 10) if how == "reference" else None
    seen = Comparison(Features(np.zeros((40, 4))), reference, held_out, reference, Drawing(run, counts=counts))
    scores.kernel(seen)
    classes, held_out_classes = Digits().arrays["label"], Digits(split="test").arrays["label"]
    expected = {"reference": (None, classes), "balanced": (np.arange(40) % 10, classes), "unconditional": (None, None)}
    for found, wanted in zip((given[0]["x_strata"], given[0]["y_strata"]), expected[how], strict=True):
        np.testing.assert_array_equal(found, wanted)
    places = np.linspace(0, 359, 40).astype(int)
    wanted = None if how == "unconditional" else held_out_classes[places]
    np.testing.assert_array_equal(given[1]["x_strata"], wanted)


class Kernel:
    """Stands for a kernel distance."""

    value = standard_error = 0.0


SLOW = [pytest.param(where, marks=pytest.mark.slow) for where in ("drawing", "features", "writing")]


@pytest.mark.parametrize("where", ["bits", *SLOW])
def test_interrupted_and_resumed_it_gives_the_same_files(run, extractor, reported, tmp_path, monkeypatch, where):
    _, place, folder = reported
    target, name = {
        "drawing": (samples, "to_pixels"),
        "features": (samples, "extract"),
        "bits": (evaluations.Shards, "append"),
        "writing": (evaluations.page, "page"),
    }[where]
    kept, calls = getattr(target, name), []

    def fails_later(*arguments, **options):
        calls.append(name)
        if len(calls) == (1 if where == "writing" else 2):
            raise KeyboardInterrupt
        return kept(*arguments, **options)

    monkeypatch.setattr(target, name, fails_later)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, tmp_path, extractor, ALL)
    monkeypatch.setattr(target, name, kept)
    _, again = evaluate(run, tmp_path, extractor, ALL)
    for file in ("report.json", "report.html"):
        assert (again / file).read_bytes() == (place / file).read_bytes()
    assert again.relative_to(tmp_path) == place.relative_to(folder)


def test_a_second_evaluation_makes_nothing_again(run, extractor, reported, monkeypatch):
    report, place, folder = reported
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for target, name in ((samples, "extract"), (samples, "to_pixels"), (evaluations.Shards, "append")):
        monkeypatch.setattr(target, name, lambda *_, **__: pytest.fail("made again"))
    assert evaluate(run, folder, extractor, ALL) == (report, place)


def test_a_report_says_all_that_its_numbers_depend_on(reported, run):
    report, place, _ = reported
    stored = json.loads((place / "report.json").read_text())
    said = stored["conditions"]
    assert said["num_samples"] == 40
    assert said["reference"]["split"] == "train"
    assert said["reference"]["count"] == 1437
    assert said["held_out"]["count"] == 360
    assert said["features"] == {"name": "flat", "digest": said["features"]["digest"], "preprocessing": "its own"}
    assert re.fullmatch("[0-9a-f]{64}", said["features"]["digest"])
    assert said["drawing"]["sampler"]["num_steps"] == said["evaluations"] == 2
    assert said["drawing"]["ema"] == run.ema
    assert said["drawing"]["seed"] == 0
    assert "round" in said["drawing"]["rounding"]
    assert set(said["code"]) == {"ddpm_jax", "commit", "jax", "device"}
    assert [score.name for score in report.scores] == list(stored["metrics"])
    assert read_report((place / "report.json").read_text()) == report
    np.testing.assert_array_equal(said["drawing"]["labels"]["counts"], np.bincount(Digits().arrays["label"]))
    text = report.as_text()
    assert "labels: each drawn from the class frequencies of Digits train (9.88%, " in text
    for word in ("flat", "Ddim(num_steps=2", "1,437 images", "360 images", "seed 0", "average 0.9", "step 6"):
        assert word in text


def test_the_score_of_few_samples_is_not_called_fid(reported):
    names = [score.name for score in reported[0].scores]
    assert "FD-40" in names
    assert not any("FID" in name for name in names)
    score = reported[0].scores[names.index("FD-40")]
    assert score.interval is not None
    assert score.interval[0] < score.value < score.interval[1]


def test_bits_per_dim_are_of_every_held_out_image(reported, run):
    score = reported[0].scores[-1]
    assert score.name == "bits/dim"
    assert "all 360 images" in score.about
    bits = run.bits_per_dim(jax.random.key(0), Digits(split="test"), num_terms=2)
    assert score.value == pytest.approx(bits.mean(), rel=1e-6)


@pytest.mark.slow
def test_bits_per_dim_from_drawn_terms_are_those_of_the_whole_bound_in_the_mean(run):
    source = Arrays.of(Digits().arrays["image"][:64], Digits().arrays["label"][:64])
    whole = run.bits_per_dim(jax.random.key(1), source)
    some = np.concatenate([run.bits_per_dim(jax.random.key(k), source, num_terms=10) for k in range(2)])
    spread = np.sqrt(some.var() / len(some) + whole.var() / len(whole))
    assert abs(some.mean() - whole.mean()) < 4 * spread


class Parser(HTMLParser):
    """What a page refers to."""

    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, value) for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything_itself(reported):
    report, place, _ = reported
    parser = Parser()
    parser.feed((place / "report.html").read_text())
    assert [tag for tag, _ in parser.found] == ["img", "img"]
    assert all(value.startswith("data:image/png;base64,") for _, value in parser.found)
    for score in report.scores:
        assert score.name in parser.text
    assert "Conditions" in parser.text


def test_what_a_page_is_told_is_no_markup():
    from ddpm_jax.evaluation.page import scores

    score = Score("<b>", 1.0, "a & b")
    assert "&lt;b&gt;" in scores(Report({}, (score,)))
    assert "a &amp; b" in scores(Report({}, (score,)))


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 14_000.0), (-3.2, 0.7), (0.0012, 0.0019)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6
        assert low <= found[0] < found[-1] <= high + 1e-12
        assert np.allclose(np.diff(found), found[1] - found[0])


def test_ticks_of_a_logarithmic_axis_are_round_too():
    for low, high in ((1e-4, 3.0), (0.2, 0.7), (0.11, 0.13), (3.0, 90.0)):
        found = 10 ** np.array(log_ticks(np.log10(low), np.log10(high)))
        assert 2 <= len(found) <= 8
        assert low <= found[0] < found[-1] <= high * (1 + 1e-9)
        assert all(f"{value:.2g}" == f"{value:.4g}" for value in found)


def test_a_chart_leaves_out_what_cannot_be_drawn():
    assert chart("t", "x", "y", []) == ""
    assert chart("t", "x", "y", [Line("a", np.array([1.0]), np.array([1.0]))]) == ""
    drawn = chart("t", "x", "y", [Line("a", np.arange(5.0), np.array([1, np.nan, 0, 10, 100.0]))], log_y=True)
    points = re.search(r'points="([^"]*)"', drawn)[1].split()
    assert len(points) == 3
    assert "nan" not in drawn


def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    import ddpm_jax

    found = provenance.commit()
    assert found is None or re.match("[0-9a-f]{40}", found)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "__init__.py").write_text("")
    monkeypatch.setattr(ddpm_jax, "__file__", str(tmp_path / "site" / "__init__.py"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.commit() != head  # an environment inside some repository
    for command in (["add", "."], ["commit", "-q", "-m", "two"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.commit() == head
    (tmp_path / "site" / "__init__.py").write_text("changed = 1")
    assert provenance.commit() == f"{head} with changes"


def test_the_held_out_split_of_a_data_set_is_found(tmp_path):
    assert held_out_split(Digits()) == Digits(split="test")
    assert held_out_split(Digits(split="test")) is None
    assert held_out_split(Arrays.of(np.zeros((2, 4, 4), np.uint8))) is None
    images, labels = np.zeros((2, 4, 4), np.uint8), np.zeros(2, int)
    named = {"train_images": images, "train_labels": labels, "val_images": images, "val_labels": labels}
    np.savez(tmp_path / "a.npz", **named)
    source = Npz(str(tmp_path / "a.npz"), "train_images", "train_labels")
    assert held_out_split(source) == dataclasses.replace(source, images="val_images", labels="val_labels")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("fud",)}, "metrics is 'fud'; expected one or more of fid,kid"),
        ({"metrics": ()}, "expected one or more of fid"),
        ({"num_samples": 9}, "num_samples is 9; expected a whole number, at least 10"),
        ({"labels": "balance"}, "labels is 'balance'; expected 'reference' or 'balanced'"),
        ({"bound_terms": 0}, "bound_terms is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Evaluation(**changes)


def test_images_of_another_shape_are_refused_before_anything_is_drawn(run, extractor, tmp_path):
    other = Arrays.of(np.zeros((4, 6, 6), np.uint8))
    with pytest.raises(ValueError, match=r"reference are \(6, 6, 1\); expected those of the run, \(8, 8, 1\)"):
        evaluate(run, tmp_path, extractor, ALL, reference=other)
    assert not list(tmp_path.glob("evaluations/*"))


def test_the_digest_of_a_data_set_changes_with_any_pixel_and_any_label(tmp_path):
    images, labels = np.zeros((1500, 4, 4), np.uint8), np.zeros(1500, int)
    found = set()
    for pixel, label in ((0, 0), (1, 0), (0, 1)):
        images[777, 0, 0], labels[777] = pixel, label
        np.savez(tmp_path / "a.npz", images=images, labels=labels)
        found.add(provenance.of_source(Npz(str(tmp_path / "a.npz"), labels="labels"))["digest"])
    assert len(found) == 3


def test_features_heal_whatever_a_kill_left(extractor, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "PER_DEVICE", 16)
    images = Digits().arrays["image"][:50]
    whole = samples.features_of(images, extractor, tmp_path / "whole", "features")
    samples.features_of(images[:40], extractor, tmp_path / "some", "features")
    last = sorted((tmp_path / "some" / "features").iterdir())[-1]
    last.unlink()  # killed between the logits and the features
    healed = samples.features_of(images, extractor, tmp_path / "some", "features")
    for name in ("features", "logits"):
        np.testing.assert_array_equal(getattr(healed, name)[:], getattr(whole, name)[:])


def test_statistics_that_are_damaged_or_of_something_else_are_made_again(extractor):
    reference = Reference(Digits(split="test"), extractor)
    made = reference.moments
    path = next(cache_folder("reference").glob("*/statistics.npz"))
    for damage in (b"", path.read_bytes()[:500], None):
        path.write_bytes(damage) if damage is not None else save_moments(path, made, {"data": "another"})
        again = Reference(Digits(split="test"), extractor).moments
        np.testing.assert_array_equal(again.cov, made.cov)
        assert load_moments(path).provenance["features"] == "flat"


def test_samples_that_are_not_finite_are_no_black_images(run, tmp_path):
    broken = dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf * np.nan, run.params))
    with pytest.raises(RunError, match="sample 0 is not finite"):
        draw(Drawing(broken), tmp_path, 16, 16)
    assert len(evaluations.Shards(tmp_path / "images")) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--metrics fid,fud", "metrics is 'fud'; expected one or more of fid,kid,pr,is,swd,nn,bpd"),
        ("--features incepton", "the features are 'incepton'; expected inception (the network of FID"),
        ("--features nowhere.safetensors", "there is no file nowhere.safetensors"),
        ("--features pixels --metrics is", "metrics is 'is'; expected metrics without it, as the features pixels"),
        ("--features pixels --bound-terms 21", "bound_terms is 21; expected at most 20"),
        ("--features pixels --held-out tset", "split is 'tset'; expected one of 'train', 'test'"),
        ("--features pixels --reference nowhere.py", "there is no file nowhere.py"),
        ("--features pixels --guidance nan", "guidance is nan; expected a finite number"),
        ("--features pixels --steps 0", "num_steps is 0"),
        ("--features pixels --batch-size 0", "batch_size is 0"),
        ("--features pixels --num-samples 1", "num_samples is 1; expected a whole number, at least 10"),
        ("--features pixels --num-samples many", "--num-samples"),
    ],
)
def test_wrong_arguments_end_with_one_message_and_write_nothing(finished, capsys, arguments, message, unchecked):
    before = sorted(finished.rglob("*"))
    assert message in fails(capsys, "evaluate", finished, *arguments.split())
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize(("arguments", "expected"), [([], "highest"), (["--precision", "default"], "default")])
def test_an_evaluation_has_the_precision_asked_for(finished, monkeypatch, arguments, expected):
    found = []
    monkeypatch.setattr(evaluations, "evaluate", lambda *_, **__: found.append(precision.quoted_precision()))
    main.main(["evaluate", str(finished), "--features", "pixels", *arguments])
    assert found == [expected]


@pytest.mark.parametrize(("arguments", "expected"), [([], "reference"), (["--labels", "balanced"], "balanced")])
def test_the_command_says_how_labels_are_drawn(finished, monkeypatch, arguments, expected):
    found = []
    monkeypatch.setattr(evaluations, "evaluate", lambda *given, **_: found.append(given[3].labels))
    main.main(["evaluate", str(finished), "--features", "pixels", *arguments])
    assert found == [expected]


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert "is not a run: it has no experiment.json" in fails(capsys, "evaluate", tmp_path, "--features", "pixels")


def test_reference_images_need_no_labels(run, tmp_path):
    """Nor do those of sub-folders that are not as many as the classes; then none of them are labels."""
    images = Digits().arrays["image"][:12]
    np.savez(tmp_path / "some.npz", images=images)
    for i, image in enumerate(images):
        for folder in (tmp_path / "plain", tmp_path / "shards" / str(i % 3), tmp_path / "classes" / str(i % 10)):
            folder.mkdir(parents=True, exist_ok=True)
            save_png(folder / f"{i}.png", image)
    save_png(tmp_path / "shards" / "own.png", images[0])
    for name, labelled in (("some.npz", False), ("plain", False), ("shards", False), ("classes", True)):
        source = choose_source("--reference", run, str(tmp_path / name))
        assert source[0]["image"].shape == (8, 8, 1)
        assert ("label" in source[0]) == labelled
    (tmp_path / "shards" / "own.png").unlink()
    assert "label" not in choose_source("--reference", run, str(tmp_path / "shards"))[0]


def test_a_reference_without_labels_is_scored_but_has_no_bits_per_dim(run, extractor, tmp_path):
    images = Arrays.of(Digits(split="test").arrays["image"])
    some = dataclasses.replace(ALL, metrics=("fid", "kid"))
    report, _ = evaluate(run, tmp_path, extractor, some, reference=images)
    assert "Digits train, as Arrays has no labels" in report.as_text()
    with pytest.raises(
        ValueError, match="held_out is 'Arrays'; expected images with labels, which bits/dim of a class-cond"
    ):
        evaluate(run, tmp_path / "other", extractor, ALL, held_out=images)
    assert not (tmp_path / "other").exists()


def test_reference_images_are_a_split_a_file_or_a_folder(run, tmp_path):
    images = Digits().arrays["image"][:5]
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(5))
    (tmp_path / "folder" / "0").mkdir(parents=True)
    save_png(tmp_path / "folder" / "0" / "a.png", images[0])
    assert choose_source("--reference", run, None) is None
    assert choose_source("--reference", run, "test") == Digits(split="test")
    np.testing.assert_array_equal(choose_source("--reference", run, str(tmp_path / "some.npz"))[4]["image"], images[4])
    np.testing.assert_array_equal(choose_source("--reference", run, str(tmp_path / "folder"))[0]["image"], images[0])
    assert "label" in choose_source("--reference", run, str(tmp_path / "some.npz"))[0]
    imported = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, data=Deferred((8, 8, 1))))
    with pytest.raises(
        ValueError, match="--held-out is 'test', and Deferred has no splits; expected a split of the run's"
    ):
        choose_source("--held-out", imported, "test")
