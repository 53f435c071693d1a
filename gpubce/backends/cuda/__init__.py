"""The kernels on CUDA."""
