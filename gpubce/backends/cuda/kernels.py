"""The kernels on CUDA: one thread block works on one block of the plan, a thread owns QUAD neighbouring lanes.

Everything in memory is an address, as on a CPU. QUAD elements of an aligned flat array are one vector load or store;
of any other array they are QUAD single ones, and the order of additions is the same.
"""

from functools import cache

from numba import cuda, float64, int64, njit, types

from gpubce.backends.kernel_key import QUAD, KernelKey, SettleKey
from gpubce.spec.bins import cells as histogram_cells
from gpubce.spec.elements import element, may_be_hard, settlement
from gpubce.spec.geometry import FLAT, SCALAR
from gpubce.spec.plan import Plan
from gpubce.spec.precision import widened
from gpubce.spec.primitives import (
    WIDE_TYPES,
    add_atomically,
    addition,
    first_width,
    loader,
    merge_pairs,
    storer,
    strided_offset,
)
from gpubce.spec.quantities import collector
from gpubce.spec.recipe import OUTPUTS, ROLES
from gpubce.spec.subroutines import chosen, chosen_of_each, in_turn, replaced, subroutine, tuple_of

inlined = njit(inline="always", error_model="numpy")

_load, _store = loader("float64"), storer("float64")


@inlined
def load_real(address, index):
    """A float64; kernels call a function, because the simulator runs their bodies in Python."""
    return _load(address, index)


@inlined
def store_real(address, index, value):
    """Write a float64."""
    _store(address, index, value)


def threads(plan: Plan) -> int:
    """Threads of a thread block."""
    return plan.lanes // QUAD


@subroutine(types.UniTuple(types.boolean, QUAD))
def _absent(addresses, geometry, index, present):
    return True, True, True, True


def _reader(key: KernelKey, role: str, full: bool):
    """The subroutine that reads the QUAD elements from ``index`` on. Unless it is ``full``, only so many are present;
    the last one of these is read in place of the others."""
    storage = getattr(key.recipe, role)
    if storage is None:
        return _absent
    k = key.position(role)
    if key.layouts[k] == SCALAR:
        return _scalar_reader(storage, k)
    if key.layouts[k] == FLAT:
        return _aligned_reader(storage, k) if full and key.vector > 1 else _flat_reader(storage, k)
    return _strided_reader(storage, k, key.dimensions, key.slot(role))


@cache
def _scalar_reader(storage: str, k: int):
    load = loader(storage)

    @subroutine(types.UniTuple(WIDE_TYPES[widened(storage)], QUAD))
    def read_scalar(addresses, geometry, index, present):
        value = load(addresses[k], 0)
        return value, value, value, value

    return read_scalar


@cache
def _aligned_reader(storage: str, k: int):
    load_quad = loader(storage, QUAD)

    @subroutine(types.UniTuple(WIDE_TYPES[widened(storage)], QUAD))
    def read_aligned(addresses, geometry, index, present):
        return load_quad(addresses[k], index)

    return read_aligned


@cache
def _flat_reader(storage: str, k: int):
    load = loader(storage)

    @subroutine(WIDE_TYPES[widened(storage)])
    def read_flat(addresses, geometry, index):
        return load(addresses[k], index)

    return _one_by_one(storage, read_flat)


@cache
def _strided_reader(storage: str, k: int, dimensions: int, slot: int):
    load = loader(storage)
    offset = strided_offset(dimensions, slot)

    @subroutine(WIDE_TYPES[widened(storage)])
    def read_strided(addresses, geometry, index):
        return load(addresses[k] + offset(index, geometry), 0)

    return _one_by_one(storage, read_strided)


@subroutine(types.UniTuple(types.int64, QUAD))
def _indices(index, present):
    """Of QUAD elements from ``index`` on; the last that is present stands for those that are not."""
    last = present - 1
    return index, index + min(1, last), index + min(2, last), index + min(3, last)


@cache
def _one_by_one(storage: str, read):
    """The reader that reads its elements one by one."""

    @subroutine(types.UniTuple(WIDE_TYPES[widened(storage)], QUAD))
    def read_one_by_one(addresses, geometry, index, present):
        first, second, third, fourth = _indices(index, present)
        return (
            read(addresses, geometry, first),
            read(addresses, geometry, second),
            read(addresses, geometry, third),
            read(addresses, geometry, fourth),
        )

    return read_one_by_one


