"""The published numbers: every audit computed again by another formula, then the loader's refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from analysis.published import COLUMNS, OBTAINED, published, read_file, sources

XL, LAYERS = 1152, 29  # DiffuSSM-XL


def one(metric: str, model: str, where: str = "", **others: object) -> pd.Series:
    frame = published()
    chosen = frame[(frame["metric"] == metric) & (frame["model"] == model) & frame["where"].str.contains(where)]
    for name, value in others.items():
        chosen = chosen[(chosen[name] == value).fillna(False)]
    assert len(chosen) == 1, chosen
    return chosen.iloc[0]


def dit_gmacs(width: int, depth: int, patch: int, side: int) -> float:
    """The appendix formula of a DiT's multiply-accumulates, 4 channels in and 8 out."""
    tokens = (side // patch) ** 2
    blocks = depth * (12 * tokens * width**2 + 6 * width**2 + 2 * tokens**2 * width)
    ends = tokens * 12 * patch**2 * width + 256 * width + 3 * width**2
    norms = (2 * depth + 1) * tokens * width  # fvcore's unit per normalised element, without which 118.62
    return (blocks + ends + norms) / 1e9


def hourglass_gmacs(tokens: int, ratio: int) -> float:
    """13 (L/M) D² + L D² per layer."""
    return LAYERS * (13 * tokens / ratio + tokens) * XL**2 / 1e9


def dis_seen_by_thop(width: int, blocks: int, patch: int, side: int) -> float:
    """Two units per MAC of patch embedding, two time layers, the long skips and the head on all tokens."""
    patches = (side // patch) ** 2
    tokens = patches + 2 - 1  # an unconditional network has no label token
    skips = blocks // 2 * 2 * width**2 * tokens
    return 2 * (skips + patches * 3 * patch**2 * width + 8 * width**2 + tokens * width * 6 * patch**2) / 1e9


def dis_params(width: int, blocks: int) -> float:
    """Unconditional, 32 x 32 x 3, patch 2: mixers of inner width 2D, state 16, convolution 4, rank D/16."""
    inner, rank, state = 2 * width, -(-width // 16), 16
    direction = 5 * inner + inner * (rank + 2 * state) + rank * inner + inner + inner * state + inner
    mixer = 3 * width * inner + 2 * direction
    skips = blocks // 2 * (2 * width**2 + width)
    ends = 12 * width + width + 8 * width**2 + 5 * width + 257 * width + width + width * 24 + 24
    return (blocks * (mixer + width) + skips + ends) / 1e6


@pytest.mark.parametrize(("resolution", "images"), [(256, 1792), (512, 768)])
def test_dits_total_is_images_times_a_forward_pass_without_the_factor_of_3(resolution: int, images: int) -> None:
    model = "DiT-XL/2" if resolution == 256 else "DiT-XL/2-G"
    printed = one("total_gflops", model, "main table", resolution=resolution).value
    forward = dit_gmacs(1152, 28, 2, resolution // 8)
    assert one("images_m", model, "main table", resolution=resolution).value == images
    assert images * 1e6 * forward == pytest.approx(printed, rel=0.003)
    assert images * 1e6 * forward * 3 != pytest.approx(printed, rel=0.5)


@pytest.mark.parametrize(
    "name", ["S/8", "S/4", "S/2", "B/8", "B/4", "B/2", "L/8", "L/4", "L/2", "XL/8", "XL/4", "XL/2"]
)
def test_dit_prints_macs(name: str) -> None:
    size, patch = name.split("/")
    width, depth = (int(one(m, f"DiT-{size}", "configuration table").value) for m in ("width", "depth"))
    printed = one("gmacs", f"DiT-{name}", "12 models").value
    assert dit_gmacs(width, depth, int(patch), 32) == pytest.approx(printed, abs=0.02, rel=0.001)


@pytest.mark.parametrize(("resolution", "implied"), [(256, 280.3), (512, 1066.2)])
def test_diffussms_implied_cost_fits_m_2_and_excludes_m_1(resolution: int, implied: float) -> None:
    guided = "DiffuSSM-XL-G"
    total, images = (one(m, guided, "main table", resolution=resolution).value for m in ("total_gflops", "images_m"))
    assert total / images / 1e6 == pytest.approx(implied, abs=0.05)
    assert one("gmacs", "DiffuSSM-XL", "total Gflops", resolution=resolution).value == implied
    tokens = (resolution // 8) ** 2
    for ratio in (1, 2, 4):
        derived = one("gmacs", "DiffuSSM-XL", "block formula", resolution=resolution, setting=f"M={ratio}").value
        assert hourglass_gmacs(tokens, ratio) == pytest.approx(derived, abs=0.05)
    assert implied / hourglass_gmacs(tokens, 2) == pytest.approx({256: 0.948, 512: 0.902}[resolution], abs=0.001)
    assert hourglass_gmacs(tokens, 1) / implied == pytest.approx(2, abs=0.1)


def diffussm_params(ratio: int, dense: int, conditioning: int) -> float:
    """Blocks of `dense` D² with biases, conditioning in D², two S4D directions of 64 states, and the ends."""
    s4d = 2 * XL * (1 + 32 + 32 + 64 + 1)  # step, A (real, imaginary), C, D
    biases = (10 + ratio) * XL
    ends = 256 * XL + XL**2 + 1001 * XL + 2 * XL**2 + 4 * XL + 8 * XL + 6 * XL
    return (LAYERS * ((dense + conditioning) * XL**2 + s4d + biases) + ends) / 1e6


def test_parameters_do_not_tell_m() -> None:
    """673 M lie between M=1 and M=2; the recalled 13 D² with a two-layer conditioning gives M=1's count at M=2."""
    for ratio in (1, 2):
        derived = one("params_m", "DiffuSSM-XL", "block formula", setting=f"M={ratio}").value
        assert diffussm_params(ratio, 13 + ratio, 3) == pytest.approx(derived, abs=0.3)
    printed = one("params_m", "DiffuSSM-XL", "main table", resolution=256).value
    assert diffussm_params(1, 14, 3) < printed < diffussm_params(2, 15, 3)
    assert diffussm_params(2, 13, 4) == pytest.approx(669, abs=0.5)


def test_the_implied_costs_do_not_grow_as_the_tokens() -> None:
    small, large = (one("gmacs", "DiffuSSM-XL", "total Gflops", resolution=side).value for side in (256, 512))
    assert large / small == pytest.approx(3.80, abs=0.005)
    assert hourglass_gmacs(4096, 2) / hourglass_gmacs(1024, 2) == 4


@pytest.mark.parametrize(("resolution", "steps"), [(256, 7_000_000), (512, 3_000_000)])
def test_dits_images_are_its_steps_by_256(resolution: int, steps: int) -> None:
    model = "DiT-XL/2" if resolution == 256 else "DiT-XL/2-G"
    images = one("images_m", model, "main table", resolution=resolution).value
    assert steps * one("batch", "DiT", "training").value / 1e6 == images
    assert one("fid", "DiT-XL/2", "longer", resolution=resolution, step=steps).value > 0


def test_the_blocks_parameter_count_as_recalled_disagrees_with_the_cost_formula() -> None:
    row = one("block_params_per_d2", "DiffuSSM")
    down, two, one_, three, first = 4, 4, 2, 2, 1  # W_down, W2, W1, W3, W0 in units of D², M maps W_up beside
    assert (row.value, row.corrected) == (9 + 2 * 2, down + two + one_ + three + first + 2)


@pytest.mark.parametrize(("resolution", "images", "steps"), [(256, 660, 2.58), (512, 302, 1.18)])
def test_steps_follow_from_images_and_batch(resolution: int, images: int, steps: float) -> None:
    batch = one("batch", "DiffuSSM-XL", "experiments").value
    assert images / batch == pytest.approx(steps, abs=0.005)
    assert one("steps_m", "DiffuSSM-XL", resolution=resolution).value == steps


def test_claims_of_the_text() -> None:
    def pair(metric: str, resolution: int, suffix: str) -> tuple[float, float]:
        names = (f"DiffuSSM-XL{suffix}", f"DiT-XL/2{suffix}")
        ours, dit = (one(metric, name, "main table", resolution=resolution).value for name in names)
        return ours, dit

    ours, dit = pair("total_gflops", 256, "")
    assert 1 - ours / dit == pytest.approx(0.131, abs=0.0005)
    ours, dit = pair("total_gflops", 512, "-G")
    assert 1 - ours / dit == pytest.approx(0.201, abs=0.0005)
    ours, dit = pair("images_m", 512, "-G")
    assert ours / dit == pytest.approx(0.393, abs=0.0005)
    ours, dit = pair("images_m", 256, "")
    assert dit / ours == pytest.approx(2.7, abs=0.05)
    assert all(ours < dit for ours, dit in (pair("is", 256, ""), pair("is", 256, "-G")))


@pytest.mark.parametrize("model", ["ADM-G, ADM-U", "U-ViT-H/2-G"])
def test_rows_that_repeat_ldms_are_corrected_from_the_owners_table(model: str) -> None:
    repeated = {m: one(m, "LDM-4-G", "256 px", setting="cfg 1.50").value for m in ("is", "precision", "recall")}
    owner = {"ADM-G, ADM-U": "DiT", "U-ViT-H/2-G": "U-ViT"}[model]
    for metric, value in repeated.items():
        row = one(metric, model, "main table", resolution=256)
        assert row.value == value
        assert row.corrected == row.best == one(metric, model, "256 px", paper=owner).value != value


def test_the_512_row_of_u_vit_is_h_4s() -> None:
    for metric in ("fid", "sfid", "is", "precision", "recall"):
        row, true = one(metric, "U-ViT/2-G", "main table"), one(metric, "U-ViT-H/4-G", "512 px")
        assert row.best == true.value
        assert (row.value != true.value) == (metric in ("sfid", "is"))


def test_ldm_4_g_is_the_lower_guidance() -> None:
    for metric in ("fid", "is", "precision", "recall"):
        assert one(metric, "LDM-4-G", "main table").value == one(metric, "LDM-4-G", setting="cfg 1.25").value


def test_every_other_baseline_is_as_dit_prints_it() -> None:
    frame = published()
    ours = frame[(frame["paper"] == "DiffuSSM") & (frame["where"] == "main table") & (frame["source"] == "review")]
    theirs = frame[(frame["paper"] == "DiT") & frame["where"].isin(["256 px table", "512 px table"])]
    both = ours.merge(theirs, on=["model", "resolution", "metric"], suffixes=("", "_dit"))
    plain = both[both["setting"] == both["setting_dit"]]
    assert len(plain) > 50
    different = plain[(plain["value"] != plain["value_dit"]) & plain["value"].notna()]
    assert set(different["model"]) == {"ADM-G, ADM-U"}
    assert (plain["best"] == plain["value_dit"]).all()


def test_exponents_of_the_adm_rows() -> None:
    """507 M images x 1120 and x 742 GMACs; 1385 M x 1983 at 512 px, of which 431 is printed."""
    for model, images, forward in (("ADM", 507, 1120), ("ADM-G, ADM-U", 507, 742)):
        row = one("total_gflops", model, "main table", resolution=256)
        assert row.corrected == pytest.approx(images * 1e6 * forward, rel=0.005)
        assert row.value / row.corrected == pytest.approx(10, rel=0.01)
    for model in ("ADM-U", "ADM-G"):
        assert pd.isna(one("total_gflops", model, "main table", resolution=256).corrected)
    row = one("total_gflops", "ADM", "main table", resolution=512)
    assert row.value / 1385e6 == pytest.approx(431, abs=0.5)
    assert row.corrected == pytest.approx(1385e6 * 1983, rel=0.002)


def test_adm_u_is_the_sum_of_its_two_stages() -> None:
    base, upsampler = (one("gmacs", f"ADM-U {part}", "U-Net", resolution=256).value for part in ("base", "upsampler"))
    assert base + upsampler == one("gmacs", "ADM-U", resolution=256).value == 742
    stages = one("gmacs", "ADM", resolution=128).value + one("gmacs", "ADM-U upsampler", resolution=512).value
    assert stages == one("gmacs", "ADM-U", resolution=512, paper="DiT").value == 2813


@pytest.mark.parametrize("size", list("SBMLH"))
def test_dis_prints_a_count_that_misses_its_state_space_blocks(size: str) -> None:
    width, blocks = (int(one(m, f"DiS-{size}", "code").value) for m in ("width", "depth"))
    derived = one("gflops", f"DiS-{size}/4", "thop").value
    assert dis_seen_by_thop(width, blocks, 4, 32) == pytest.approx(derived, rel=0.002)
    assert one("gmacs", f"DiS-{size}/4", "configuration").value == pytest.approx(derived, abs=0.01)
    assert one("params_m", f"DiS-{size}/2", "closed form").value == pytest.approx(dis_params(width, blocks), abs=0.1)
    printed = one("params_m", f"DiS-{size}/4", "configuration").value
    assert printed == pytest.approx(dis_params(width, blocks), abs=0.12)


def test_dis_s_is_368_wide() -> None:
    row = one("width", "DiS-S", "^paper")
    assert dis_params(int(row.corrected), 25) == pytest.approx(28.4, abs=0.1)
    assert dis_params(int(row.value), 25) == pytest.approx(30.9, abs=0.1)


@pytest.mark.parametrize(("dataset", "ldm", "sign"), [("lsun-church", "LDM-8", -1), ("lsun-bedroom", "LDM-4", 1)])
def test_lsun_scores_are_recalled_from_the_gap_to_ldm(dataset: str, ldm: str, sign: int) -> None:
    gap = one("fid_gap_to_ldm", "DiffuSSM", dataset=dataset).value
    recalled = one("fid", "DiffuSSM", dataset=dataset, source="memory")
    misread = one("fid", "DiffuSSM", dataset=dataset, source="summaries")
    assert recalled.value == pytest.approx(one("fid", ldm, dataset=dataset).value + sign * gap)
    owner = "LDM-8" if dataset == "lsun-church" else "ADM"
    assert misread.value == one("fid", owner, dataset=dataset, paper="LDM").value
    assert misread.corrected == recalled.value


def test_the_digitised_curves_are_two_that_may_be_one() -> None:
    frame = published()
    curves = frame[frame["obtained"] == "digitised"]
    assert len(curves) == 25
    assert (curves["error"] - curves["value"] / 100).abs().max() < 0.0051
    table = curves.pivot(index="step", columns=["model", "setting"], values="value")
    assert list(table.index) == [50_000, 100_000, 200_000, 300_000, 400_000]
    assert (table.diff().dropna() < 0).all().all()
    apart = (table["DiffuSSM-XL", ""] / table["DiffuSSM-XL", "M=2"] - 1).abs()
    assert (round(apart.min(), 3), round(apart.max(), 3)) == (0.005, 0.064)


def test_the_schema_holds_for_every_row() -> None:
    frame = published()
    assert set(COLUMNS) <= set(frame)
    assert set(frame["obtained"]) == set(OBTAINED)
    assert {"DiffuSSM", "DiT", "DiS", "ADM", "LDM", "U-ViT"} <= set(frame["paper"])
    assert frame["best"].notna().all()
    assert (frame.loc[frame["corrected"].notna(), "note"] != "").all()
    assert set(frame["source"]) == set(sources()["source"])
    bounded = frame[frame["metric"].isin(["precision", "recall"])]
    assert bounded["best"].between(0, 1).all()
    assert (frame[frame["metric"].isin(["fid", "sfid", "is", "params_m", "gmacs"])]["best"] > 0).all()


def test_the_papers_own_digits_are_kept() -> None:
    assert one("is", "DiT-XL/2", "256 px").printed == "121.50"


GOOD = dict(zip(COLUMNS, ["P", "T", "m", "d", "8", "", "", "fid", "1.0", "", "s", "verbatim", "", "", ""], strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": "1,0"}, "2: value='1,0' is not a number"),
        ({"value": "nan"}, "not a number"),
        ({"value": ""}, "value is empty"),
        ({"metric": ""}, "metric is empty"),
        ({"obtained": "seen"}, "obtained='seen' must be one of verbatim"),
        ({"source": "t"}, "source='t' is not in sources.csv: s"),
        ({"obtained": "digitised"}, "error=''"),
        ({"corrected": "2"}, "needs a note"),
    ],
)
def test_a_bad_row_is_refused_by_its_line(tmp_path: Path, change: dict[str, str], said: str) -> None:
    path = written(tmp_path, [GOOD | change])
    with pytest.raises(ValueError, match=said):
        list(read_file(path, {"s"}))


def test_other_columns_and_short_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("paper,value\nP,1\n")
    with pytest.raises(ValueError, match="must be"):
        list(read_file(path, {"s"}))
    path.write_text(",".join(COLUMNS) + "\nP,T\n")
    with pytest.raises(ValueError, match=r"x\.csv:2: 2 fields"):
        list(read_file(path, {"s"}))


def test_a_number_held_twice_is_refused(tmp_path: Path) -> None:
    from analysis.published import frame_of

    with pytest.raises(ValueError, match="twice"):
        frame_of([dict(GOOD), GOOD | {"value": "2.0"}])


def kept_twice(frame: pd.DataFrame) -> pd.DataFrame:
    """Costs that also lie outside study.cost, whichever paper is said to print them."""
    frame = frame[~frame["where"].isin(["configuration table", "derived: block formula"])]
    of_cost = frame["source"] == "cost"
    others = frame[~of_cost & (frame["source"] != "scm")]
    return frame[of_cost].merge(others, on=["model", "resolution", "metric"])


def test_no_cost_is_kept_beside_study_cost() -> None:
    """The one place of a cost printed beside ours is study/cost/published.csv."""
    frame = published()
    assert (frame["source"] == "cost").sum() > 80
    assert kept_twice(frame).empty


@pytest.mark.parametrize(("model", "metric"), [("LDM-4", "gmacs"), ("ADM", "params_m")])
def test_a_cost_kept_twice_under_two_papers_is_seen(model: str, metric: str) -> None:
    held = one(metric, model, resolution=256)
    again = held.to_frame().T.assign(paper="another", where="a table", source="memory")
    assert list(kept_twice(pd.concat([published(), again]))["model"]) == [model]


def test_the_parameters_of_a_u_net_are_told_apart_from_its_cost() -> None:
    def told(metric: str, model: str, resolution: int = 256) -> tuple[float, str, str]:
        row = one(metric, model, resolution=resolution)
        return row.value, row.paper, row.obtained

    assert told("gmacs", "LDM-4") == (104, "DiT", "verbatim")
    assert told("params_m", "LDM-4") == (400, "LDM", "verbatim")
    assert told("gmacs", "LDM-8") == (57, "DiT", "verbatim")
    assert told("params_m", "LDM-8") == (395, "LDM", "recalled")
    assert told("gmacs", "ADM", 512) == (1983, "DiT", "verbatim")
    assert told("params_m", "ADM", 512) == (559, "ADM", "recalled")
    assert told("params_m", "ADM") == (554, "LDM", "verbatim")


def written(folder: Path, records: list[dict[str, str]]) -> Path:
    path = folder / "x.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(records)
    return path
