"""Binary cross-entropy at the speed of memory, with the same bits on the CPU and on every GPU.

Importing this package loads neither Numba nor CuPy nor PyTorch; the first call loads what it needs.
"""

from gpubce import errors
from gpubce.dispatch import devices
from gpubce.evaluator import Evaluator, Report
from gpubce.linear import LinearBinaryCrossEntropy, PairwiseSigmoidLoss, linear_binary_cross_entropy
from gpubce.loss import (
    BinaryCrossEntropy,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
)
from gpubce.spec.state import LossState

__version__ = "0.1.0"

__all__ = [
    "BinaryCrossEntropy",
    "Evaluator",
    "LinearBinaryCrossEntropy",
    "LossState",
    "PairwiseSigmoidLoss",
    "Report",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "devices",
    "errors",
    "linear_binary_cross_entropy",
]
