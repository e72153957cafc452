"""`--hypothesis-profile=thorough` tries fourteen times as much as the gate, and new examples each time."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

THOROUGH = 14

settings.register_profile(
    "thorough",
    max_examples=100 * THOROUGH,
    deadline=None,
    derandomize=False,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
