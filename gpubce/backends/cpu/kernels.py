"""The kernels on a CPU: one call works on a range of blocks, the lanes of a row are SIMD lanes.

Everything in memory is an address. ``scratch`` is private to the calling thread: first the accumulators (for each sum
the high parts of all lanes, then the low parts), then rows of 8-byte cells: one for each array, of which strided ones
are used, one for each field of the samples that the sums need, and three for what goes into a histogram.
"""

from functools import cache

from numba import njit, types

from gpubce.backends.kernel_key import KernelKey, SettleKey
from gpubce.spec.bins import cells as histogram_cells
from gpubce.spec.elements import element, may_be_hard, settlement
from gpubce.spec.geometry import FLAT, SCALAR
from gpubce.spec.plan import Plan
from gpubce.spec.precision import INTEGERS, ITEMSIZE, widened
from gpubce.spec.primitives import (
    WIDE_TYPES,
    add_atomically,
    add_to_pair,
    first_width,
    loader,
    merge_pairs,
    storer,
    strided_offset,
    subroutine,
)
from gpubce.spec.quantities import FIELDS, collector
from gpubce.spec.recipe import Recipe

inlined = njit(inline="always", error_model="numpy")

load_real = loader("float64", region="scratch")
store_real = storer("float64", region="scratch")
load_pair = loader("float64", region="outputs")
store_pair = storer("float64", region="outputs")


def scratch_cells(key: KernelKey) -> int:
    """How many 8-byte cells of scratch one thread needs."""
    return (key.placing + key.row * (3 if key.recipe.bins else 0)) // 8


@subroutine(types.void)
def _no_move(addresses, geometry, start, count, scratch):
    pass


@subroutine(types.boolean)
def _absent(addresses, start, lane, scratch):
    return True


@subroutine(types.void)
def _discard(addresses, start, lane, scratch, value):
    pass


def _reader(key: KernelKey, role: str):
    """(stage, read) for one input: bring a row of a strided array into scratch, and read one lane of the row."""
    storage = getattr(key.recipe, role)
    if storage is None:
        return _no_move, _absent
    k = key.position(role)
    if key.layouts[k] == SCALAR:
        return _no_move, _scalar_reader(storage, k)
    if key.layouts[k] == FLAT:
        return _no_move, _flat_reader(storage, k)
    return _strided_reader(storage, k, key.dimensions, key.slot(role), key.staging(role))


def _scalar_reader(storage: str, k: int):
    load = loader(storage)

    @subroutine(WIDE_TYPES[widened(storage)])
    def read_scalar(addresses, start, lane, scratch):
        return load(addresses[k], 0)

    return read_scalar


def _flat_reader(storage: str, k: int):
    load = loader(storage)

    @subroutine(WIDE_TYPES[widened(storage)])
    def read_flat(addresses, start, lane, scratch):
        return load(addresses[k], start + lane)

    return read_flat


