"""What the sums are worth (promise 3): sum and mean of data that is hard to add, against math.fsum; and streams, split
and merged in any way.

With y = 1, a logit of -v gives the loss v exactly where v is 32 or more (the rest is below half a unit in the last
place), and +inf gives 0. So the losses can be chosen.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpubce
from gpubce.spec.plan import PLAN
from tests import tolerances

REALS = ("float32", "float64")
each = gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")
mean = gpubce.BinaryCrossEntropy(from_logits=True)
total = gpubce.BinaryCrossEntropy(from_logits=True, reduction="sum")
wide_total = gpubce.BinaryCrossEntropy(from_logits=True, reduction="sum", dtype="float64")


def logits_of(losses) -> np.ndarray:
    """Logits whose losses under y = 1 are these: 0, or 32 and more."""
    losses = np.asarray(losses)
    return np.where(losses == 0, np.inf, -losses).astype(losses.dtype)


def ones(logits: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.True_, logits.shape)


def allowed(quotient: float) -> set[np.float32]:
    """What promise 3 allows the float32 of a quotient to be: its rounding, and where a rounding boundary lies within
    2^-45 of it, the neighbour beyond that boundary."""
    nearest = np.float32(quotient)
    found = {nearest}
    for towards in (-np.inf, np.inf):
        neighbour = np.nextafter(nearest, np.float32(towards))
        boundary = (float(nearest) + float(neighbour)) / 2
        if abs(quotient - boundary) <= tolerances.SUM_RELATIVE * quotient:
            found.add(neighbour)
    return found


def on_a_boundary(real: str) -> np.ndarray:
    """Losses whose mean is half-way between two float32 numbers but for 2^-52 of it, and whose rounded additions end
    on the other side of the middle.

    Lane 0 holds 2^60 and then 7 times 64, each below half a unit in the last place of 2^60 in float64 (256). The exact
    total is 2^60 + 2^36 + 192 and the one without them 2^60 + 2^36 - 256; the middle of the float32 numbers
    around is 2^60 + 2^36.
    """
    losses = np.zeros(PLAN.block, real)
    losses[0] = 2.0**60
    losses[PLAN.lanes :: PLAN.lanes] = 64.0
    losses[1], losses[2] = 2.0**36 - 2.0**12, 2.0**12 - 256.0
    return losses


def hard_data(real: str) -> dict[str, np.ndarray]:
    """Logits whose losses are hard to add."""
    rng = np.random.default_rng(5)
    subnormal = np.float32(-87.3) if real == "float32" else -708.0  # The smallest losses that are not 0.
    one_huge = np.full(200_000, 15.0)
    one_huge[77_777] = -1e30
    return {
        "10^7 equal": np.full(10**7, 0.1, real),
        "30 binades": logits_of(32.0 * 2.0 ** rng.uniform(0, 30, 10**6)).astype(real),
        "30 binades below 1": rng.uniform(0.0, 21.0, 10**6).astype(real),
        "one huge among many tiny": one_huge.astype(real),
        "the huge one first": np.sort(one_huge).astype(real),
        "near the smallest normal": np.full(100_000, -subnormal, real),
        "all zero": np.full(100_000, np.inf, real),
        "on a boundary": logits_of(on_a_boundary(real)),
        "the middle itself": logits_of(np.array([64.0, 64.0 + 2.0**-17], real)),
    }


@pytest.fixture(scope="module", params=REALS)
def real(request):
    return request.param


@pytest.fixture(scope="module", params=hard_data("float32"))
def logits(request, real):
    return hard_data(real)[request.param]


def test_a_sum_is_that_of_its_elements(logits, real):
    """Below 2^-45 of it before the last rounding; for float64 within 1 unit in the last place."""
    losses = each(logits, ones(logits))
    exact = math.fsum(losses.tolist())
    hi, lo = mean.state(logits, ones(logits)).values[0]
    assert abs((hi - exact) + lo) <= tolerances.SUM_RELATIVE * exact
    found = wide_total(logits, ones(logits))
    if real == "float64":
        assert abs(found - exact) <= math.ulp(exact)
    else:
        assert abs(found - exact) <= tolerances.SUM_RELATIVE * exact
        assert total(logits, ones(logits)) in allowed(exact)


def test_a_mean_is_the_rounded_quotient(logits, real):
    losses = each(logits, ones(logits))
    quotient = math.fsum(losses.tolist()) / losses.size
    found = mean(logits, ones(logits))
    if real == "float64":
        assert abs(found - quotient) <= math.ulp(quotient)
    else:
        assert found in allowed(quotient)


def test_sums_along_axes_are_as_good(logits, real):
    """They add runs and not lanes."""
    columns = logits[: 2 * (logits.size // 2)].reshape(-1, 2)
    losses = each(columns, ones(columns))
    found = gpubce.BinaryCrossEntropy(from_logits=True, axis=0)(columns, ones(columns))
    for label in range(2):
        quotient = math.fsum(losses[:, label].tolist()) / len(losses)
        if real == "float64":
            assert abs(found[label] - quotient) <= math.ulp(quotient)
        else:
            assert found[label] in allowed(quotient)


def test_a_run_loses_what_the_promise_allows_and_no_more():
    """Its first loss is 2^60, and all others are half a unit in the last place of it in float64, which is rounded away.
    With longer runs the promise would be broken."""
    losses = np.full((PLAN.chunk, 2), 2.0**7, np.float32)
    losses[0] = 2.0**60
    logits = logits_of(losses)
    exact = 2**60 + (PLAN.chunk - 1) * 2**7
    state = gpubce.BinaryCrossEntropy(from_logits=True, axis=0).state(logits, ones(logits))
    for hi, lo in state.values[0].T:
        lost = exact - int(hi) - int(lo)  # In integers: the sum itself is no float64.
        assert 0.99 * tolerances.SUM_RELATIVE * exact < lost < tolerances.SUM_RELATIVE * exact


@pytest.mark.parametrize("apart", [1, PLAN.block], ids=["lanes", "blocks"])
def test_a_tree_keeps_what_each_of_its_steps_rounds_off(apart):
    """Each adds a little less than half a unit in the last place to the first lane, or to the first block."""
    steps = [PLAN.lanes >> step for step in range(1, PLAN.lanes.bit_length())]
    losses = np.zeros(apart * steps[0] + 1)
    losses[0] = 2.0**59  # Whose last place is 128.
    losses[[apart * step for step in steps]] = 63.0
    exact = math.fsum(losses)
    assert exact - losses[0] > 4 * math.ulp(exact)
    logits = logits_of(losses)
    assert abs(float(total(logits, ones(logits))) - exact) <= math.ulp(exact)


def test_denormal_losses_are_added(real):
    """Only a weight makes a loss that small: the formulas themselves end at the smallest normal number."""
    logits = hard_data(real)["near the smallest normal"]
    options = {"from_logits": True, "label_weight": 2.0**-10}
    losses = gpubce.BinaryCrossEntropy(reduction="none", **options)(logits, ones(logits))
    assert 0 < losses.max() < np.finfo(real).tiny
    found = gpubce.BinaryCrossEntropy(reduction="sum", dtype="float64", **options)(logits, ones(logits))
    assert found == losses.size * float(losses[0])


def test_both_cases_of_the_promise_are_met():
    """Nearly everywhere only the rounded quotient is allowed; on a boundary the other neighbour does occur."""
    assert len(allowed(0.1)) == 1
    logits = logits_of(on_a_boundary("float32"))
    quotient = math.fsum(each(logits, ones(logits)).tolist()) / logits.size
    assert len(allowed(quotient)) == 2
    found = mean(logits, ones(logits))
    assert found in allowed(quotient)
    assert found != np.float32(quotient)


cuts = st.lists(st.integers(0, 4096), max_size=6).map(sorted)


@settings(max_examples=20, deadline=None)
@given(cuts, st.randoms(use_true_random=False), st.sampled_from(["30 binades", "30 binades below 1", "on a boundary"]))
def test_splitting_and_merging_show_only_on_a_boundary(cuts, random, name):
    for real in REALS:
        logits = STREAMS[real, name]
        parts = [mean.state(part, ones(part)) for part in np.split(logits, cuts)]
        random.shuffle(parts)
        while len(parts) > 1:  # A random tree.
            one, two = (parts.pop(random.randrange(len(parts))) for _ in range(2))
            parts.append(one + two)
        found, whole = mean.finish(parts[0]), mean(logits, ones(logits))
        if real == "float64":
            assert abs(found - whole) <= math.ulp(whole)
        else:
            quotient = math.fsum(each(logits, ones(logits)).tolist()) / logits.size
            assert {np.float32(found), whole} <= allowed(quotient)


STREAMS = {
    (real, name): logits[: 2 * 4096]
    for real in REALS
    for name, logits in hard_data(real).items()
    if logits.size >= 8192
}
