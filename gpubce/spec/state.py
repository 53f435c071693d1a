"""From sums to values. These functions work on numbers, on NumPy arrays, and compiled inside kernels."""


def settled(hi, lo):
    """The value of a pair. After an infinite element the low part is NaN and says nothing."""
    return hi + lo if lo == lo else hi


def mean(total, denominator, unit):
    """A total per counted thing, in the unit asked for. 0 / 0 is NaN: the mean of nothing."""
    return total / denominator * unit


def derivative_scale(grad_scale, denominator, unit):
    """What derivatives of a mean are multiplied by, formed in float64."""
    return grad_scale * (1.0 / denominator) * unit
