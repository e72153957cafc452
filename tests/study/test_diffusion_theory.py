"""Sampling with the exact score of a 2-D Gaussian mixture, where every answer is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from study.diffusion import Denoise, FlowConfig, GaussianConfig, Process, RectifiedFlow, SamplerConfig, make_process

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[0.8, 0.2], [-0.9, 0.5], [0.1, -1.0]])
COVARIANCES = np.array([[[0.10, 0.03], [0.03, 0.05]], [[0.06, -0.02], [-0.02, 0.09]], [[0.12, 0.0], [0.0, 0.04]]])
MEAN = WEIGHTS @ MEANS
COVARIANCE = np.einsum("k,kij->ij", WEIGHTS, COVARIANCES) + np.einsum(
    "k,ki,kj->ij", WEIGHTS, MEANS - MEAN, MEANS - MEAN
)
COUNT = 6000
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # on its own, not from the code under test

Coefficients = Callable[[float], tuple[float, float]]


def clean_given_noisy(x: np.ndarray, signal: float, sigma: float) -> np.ndarray:
    """E[x0 | signal x0 + sigma noise = x], x (N, 2)."""
    noisy = signal**2 * COVARIANCES + sigma**2 * np.eye(2)
    inverse = np.linalg.inv(noisy)
    gap = x[:, None, :] - signal * MEANS  # (N, K, 2)
    pulled = np.einsum("kij,nkj->nki", inverse, gap)
    log_weight = np.log(WEIGHTS) - 0.5 * np.log(np.linalg.det(noisy)) - 0.5 * np.einsum("nki,nki->nk", gap, pulled)
    responsibility = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    responsibility /= responsibility.sum(axis=1, keepdims=True)
    per_component = MEANS + signal * np.einsum("kij,nkj->nki", COVARIANCES, pulled)
    return np.einsum("nk,nki->ni", responsibility, per_component)


def gaussian_coefficients(t: float) -> tuple[float, float]:
    abar = ABAR[round(t)]
    return math.sqrt(abar), math.sqrt(1 - abar)


def flow_coefficients(t: float) -> tuple[float, float]:
    return 1 - t / 1000, t / 1000


def exact(predict: str, coefficients: Coefficients) -> Denoise:
    """The best possible network for each kind of prediction."""

    def denoise(x: Tensor, t: float) -> Tensor:
        signal, sigma = coefficients(t)
        flat = x[:, :, 0, 0].numpy()
        x0 = clean_given_noisy(flat, signal, sigma)
        noise = (flat - signal * x0) / sigma if sigma > 0 else np.zeros_like(x0)
        answer = {"x0": x0, "epsilon": noise, "v": signal * noise - sigma * x0, "velocity": noise - x0}[predict]
        return torch.from_numpy(answer)[:, :, None, None]

    return denoise


def noise(seed: int, count: int = COUNT) -> Tensor:
    return torch.randn(count, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(process: Process, denoise: Denoise, sampler: SamplerConfig, start: Tensor) -> np.ndarray:
    sample = process.sample(denoise, start, sampler, lambda step: noise(1000 + step, len(start)))
    return sample[:, :, 0, 0].numpy()


def gaussian_run(sampler: SamplerConfig, start: Tensor, predict: str = "epsilon") -> np.ndarray:
    process = make_process(GaussianConfig(predict=predict, variance="fixed_small"))
    return run(process, exact(predict, gaussian_coefficients), sampler, start)


def flow_run(sampler: SamplerConfig, start: Tensor) -> np.ndarray:
    return run(RectifiedFlow(), exact("velocity", flow_coefficients), sampler, start)


def assert_moments(x: np.ndarray) -> None:
    """Mean and covariance within four standard errors of the mixture's."""
    centred = x - MEAN
    assert (np.abs(centred.mean(axis=0)) < 4 * x.std(axis=0) / math.sqrt(len(x))).all()
    products = np.einsum("ni,nj->nij", centred, centred)
    assert (np.abs(products.mean(axis=0) - COVARIANCE) < 4 * products.std(axis=0) / math.sqrt(len(x))).all()


@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig("ddpm", "400"),
        SamplerConfig("ddim", "250"),
        SamplerConfig("ddim", "250", eta=1.0),
        SamplerConfig("dpmpp_2m", "50"),
    ],
    ids=lambda s: f"{s.sampler}-eta{s.eta}",
)
def test_gaussian_samplers_reproduce_the_mixture(sampler: SamplerConfig) -> None:
    assert_moments(gaussian_run(sampler, noise(0)))


@pytest.mark.parametrize(
    "sampler", [SamplerConfig("euler", "200"), SamplerConfig("heun", "50")], ids=lambda s: s.sampler
)
def test_flow_samplers_reproduce_the_mixture(sampler: SamplerConfig) -> None:
    assert_moments(flow_run(sampler, noise(0)))


