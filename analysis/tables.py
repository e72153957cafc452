"""Every table by name, one function each: rows in, frame out. `analysis.render` sets them as text.

| the papers' | |
|---|---|
| imagenet(256), imagenet(512), lsun, celeba_cifar, dis_imagenet, dit_models | scores, audited |
| digitised("hourglass figure"), digitised("model-scaling figure") | figures as numbers |
| costs, totals, sentences, layer_costs, resolution_costs, dis_configurations | costs, printed and counted |

| a study's | |
|---|---|
| comparison, equal_compute, equal_time, spent, pareto, curve, images_until, stability | of any sweep |
| patch_size, hourglass, hourglass_readings, depth_width, backbones, resolution, convergence, dis_ablations, search | |
"""

from __future__ import annotations

from analysis.convergence_tables import images_until, stability
from analysis.cost_tables import costs, dis_configurations, layer_costs, resolution_costs, sentences, totals
from analysis.paper_tables import celeba_cifar, digitised, dis_imagenet, dit_models, imagenet, lsun, verdict
from analysis.study_tables import (
    against,
    backbones,
    comparison,
    convergence,
    curve,
    depth_width,
    dis_ablations,
    equal_compute,
    equal_time,
    hourglass,
    hourglass_readings,
    pareto,
    patch_size,
    resolution,
    resolved_best,
    search,
    spent,
)

__all__ = [
    "against",
    "backbones",
    "celeba_cifar",
    "comparison",
    "convergence",
    "costs",
    "curve",
    "depth_width",
    "digitised",
    "dis_ablations",
    "dis_configurations",
    "dis_imagenet",
    "dit_models",
    "equal_compute",
    "equal_time",
    "hourglass",
    "hourglass_readings",
    "imagenet",
    "images_until",
    "layer_costs",
    "lsun",
    "pareto",
    "patch_size",
    "resolution",
    "resolution_costs",
    "resolved_best",
    "search",
    "sentences",
    "spent",
    "stability",
    "totals",
    "verdict",
]
