"""Every tolerance of the tests, each with its reason. Where bits are promised, tests use equality instead."""

ULP_HARD_TARGETS = 2.0
"""Promise 3: loss, gradient and hessian with hard targets, in units in the last place of the true value."""

POLYNOMIAL_EPSILONS = 2.0**-4
"""The relative error of a fitted polynomial before any rounding, in units of its type's epsilon: an eighth of half a
place. The fits reach 0.045."""

RELATIVE = {"float32": 2e-6, "float64": 1e-13}
"""Any option against the oracle, relative to the sum of the absolute terms: a dozen roundings of 2^-24 or 2^-53, and
a focal factor that multiplies the error of 1 - p_t by gamma (at most 5 in the tests)."""

TORCH_ABSOLUTE = 1e-11
"""PyTorch in float64 cancels by this much itself: (1 - y) x - log sigmoid(x) at |x| up to 1e4."""

TORCH_LIMIT_RELATIVE = 1e-8
"""At p = 0 and 1 PyTorch divides by 1e-12 held in float32, which is 4e-9 off, whatever the type of the tensors."""

SKLEARN_RELATIVE = 1e-9
"""Figures of the command beside scikit-learn's, on float64 predictions; both are good to about 1e-15."""

SUM_RELATIVE = 2.0**-45
"""Promise 3: the relative error of a sum of non-negative terms before its last rounding."""

ULP_NARROW = {"float16": 0.5 + 2.0**-12, "bfloat16": 0.5 + 2.0**-15}
"""Results in the narrow types: one rounding, after the 2 float32 ulp of promise 3: 2^-12 or 2^-15 of theirs."""

BACKWARD_STEP_ULP = 1
"""How far a loss may go back where the prediction goes on: two neighbours are rounded apart."""

REFERENCE_RELATIVE = {"float32": 2.0**-50, "float64": 2.0**-102}
"""The reference of the accuracy sweeps against mpmath: a few roundings of 2^-53, or of pairs of float64."""

VANISHING = 2.0**16
"""In units of the compute type's smallest normal number, below which results may be 0: the factors of a factor that
vanished, at most 8^3 from options and 4 from a weight, and at most 30 elements added."""

BESIDE_ONE = 1e-43
"""The oracle takes 1 - 1e-48 for a probability of 1: times the factors that VANISHING names."""

INTERRUPT_SECONDS = 5.0
"""From a signal to the exception of its handler in a call that takes a minute. Kernels of about 0.05 s run in between;
0.2 s was measured with three times as much work as processors."""

ANONYMOUS_MEGABYTES = 200.0
"""Memory beside mapped files that a call on 3 10^9 elements takes: 0.6 bytes a block of 8192 are 12 MB, as pairs of
float64 for each sum and pass; the rest is for allocators."""

SOAK_MEGABYTES = 8.0
"""Growth of the resident memory from one third of a soak to the next: allocators keep and return pages as they like.
Over ten minutes, 5 bytes a call would be seen."""

SOAK_OBJECTS = 50
"""Growth of the number of objects between the same thirds: caches of Python and NumPy fill slowly; a leak of one object
in 100 calls would be seen in ten minutes."""

FIGURES_AGREE = 1e-12
"""A report's figures against those of scikit-learn and NumPy: a few quotients and logarithms of float64, and sums of
thousands of terms that they add in another order."""

TORCH_ADAPTER = 1e-10
"""The drop-ins beside PyTorch in float64 on ordinary numbers, relative and absolute: the slope of the loss along
targets is a difference of two losses of up to 10, and PyTorch's own loss cancels as much."""

ONE_ULP_FLOAT32 = 2.0**-23
"""One unit in the last place of a float32, relative."""

TRAINING = {"float64": 1e-9, "float32": 1e-4}
"""Losses of a training run with the drop-in beside PyTorch's loss: 24 steps multiply what the gradients differ by."""

BOOSTED = 1e-5
"""Probabilities after 100 rounds with our objective and the library's own, whose float32 derivatives are rounded
apart."""

CONVENTION = {"float64": 1e-12, "float32": 1e-6}
"""The number of another library beside ours with its convention, in means of at least 1 nat: it forms 1 - p and adds
in the type itself."""

LINEAR = {"float64": 1e-12, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The loss of a linear layer in chunks and in one piece, relative and absolute: a product of matrices adds in an order
of its own, and gradients are sums of a dozen terms of up to 10. In the narrow types: logits and results are rounded."""

JAX = 1e-5
"""Derivatives beside those of JAX's own formula, in float32, relative and absolute: a dozen roundings of each."""

STEP_MEGABYTES = 8.0
"""Beside the gradient of 64 MB that a step of training leaves: sums by block, and what allocators round up."""

PEER = {"float64": 1e-11, "float32": 1e-5, "float16": 2.0**-9, "bfloat16": 2.0**-6}
"""Benchmarks: other libraries' means and gradients, relative and absolute, for a gradient in units of that of one
element. Their formulas cancel, and they add in float32; in the narrow types they round every step."""