def _writer(key: KernelKey, output: str, full: bool):
    """The subroutine that writes the QUAD elements from ``index`` on, or as many of them as are present."""
    stored, k, which = key.recipe.stored, key.position(output), OUTPUTS.index(output)
    if key.layouts[k] == FLAT:
        return _aligned_writer(stored, k, which) if full and key.vector > 1 else _flat_writer(stored, k, which)
    return _strided_writer(stored, k, which, key.dimensions, key.slot(output))


@cache
def _aligned_writer(storage: str, k: int, which: int):
    store_quad = storer(storage, QUAD)

    @subroutine(types.void)
    def write_aligned(addresses, geometry, index, present, outputs):
        store_quad(addresses[k], index, outputs[which])

    return write_aligned


@cache
def _flat_writer(storage: str, k: int, which: int):
    store = storer(storage)

    @subroutine(types.void)
    def write_flat(addresses, geometry, index, present, outputs):
        for q in range(QUAD):
            if q < present:
                store(addresses[k], index + q, chosen(outputs[which], q))

    return write_flat


@cache
def _strided_writer(storage: str, k: int, which: int, dimensions: int, slot: int):
    store = storer(storage)
    offset = strided_offset(dimensions, slot)

    @subroutine(types.void)
    def write_strided(addresses, geometry, index, present, outputs):
        for q in range(QUAD):
            if q < present:
                store(addresses[k] + offset(index + q, geometry), 0, chosen(outputs[which], q))

    return write_strided


@cache
def _adder(bins: int, quantised: bool):
    """The subroutine that adds what one sample says to a histogram, if there is such a sample."""
    if not bins:
        return in_turn("present histogram unit placed")

    @subroutine(types.void)
    def add_quanta(present, histogram, unit, placed):
        if placed[1] != 0:
            add_atomically(histogram, placed[0] + 1, placed[1])
        if placed[2] != 0:
            add_atomically(histogram, placed[0], placed[2])

    @subroutine(types.void)
    def add_unit(present, histogram, unit, placed):
        if present:
            add_atomically(histogram, placed[0], unit)

    return add_quanta if quantised else add_unit


def _gives_outputs(key: KernelKey):
    """The decorator of subroutines that give QUAD losses, gradients and hessians."""
    return subroutine(types.UniTuple(types.UniTuple(WIDE_TYPES[key.recipe.compute], QUAD), 3))


def _samples(key: KernelKey, hard: bool):
    """The subroutine that does QUAD samples, those with q < ``present``: it adds sum k of sample q to the
    accumulators hi[k QUAD + q] and lo[k QUAD + q], adds to the histograms, that of sample q at ``histogram + q apart``,
    and gives the outputs. ``inputs`` has QUAD numbers for each role."""
    sample, collect = element(key.recipe, hard), collector(key.recipe.sums)
    sums = len(key.recipe.sums)
    add_element = addition(key.recipe.compensated).add
    zero = key.zero
    add = _adder(key.recipe.bins, key.recipe.quantised)

    @_gives_outputs(key)
    def samples(present, inputs, parameters, ignored, hi, lo, histogram, apart, unit):
        losses = (zero, zero, zero, zero)
        gradients = (zero, zero, zero, zero)
        hessians = (zero, zero, zero, zero)
        for q in range(QUAD):
            outputs, known, placed = sample(q < present, chosen_of_each(inputs, q), parameters, ignored)
            losses = replaced(losses, q, outputs[0])
            gradients = replaced(gradients, q, outputs[1])
            hessians = replaced(hessians, q, outputs[2])
            add(q < present, histogram + q * apart, unit, placed)
            values = collect(known)
            for k in range(sums):
                cell = k * QUAD + q
                hi[cell], lo[cell] = add_element(hi[cell], lo[cell], values[k])
        return losses, gradients, hessians

    return samples


