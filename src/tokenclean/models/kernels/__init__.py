"""Our own kernels, compiled where they run."""
