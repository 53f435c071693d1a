"""What can be summed: one row per quantity.

A quantity is a function of one sample: its validity, its loss as returned (in nats, before any change of unit), the
weight w (element weight times label weight), the target y as given, the probability p as given or as the logit means
it, and the unclipped branches -log p and -log(1 - p). All are float64. The value of a sample that is not counted is
never added. A new quantity is a new row here; no kernel changes.
"""

from functools import cache

from numba import types

from gpubce.spec.primitives import product, select, subroutine

one_number = subroutine(types.float64)


@one_number
def loss(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """The loss with all options."""
    return loss


@one_number
def weight(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """w"""
    return weight


@one_number
def positives(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """w y"""
    return product(weight, target)


@one_number
def predictions(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """w p"""
    return product(weight, probability)


@one_number
def squared_error(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """w (p - y)^2, the Brier score's term"""
    return product(weight, product(probability - target, probability - target))


@one_number
def cross_entropy(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """w (-y log p - (1 - y) log(1 - p)): the plain loss, whatever the options"""
    positive = select(target == 0.0, 0.0, product(target, minus_log_p))
    negative = select(target == 1.0, 0.0, product(1.0 - target, minus_log_q))
    return select(weight == 0.0, 0.0, product(weight, positive + negative))


@one_number
def count(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """1"""
    return 1.0


@one_number
def invalid(invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
    """1 where a target, probability or weight is outside of its domain"""
    return select(invalid, 1.0, 0.0)


QUANTITIES = {
    function.py_func.__name__: function
    for function in (loss, weight, positives, predictions, squared_error, cross_entropy, count, invalid)
}


@cache
def collector(names: tuple[str, ...]):
    """The subroutine (counted, *sample) -> a float64 tuple, one for each name, 0 where not counted."""
    numbers = subroutine(types.UniTuple(types.float64, max(1, len(names))))
    if not names:

        @numbers
        def nothing(counted, invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
            return (0.0,)

        return nothing
    last = QUANTITIES[names[-1]]
    if len(names) == 1:

        @numbers
        def one(counted, invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
            value = last(invalid, loss, weight, target, probability, minus_log_p, minus_log_q)
            return (select(counted, value, 0.0),)

        return one
    rest = collector(names[:-1])

    @numbers
    def several(counted, invalid, loss, weight, target, probability, minus_log_p, minus_log_q):
        value = last(invalid, loss, weight, target, probability, minus_log_p, minus_log_q)
        return rest(counted, invalid, loss, weight, target, probability, minus_log_p, minus_log_q) + (
            select(counted, value, 0.0),
        )

    return several
