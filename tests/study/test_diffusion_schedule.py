"""Noise schedules, and which of their steps a spacing keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from study.process.schedule import SCHEDULES, Schedule, kept_steps, log_snr_spaced

few = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_destroy_the_signal_monotonically(schedule: str) -> None:
    s = Schedule.named(schedule, 1000)
    assert s.betas.dtype == torch.float64
    assert ((s.betas > 0) & (s.betas < 1)).all()
    assert (s.log_snr.diff() < 0).all()
    assert s.alphas_cumprod[0] > 0.99
    assert s.alphas_cumprod[-1] < 0.01
    torch.testing.assert_close(s.signal**2 + s.sigma**2, torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-14)


def test_ldm_schedule_is_linear_in_the_root() -> None:
    roots = Schedule.named("ldm", 1000).betas.sqrt()
    assert (roots[0].item() ** 2, roots[-1].item() ** 2) == pytest.approx((0.0015, 0.0195))
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(999), rtol=1e-9, atol=0)


@given(
    spec=st.sampled_from(["1000", "250", "77", "ddim50", "ddim334", "10,15,20", "1,1"]), name=st.sampled_from(SCHEDULES)
)
@few
def test_respaced_schedules_keep_the_signal_of_the_kept_steps(spec: str, name: str) -> None:
    full, kept = Schedule.named(name, 1000), kept_steps(spec, 1000)
    assert kept == sorted(set(kept))
    respaced = full.keeping(kept)
    torch.testing.assert_close(respaced.alphas_cumprod, full.alphas_cumprod[kept], rtol=1e-10, atol=0)
    assert respaced.times.tolist() == [float(i) for i in kept]


@given(count=st.integers(2, 1000), name=st.sampled_from(SCHEDULES))
@few
def test_log_snr_spacing_keeps_both_ends_and_the_count(count: int, name: str) -> None:
    log_snr = Schedule.named(name, 1000).log_snr
    kept = log_snr_spaced(log_snr, count)
    assert kept == sorted(set(kept))
    assert (len(kept), kept[0], kept[-1]) == (count, 0, 999)


def test_log_snr_spacing_is_even_where_the_grid_allows() -> None:
    log_snr = Schedule.named("linear", 1000).log_snr
    strides = log_snr[log_snr_spaced(log_snr, 12)].diff()
    assert strides.max() / strides.min() < 2
    assert log_snr_spaced(log_snr, 1) == [999]


@pytest.mark.parametrize(
    "spec",
    ["0", "-5", "1001", "", "fast", "2.5", "10,,20", "10,0,20", "900,10", "ddim", "ddim0", "ddim999", "ddim1001"],
)
def test_impossible_spacings(spec: str) -> None:
    with pytest.raises(ValueError, match="steps="):
        kept_steps(spec, 1000)


def test_an_unreachable_stride_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"steps='ddim130'.*ddim125 or ddim143"):
        kept_steps("ddim130", 1000)
