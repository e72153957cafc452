"""Weights from elsewhere and for elsewhere: official checkpoints in, ours out with a model card."""
