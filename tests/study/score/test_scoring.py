"""Names, protocols, caches, references of statistics, draws, and rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from study.results import append_rows, read_rows
from study.score.frechet import frechet, moments
from study.score.inception import InceptionWeights, inception
from study.score.metrics import parse
from study.score.pictures import Pictures, read
from study.score.protocol import Protocol, require_comparable, size_label
from study.score.scoring import Options, Score, rows, score, unavailable

ALL = ("agreement", "fd", "fd_inf", "kd", "precision_digits8", "recall_digits8", "density_digits8", "swd")


@pytest.fixture(scope="module")
def digits() -> tuple[Pictures, Pictures]:
    return read("digits8/heldout"), read("digits8")


def values(scores: list[Score]) -> dict[str, float | None]:
    return {one.metric: one.value for one in scores}


def test_real_images_score_as_real_ones(digits: tuple[Pictures, Pictures]) -> None:
    found = {one.metric: one for one in score(*digits, ALL)}
    assert set(found) == {f"{parse(name, 'digits8').name}@297" for name in ALL}
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
    assert list(unavailable(["fid", "fd", "swd"], "digits8", absent)) == ["fid"]


def test_too_few_samples_is_a_reason(digits: tuple[Pictures, Pictures]) -> None:
    few = digits[0].part(0, 20)
    found = score(few, digits[1], ["fd", "fd_inf", "agreement"])
    assert found[0].interval is None
    assert found[1].value is None
    assert "at least 194" in found[1].reason
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
    assert told == ["digits8/heldout in digits8"] * 3  # the reference was not embedded again
    other = score(samples, reference.part(0, 399), ["fd"], options)[0].value
    assert other == score(samples, reference.part(0, 399), ["fd"])[0].value
    assert len(list(tmp_path.glob("*.npz"))) == 2


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
