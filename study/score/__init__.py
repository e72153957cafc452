"""Scores that can be trusted: distances between samples and a reference, each with its N and its uncertainty."""