def _of_four(key: KernelKey):
    """What :func:`_samples` does for QUAD samples that are all there, with the shorter formulas where all targets of a
    thread are 0 or 1. The threads of a warp take the same way where all of theirs are."""
    of_all = _samples(key, False)
    if not may_be_hard(key.recipe):
        return of_all
    of_hard = _samples(key, True)

    @_gives_outputs(key)
    def samples(present, inputs, parameters, ignored, hi, lo, histogram, apart, unit):
        hard = True
        for q in range(QUAD):
            y = chosen(inputs[2], q)
            hard = hard & ((y == 0) | (y == 1))
        if hard:
            return of_hard(present, inputs, parameters, ignored, hi, lo, histogram, apart, unit)
        return of_all(present, inputs, parameters, ignored, hi, lo, histogram, apart, unit)

    return samples


def _step(key: KernelKey, full: bool):
    """The subroutine that works on the QUAD elements from ``index`` on, all of them if ``full``, else as many as are
    ``present``: reads them, writes the outputs, and does what :func:`_samples` says."""
    samples = _of_four(key) if full else _samples(key, False)
    read = tuple_of("addresses geometry index present", *(_reader(key, role, full) for role in ROLES))
    writers = [_writer(key, output, full) for output in key.recipe.outputs]
    write = in_turn("addresses geometry index present outputs", *writers)

    @subroutine(types.void)
    def step(index, present, addresses, geometry, parameters, ignored, hi, lo, histogram, apart, unit):
        inputs = read(addresses, geometry, index, present)
        outputs = samples(present, inputs, parameters, ignored, hi, lo, histogram, apart, unit)
        write(addresses, geometry, index, present, outputs)

    return step


def _steps(key: KernelKey):
    """(the step of QUAD elements, the step of fewer): inlined functions, which the simulator can call.

    Where all elements are there, nothing asks for each of them whether it is.
    """
    full, part = _step(key, True), _step(key, False)

    @inlined
    def full_step(index, addresses, geometry, parameters, ignored, hi, lo, histogram, apart, unit):
        full(index, QUAD, addresses, geometry, parameters, ignored, hi, lo, histogram, apart, unit)

    @inlined
    def part_step(index, present, addresses, geometry, parameters, ignored, hi, lo, histogram, apart, unit):
        part(index, present, addresses, geometry, parameters, ignored, hi, lo, histogram, apart, unit)

    return full_step, part_step


def whole(key: KernelKey):
    """Sum by blocks: block b leaves the pair of sum k at partials[k, :, b]. All samples go into one histogram."""
    full_step, part_step = _steps(key)
    sums = len(key.recipe.sums)
    cells = max(1, sums) * QUAD
    compensated = key.recipe.compensated
    lanes, block_size = key.plan.lanes, key.plan.block
    team = threads(key.plan)

    def blocks(n, addresses, geometry, parameters, ignored, partials, count, histogram, unit):
        shared_hi = cuda.shared.array(lanes, float64)
        shared_lo = cuda.shared.array(lanes if compensated else 1, float64)
        hi = cuda.local.array(cells, float64)
        lo = cuda.local.array(cells, float64)
        thread = cuda.threadIdx.x
        block = int64(cuda.blockIdx.x)
        for cell in range(cells):
            hi[cell] = 0.0
            lo[cell] = 0.0
        # Counting rows as well cost 4 instructions an element.
        index = block * block_size + thread * QUAD
        end = min(n, (block + 1) * block_size)
        most = end - QUAD
        while index <= most:
            full_step(index, addresses, geometry, parameters, ignored, hi, lo, histogram, 0, unit)
            index += lanes
        if index < end:
            part_step(index, end - index, addresses, geometry, parameters, ignored, hi, lo, histogram, 0, unit)
        for k in range(sums):
            for q in range(QUAD):
                shared_hi[thread * QUAD + q] = hi[k * QUAD + q]
                if compensated:
                    shared_lo[thread * QUAD + q] = lo[k * QUAD + q]
            cuda.syncthreads()
            width = first_width(lanes, min(lanes, n - block * block_size))
            while width > 0:
                lane = thread
                while lane < width:
                    if compensated:  # Totals have no low parts in shared memory.
                        shared_hi[lane], shared_lo[lane] = merge_pairs(
                            shared_hi[lane], shared_lo[lane], shared_hi[lane + width], shared_lo[lane + width]
                        )
                    else:
                        shared_hi[lane] += shared_hi[lane + width]
                    lane += team
                cuda.syncthreads()
                width //= 2
            if thread == 0:
                store_real(partials, 2 * k * count + block, shared_hi[0])
                store_real(partials, (2 * k + 1) * count + block, shared_lo[0] if compensated else 0.0)
            cuda.syncthreads()

    return blocks


