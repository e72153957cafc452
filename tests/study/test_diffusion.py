"""What holds for every process, schedule and prediction, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from study.diffusion import (
    FlowConfig,
    GaussianConfig,
    GaussianDiffusion,
    Process,
    RectifiedFlow,
    SamplerConfig,
    make_process,
)
from study.process.gaussian import PREDICTIONS, VARIANCES, gaussian_kl, pixel_log_likelihood
from study.process.schedule import SCHEDULES

PROCESSES = [
    GaussianConfig(),
    GaussianConfig(schedule="cosine", predict="v", variance="fixed_small"),
    GaussianConfig(schedule="ldm", steps=400, predict="x0", variance="fixed_large"),
    FlowConfig(),
    FlowConfig(times="logit_normal"),
]
every_process = pytest.mark.parametrize(
    "config", PROCESSES, ids=["dit", "cosine-v", "ldm-x0", "flow", "flow-logit-normal"]
)
few = settings(max_examples=30, deadline=None)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def output_for(process: Process, x: Tensor, seed: int = 9) -> Tensor:
    channels = x.shape[1] * (2 if process.learns_variance else 1)
    return randn(len(x), channels, *x.shape[2:], seed=seed, dtype=x.dtype)


# --- times -----------------------------------------------------------------------------------------------------


@every_process
def test_training_times_cover_the_scale_and_follow_the_generator(config: Any) -> None:
    process = make_process(config)
    t = process.sample_times(4000, torch.Generator().manual_seed(3))
    assert t.shape == (4000,)
    assert t.dtype == torch.float32
    assert 0 <= t.min() < 60
    assert 940 < t.max() <= 1000
    assert torch.equal(t, process.sample_times(4000, torch.Generator().manual_seed(3)))


def test_uniform_times_are_uniform_and_logit_normal_ones_are_not() -> None:
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    for config in (GaussianConfig(), FlowConfig()):
        t = make_process(config).sample_times(20_000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(t.quantile(quartiles), 1000 * quartiles, rtol=0, atol=15)
    t = RectifiedFlow(FlowConfig(times="logit_normal", logit_mean=1.0, logit_std=0.5)).sample_times(20_000)
    logits = torch.logit(t / 1000)
    assert logits.mean().item() == pytest.approx(1.0, abs=0.03)
    assert logits.std().item() == pytest.approx(0.5, abs=0.03)


@every_process
@given(bins=st.integers(1, 12), per_bin=st.integers(1, 8))
@few
def test_validation_bins_cover_the_scale_evenly(config: Any, bins: int, per_bin: int) -> None:
    times = make_process(config).bin_times(bins, per_bin)
    assert times.shape == (bins, per_bin)
    for b, row in enumerate(times.tolist()):
        assert len(set(row)) == per_bin
        assert all(1000 * b / bins - 2.5 <= t < 1000 * (b + 1) / bins for t in row)


@given(steps=st.sampled_from([50, 250, 400, 999, 1000, 4000]))
@few
def test_every_step_survives_the_trip_through_its_time(steps: int) -> None:
    process = GaussianDiffusion(GaussianConfig(steps=steps))
    index = torch.arange(steps)
    t = process._times(index)
    assert torch.equal(process._index(t), index)
    torch.testing.assert_close(t.double(), process.gaussian.schedule.times, rtol=1e-6, atol=0)
    assert t.max() < 1000


# --- the forward process ---------------------------------------------------------------------------------------


@given(index=st.integers(1, 999), schedule=st.sampled_from(SCHEDULES))
@few
def test_noising_step_by_step_has_the_same_marginal_as_at_once(index: int, schedule: str) -> None:
    process = GaussianDiffusion(GaussianConfig(schedule=schedule))
    mean, variance = 1.0, 0.0
    for beta in process.gaussian.schedule.betas[: index + 1].tolist():
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    t = torch.tensor([float(index)])
    assert process.add_noise(one, t, zero).item() == pytest.approx(mean, rel=1e-9)
    assert process.add_noise(zero, t, one).item() ** 2 == pytest.approx(variance, rel=1e-9)


@given(t=st.floats(0, 1000), seed=st.integers(0, 99))
@few
def test_flow_runs_straight_from_data_to_noise(t: float, seed: int) -> None:
    x0, noise = randn(2, 3, 2, 2, seed=seed), randn(2, 3, 2, 2, seed=seed + 100)
    x_t = RectifiedFlow().add_noise(x0, torch.full((2,), t, dtype=torch.float64), noise)
    torch.testing.assert_close(x_t, x0 + t / 1000 * (noise - x0))


@given(predict=st.sampled_from(PREDICTIONS), schedule=st.sampled_from(SCHEDULES), seed=st.integers(0, 99))
@few
def test_predictions_invert_to_x0_and_noise(predict: str, schedule: str, seed: int) -> None:
    gaussian = GaussianDiffusion(GaussianConfig(predict=predict, schedule=schedule)).gaussian
    x0, noise = randn(5, 2, 3, 3, seed=seed), randn(5, 2, 3, 3, seed=seed + 100)
    index = torch.tensor([0, 1, 300, 990, 998])
    x_t = gaussian.add_noise(x0, index, noise)
    found = gaussian.predicted_x0(gaussian.target(x0, index, noise), x_t, index)
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(gaussian.predicted_epsilon(x0, x_t, index), noise, rtol=0, atol=1e-9)


# --- losses ----------------------------------------------------------------------------------------------------


@every_process
def test_losses_are_per_image_float32_and_none_for_the_other_images(config: Any) -> None:
    process = make_process(config)
    x0, noise = randn(4, 3, 4, 4, dtype=torch.float32).clamp(-1, 1), randn(4, 3, 4, 4, seed=1, dtype=torch.float32)
    t = process.bin_times(4, 1).flatten()
    x_t = process.add_noise(x0, t, noise)
    output = output_for(process, x_t)
    losses = process.losses(output.bfloat16(), x0, x_t, t, noise)
    assert losses.total.dtype == torch.float32
    assert losses.total.shape == losses.mse.shape == (4,)
    assert (losses.vb is not None) == process.learns_variance
    alone = process.losses(output[2:3].bfloat16(), x0[2:3], x_t[2:3], t[2:3], noise[2:3])
    assert torch.equal(alone.total, losses.total[2:3])


@every_process
def test_the_true_answer_costs_nothing_and_recovers_x0(config: Any) -> None:
    process = make_process(replace(config, variance="fixed_small") if isinstance(config, GaussianConfig) else config)
    x0, noise = randn(4, 3, 4, 4), randn(4, 3, 4, 4, seed=1)
    t = process.bin_times(4, 1).flatten()
    x_t = process.add_noise(x0, t, noise)
    if isinstance(process, GaussianDiffusion):
        answer = process.gaussian.target(x0, process._index(t), noise)
    else:
        answer = noise - x0
    assert process.losses(answer, x0, x_t, t, noise).total.abs().max() < 1e-20
    torch.testing.assert_close(process.predict_x0(answer, x_t, t), x0, rtol=0, atol=1e-9)


def test_the_bound_trains_only_the_variance() -> None:
    x0, noise, t = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), torch.tensor([0.0, 700.0])
    gradients = {}
    for loss in ("mse", "kl"):
        process = GaussianDiffusion(GaussianConfig(loss=loss))
        output = randn(2, 6, 4, 4, seed=2).requires_grad_()
        process.losses(output, x0, process.add_noise(x0, t, noise), t, noise).total.sum().backward()
        assert output.grad is not None
        gradients[loss] = output.grad
    mse_only = 2 * (randn(2, 6, 4, 4, seed=2)[:, :3] - noise) / (3 * 4 * 4)
    torch.testing.assert_close(gradients["mse"][:, :3], mse_only)
    torch.testing.assert_close(gradients["mse"][:, 3:], gradients["kl"][:, 3:])
    assert gradients["kl"][:, :3].abs().sum() > 0


def test_the_scalings_of_the_bound_differ_by_the_steps() -> None:
    def losses(loss: str) -> tuple[Tensor, Tensor]:
        process = GaussianDiffusion(GaussianConfig(loss=loss, steps=250))
        x0, noise, t = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), torch.tensor([100.0, 800.0])
        found = process.losses(output_for(process, x0), x0, process.add_noise(x0, t, noise), t, noise)
        return found.total, found.mse

    bound = losses("kl")[0]
    torch.testing.assert_close(losses("rescaled_kl")[0], 250 * bound)
    for loss, weight in (("mse", 1.0), ("rescaled_mse", 0.25)):
        total, mse = losses(loss)
        torch.testing.assert_close(total - mse, weight * bound)


def test_learned_range_spans_the_two_extreme_variances() -> None:
    learned = GaussianDiffusion().gaussian
    small = GaussianDiffusion(GaussianConfig(variance="fixed_small")).gaussian
    x, index = randn(3, 2, 2, 2), torch.tensor([0, 400, 999])
    for value, expected in (
        (-1.0, small.moments(x, x, index).log_variance),
        (1.0, learned.schedule.betas[index].log()),
    ):
        output = torch.cat([x, torch.full_like(x, value)], dim=1)
        actual = learned.moments(output, x, index).log_variance
        torch.testing.assert_close(actual, expected.reshape(3, 1, 1, 1).expand_as(x))


def test_kl_is_torchs_own() -> None:
    mean1, log1, mean2, log2 = (randn(50, seed=seed) for seed in range(4))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean1, (log1 / 2).exp()), normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean1, log1, mean2, log2), expected)


@given(mean=st.floats(-1.2, 1.2), scale=st.floats(0.005, 2))
@few
def test_pixel_likelihoods_sum_to_one(mean: float, scale: float) -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mass = pixel_log_likelihood(levels, torch.tensor(mean), torch.tensor(math.log(scale))).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)


# --- sampling --------------------------------------------------------------------------------------------------


def samplers(process: Process) -> list[SamplerConfig]:
    plain = [SamplerConfig(name, "7") for name in process.samplers]
    return plain + ([SamplerConfig("ddim", "7", eta=0.7)] if "ddim" in process.samplers else [])


@every_process
def test_samples_depend_on_their_own_noise_only(config: Any) -> None:
    process = make_process(config)
    start, later = randn(5, 2, 3, 3), randn(7, 5, 2, 3, 3, seed=1)

    def denoise(x: Tensor, t: float) -> Tensor:
        out = torch.tanh(x) + 0.1 * math.sin(t)
        return torch.cat([out, torch.tanh(x)], dim=1) if process.learns_variance else out

    for sampler in samplers(process):
        whole = process.sample(denoise, start, sampler, lambda step: later[step])
        part = process.sample(denoise, start[1:3], sampler, lambda step: later[step][1:3])
        assert torch.equal(whole[1:3], part)
        assert whole.isfinite().all()


@every_process
def test_the_network_is_called_as_often_as_announced_and_on_the_scale(config: Any) -> None:
    process = make_process(config)
    for sampler in samplers(process):
        times: list[float] = []

        def denoise(x: Tensor, t: float, times: list[float] = times) -> Tensor:
            times.append(t)
            return output_for(process, x)

        process.sample(denoise, randn(2, 2, 3, 3), sampler, lambda step: randn(2, 2, 3, 3, seed=step))
        assert len(times) == process.calls(sampler)
        assert times == sorted(times, reverse=True) or sampler.sampler == "heun"
        assert 0 <= min(times) < max(times) <= 1000


@given(steps=st.integers(1, 60).map(lambda n: 2 * n - 1) | st.sampled_from([2, 50, 100, 250]))
@settings(max_examples=25, deadline=None)
def test_a_flow_is_told_the_nearest_times_to_its_even_ones(steps: int) -> None:
    """Heun arrives at exactly the time the next step leaves from: an interval of guidance takes both or neither."""
    start = randn(1, 1, 2, 2)
    for sampler in ("euler", "heun"):
        times: list[float] = []

        def denoise(x: Tensor, t: float, times: list[float] = times) -> Tensor:
            times.append(t)
            return torch.zeros_like(x)

        out = make_process(FlowConfig()).sample(denoise, start, SamplerConfig(sampler, str(steps)), lambda step: start)
        assert torch.equal(out, start)
        left = [float(Fraction(1000 * step, steps)) for step in range(steps, -1, -1)]
        assert times == (left[:-1] if sampler == "euler" else [left[(i + 1) // 2] for i in range(2 * steps)])


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_or_two_steps_are_enough_to_stay_finite(schedule: str, predict: str, variance: str) -> None:
    """The ends of a schedule divide by nearly nothing: no sampler may end in NaN or outside a clipped range."""
    for total in (21, 1000):
        process = make_process(GaussianConfig(schedule=schedule, steps=total, predict=predict, variance=variance))
        for name in process.samplers:
            for steps in ("1", "2", "3", "ddim2"):
                out = process.sample(
                    lambda x, t, process=process: output_for(process, x),
                    randn(2, 1, 2, 2),
                    SamplerConfig(name, steps, clip=True),
                    lambda step: randn(2, 1, 2, 2, seed=step),
                )
                assert out.isfinite().all()
                assert out.abs().max() <= 1 + 1e-6


@every_process
def test_clipping_keeps_a_wild_network_within_the_pixel_range(config: Any) -> None:
    process = make_process(config)
    for sampler in samplers(process):
        sample = process.sample(
            lambda x, t: 40 * output_for(process, x),
            randn(4, 2, 3, 3),
            replace(sampler, clip=True, steps="25"),
            lambda step: 0 * randn(4, 2, 3, 3),
        )
        assert sample.abs().max() < (1.5 if sampler.sampler != "heun" else 4)


# --- configs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SamplerConfig, GaussianConfig, FlowConfig])
def test_configs_are_structured_configs(config: type) -> None:
    assert OmegaConf.to_object(OmegaConf.structured(config)) == config()


def test_a_bare_number_of_steps_in_a_file_is_a_count() -> None:
    node = OmegaConf.merge(OmegaConf.structured(SamplerConfig), OmegaConf.create("{steps: 50, sampler: ddim}"))
    assert OmegaConf.to_object(node) == SamplerConfig("ddim", "50")


# --- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: GaussianConfig(schedule="linaer"), "schedule='linaer'.*did you mean 'linear'"),
        (lambda: GaussianConfig(steps=0), "steps=0"),
        (lambda: GaussianConfig(schedule="cosine", steps=1), "steps=1"),
        (lambda: GaussianConfig(predict="eps"), "predict='eps'"),
        (lambda: GaussianConfig(variance="learned"), "variance='learned'.*learned_range"),
        (lambda: GaussianConfig(loss="l1"), "loss='l1'"),
        (lambda: FlowConfig(times="cosine"), "times='cosine'"),
        (lambda: FlowConfig(logit_std=0), "logit_std=0"),
        (lambda: SamplerConfig(sampler="plms"), "sampler='plms'"),
        (lambda: SamplerConfig(steps=""), "steps=''"),
        (lambda: SamplerConfig(sampler="ddpm", eta=0.5), "eta=0.5"),
        (lambda: SamplerConfig(sampler="ddim", eta=-1), "eta=-1"),
        (lambda: SamplerConfig(guidance=-1), "guidance=-1"),
        (lambda: SamplerConfig(guidance_channels="3"), "guidance_channels='3'"),
        (lambda: SamplerConfig(guidance_from=600, guidance_to=300), "guidance_from, guidance_to"),
        (lambda: make_process(SamplerConfig()), "process="),
        (lambda: RectifiedFlow().bin_times(0, 3), "bins=0"),
    ],
)
def test_refused_settings_are_named(build: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()


@pytest.mark.parametrize(
    ("config", "sampler", "named"),
    [
        (GaussianConfig(), SamplerConfig("euler", "10"), "sampler='euler'.*ddpm, ddim, dpmpp_2m"),
        (FlowConfig(), SamplerConfig("ddim", "10"), "sampler='ddim'.*euler, heun"),
        (FlowConfig(), SamplerConfig("euler", "ddim50"), "steps='ddim50'"),
        (FlowConfig(), SamplerConfig("heun", "0"), "steps='0'"),
        (GaussianConfig(), SamplerConfig("dpmpp_2m", "0"), "steps='0'"),
        (GaussianConfig(steps=100), SamplerConfig("ddpm", "250"), "steps='250'.*1 to 100"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused_before_any_call(
    config: Any, sampler: SamplerConfig, named: str
) -> None:
    def denoise(x: Tensor, t: float) -> Tensor:
        raise AssertionError("the network was called")

    with pytest.raises(ValueError, match=named):
        make_process(config).sample(denoise, randn(1, 1, 2, 2), sampler, lambda step: randn(1, 1, 2, 2))


@every_process
def test_output_channels_must_fit_the_variance(config: Any) -> None:
    process = make_process(config)
    wrong = not process.learns_variance
    with pytest.raises(ValueError, match=f"learn_sigma={wrong}"):
        process.check_denoiser(learn_sigma=wrong)
    process.check_denoiser(learn_sigma=not wrong)
    x, t = randn(2, 3, 2, 2), process.bin_times(2, 1).flatten()
    output = randn(2, 6 if wrong else 3, 2, 2)
    with pytest.raises(ValueError, match=r"output\.shape=.*variance"):
        process.losses(output, x, x, t, x)
    with pytest.raises(ValueError, match=r"output\.shape"):
        process.sample(lambda x, t: output, x, SamplerConfig(process.samplers[0], "4"), lambda step: x)
