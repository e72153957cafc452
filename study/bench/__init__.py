"""What backbones cost on this machine, timed so that the numbers can be believed.

Four quantities: latency of one denoiser call, throughput at the largest common batch, a training step
(forward, backward, optimiser), and an end-to-end sample. `docs/measuring.md` states the protocol.
"""
