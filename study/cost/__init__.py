"""What a backbone costs on paper: parameters, MACs, memory, and the sizes that meet a budget.

`cost("dit-xl/2")` answers from closed forms; `require_agreement` holds them to torch's and fvcore's counters.
"""

from study.cost.match import Budget, Match, Solution, UnreachableError, match
from study.cost.summary import Cost, Parameters, at_pixels, cost, parameters

__all__ = [
    "Budget",
    "Cost",
    "Match",
    "Parameters",
    "Solution",
    "UnreachableError",
    "at_pixels",
    "cost",
    "match",
    "parameters",
]
