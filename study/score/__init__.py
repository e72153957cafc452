"""Scores that can be trusted: distances between samples and a reference, each with its N and its uncertainty."""

from study.score.agreement import class_agreement, class_agreement_interval

__all__ = ["class_agreement", "class_agreement_interval"]
