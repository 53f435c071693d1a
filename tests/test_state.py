"""Unfinished sums: what a state holds, what it shows, and what two of them are together."""

import math
import operator

import numpy as np
import pytest

from gpubce import BinaryCrossEntropy, LossState
from gpubce.errors import StateError
from gpubce.spec.bins import MOST_ELEMENTS
from gpubce.spec.state import derivative_scale, mean

LOSS = BinaryCrossEntropy(from_logits=True)
X, Y = np.float64([[0.5, -1.0], [2.0, 0.25], [-3.0, 1.0]]), np.float64([[1, 0], [0, 1], [1, 1]])


def of_pairs(*pairs, elements=1, rows=1.0):
    return LossState(("loss", "count"), np.float64([*pairs]), elements, rows)


class Lent:
    """An array of another library, which comes to the host by a method of that name."""

    def __init__(self, name, array):
        setattr(self, name, lambda: array)


def test_a_total_is_both_parts_of_its_pair():
    state = of_pairs((1.0, 2.0**-30), (3.0, 0.0))
    assert state.total("loss") == 1.0 + 2.0**-30
    assert (state.count, type(state.count)) == (3, int)
    assert of_pairs((math.inf, math.nan)).total("loss") == math.inf


def test_a_total_is_a_number_or_an_array_over_the_axes_that_are_kept():
    assert type(LOSS.state(X, Y).total("loss")) is float
    state = BinaryCrossEntropy(from_logits=True, axis=0).state(X, Y)
    assert state.shape == (2,)
    assert state.total("count").tolist() == [3.0, 3.0]
    assert (state.count, state.invalid) == (6, 0)


@pytest.mark.parametrize("method", ["copy_to_host", "get"])
def test_states_of_other_libraries_come_to_the_host(method):
    there = of_pairs((1.0, 0.0), (2.0, 0.0), elements=7, rows=3.5)
    here = LossState(there.sums, Lent(method, there.values), 7, 3.5).to_host()
    assert here.values is there.values
    assert (here.sums, here.elements, here.rows) == (("loss", "count"), 7, 3.5)


def test_tensors_come_to_the_host():
    torch = pytest.importorskip("torch", reason="PyTorch is optional")
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert LossState(("loss",), values, 1, 1.0).to_host().values.tolist() == [[1.0, 2.0]]


def test_two_states_hold_what_both_have_seen():
    one = of_pairs((1.0, 2.0**-60), (3.0, 0.0), elements=3, rows=1.5)
    two = of_pairs((2.0**-60, 2.0**-100), (4.0, 0.0), elements=4, rows=2.0)
    both = one + two
    assert both.values.tolist() == [[1.0, 2.0**-60 + 2.0**-60 + 2.0**-100], [7.0, 0.0]]
    assert (both.elements, both.rows, both.count) == (7, 3.5, 7)
    with pytest.raises(TypeError):
        operator.add(one, 3)


def counting(histogram, elements=1, values=((1.0, 0.0), (2.0, 0.0)), sums=("loss", "count")):
    """A state with a histogram of one label, or of as many as the values have."""
    return LossState(sums, np.float64(values), elements, 1.0, histogram)


def test_histograms_are_added():
    one, two = np.array([[1, 2], [2**63 - 1, 4]]), np.array([[10, 20], [1, 40]])
    merged = (counting(one) + counting(two)).histogram
    assert merged.view(np.uint64).tolist() == [[11, 22], [2**63, 44]]
    here = counting(Lent("get", one)).to_host()
    assert here.histogram is one
    assert counting(None).to_host().histogram is None
    assert (counting(None) + counting(None)).histogram is None
    for other in (None, np.zeros((3, 2), np.int64)):
        with pytest.raises(StateError, match="the same number of bins"):
            counting(one).merge(counting(other))


def test_a_histogram_holds_so_many_elements_and_no_more():
    """Of all labels together."""
    cells = np.zeros((3, 2), np.int64)
    half = counting(cells, MOST_ELEMENTS // 2)
    assert (half + half).elements == MOST_ELEMENTS
    with pytest.raises(StateError, match=f"at most {MOST_ELEMENTS:,} elements"):
        half.merge(counting(cells, MOST_ELEMENTS // 2 + 1))
    labels = [counting(np.zeros((2, 3, 2), np.int64), MOST_ELEMENTS // 4 + k, np.zeros((2, 2, 2))) for k in (0, 1)]
    assert (labels[0] + labels[0]).elements == MOST_ELEMENTS // 2
    with pytest.raises(StateError, match="at most"):
        labels[0].merge(labels[1])
    without = counting(None, MOST_ELEMENTS)
    assert (without + without).elements == 2 * MOST_ELEMENTS


def test_states_of_different_sums_or_shapes_do_not_merge():
    state = counting(None)
    for other in (
        counting(None, sums=("loss", "weight")),
        counting(None, values=np.zeros((2, 2, 3))),
        counting(None, values=np.zeros((2, 2, 3)), sums=("loss", "weight")),
    ):
        with pytest.raises(StateError, match="states of different losses"):
            state.merge(other)


def test_a_mean_is_per_thing_in_the_unit():
    assert mean(3.0, 4.0, 2.0) == 1.5
    assert derivative_scale(3.0, 4.0, 2.0) == 1.5
    assert derivative_scale(1.0, 3.0, 1.0) == 1.0 / 3.0


@pytest.mark.parametrize("axis", [None, 0])
def test_sums_are_found_by_their_names(axis):
    loss = BinaryCrossEntropy(from_logits=True, axis=axis, denominator="weights")
    state = loss.state(X, Y, weight=Y + 1)
    reversed_state = LossState(state.sums[::-1], state.values[::-1].copy(), state.elements, state.rows)
    assert loss.finish(reversed_state).tobytes() == loss.finish(state).tobytes()


def test_infinite_states_merge_without_a_warning():
    """A warning fails a test."""
    infinite = LOSS.state([math.inf], [0])
    assert LOSS.finish(infinite + infinite) == math.inf
    assert LOSS.finish(infinite + LOSS.state([1.0], [0])) == math.inf


def test_a_state_is_equal_to_itself_only():
    one, two = (of_pairs((1.0, 0.0), (2.0, 0.0)) for _ in range(2))
    assert one == one
    assert one != two
    assert len({one, two}) == 2
