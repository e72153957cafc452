"""Names, protocols, caches, references of statistics, draws, and rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from study.data import DataConfig, load
from study.results import append_rows, read_rows
from study.score import scoring as module
from study.score.foresight import full_name, unavailable
from study.score.frechet import frechet, moments
from study.score.inception import inception
from study.score.inception_weights import InceptionWeights
from study.score.metrics import parse
from study.score.pictures import Pictures, read
from study.score.protocol import Protocol, require_comparable, size_label
from study.score.scoring import FLOOR, Options, Score, features_key, floor, rows, score
from study.score.spaces import Space, as_channels

ALL = ("agreement", "fd", "fd_inf", "kd", "precision_digits8", "recall_digits8", "density_digits8", "swd", "swd_inf")


@pytest.fixture(scope="module")
def digits() -> tuple[Pictures, Pictures]:
    return read("digits8/heldout"), read("digits8")


def values(scores: list[Score]) -> dict[str, float | None]:
    return {one.metric: one.value for one in scores}


def test_real_images_score_as_real_ones(digits: tuple[Pictures, Pictures]) -> None:
    found = {one.metric: one for one in score(*digits, ALL)}
    assert set(found) == {f"{parse(name, 'digits8').name}@297" for name in ALL}
    assert found.pop("swd@297").interval is None  # its spread at this N is not known well enough
    assert all(one.interval and one.interval[0] <= one.value <= one.interval[1] for one in found.values() if one.value)
    for name in ("fd_inf_digits8@297", "kd_digits8@297"):
        low, high = found[name].interval or (1, 1)
        assert low <= 1e-3
        assert high >= 0
    assert found["agreement_digits8@297"].value == pytest.approx(0.98, abs=0.02)
    assert found["fd_digits8@297"].units == "tr(cov ref)"
    assert 0 < (found["fd_digits8@297"].value or 0) < 0.03
    assert set(found["fd_inf_digits8@297"].details["at"]) == {"297", "148"}  # type: ignore[call-overload]


def test_fd_is_relative_to_the_references_spread(digits: tuple[Pictures, Pictures]) -> None:
    from study.score.extractors import embedded

    x, y = (moments(embedded("digits8")(each.images).numpy()) for each in digits)
    found = score(*digits, ["fd"])[0].value
    assert found == pytest.approx(frechet(x, y) / y.trace, rel=1e-6)


def test_scores_are_repeatable(digits: tuple[Pictures, Pictures]) -> None:
    assert score(*digits, ALL) == score(*digits, ALL)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fid", ("fid", "fd", "inception", "2048")),
        ("sfid", ("sfid", "fd", "inception", "spatial")),
        ("kid", ("kid", "kd", "inception", "2048")),
        ("precision", ("precision", "precision", "inception", "2048")),
        ("fd", ("fd_digits8", "fd", "digits8", "features")),
        ("fd_inf_glyphs16", ("fd_inf_glyphs16", "fd_inf", "glyphs16", "features")),
        ("fd_dinov2-vit-l-14", ("fd_dinov2-vit-l-14", "fd", "dinov2-vit-l-14", "features")),
        ("swd", ("swd", "swd", "", "")),
    ],
)
def test_names(name: str, expected: tuple[str, ...]) -> None:
    assert dataclasses.astuple(parse(name, "digits8")) == expected


@pytest.mark.parametrize("name", ["fd_inception", "fidd", "fd_glyphs17", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        parse(name, "digits8")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="needs a feature space"):
        parse("kd", None)


def test_only_inception_is_called_fid(digits: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    """Without weights the column stays empty, with the reason, and nothing else fills it."""
    absent = InceptionWeights(str(tmp_path / "none.pth"))
    fid, fd = score(*digits, ["fid", "fd"], Options(weights=absent))
    assert fid.metric == "fid@297"
    assert fid.value is None
    assert "put weights-inception-2015-12-05-6726825d.pth (sha256 6726825d0af5" in fid.reason
    assert fd.value is not None
    assert rows([fid, fd], "run", {})[0].metric == "fd_digits8@297"
    assert list(unavailable(["fid", "fd", "swd"], DataConfig("digits8"), 297, True, absent)) == ["fid"]


def test_too_few_samples_is_a_reason(digits: tuple[Pictures, Pictures]) -> None:
    few = digits[0].part(0, 20)
    found = score(few, digits[1], ["fd", "fd_inf", "agreement"])
    assert found[0].interval is None
    assert found[1].value is None
    assert "at least 200" in found[1].reason
    assert score(digits[0].part(0, 4), digits[1], ["precision_digits8"])[0].value is None


def test_more_draws_than_samples_and_other_sizes_are_refused(digits: tuple[Pictures, Pictures], photos: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 300"):
        score(*digits, ["fd"], Options(n=100, draws=3))
    with pytest.raises(ValueError, match="image size"):
        score(Pictures("photos", photos), digits[1], ["fd"])


def test_disjoint_draws_have_a_spread_of_their_own(digits: tuple[Pictures, Pictures]) -> None:
    found = score(*digits, ["fd"], Options(n=99, draws=3))[0]
    each = [score(digits[0].part(99 * k, 99 * (k + 1)), digits[1], ["fd"])[0].value for k in range(3)]
    assert found.draws == pytest.approx(each)
    assert found.value == pytest.approx(np.mean(each))  # type: ignore[arg-type]
    assert found.metric == "fd_digits8@99"
    made = rows([found], "run", {"torch": "2"})
    assert [row.metric for row in made] == ["fd_digits8@99", "fd_digits8@99.draw_sd"]
    assert made[1].value == pytest.approx(np.std(each, ddof=1))  # type: ignore[arg-type]


def test_rows_are_self_sufficient(digits: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    made = rows(score(*digits, ["kd", "agreement"]), "0123456789abcdef", {"commit": "c"})
    append_rows(tmp_path / "rows.jsonl", made)
    kd = read_rows(tmp_path / "rows.jsonl")[0]
    assert kd.n == 297
    assert kd.provenance["n_reference"] == "400"
    assert len(kd.provenance["extractor_sha256"]) == 64
    assert kd.provenance["reference_sha256"] == digits[1].sha256


def test_everything_that_matters_is_in_the_protocol(digits: tuple[Pictures, Pictures]) -> None:
    made = score(*digits, ["fd"])[0].protocol
    changes: dict[str, object] = {
        "metric": "kd_digits8",
        "n": 100,
        "reference_sha256": "0",
        "n_reference": 10,
        "space_sha256": "0",
        "layer": "other",
        "settings": {"relative": 0},
        "sampling": {"steps": 10},
    }
    ids = {dataclasses.replace(made, **{key: value}).id for key, value in changes.items()}
    assert len(ids | {made.id}) == len(changes) + 1
    assert dataclasses.replace(made, reference="another name").id == made.id
    assert isinstance(made, Protocol)


def test_other_n_is_not_comparable(digits: tuple[Pictures, Pictures]) -> None:
    whole = rows(score(*digits, ["fd"]), "a", {})
    half = rows(score(*digits, ["fd"], Options(n=100)), "b", {})
    require_comparable([*whole, *whole])
    with pytest.raises(ValueError, match="to be compared"):
        require_comparable([*whole, *half])


def test_size_labels() -> None:
    assert [size_label(n) for n in (5000, 50_000, 297, 1500)] == ["5k", "50k", "297", "1500"]


def test_reference_cache_answers_only_for_the_same_reference(digits: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    samples, reference = digits
    options = Options(cache=tmp_path)
    told: list[str] = []
    plain = values(score(samples, reference, ["fd"], options))
    again = values(score(samples, reference, ["fd"], options, lambda what, done, total: told.append(what)))
    assert again == plain
    assert told == []  # neither of the two sets of real images was embedded again
    other = score(samples, reference.part(0, 399), ["fd"], options)[0].value
    assert other == score(samples, reference.part(0, 399), ["fd"])[0].value
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_damaged_cache_is_computed_again(digits: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    options = Options(cache=tmp_path)
    plain = values(score(*digits, ["fd"], options))
    file = next(tmp_path.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:1000])
    assert values(score(*digits, ["fd"], options)) == plain


def adm_reference(path: Path, images: Tensor, weights: InceptionWeights) -> Path:
    """Images and their statistics as ADM's evaluator writes them."""
    layers = inception(weights, ["2048", "spatial"]).layers(images)
    arrays: dict[str, np.ndarray] = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
    for layer, (mean, covariance) in {"2048": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}.items():
        features = layers[layer].double().numpy()
        arrays |= {mean: features.mean(axis=0), covariance: np.cov(features, rowvar=False)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_adm_statistics_give_what_their_images_give(
    tmp_path: Path, photos: Tensor, inception_weights: InceptionWeights
) -> None:
    adm = read(str(adm_reference(tmp_path / "VIRTUAL.npz", photos[12:18], inception_weights)))
    samples, images = Pictures("samples", photos[:6]), Pictures("images", photos[12:18])
    options = Options(weights=inception_weights)
    metrics = ["fid", "sfid", "precision", "recall"]
    by_statistics, by_images = (score(samples, reference, metrics, options) for reference in (adm, images))
    for ours, theirs in zip(by_statistics, by_images, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-5)
        assert ours.metric == theirs.metric
    assert by_statistics[0].protocol.n_reference == 0
    assert by_statistics[0].protocol.id != by_images[0].protocol.id
    assert by_statistics[2].protocol.n_reference == 6
    assert torch.equal(adm.images, photos[12:18])


NOTHING = InceptionWeights("/nowhere/weights.pth")


def test_what_cannot_be_is_known_before_the_run() -> None:
    """The same words as the scoring itself would leave, but without a single image."""
    data = DataConfig("digits8")
    told = unavailable(["fd", "fd_inf", "is", "precision_digits8", "swd", "kd"], data, 5, True, NOTHING)
    assert told.keys() == {"fd_inf", "is", "precision_digits8"}
    assert "sample.count=5 is too few: must be at least 200" in told["fd_inf"]
    assert "not found" in told["is"]
    few = unavailable(["fd_inf"], DataConfig("digits8", reference=100), 297, True, NOTHING)
    assert "data.reference=100 is too few" in few["fd_inf"]
    assert "without labels" in unavailable(["agreement"], data, 100, False, NOTHING)["agreement"]
    misfit = unavailable(["fd_glyphs16", "kd_digits8"], data, 100, True, NOTHING)
    assert misfit == {"fd_glyphs16": "glyphs16 looks at images of 1 x 16 x 16, and those of digits8 are 1 x 8 x 8"}
    assert full_name("fd", data, 1000) == "fd_digits8@1k"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 199, 200])
