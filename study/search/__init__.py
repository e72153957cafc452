"""A sweep whose next points depend on what the last ones gave: optuna proposes, ordinary runs answer."""
