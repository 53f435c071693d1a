"""What can be summed: one row per quantity.

A quantity is a function of one sample: its validity, its loss as returned (in nats, before any change of unit), the
weight w (element weight times label weight), the target y as given, the probability p as given or as the logit means
it, the unclipped branches -log p and -log(1 - p), whether p reaches the threshold, and the entropy of the target.
All are float64 but for the two that are true or false. The value of a sample that is not counted is never added. A new
quantity is a new row here; no kernel changes.
"""

from functools import cache

from numba import types

from gpubce.spec.primitives import product, select, subroutine

one_number = subroutine(types.float64)


@one_number
def loss(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """The loss with all options."""
    return loss


@one_number
def weight(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """w"""
    return weight


@one_number
def positives(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """w y"""
    return product(weight, target)


@one_number
def predictions(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """w p"""
    return product(weight, probability)


@one_number
def squared_error(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """w (p - y)^2, the Brier score's term"""
    return product(weight, product(probability - target, probability - target))


@one_number
def cross_entropy(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """w (-y log p - (1 - y) log(1 - p)): the plain loss, whatever the options"""
    positive = select(target == 0.0, 0.0, product(target, minus_log_p))
    negative = select(target == 1.0, 0.0, product(1.0 - target, minus_log_q))
    return select(weight == 0.0, 0.0, product(weight, positive + negative))


@one_number
def positive_entropy(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """w (-y log p): the part of the plain loss that positives have"""
    absent = (weight == 0.0) | (target == 0.0)
    return select(absent, 0.0, product(product(weight, target), minus_log_p))


@one_number
def target_entropy(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """w (-y log y - (1 - y) log(1 - y)): the least that the plain loss can be"""
    return product(weight, entropy)


@one_number
def predicted(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """w where p reaches the threshold"""
    return select(predicted, weight, 0.0)


@one_number
def found(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """w y where p reaches the threshold: the true positives"""
    return select(predicted, product(weight, target), 0.0)


@one_number
def squared_loss(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """The square of the loss with all options"""
    return product(loss, loss)


@one_number
def squared_weight(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """w^2"""
    return product(weight, weight)


@one_number
def loss_by_weight(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """The loss with all options, once more times w"""
    return product(weight, loss)


@one_number
def squared_positives(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """(w y)^2"""
    return product(product(weight, target), product(weight, target))


@one_number
def loss_by_positives(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """The loss with all options, once more times w y"""
    return product(product(weight, target), loss)


@one_number
def difference(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """The loss with all options, minus the baseline's"""
    return difference


@one_number
def squared_difference(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """The square of that"""
    return product(difference, difference)


@one_number
def difference_by_weight(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """That times w"""
    return product(weight, difference)


@one_number
def difference_by_positives(
    invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
):
    """That times w y"""
    return product(product(weight, target), difference)


@one_number
def count(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """1"""
    return 1.0


@one_number
def invalid(invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference):
    """1 where a target, probability or weight is outside of its domain"""
    return select(invalid, 1.0, 0.0)


QUANTITIES = {
    function.py_func.__name__: function
    for function in (
        loss,
        weight,
        positives,
        predictions,
        squared_error,
        cross_entropy,
        positive_entropy,
        target_entropy,
        predicted,
        found,
        squared_loss,
        squared_weight,
        loss_by_weight,
        squared_positives,
        loss_by_positives,
        difference,
        squared_difference,
        difference_by_weight,
        difference_by_positives,
        count,
        invalid,
    )
}


@cache
def collector(names: tuple[str, ...]):
    """The subroutine (counted, *sample) -> a float64 tuple, one for each name, 0 where not counted."""
    numbers = subroutine(types.UniTuple(types.float64, max(1, len(names))))
    if not names:

        @numbers
        def nothing(
            counted,
            invalid,
            loss,
            weight,
            target,
            probability,
            minus_log_p,
            minus_log_q,
            predicted,
            entropy,
            difference,
        ):
            return (0.0,)

        return nothing
    last = QUANTITIES[names[-1]]
    if len(names) == 1:

        @numbers
        def one(
            counted,
            invalid,
            loss,
            weight,
            target,
            probability,
            minus_log_p,
            minus_log_q,
            predicted,
            entropy,
            difference,
        ):
            value = last(
                invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
            )
            return (select(counted, value, 0.0),)

        return one
    rest = collector(names[:-1])

    @numbers
    def several(
        counted, invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
    ):
        value = last(
            invalid, loss, weight, target, probability, minus_log_p, minus_log_q, predicted, entropy, difference
        )
        before = rest(
            counted,
            invalid,
            loss,
            weight,
            target,
            probability,
            minus_log_p,
            minus_log_q,
            predicted,
            entropy,
            difference,
        )
        return before + (select(counted, value, 0.0),)

    return several
