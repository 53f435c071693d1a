import os

# PyTorch's OpenMP reads this when it is imported. Otherwise its threads wait busily after each of its rows, and ours,
# which are measured next, share the processors with them: on two cores our loss took 18.3 ms and not 10.7. PyTorch's
# own rows take as long either way.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Read when JAX first uses a GPU: otherwise it takes three quarters of the memory at once, and nobody else finds any.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