def _walk(storage: str, dimensions: int, slot: int, move):
    """The subroutine that calls move(address, lane, scratch) for ``count`` elements of a strided array, from ``start``
    on in C order, whose lanes begin at 0.

    Within the last two axes it goes along the one with the shorter steps, whose elements share cache lines and pages.
    """
    offset = strided_offset(dimensions, slot)
    innermost = dimensions - 1
    outer = max(0, dimensions - 2)
    step, outer_step = dimensions * (1 + slot) + innermost, dimensions * (1 + slot) + outer
    PLANE, SIZE = dimensions > 1, ITEMSIZE[storage]

    @subroutine(types.void)
    def walk(address, geometry, start, count, scratch):
        inner = geometry[innermost]
        across, down = geometry[step], geometry[outer_step]
        done = 0
        while done < count:
            index = start + done
            place = index % inner
            base = address + offset(index, geometry)
            rows = 1
            if PLANE and place == 0 and abs(down) < abs(across):
                rows = min(geometry[outer] - index // inner % geometry[outer], (count - done) // inner)
            if rows > 1:
                for column in range(inner):
                    for row in range(rows):
                        move(base + column * across + row * down, done + row * inner + column, scratch)
                done += rows * inner
            else:
                run = min(inner - place, count - done)
                # The two that are common, with steps that the compiler knows: vectors.
                if across == 0:
                    for column in range(run):
                        move(base, done + column, scratch)
                elif across == SIZE:
                    for column in range(run):
                        move(base + column * SIZE, done + column, scratch)
                else:
                    for column in range(run):
                        move(base + column * across, done + column, scratch)
                done += run

    return walk


def _strided_reader(storage: str, k: int, dimensions: int, slot: int, staging: int):
    load = loader(storage)
    kept = storage if storage in INTEGERS else widened(storage)
    keep, recall = storer(kept, region="scratch"), loader(kept, region="scratch")

    @subroutine(types.void)
    def bring(address, lane, scratch):
        keep(scratch + staging, lane, load(address, 0))

    walk = _walk(storage, dimensions, slot, bring)

    @subroutine(types.void)
    def stage(addresses, geometry, start, count, scratch):
        walk(addresses[k], geometry, start, count, scratch)

    @subroutine(WIDE_TYPES[widened(storage)])
    def read_staged(addresses, start, lane, scratch):
        return recall(scratch + staging, lane)

    return stage, read_staged


def _writer(key: KernelKey, role: str):
    """(write, unstage) for one output: write one lane of a row, and bring a row from scratch to a strided array."""
    if role not in key.recipe.outputs:
        return _discard, _no_move
    k = key.position(role)
    if key.layouts[k] == FLAT:
        return _flat_writer(key.recipe.stored, k), _no_move
    return _strided_writer(key.recipe, k, key.dimensions, key.slot(role), key.staging(role))


def _flat_writer(storage: str, k: int):
    store = storer(storage)

    @subroutine(types.void)
    def write_flat(addresses, start, lane, scratch, value):
        store(addresses[k], start + lane, value)

    return write_flat


def _strided_writer(recipe: Recipe, k: int, dimensions: int, slot: int, staging: int):
    store = storer(recipe.stored)
    keep = storer(recipe.compute, region="scratch")
    recall = loader(recipe.compute, region="scratch")

    @subroutine(types.void)
    def take(address, lane, scratch):
        store(address, 0, recall(scratch + staging, lane))

    walk = _walk(recipe.stored, dimensions, slot, take)

    @subroutine(types.void)
    def write_staged(addresses, start, lane, scratch, value):
        keep(scratch + staging, lane, value)

    @subroutine(types.void)
    def unstage(addresses, geometry, start, count, scratch):
        walk(addresses[k], geometry, start, count, scratch)

    return write_staged, unstage


@subroutine(types.void)
def _take_nothing(scratch, lane, sample):
    pass


@cache
def _accumulator(sums: int, per_sum: int, lanes: int, compensated: bool):
    """The subroutine that adds the first ``sums`` of a sample's values to the accumulators of its lane.

    A loop over the sums has to be unrolled before the loop over the lanes is vectorised, and LLVM gives up on that
    somewhere between 11 and 14 sums: 100 ns an element instead of 6.
    """
    if not sums:
        return _take_nothing
    before = _accumulator(sums - 1, per_sum, lanes, compensated)
    last = sums - 1
    high, low = per_sum * last, per_sum * last + lanes

    @subroutine(types.void)
    def accumulate(scratch, lane, values):
        before(scratch, lane, values)
        if compensated:
            hi, lo = add_to_pair(load_real(scratch, high + lane), load_real(scratch, low + lane), values[last])
            store_real(scratch, high + lane, hi)
            store_real(scratch, low + lane, lo)
        else:
            store_real(scratch, high + lane, load_real(scratch, high + lane) + values[last])

    return accumulate


@cache
def _rows_of(fields: tuple[str, ...], real: str, at: int, row: int):
    """(keep, recall): keep these fields of a sample in rows of scratch, in the compute type; give them back."""
    *others, field = fields
    PLACE, own = FIELDS.index(field), at + row * len(others)
    keep_one, recall_one = storer(real, region="scratch"), loader(real, region="scratch")

    @subroutine(types.void)
    def keep_field(scratch, lane, sample):
        keep_one(scratch + own, lane, sample[PLACE])

    @subroutine(types.UniTuple(WIDE_TYPES[real], 1))
    def recall_field(scratch, lane):
        return (recall_one(scratch + own, lane),)

    if not others:
        return keep_field, recall_field
    keep_others, recall_others = _rows_of(tuple(others), real, at, row)

    @subroutine(types.void)
    def keep(scratch, lane, sample):
        keep_others(scratch, lane, sample)
        keep_field(scratch, lane, sample)

    @subroutine(types.UniTuple(WIDE_TYPES[real], len(fields)))
    def recall(scratch, lane):
        return recall_others(scratch, lane) + recall_field(scratch, lane)

    return keep, recall


@subroutine(types.void)
def _add_no_row(scratch, count):
    pass


def _lane_adder(key: KernelKey):
    """(take, add_row): take one sample of a row; then add what the row's samples say to the accumulators of their
    lanes."""
    names, compensated = key.recipe.sums, key.recipe.compensated
    if not names:
        return _take_nothing, _add_no_row
    accumulate = _accumulator(len(names), key.per_sum // 8, key.plan.lanes, compensated)
    keep, recall = _rows_of(key.fields, key.recipe.compute, key.staged_at, key.row)
    collect = collector(names, key.fields)

    @subroutine(types.void)
    def add_row(scratch, count):
        for lane in range(count):
            accumulate(scratch, lane, collect(recall(scratch, lane)))

    return keep, add_row


@subroutine(types.void)
def _add_no_pairs(scratch, steps, wide, pairs, apart):
    pass


def _output_adder(key: KernelKey):
    """(take, add_steps): take one sample of a row of ``steps`` times ``wide`` outputs; then add each step's samples to
    the pairs of the outputs. Those of sum k have their high parts from ``pairs + 2 k apart`` on, their low parts
    ``apart`` behind them."""
    names = key.recipe.sums
    if not names:
        return _take_nothing, _add_no_pairs
    keep, recall = _rows_of(key.fields, key.recipe.compute, key.staged_at, key.row)
    add_steps = _add_no_pairs
    for k, name in enumerate(names):
        add_steps = _pair_adder(k, add_steps, collector((name,), key.fields), recall)
    return keep, add_steps


def _pair_adder(k: int, before, collect, recall):
    """The subroutine that does what ``before`` does, and adds the samples of sum k."""

    @subroutine(types.void)
    def add_steps(scratch, steps, wide, pairs, apart):
        before(scratch, steps, wide, pairs, apart)
        highs = pairs + 2 * k * apart
        lows = highs + apart
        for step in range(steps):
            for o in range(wide):
                value = collect(recall(scratch, step * wide + o))[0]
                hi, lo = add_to_pair(load_pair(highs, o), load_pair(lows, o), value)
                store_pair(highs, o, hi)
                store_pair(lows, o, lo)

    return add_steps


_load_count, _store_count = loader("int64", region="outputs"), storer("int64", region="outputs")


@subroutine(types.void)
def _add_alone(address, index, amount):
    _store_count(address, index, _load_count(address, index) + amount)


@subroutine(types.void)
def _place_nowhere(scratch, lane, placed):
    pass


@subroutine(types.void)
def _add_nothing(histogram, unit, scratch, count):
    pass


@subroutine(types.void)
def _add_no_rows(histogram, unit, scratch, count, first, wide):
    pass


def _histogram(key: KernelKey):
    """(place, add, add_rows): keep in scratch where one lane of a row falls; then add ``count`` lanes to a histogram,
    or rows of ``wide`` lanes to the histograms from number ``first`` on.

    Samples are vectorised, additions to a histogram are not: hence the two steps.
    """
    if not key.recipe.bins:
        return _place_nowhere, _add_nothing, _add_no_rows
    keep_cell, recall_cell = storer("int32", region="scratch"), loader("int32", region="scratch")
    keep, recall = storer("int64", region="scratch"), loader("int64", region="scratch")
    increase = add_atomically if key.shared else _add_alone
    QUANTISED = key.recipe.quantised
    cells_at, positives_at, negatives_at = (key.placing + key.row * place for place in range(3))
    label = 8 * histogram_cells(key.recipe.bins)

    @subroutine(types.void)
    def place(scratch, lane, placed):
        keep_cell(scratch + cells_at, lane, placed[0])
        if QUANTISED:
            keep(scratch + positives_at, lane, placed[1])
            keep(scratch + negatives_at, lane, placed[2])

    @subroutine(types.void)
    def add_one(histogram, unit, scratch, lane):
        cell = recall_cell(scratch + cells_at, lane)
        if QUANTISED:
            increase(histogram, cell, recall(scratch + negatives_at, lane))
            increase(histogram, cell + 1, recall(scratch + positives_at, lane))
        else:
            increase(histogram, cell, unit)

    @subroutine(types.void)
    def add(histogram, unit, scratch, count):
        for lane in range(count):
            add_one(histogram, unit, scratch, lane)

    @subroutine(types.void)
    def add_rows(histogram, unit, scratch, count, first, wide):
        start = 0
        while start < count:  # A range refuses a step of 0, and kernels that can raise need what compile skips.
            for o in range(wide):
                add_one(histogram + (first + o) * label, unit, scratch, start + o)
            start += wide

    return place, add, add_rows


def _row(key: KernelKey, take):
    """The inlined function that works on the elements [start, start + count), at most one row of lanes: writes the
    outputs, takes each sample, and keeps what goes into the histogram.

    ``hard`` says that the last row's targets were all 0 or 1. Then this row's are taken for that, and done once more if
    they are not; what it gives is the ``hard`` of the next row.
    """
    LOOKS = may_be_hard(key.recipe)
    stage_prediction, prediction = _reader(key, "prediction")
    stage_baseline, baseline = _reader(key, "baseline")
    stage_target, target = _reader(key, "target")
    stage_weight, weight = _reader(key, "weight")
    stage_mask, mask = _reader(key, "mask")
    stage_pos_weight, pos_weight = _reader(key, "pos_weight")
    stage_label_weight, label_weight = _reader(key, "label_weight")
    stage_scale, scale = _reader(key, "scale")
    write_loss, unstage_loss = _writer(key, "loss")
    write_gradient, unstage_gradient = _writer(key, "gradient")
    write_hessian, unstage_hessian = _writer(key, "hessian")
    place, _, _ = _histogram(key)

    def lanes(sample):
        """The inlined function that does this to each sample. It says whether all targets were 0 or 1, where that is of
        use."""

        @inlined
        def each(start, count, addresses, parameters, ignored, scratch):
            all_hard = True
            for lane in range(count):
                y = target(addresses, start, lane, scratch)
                if LOOKS:
                    all_hard = all_hard & ((y == 0) | (y == 1))
                outputs, known, placed = sample(
                    True,
                    prediction(addresses, start, lane, scratch),
                    baseline(addresses, start, lane, scratch),
                    y,
                    weight(addresses, start, lane, scratch),
                    mask(addresses, start, lane, scratch),
                    pos_weight(addresses, start, lane, scratch),
                    label_weight(addresses, start, lane, scratch),
                    scale(addresses, start, lane, scratch),
                    parameters,
                    ignored,
                )
                write_loss(addresses, start, lane, scratch, outputs[0])
                write_gradient(addresses, start, lane, scratch, outputs[1])
                write_hessian(addresses, start, lane, scratch, outputs[2])
                place(scratch, lane, placed)
                take(scratch, lane, known)
            return all_hard

        return each

    of_all = lanes(element(key.recipe))
    of_hard = lanes(element(key.recipe, hard=True)) if LOOKS else _not_hard

    @inlined
    def row(hard, start, count, addresses, geometry, parameters, ignored, scratch):
        stage_prediction(addresses, geometry, start, count, scratch)
        stage_baseline(addresses, geometry, start, count, scratch)
        stage_target(addresses, geometry, start, count, scratch)
        stage_weight(addresses, geometry, start, count, scratch)
        stage_mask(addresses, geometry, start, count, scratch)
        stage_pos_weight(addresses, geometry, start, count, scratch)
        stage_label_weight(addresses, geometry, start, count, scratch)
        stage_scale(addresses, geometry, start, count, scratch)
        if hard:
            hard = of_hard(start, count, addresses, parameters, ignored, scratch)
        if not hard:
            hard = of_all(start, count, addresses, parameters, ignored, scratch)
        unstage_loss(addresses, geometry, start, count, scratch)
        unstage_gradient(addresses, geometry, start, count, scratch)
        unstage_hessian(addresses, geometry, start, count, scratch)
        return hard

    return row


def _repeats(key: KernelKey):
    """The inlined function that says whether a row can be done once more: not where an output takes the place of an
    input."""
    if not may_be_hard(key.recipe):
        return _never
    inputs, arrays = len(key.recipe.roles), len(key.arrays)

    @subroutine(types.boolean)
    def can_repeat(addresses):
        apart = True
        for output in range(inputs, arrays):
            for array in range(inputs):
                apart = apart & (addresses[output] != addresses[array])
        return apart

    return can_repeat


@inlined
def _never(addresses):
    return False


@inlined
def _not_hard(start, count, addresses, parameters, ignored, scratch):
    return False


def _tree(lanes: int, compensated: bool):
    """The inlined halving tree over the lanes at ``cell`` (high parts, then low parts), from ``width`` on."""
    low = 8 * lanes

    @subroutine(types.void)
    def tree(cell, width):
        while width > 0:
            for lane in range(width):
                if compensated:
                    hi, lo = merge_pairs(
                        load_real(cell, lane),
                        load_real(cell + low, lane),
                        load_real(cell, lane + width),
                        load_real(cell + low, lane + width),
                    )
                    store_real(cell, lane, hi)
                    store_real(cell + low, lane, lo)
                else:
                    store_real(cell, lane, load_real(cell, lane) + load_real(cell, lane + width))
            width //= 2

    return tree


@subroutine(types.void)
def _clear(scratch, cells):
    for cell in range(cells):
        store_real(scratch, cell, 0.0)


def whole(key: KernelKey):
    """Sum by blocks: block b leaves the pair of sum k at partials[k, :, b]. All samples go into one histogram."""
    take, add_row = _lane_adder(key)
    row, can_repeat = _row(key, take), _repeats(key)
    _, add, _ = _histogram(key)
    sums = len(key.recipe.sums)
    lanes, rows, block_size = key.plan.lanes, key.plan.rows, key.plan.block
    per_sum, strip = key.per_sum, key.strip
    tree = _tree(lanes, key.recipe.compensated)

    def blocks(first, last, n, addresses, geometry, parameters, ignored, scratch, partials, count, histogram, unit):
        hard = again = can_repeat(addresses)
        for block in range(first, last):
            _clear(scratch, sums * per_sum // 8)
            for left in range(0, lanes, strip):
                here = scratch + 8 * left
                for r in range(rows):
                    start = block * block_size + r * lanes + left
                    if start < n:
                        wide = min(strip, lanes - left, n - start)
                        hard = again & row(hard, start, wide, addresses, geometry, parameters, ignored, here)
                        add_row(here, wide)
                        add(histogram, unit, here, wide)
            width = first_width(lanes, min(lanes, n - block * block_size))
            for k in range(sums):
                tree(scratch + k * per_sum, width)
                store_real(partials, 2 * k * count + block, load_real(scratch + k * per_sum, 0))
                store_real(partials, (2 * k + 1) * count + block, load_real(scratch + k * per_sum, lanes))

    return blocks


def along_axes(key: KernelKey):
    """Sum runs of ``chunk`` reduced elements of each output, in order. Element r of output o has index r outputs + o.

    One task is one run of one tile of at most ``widest`` outputs. Run c leaves the pair of sum k for output o at
    partials[k, :, c, o]. A row of scratch holds as many reduced elements of the tile as fit; they are then added to the
    pairs one reduced element after the other. Each output has its own histogram.
    """
    take, add_steps = _output_adder(key)
    row, can_repeat = _row(key, take), _repeats(key)
    _, _, add_rows = _histogram(key)
    sums = len(key.recipe.sums)
    lanes, chunk = key.plan.lanes, key.plan.chunk

    def runs(
        first,
        last,
        widest,
        reduced,
        outputs,
        addresses,
        geometry,
        parameters,
        ignored,
        scratch,
        partials,
        count,
        histogram,
        unit,
    ):
        tile = min(outputs, widest)
        across = (outputs + tile - 1) // tile
        together = lanes // tile if tile == outputs else 1
        apart = 8 * count * outputs
        hard = again = can_repeat(addresses)
        for task in range(first, last):
            run = task // across
            left = task % across * tile
            end = min((run + 1) * chunk, reduced)
            wide = min(tile, outputs - left)
            pairs = partials + 8 * (run * outputs + left)
            for part in range(2 * sums):
                for o in range(wide):
                    store_pair(pairs + part * apart, o, 0.0)
            r = run * chunk
            while r < end:
                taken = min(together, end - r)
                start = r * outputs + left
                hard = again & row(hard, start, taken * wide, addresses, geometry, parameters, ignored, scratch)
                add_rows(histogram, unit, scratch, taken * wide, left, wide)
                add_steps(scratch, taken, wide, pairs, apart)
                r += taken

    return runs


def combine(plan: Plan):
    """Reduce pairs by blocks: one task for each block of each column.

    Column (k, o) holds ``size`` pairs at source[k, :, j, o]; block b of it leaves its pair at target[k, :, b, o].
    """
    lanes, rows, block_size = plan.lanes, plan.rows, plan.block
    low = 8 * lanes
    tree = _tree(lanes, True)

    def columns(first, last, size, outputs, source, target, blocks, scratch):
        for task in range(first, last):
            o = task % outputs
            block = (task // outputs) % blocks
            k = task // (outputs * blocks)
            base = block * block_size
            _clear(scratch, lanes)
            _clear(scratch + low, lanes)
            for r in range(rows):
                start = base + r * lanes
                for lane in range(min(lanes, size - start)):
                    j = start + lane
                    hi, lo = merge_pairs(
                        load_real(scratch, lane),
                        load_real(scratch + low, lane),
                        load_real(source, (2 * k * size + j) * outputs + o),
                        load_real(source, ((2 * k + 1) * size + j) * outputs + o),
                    )
                    store_real(scratch, lane, hi)
                    store_real(scratch + low, lane, lo)
            tree(scratch, first_width(lanes, min(lanes, size - base)))
            store_real(target, (2 * k * blocks + block) * outputs + o, load_real(scratch, 0))
            store_real(target, ((2 * k + 1) * blocks + block) * outputs + o, load_real(scratch, lanes))

    return columns


def settle(key: SettleKey):
    """Turn sums into values, or into the scale of derivatives: one output after the other."""
    value = settlement(key.storage, key.makes_scale, key.divides_by_sum, key.factor_storage)

    def values(outputs, states, result, numerator, denominator, divisor, least, grad_scale, unit, factor):
        for o in range(outputs):
            value(o, outputs, states, result, numerator, denominator, divisor, least, grad_scale, unit, factor)

    return values