def along_axes(key: KernelKey):
    """Sum runs of ``chunk`` reduced elements of each output, in order. Element r of output o has index r outputs + o.

    Run c leaves the pair of sum k for output o at partials[k, :, c, o]. A thread owns QUAD neighbouring outputs. Each
    output has its own histogram.
    """
    full_step, part_step = _steps(key)
    label = 8 * histogram_cells(key.recipe.bins)
    sums = len(key.recipe.sums)
    cells = max(1, sums) * QUAD
    chunk = key.plan.chunk

    def runs(reduced, outputs, addresses, geometry, parameters, ignored, partials, count, histogram, unit):
        hi = cuda.local.array(cells, float64)
        lo = cuda.local.array(cells, float64)
        tiles = (outputs + QUAD - 1) // QUAD
        worker = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        run = worker // tiles
        left = (worker - run * tiles) * QUAD
        most = outputs - QUAD
        if run < count:
            for cell in range(cells):
                hi[cell] = 0.0
                lo[cell] = 0.0
            for r in range(run * chunk, min((run + 1) * chunk, reduced)):
                index = r * outputs + left
                counts = histogram + left * label
                if left <= most:
                    full_step(index, addresses, geometry, parameters, ignored, hi, lo, counts, label, unit)
                else:
                    present = outputs - left
                    part_step(index, present, addresses, geometry, parameters, ignored, hi, lo, counts, label, unit)
            for k in range(sums):
                for q in range(QUAD):
                    if left + q < outputs:
                        store_real(partials, (2 * k * count + run) * outputs + left + q, hi[k * QUAD + q])
                        store_real(partials, ((2 * k + 1) * count + run) * outputs + left + q, lo[k * QUAD + q])

    return runs


def combine(plan: Plan):
    """Reduce pairs by blocks: one thread block for each block of each column.

    Column (k, o) holds ``size`` pairs at source[k, :, j, o]; block b of it leaves its pair at target[k, :, b, o].
    """
    lanes, rows, block_size = plan.lanes, plan.rows, plan.block
    team = threads(plan)

    def columns(size, outputs, source, target, blocks):
        shared_hi = cuda.shared.array(lanes, float64)
        shared_lo = cuda.shared.array(lanes, float64)
        thread = cuda.threadIdx.x
        task = int64(cuda.blockIdx.x)
        o = task % outputs
        block = (task // outputs) % blocks
        k = task // (outputs * blocks)
        base = block * block_size
        lane = int64(thread)
        while lane < lanes:
            hi = 0.0
            lo = 0.0
            for r in range(rows):
                j = base + r * lanes + lane
                if j < size:
                    hi, lo = merge_pairs(
                        hi,
                        lo,
                        load_real(source, (2 * k * size + j) * outputs + o),
                        load_real(source, ((2 * k + 1) * size + j) * outputs + o),
                    )
            shared_hi[lane] = hi
            shared_lo[lane] = lo
            lane += team
        cuda.syncthreads()
        width = first_width(lanes, min(lanes, size - base))
        while width > 0:
            lane = int64(thread)
            while lane < width:
                shared_hi[lane], shared_lo[lane] = merge_pairs(
                    shared_hi[lane], shared_lo[lane], shared_hi[lane + width], shared_lo[lane + width]
                )
                lane += team
            cuda.syncthreads()
            width //= 2
        if thread == 0:
            store_real(target, (2 * k * blocks + block) * outputs + o, shared_hi[0])
            store_real(target, ((2 * k + 1) * blocks + block) * outputs + o, shared_lo[0])

    return columns


def settle(key: SettleKey):
    """Turn sums into values, or into the scale of derivatives: one thread for each output."""
    value = settlement(key.storage, key.makes_scale, key.divides_by_sum, key.factor_storage)

    def values(outputs, states, result, numerator, denominator, divisor, least, grad_scale, unit, factor):
        o = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        if o < outputs:
            value(o, outputs, states, result, numerator, denominator, divisor, least, grad_scale, unit, factor)

    return values
