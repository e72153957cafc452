"""State-space sequence layers: S4D, its long convolution, and the selective scan."""
