"""The papers' experiments: each value with its source, each plan made in seconds, without data, with known costs."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from study.estimate import estimate, latent_bytes
from study.plan import Plan, make_plan
from study.plan_table import print_plan
from study.stated_speed import StatedSpeed, stated_speed_from
from study.strict import ConfigError
from study.sweep_file import parse_sweep, read_sweep, to_yaml

FOLDER = Path(__file__).parents[2] / "sweeps"
RECIPES = {
    "paper_imagenet256": 1,
    "paper_imagenet512": 1,
    "paper_imagenet256_400k": 5,
    "paper_lsun": 2,
    "dis_cifar10": 1,
    "dis_celeba64": 1,
    "dis_imagenet": 2,
    "dit_scaling": 12,
}
"""Runs by recipe."""

SOURCES = r"(DiffuSSM|DiT|DiS|ADM|ImageNet-1k|CIFAR-10|CelebA|LSUN|NVIDIA|XL: |S, XL: )"
WHY = re.compile(rf"^{SOURCES}.*[,:;(.]|^unstated, chosen because \w+|^ours\b|^no classes: ")
STATED = (
    *(f"process.{name}" for name in ("schedule", "steps", "predict", "variance", "loss")),
    *(f"train.{name}" for name in ("images", "batch", "lr", "schedule", "warmup", "weight_decay", "betas", "clip")),
    *(f"train.{name}" for name in ("ema", "flip", "precision")),
    *(f"sample.{name}" for name in ("count", "labels", "sampler.sampler", "sampler.steps", "sampler.guidance")),
)
BACKBONES = {
    "paper": ("depth", "width", "P", "M", "stream", "direction", "state", "init", "discretisation", "ssm_lr_scale"),
    "dis_": ("depth", "width", "P", "skip", "condition", "direction", "state", "conv", "expand", "drop_path"),
    "dit_": ("class_dropout", "label_std", "mlp_ratio"),
}


def plan_of(name: str) -> Plan:
    return make_plan(read_sweep(FOLDER / f"{name}.yaml", ["results=/nonexistent"]))


def explained(text: str) -> dict[str, str]:
    """Key by key, what stands beside it or above it."""
    found, above = {}, []
    for line in text.splitlines():
        if match := re.match(r"^\s+([\w.]+): [^#]*?(?:# (.*))?$", line):
            found[match[1]] = match[2] or " ".join(above)
        comment = re.match(r"^\s*# (?!--)(.*)$", line)  # but for the headings of groups
        above = [*above, comment[1]] if comment else []
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_stated_with_its_source_or_that_it_has_none(name: str) -> None:
    told = explained((FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("throughput:")[0])
    own = next(fields for start, fields in BACKBONES.items() if name.startswith(start))
    missing = {*STATED, *(f"backbone.{field}" for field in own)} - told.keys()
    assert not missing
    unexplained = {
        key: why
        for key, why in told.items()
        if not WHY.search(why) and not key.startswith(("machine.", "log.")) and key != "data.path"
    }
    assert not unexplained


def told_by(name: str) -> dict[str, str]:
    return explained((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RECIPES)
def test_how_averaging_starts_is_said(name: str) -> None:
    """(1+s)/(10+s) reaches a decay of d at s = (10 d - 1) / (1 - d)."""
    (decay,) = plan_of(name).points[0].config.train.ema
    steps = round((10 * decay - 1) / (1 - decay))
    told = told_by(name)["train.ema"]
    assert "ours: with a warm-up, min(decay, (1+s)/(10+s))" in told
    assert f"constant decay after {steps:,} steps" in told


@pytest.mark.parametrize("name", RECIPES)
def test_checkpoints_to_be_kept_come_before_the_end(name: str) -> None:
    for point in plan_of(name).points:
        every, images = point.config.log.keep_every, point.config.train.images
        assert every < images
        assert every % point.config.train.batch == 0


def test_the_checkpoint_of_the_papers_figure_is_kept() -> None:
    (point,) = plan_of("paper_imagenet256").points
    assert 400_000 * point.config.train.batch % point.config.log.keep_every == 0


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("dis_cifar10", "backbone.width", "recalled"),
        ("dis_cifar10", "backbone.P", "recalled"),
        ("dis_celeba64", "backbone.width", "recalled"),
        ("dis_celeba64", "backbone.P", "recalled"),
        ("dis_celeba64", "data.size", "recalled"),
        ("paper_imagenet256_400k", "backbone.M", "S and L, and XL in the figure of sizes: unstated, chosen because"),
        ("paper_imagenet512", "sample.sampler.guidance", "it has a row with -G alone"),
    ],
)
def test_what_nobody_printed_is_not_said_to_be_printed(name: str, key: str, words: str) -> None:
    assert words in told_by(name)[key]


@pytest.mark.parametrize("file", ["sweeps/dit_scaling.yaml", "sweeps/paper_imagenet256_400k.yaml", "docs/cluster.md"])
def test_the_decoder_has_a_source_or_is_said_to_be_chosen(file: str) -> None:
    text = " ".join((FOLDER.parent / file).read_text(encoding="utf-8").replace("\n# ", " ").split())
    assert "sd-vae-ft-mse" in text
    assert ("appendix: VAE decoder ablations" in text) or ("unstated, chosen is sd-vae-ft-mse" in text)


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_is_made_without_data_and_tells_hours_disk_and_what_they_rest_on(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    plan = plan_of(name)
    assert len(plan.points) == RECIPES[name]
    assert isinstance(plan.sweep.throughput, StatedSpeed)
    assert parse_sweep(to_yaml(plan.sweep), plan.sweep.name).throughput == plan.sweep.throughput
    print_plan(plan, memory=True)
    told = capsys.readouterr().out
    for part in ("gmacs", "GPU-hours", "GB of latents", "GB of checkpoints", "hours rest on", "TFLOP/s", "assumption"):
        assert part in told


def test_plans_have_the_papers_costs() -> None:
    """DiT's Gflops to three digits, DiffuSSM's within the 10 % that M=2 leaves open; images times Gflops as printed."""
    gflops = {"s/8": 0.36, "s/4": 1.41, "s/2": 6.06, "b/8": 1.42, "b/4": 5.56, "b/2": 23.01}
    gflops |= {"l/8": 5.01, "l/4": 19.70, "l/2": 80.71, "xl/8": 7.39, "xl/4": 29.05, "xl/2": 118.64}
    plan = plan_of("dit_scaling")
    for point in plan.points:
        macs = point.config.backbone.macs().total / 1e9
        assert macs == pytest.approx(gflops[str(point.values["backbone"]).removeprefix("dit-")], rel=0.005, abs=0.006)
        assert point.config.train.images == 400_000 * 256
    for name, total, tolerance in (("paper_imagenet256", 1.85e11, 0.07), ("paper_imagenet512", 3.22e11, 0.13)):
        (point,) = plan_of(name).points
        images = point.config.train.images
        assert images * point.config.backbone.macs().total / 1e9 == pytest.approx(total, rel=tolerance)


def test_hours_are_work_over_the_stated_share_of_the_peak() -> None:
    """660M images, three passes each, of 298.7 GMACs, on 8 x 312 TFLOP/s at a quarter: 21.9 days and the rest."""
    plan = plan_of("paper_imagenet256")
    (point,) = plan.points
    assert plan.sweep.throughput is not None
    cost = estimate(point.config, plan.sweep.throughput)
    training = 660e6 * 3 * cost.gmacs * 1e9 * 2 / (8 * 312e12 * 0.25)
    assert training < cost.seconds < 1.05 * training
    assert latent_bytes([point.config]) == (1_281_167 + 2_000) * 65_536 + 10_000 * 3 * 256 * 256


def test_latents_of_runs_on_the_same_set_are_counted_once() -> None:
    configs = [point.config for point in plan_of("dit_scaling").points]
    assert latent_bytes(configs) == latent_bytes(configs[:1]) > 8e10
    assert latent_bytes(point.config for point in plan_of("dis_cifar10").points) == 0


def test_the_command_takes_less_than_ten_seconds_of_a_processor() -> None:
    """Of a processor, not of a clock: machines that test are shared."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "study.sweep", str(FOLDER / "dit_scaling.yaml"), "--plan"]
    subprocess.run(command, check=True, capture_output=True, env={"PATH": "", "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


GOOD = {"gpu": "H100", "gpus": 8, "peak_tflops": 989, "mfu": 0.4, "source": "a guess"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpus": 0}, r"throughput\.gpus=0 is not valid"),
        ({"peak_tflops": -1}, r"throughput\.peak_tflops=-1\.0 is not valid"),
        ({"mfu": 1.5}, r"throughput\.mfu=1\.5 is not valid for rest: must be in \(0, 1\]"),
        ({"mfu": {"dit": "much"}}, r"throughput\.mfu='much' is not valid for dit"),
        ({"source": ""}, r"throughput\.source='' is not valid: must say where"),
        ({"mfus": 1}, r"unknown key throughput\.mfus: did you mean throughput\.mfu\?"),
    ],
)
def test_a_bad_throughput_is_refused_by_its_key(change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        stated_speed_from({**GOOD, **change})
    with pytest.raises(ConfigError, match="must be a mapping"):
        stated_speed_from("fast")


def test_shares_may_differ_by_backbone() -> None:
    speed = stated_speed_from({**GOOD, "mfu": {"dit": 0.5, "rest": 0.25}})
    assert speed.of("dit") == 2 * speed.of("diffussm") == 8 * 989e3 * 0.5 / 2
    with pytest.raises(ConfigError, match=r"has no share for dis: did you mean dit\?"):
        stated_speed_from({**GOOD, "mfu": {"dit": 0.5}}).of("dis")


def test_a_fault_in_a_file_is_told_with_its_line() -> None:
    text = "# ?\ndefaults: {data: digits8}\naxes: {seed: [0]}\nthroughput: {gpu: H100}\n"
    with pytest.raises(ConfigError, match=r"^lost:4: missing keys throughput\.gpus"):
        parse_sweep(text, "lost")