def test_foresight_says_what_scoring_finds(digits: tuple[Pictures, Pictures], n: int) -> None:
    """Every metric, at every N where one of them begins to have a value."""
    names = [name for name in ALL if name != "agreement"]
    expected = unavailable(names, DataConfig("digits8"), n, True, NOTHING)
    found = score(digits[0].part(0, n), digits[1], names)
    assert {one.metric for one in found if one.value is None} == {
        full_name(name, DataConfig("digits8"), n) for name in expected
    }
    assert all(one.reason and "\n" not in one.reason for one in found if one.value is None)


def test_nan_features_have_no_score(digits: tuple[Pictures, Pictures], monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances to NaN compare as false: precision would be a plain 0."""
    broken = Space("digits8", "0", 1, lambda x: {"features": torch.full((len(x), 5), float("nan"))})
    monkeypatch.setattr(module, "open_space", lambda *given: broken)
    for one in score(*digits, ["fd", "kd", "precision_digits8", "coverage_digits8"]):
        assert one.value is None
        assert "NaN" in one.reason


def test_channels_are_matched_or_refused(digits: tuple[Pictures, Pictures]) -> None:
    """Grey repeated as RGB is the same picture in pixels and features; colour is not turned grey in silence."""
    grey, reference = digits[0].part(0, 60), digits[1]
    rgb = dataclasses.replace(grey, images=grey.images.expand(-1, 3, -1, -1).contiguous(), source=None)
    assert values(score(rgb, reference, ["swd", "fd"])) == values(score(grey, reference, ["swd", "fd"]))
    against_rgb = dataclasses.replace(reference, images=as_channels(reference.images, 3))
    assert score(grey, against_rgb, ["swd"])[0].value is not None
    coloured = dataclasses.replace(rgb, images=rgb.images.clone())
    coloured.images[0, 0] ^= 1
    for one in score(coloured, reference, ["swd", "fd"]):
        assert one.value is None
        assert "images.channels=3" in one.reason


def test_strata_are_in_the_protocol(digits: tuple[Pictures, Pictures]) -> None:
    """KD of balanced classes is another estimate than of independent draws: 297 digits with and without labels."""
    labelled = load(DataConfig("digits8"), "reference")
    same = Pictures("same", labelled.images, torch.arange(400) % 10, data="digits8")
    bare = dataclasses.replace(same, labels=None)
    one, other = (score(each, digits[1], ["kd", "fd"]) for each in (same, bare))
    assert one[0].value != other[0].value
    assert one[0].protocol.id != other[0].protocol.id
    assert one[1].value == other[1].value
    assert one[1].protocol.id == other[1].protocol.id


def test_floor_is_named_and_cached(digits: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    options = Options(n=50, draws=2, cache=tmp_path)
    real = floor(digits[1], 100, ["fd", "agreement"], options)
    assert [one.metric for one in real] == [f"fd_digits8@100{FLOOR}", f"agreement_digits8@100{FLOOR}"]
    assert real[0].value == score(digits[0].part(0, 100), digits[1], ["fd"])[0].value
    assert real[0].draws == ()
    assert floor(Pictures("unknown", digits[1].images), 100, ["fd_digits8"], options) == []


def test_cache_key_changes_with_everything_that_defines_the_features() -> None:
    space, cpu = Space("digits8", "a", 1, lambda x: {}), torch.device("cpu")
    key = features_key(space, ["f"], "images", cpu)
    assert features_key(space, ["f"], "images", cpu) == key
    others = {
        features_key(dataclasses.replace(space, sha256="b"), ["f"], "images", cpu),
        features_key(dataclasses.replace(space, name="other"), ["f"], "images", cpu),
        features_key(space, ["f", "g"], "images", cpu),
        features_key(space, ["f"], "others", cpu),
    }
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        others.add(features_key(space, ["f"], "images", cpu))
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(others | {key}) == 6


def test_a_cache_that_cannot_be_written_is_done_without(digits: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = score(*digits, ["fd"], Options(cache=tmp_path / "file" / "cache"))
    assert found == score(*digits, ["fd"])
