"""Gaussian diffusion against the arrays of tests/parity: schedules, one step, losses, whole loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.dit import DiT, DiTConfig
from study.diffusion import GaussianConfig, GaussianDiffusion, SamplerConfig, guided
from study.process.guidance import combine
from study.process.samplers import ddim_reverse_step, ddim_step
from study.process.schedule import Schedule, kept_steps
from tests.parity_arrays import load_parity

PARITY = load_parity("diffusion")
IN, OUT, TOY = PARITY.inputs, PARITY.outputs, PARITY.group("toy")
OURS = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
OBJECTIVES = {
    "dit": GaussianConfig(),
    "rescaled_mse": GaussianConfig(loss="rescaled_mse"),
    "kl": GaussianConfig(loss="rescaled_kl"),
    "xstart": GaussianConfig(predict="x0"),
    "fixed_large": GaussianConfig(variance="fixed_large"),
    "fixed_small": GaussianConfig(variance="fixed_small"),
}


def model_output(config: GaussianConfig) -> Tensor:
    return IN["model_output"] if config.variance == "learned_range" else IN["model_output"][:, :4]


def assert_float32(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.float().expand_as(expected), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "table",
    [
        "betas",
        "alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ],
)
def test_schedule_tables(name: str, table: str) -> None:
    actual = getattr(Schedule.named(OURS[name], 1000), table)
    torch.testing.assert_close(actual, PARITY.tensor(f"sched/{name}_1000/{table}"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("spec", ["250", "100", "10,15,20", "ddim50", "ddim25"])
def test_respacing(spec: str) -> None:
    schedule = Schedule.named("linear", 1000).keeping(kept_steps(spec, 1000))
    expected = PARITY.tensor(f"respace/{spec}/timestep_map")
    assert kept_steps(spec, 1000) == expected.tolist()
    assert schedule.times.tolist() == expected.tolist()  # the network is told the original times
    torch.testing.assert_close(schedule.betas, PARITY.tensor(f"respace/{spec}/betas"), rtol=1e-12, atol=0)


def test_noising_and_posterior() -> None:
    diffusion = GaussianDiffusion()
    x_t = diffusion.add_noise(IN["x0"], IN["t"], IN["noise"])
    mean, log_variance = diffusion.gaussian.posterior(IN["x0"], x_t, IN["t"])
    variance = diffusion.gaussian.schedule.at("posterior_variance", IN["t"], x_t)
    assert_float32(x_t, OUT["x_t"])
    assert_float32(mean, OUT["q_post_mean"])
    assert_float32(variance, OUT["q_post_var"])
    assert_float32(log_variance, OUT["q_post_logvar"])


@pytest.mark.parametrize("objective", ["dit", "rescaled_mse", "kl", "xstart"])
@pytest.mark.parametrize("clip", [False, True])
def test_moments(objective: str, clip: bool) -> None:
    gaussian = GaussianDiffusion(OBJECTIVES[objective]).gaussian
    moments = gaussian.moments(IN["model_output"], OUT["x_t"], IN["t"], clip=clip)
    expected = {key.rsplit("/", 1)[1]: OUT[key] for key in OUT if key.startswith(f"{objective}/p_clip{int(clip)}/")}
    assert_float32(moments.mean, expected["mean"])
    assert_float32(moments.log_variance, expected["log_variance"])
    assert_float32(moments.log_variance.exp(), expected["variance"])
    # at t=999 x0 is a difference of numbers 158 times larger, so it is close to its own largest value
    scale = expected["pred_xstart"].abs().max().item()
    torch.testing.assert_close(moments.x0, expected["pred_xstart"], rtol=1e-5, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_fixed_variances(variance: str) -> None:
    config = OBJECTIVES[variance]
    moments = GaussianDiffusion(config).gaussian.moments(model_output(config), OUT["x_t"], IN["t"])
    assert_float32(moments.mean, OUT[f"{variance}/mean"])
    assert_float32(moments.log_variance, OUT[f"{variance}/log_variance"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses(objective: str) -> None:
    config = OBJECTIVES[objective]
    losses = GaussianDiffusion(config).losses(model_output(config), IN["x0"], OUT["x_t"], IN["t"], IN["noise"])
    ours = {"loss": losses.total, "mse": losses.mse, "vb": losses.vb}
    checked = [key for key in ours if f"{objective}/loss/{key}" in OUT]
    assert checked
    for key in checked:
        actual = ours[key]
        assert actual is not None
        torch.testing.assert_close(actual, OUT[f"{objective}/loss/{key}"], rtol=1e-4, atol=1e-6)


def test_prior_bits() -> None:
    gaussian = GaussianDiffusion().gaussian
    torch.testing.assert_close(gaussian.prior_bits(IN["x0"].double()), OUT["prior_bpd"].double(), rtol=0, atol=1e-6)


def step_x0(index: int, row: slice) -> Tensor:
    return GaussianDiffusion().gaussian.moments(IN["model_output"][row], OUT["x_t"][row], index).x0


ROWS = [(int(index), slice(row, row + 1)) for row, index in enumerate(IN["t"])]


def test_ddpm_step() -> None:
    moments = GaussianDiffusion().gaussian.moments(IN["model_output"], OUT["x_t"], IN["t"])
    not_last = (IN["t"] != 0).float()[:, None, None, None]
    assert_float32(moments.mean + not_last * (moments.log_variance / 2).exp() * IN["step_noise"], OUT["ddpm_step"])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("index", "row"), ROWS)
def test_ddim_step(eta: float, index: int, row: slice) -> None:
    noise = IN["step_noise"][row] if index > 0 else None
    step = ddim_step(GaussianDiffusion().gaussian, OUT["x_t"][row], step_x0(index, row), index, eta, noise)
    assert_float32(step, OUT[f"ddim_step_eta{eta}"][row])


@pytest.mark.parametrize(("index", "row"), ROWS)
def test_ddim_reverse_step(index: int, row: slice) -> None:
    step = ddim_reverse_step(GaussianDiffusion().gaussian, OUT["x_t"][row], step_x0(index, row), index)
    assert_float32(step, OUT["ddim_reverse_step"][row])


def toy_network(x: Tensor, t: float) -> Tensor:
    epsilon = TOY["a"] * x + TOY["b"] * torch.sin(torch.tensor(t / 200))
    return torch.cat([epsilon, torch.tanh(x)], dim=1)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ddim_ddim50_eta0.0", SamplerConfig("ddim", "ddim50", clip=True)),
        ("ddim_ddim25_eta0.0", SamplerConfig("ddim", "ddim25", clip=True)),
        ("ddim_20_eta1.0", SamplerConfig("ddim", "20", eta=1.0, clip=True)),
        ("ddpm_25", SamplerConfig("ddpm", "25", clip=True)),
    ],
)
def test_loops(name: str, sampler: SamplerConfig) -> None:
    noises = TOY.get(f"{name}_noises")

    def noise_source(step: int) -> Tensor:
        assert noises is not None, "a deterministic sampler drew noise"
        return noises[step]

    sample = GaussianDiffusion().sample(toy_network, TOY["z"], sampler, noise_source)
    torch.testing.assert_close(sample, TOY[name], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def dit() -> DiT:
    parity = load_parity("dit_p2")
    given = parity.cfg
    config = DiTConfig(
        size=given["input_size"],
        P=given["patch_size"],
        channels=given["in_channels"],
        width=given["hidden_size"],
        depth=given["depth"],
        heads=given["num_heads"],
        mlp_ratio=given["mlp_ratio"],
        classes=given["num_classes"],
    )
    model = DiT(config).eval()
    model.load_reference_state_dict(parity.params)
    return model


CFG = load_parity("dit_p2").group("cfg")
HALF = len(CFG["x"]) // 2  # the reference carries the unconditional half along; only the first is an image
SCALE = CFG["scale"].item()


@torch.no_grad()
def test_guided_output(dit: DiT) -> None:
    x, t, y = (CFG[key] for key in ("x", "t", "y"))
    both = torch.cat([x[:HALF], x[:HALF]])
    cond, uncond = dit(both, t, y).chunk(2)
    torch.testing.assert_close(combine(cond, uncond, SCALE, 3), CFG["out"][:HALF], rtol=1e-4, atol=1e-5)
    swapped = torch.cat([combine(cond, uncond, SCALE, 3)[:, :3], uncond[:, 3:]], dim=1)
    torch.testing.assert_close(swapped, CFG["out"][HALF:], rtol=1e-4, atol=1e-5)


def test_guided_output_at_one_time(dit: DiT) -> None:
    times = CFG["t"][:HALF].tolist()
    for row, t in enumerate(times):
        denoise = guided(dit, CFG["y"][row : row + 1], SamplerConfig(guidance=SCALE))
        with torch.no_grad():
            out = denoise(CFG["x"][row : row + 1], float(t))
        torch.testing.assert_close(out, CFG["out"][row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ddim10_eta0_sample", SamplerConfig("ddim", "ddim10", guidance=SCALE)),
        ("ddpm8_sample", SamplerConfig("ddpm", "8", guidance=SCALE)),
    ],
)
def test_guided_images(dit: DiT, name: str, sampler: SamplerConfig) -> None:
    denoise = guided(dit, CFG["y"][:HALF], sampler)
    sample = GaussianDiffusion().sample(
        denoise, CFG["x"][:HALF], sampler, lambda step: CFG["ddpm8_noises"][step][:HALF]
    )
    expected = CFG[name][:HALF]
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-4 * max(1, expected.abs().max().item()))
