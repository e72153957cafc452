"""What our opaque operators say they cost, against the same mathematics in plain operators that tracers can see."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import named_config
from models.macs import real_fft
from models.ssm.conv import two_sided
from models.ssm.core import model_macs, textbook
from models.ssm.kernel import Modes
from models.ssm.selective_scan import scan_macs, selective_scan, selective_scan_loop
from study.cost import fvcore_counter
from study.cost.tracer import PartCounter, trace_network

LENGTH, WIDTH, STATES = 16, 4, 6
CONFIG = named_config("dit-tiny", channels=WIDTH, size=(4, 4))


class WrittenOut(nn.Module):
    """S4D without operators of our own: powers by recurrence, both directions in one filter, real transforms."""

    def __init__(self, directions: int, streams: int, convolution: str = "two-sided") -> None:
        super().__init__()
        a = torch.randn(2, directions, WIDTH, STATES)
        self.modes = nn.ParameterList([-a[0].abs(), a[1], *torch.randn(2, directions, WIDTH, STATES)])
        self.skip = nn.Parameter(torch.randn(streams, WIDTH))
        self.convolution = convolution

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        u = x.flatten(2).mT  # (B, L, H)
        return textbook(u, Modes(*self.modes), self.skip) if self.convolution == "textbook" else self.convolve(u)

    def convolve(self, u: Tensor) -> Tensor:
        filters = torch.fft.rfft(two_sided(self.kernels(), self.skip), n=2 * LENGTH)
        signal = torch.fft.rfft(u.mT[:, None], n=2 * LENGTH)
        return torch.fft.irfft(signal * filters, n=2 * LENGTH)[..., LENGTH - 1 : -1].flatten(1, 2).mT

    def kernels(self) -> Tensor:
        """(directions, H, L): the real part of a product per mode and tap, and a power from the one before."""
        a_re, a_im, c_re, c_im = self.modes
        step = torch.exp(torch.complex(a_re, a_im))
        power, weights = torch.ones_like(step), 2 * torch.stack([c_re, -c_im], -1).flatten(2)[..., None, :]
        taps = []
        for tap in range(LENGTH):
            power = power * step if tap else power
            taps.append(weights @ torch.view_as_real(power).flatten(2)[..., None])
        return torch.cat(taps, -1)[..., 0, :]


WAYS = [(1, 1), (2, 2), (2, 1)]


@pytest.mark.parametrize(("directions", "streams"), WAYS)
def test_s4d_costs_what_its_mathematics_costs_in_plain_operators(directions, streams):
    model = WrittenOut(directions, streams)
    x = torch.randn(2, WIDTH, 4, 4)
    expected = textbook(x.flatten(2).mT, Modes(*model.modes), model.skip)
    torch.testing.assert_close(model(x, x[:, 0, 0, 0]), expected, rtol=1e-3, atol=1e-4)
    stated = model_macs(LENGTH, WIDTH, STATES, directions, streams)
    first_power = 3 * directions * WIDTH * STATES  # is one, so the recurrence needs no product for it
    for seen in (fvcore_counter.count_network(model, CONFIG), trace_network(model.to("meta"), CONFIG).macs):
        assert (seen.fft, seen.kernel) == (stated.fft, stated.kernel - first_power)
        assert seen.total == seen.fft


def test_the_textbook_form_transforms_a_flipped_signal_again():
    """Whose spectrum is the conjugate of the first: the one transform by which it costs more than stated."""
    for directions, again in ((1, 0), (2, 1)):
        model = WrittenOut(directions, directions, "textbook")
        stated = model_macs(LENGTH, WIDTH, STATES, directions, directions).fft
        for seen in (fvcore_counter.count_network(model, CONFIG), trace_network(model.to("meta"), CONFIG).macs):
            assert seen.fft == stated + again * real_fft(2 * LENGTH, WIDTH)


class States(TorchDispatchMode):
    """Operations on every (channel, state) of a scan, by operator."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.states, self.seen = states, Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        worked = args[0] if name == "sum" else out  # as many additions as there are terms
        if name in ("exp", "mul", "add", "sum") and self.states in worked.shape:
            self.seen[name] += worked.numel()
        return out


def test_a_scan_is_stated_at_nine_operations_where_the_loop_as_written_does_seven():
    """The authors' 9 is a convention for what a state costs, exponential included; a loop bounds it from below."""
    length, channels, states = 8, 3, 5
    u, delta, A = torch.randn(1, channels, length), torch.randn(1, channels, length), -torch.rand(channels, states)
    B, C = torch.randn(2, 1, states, length)
    with States(states) as counted:
        y = selective_scan_loop(u, delta, A, B, C)
    every = length * channels * states
    assert counted.seen == {"mul": 4 * every, "exp": every, "add": every, "sum": every}
    assert 2 * (scan_macs(length, channels, states) - length * channels) == 9 * every
    inputs = tuple(x.to("meta") for x in (u, delta, A, B, C))
    with PartCounter(inputs) as opaque:
        selective_scan(*inputs)
    assert opaque.parts["Global"]["scan"] == scan_macs(length, channels, states)
    torch.testing.assert_close(selective_scan(u, delta, A, B, C), y, rtol=1e-4, atol=1e-5)


def test_complex_matrix_products_are_three_real_ones():
    z = torch.randn(4, 5, dtype=torch.complex64, device="meta")
    with PartCounter((z,)) as counter:
        torch.addmm(z.sum(), z, z.mT)
    with FlopCounterMode(display=False) as blind:
        torch.addmm(z.sum(), z, z.mT)
    assert counter.parts["Global"]["matmul"] == 3 * 4 * 4 * 5
    assert blind.get_total_flops() == 2 * 4 * 4 * 5