def test_too_few_steps_do_not_pass_for_the_mixture() -> None:
    with pytest.raises(AssertionError):
        assert_moments(gaussian_run(SamplerConfig("ddim", "5"), noise(0)))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("predict", ["x0", "v"])
def test_predictions_are_interchangeable(sampler: str, predict: str) -> None:
    config = SamplerConfig(sampler, "20")
    expected = gaussian_run(config, noise(0, 50))
    np.testing.assert_allclose(gaussian_run(config, noise(0, 50), predict), expected, rtol=0, atol=1e-9)


START = noise(7, 30)


@cache
def gaussian_truth() -> np.ndarray:
    """The probability flow from t=999 to t=0 by an adaptive solver, then the denoised end point."""

    def slope(scale: float, flat: np.ndarray) -> np.ndarray:  # x = y sqrt(abar); scale = sigma / sqrt(abar)
        signal = 1 / math.sqrt(1 + scale**2)
        x = flat.reshape(-1, 2) * signal
        return ((x - signal * clean_given_noisy(x, signal, scale * signal)) / (scale * signal)).reshape(-1)

    first, last = (math.sqrt(1 / ABAR[i] - 1) for i in (999, 0))
    y = START[:, :, 0, 0].numpy() / math.sqrt(ABAR[999])
    end = solve_ivp(slope, (first, last), y.reshape(-1), rtol=1e-10, atol=1e-12).y[:, -1].reshape(-1, 2)
    signal = math.sqrt(ABAR[0])
    return clean_given_noisy(end * signal, signal, math.sqrt(1 - ABAR[0]))


@cache
def flow_truth() -> np.ndarray:
    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat.reshape(-1, 2))[:, :, None, None]
        return exact("velocity", flow_coefficients)(x, 1000 * s).numpy().reshape(-1)

    y = START[:, :, 0, 0].numpy()
    return solve_ivp(slope, (1.0, 0.0), y.reshape(-1), rtol=1e-10, atol=1e-12).y[:, -1].reshape(-1, 2)


def error(x: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(((x - truth) ** 2).mean()))


def order(coarse: float, fine: float, ratio: float) -> float:
    return math.log(coarse / fine) / math.log(ratio)


@pytest.mark.parametrize(("sampler", "expected"), [("ddim", 1.0), ("dpmpp_2m", 2.0)])
def test_gaussian_convergence_order(sampler: str, expected: float) -> None:
    # strides of 9 and 3, both from t=999 to t=0
    spacings = ("ddim112", "ddim334")
    coarse, fine = (error(gaussian_run(SamplerConfig(sampler, n), START), gaussian_truth()) for n in spacings)
    assert order(coarse, fine, 3) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize(("sampler", "expected"), [("euler", 1.0), ("heun", 2.0)])
def test_flow_convergence_order(sampler: str, expected: float) -> None:
    coarse, fine = (error(flow_run(SamplerConfig(sampler, n), START), flow_truth()) for n in ("100", "300"))
    assert order(coarse, fine, 3) == pytest.approx(expected, abs=0.25)


def test_twenty_steps_of_dpmpp_beat_ddim() -> None:
    ddim, dpmpp = (error(gaussian_run(SamplerConfig(s, "20"), START), gaussian_truth()) for s in ("ddim", "dpmpp_2m"))
    assert dpmpp < ddim / 5


def test_ddim_backwards_finds_the_noise() -> None:
    process = make_process(GaussianConfig(variance="fixed_small"))
    denoise = exact("epsilon", gaussian_coefficients)
    images = process.sample(denoise, START, SamplerConfig("ddim", "1000"), lambda step: START)
    found = process.encode(denoise, images, "1000")
    assert error(found.numpy(), START.numpy()) < 0.02


def test_no_network_has_a_lower_loss_than_the_exact_one() -> None:
    process = RectifiedFlow(FlowConfig())
    generator = torch.Generator().manual_seed(0)
    component = torch.multinomial(torch.from_numpy(WEIGHTS), COUNT, replacement=True, generator=generator)
    roots = torch.linalg.cholesky(torch.from_numpy(COVARIANCES))[component]
    x0 = torch.from_numpy(MEANS)[component] + (roots @ noise(1)[:, :, 0]).squeeze(-1)
    x0 = x0[:, :, None, None]
    for time in (100.0, 500.0, 900.0):
        t = torch.full((COUNT,), time)
        x_t = process.add_noise(x0, t, noise(2))
        best = exact("velocity", flow_coefficients)(x_t, time)
        loss = {
            scale: process.losses(scale * best, x0, x_t, t, noise(2)).total.mean().item() for scale in (0.95, 1, 1.05)
        }
        assert loss[1] == min(loss.values())
