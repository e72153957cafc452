"""Images as the latents of a frozen autoencoder: encoded once, trained on from disk, decoded when sampled."""
