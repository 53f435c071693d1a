"""What can be summed: one row per quantity.

A quantity is a function of what is known of one sample. Its arguments name what it needs of :data:`FIELDS`, as float64,
and it gives a float64. The value of a sample that is not counted is never added. A new quantity is a new row here; no
kernel changes.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import types

from gpubce.spec.primitives import product, select
from gpubce.spec.subroutines import of_elements, subroutine, tuple_of

FIELDS = (
    "counted",
    "loss",
    "weight",
    "target",
    "probability",
    "minus_log_p",
    "minus_log_q",
    "predicted",
    "entropy",
    "baseline_loss",
    "invalid",
)
"""What is known of one sample, in the compute type: whether it is counted, 1 or 0; the loss with all options, in nats;
the weight w (element weight times label weight); the target y as given; the probability p as given or as the logit
means it; the unclipped branches -log p and -log(1 - p); whether p reaches the threshold, 1 or 0; the entropy of the
target; the loss of the baseline; whether the sample is invalid, 1 or 0. Where a target is 0 or 1, the branch that does
not belong to it may be the other's: a quantity takes it for soft targets alone."""

one_number = subroutine(types.float64)

QUANTITIES: dict[str, Any] = {}
"""The subroutine of each quantity."""


def quantity(function: Callable) -> Any:
    """A decorator: a row of :data:`QUANTITIES`."""
    QUANTITIES[function.__name__] = one_number(function)
    return QUANTITIES[function.__name__]


@cache
def needed(name: str) -> tuple[str, ...]:
    """The fields that a quantity is computed from."""
    return tuple(inspect.signature(QUANTITIES[name].py_func).parameters)


@quantity
def loss(loss):
    """The loss with all options."""
    return loss


@quantity
def weight(weight):
    """w"""
    return weight


@quantity
def positives(weight, target):
    """w y"""
    return product(weight, target)


@quantity
def predictions(weight, probability):
    """w p"""
    return product(weight, probability)


@quantity
def squared_error(weight, probability, target):
    """w (p - y)^2, the Brier score's term"""
    return product(weight, product(probability - target, probability - target))


@quantity
def cross_entropy(weight, target, minus_log_p, minus_log_q):
    """w (-y log p - (1 - y) log(1 - p)): the plain loss, whatever the options"""
    positive = select(target == 0.0, 0.0, product(target, minus_log_p))
    negative = select(target == 1.0, 0.0, product(1.0 - target, minus_log_q))
    return select(weight == 0.0, 0.0, product(weight, positive + negative))


@quantity
def positive_entropy(weight, target, minus_log_p):
    """w (-y log p): the part of the plain loss that positives have"""
    absent = (weight == 0.0) | (target == 0.0)
    return select(absent, 0.0, product(product(weight, target), minus_log_p))


@quantity
def target_entropy(weight, entropy):
    """w (-y log y - (1 - y) log(1 - y)): the least that the plain loss can be"""
    return product(weight, entropy)


@quantity
def predicted(weight, predicted):
    """w where p reaches the threshold"""
    return select(predicted != 0.0, weight, 0.0)


@quantity
def found(weight, target, predicted):
    """w y where p reaches the threshold: the true positives"""
    return select(predicted != 0.0, product(weight, target), 0.0)


@quantity
def squared_loss(loss):
    """The square of the loss with all options"""
    return product(loss, loss)


@quantity
def squared_weight(weight):
    """w^2"""
    return product(weight, weight)


@quantity
def loss_by_weight(loss, weight):
    """The loss with all options, once more times w"""
    return product(weight, loss)


@quantity
def squared_positives(weight, target):
    """(w y)^2"""
    return product(product(weight, target), product(weight, target))


@quantity
def loss_by_positives(loss, weight, target):
    """The loss with all options, once more times w y"""
    return product(product(weight, target), loss)


@quantity
def difference(loss, baseline_loss):
    """The loss with all options, minus the baseline's"""
    return select(loss == baseline_loss, 0.0, loss - baseline_loss)  # Both may be infinite.


@quantity
def squared_difference(loss, baseline_loss):
    """The square of that"""
    return product(difference(loss, baseline_loss), difference(loss, baseline_loss))


@quantity
def difference_by_weight(loss, baseline_loss, weight):
    """That times w"""
    return product(weight, difference(loss, baseline_loss))


@quantity
def difference_by_positives(loss, baseline_loss, weight, target):
    """That times w y"""
    return product(product(weight, target), difference(loss, baseline_loss))


@quantity
def count():
    """1"""
    return 1.0


@quantity
def invalid(invalid):
    """1 where a target, probability or weight is outside of its domain"""
    return invalid


@cache
def value_of(name: str, fields: tuple[str, ...]):
    """The subroutine sample -> the value of a quantity, 0 where not counted. The sample is a tuple of these fields, in
    the compute type; without "counted", it is."""
    value = of_elements(QUANTITIES[name], types.float64, *(fields.index(field) for field in needed(name)))
    if "counted" not in fields:
        return value
    COUNTED = fields.index("counted")

    @one_number
    def counted_value(sample):
        return select(sample[COUNTED] != 0, value(sample), 0.0)

    return counted_value


@cache
def collector(names: tuple[str, ...], fields: tuple[str, ...] = FIELDS):
    """The intrinsic sample -> a tuple with the value of each quantity, or with a 0 where there are none: Numba does not
    index empty tuples."""
    if not names:
        return subroutine(types.UniTuple(types.float64, 1))(lambda sample: (0.0,))
    return tuple_of("sample", *(value_of(name, fields) for name in names))
