"""More elements than 32-bit indices reach, without their memory: broadcast views."""

import tracemalloc

import numpy as np

import gpubce

BEYOND = 2**31 + 9


def test_more_than_2_to_the_31_elements():
    logits = np.broadcast_to(np.float32(0.5), (BEYOND,))
    targets = np.broadcast_to(np.True_, (BEYOND,))
    one = float(gpubce.binary_cross_entropy_with_logits(logits[:1], targets[:1], reduction="none")[0])
    loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction="sum", dtype="float64")
    assert loss(logits, targets) == BEYOND * one


def test_offsets_of_more_than_2_to_the_31_bytes():
    """The last row of a strided array lies 4 GB behind the first."""
    room = np.zeros(2**32 + 64, np.uint8)  # Pages that nothing touches take no memory.
    rows = np.ndarray((2, 3), np.float32, room, strides=(2**32, 8))
    rows[...] = [[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]
    targets = np.array([[1, 0, 1], [0, 1, 0]])
    loss = gpubce.BinaryCrossEntropy(from_logits=True, reduction="none")
    assert np.array_equal(loss(rows, targets), loss(rows.copy(), targets))


def test_extra_memory_is_that_of_the_blocks():
    """Promise 5: a value and a gradient in place take a few bytes for each block, whatever is masked or strided."""
    logits = np.random.default_rng(0).normal(size=(2**11, 2**11)).astype(np.float32)
    targets, mask = logits.T > 0, logits > -2
    loss = gpubce.BinaryCrossEntropy(from_logits=True, pos_weight=tuple(range(2**11)))
    loss.value_and_grad(logits.copy(), targets, mask=mask)  # Compiles, which takes memory once.
    tracemalloc.start()
    loss.value_and_grad(logits, targets, mask=mask, grad_out=logits)
    extra = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert extra < logits.nbytes / 16
