"""The interval of a squared distance, which no symmetric one covers evenly.

Its linear noise has a variance that grows with the distance itself, and vanishes with it; what is left is
the quadratic noise of pairs. As in Wilson's interval for a proportion, the variance is taken at each
candidate value.
"""

from __future__ import annotations

from study.stats import Interval, t_quantile


def distance_interval(value: float, linear: float, quadratic: float, degrees: float) -> Interval:
    """All v with (value - v)^2 <= t^2 (quadratic + growth v).

    The growth is `linear` over the value. A value within its noise does not tell it; then it is drawn to
    sqrt(2 quadratic), half of what noise in a single direction would have: variance 2 s^4, growth 4 s^2.
    `degrees` says how well the variances are known.
    """
    sd = (linear + quadratic) ** 0.5
    if sd == 0:
        return value, value
    t = t_quantile(max(1.0, degrees))
    positive = max(value, 0.0)
    growth = (linear + (2 * quadratic) ** 0.5 * sd) / (positive + sd)
    skew = t * t * growth / 2
    reach = (t * t * (quadratic + growth * positive) + skew * skew) ** 0.5
    return value + skew - reach, value + skew + reach
