"""Processes that turn data into noise and back; `study.diffusion` is the front door."""
