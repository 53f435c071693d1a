"""The kernels on a CPU."""
