"""The kernels on a CPU: one call works on a range of blocks, the lanes of a row are SIMD lanes.

Everything in memory is an address. ``scratch`` is private to the calling thread; kernel_key.Scratch says what is where.
"""

from functools import cache, partial

from numba import types

from gpubce.backends.kernel_key import KernelKey, Scratch, SettleKey
from gpubce.spec.bins import cells as histogram_cells
from gpubce.spec.elements import element, may_be_hard, settlement
from gpubce.spec.geometry import FLAT, SCALAR
from gpubce.spec.plan import Plan
from gpubce.spec.precision import widened
from gpubce.spec.primitives import (
    TURNED,
    WIDE_TYPES,
    add_atomically,
    addition,
    first_width,
    loader,
    merge_pairs,
    storer,
    strided_offset,
    transposer,
)
from gpubce.spec.quantities import FIELDS, collector
from gpubce.spec.recipe import OUTPUTS, ROLES
from gpubce.spec.subroutines import chosen, in_turn, over_lanes, subroutine, tuple_of

# Sums, wherever they lie; "scratch" is what is kept of samples.
load_real = loader("float64", region="outputs")
store_real = storer("float64", region="outputs")


@subroutine(types.boolean)
def _absent(addresses, start, lane):
    return True


def _reader(key: KernelKey, role: str):
    """The subroutine that reads one lane of one input. Strided arrays are flat by then: see :func:`_stager`."""
    storage = getattr(key.recipe, role)
    if storage is None:
        return _absent
    k = key.position(role)
    return _scalar_reader(storage, k) if key.layouts[k] == SCALAR else _flat_reader(storage, k)


@cache
def _scalar_reader(storage: str, k: int):
    load = loader(storage)

    @subroutine(WIDE_TYPES[widened(storage)])
    def read_scalar(addresses, start, lane):
        return load(addresses[k], 0)

    return read_scalar


@cache
def _flat_reader(storage: str, k: int):
    load = loader(storage)

    @subroutine(WIDE_TYPES[widened(storage)])
    def read_flat(addresses, start, lane):
        return load(addresses[k], start + lane)

    return read_flat


def _writer(key: KernelKey, output: str):
    """The subroutine that writes one lane of one output."""
    return _flat_writer(key.recipe.stored, key.position(output), OUTPUTS.index(output))


@cache
def _flat_writer(storage: str, k: int, which: int):
    store = storer(storage)

    @subroutine(types.void)
    def write_flat(addresses, start, lane, outputs):
        store(addresses[k], start + lane, outputs[which])

    return write_flat


# Strided arrays. The kernels bring a piece of each into scratch, in C order, and find it there. A piece is ``rows``
# times ``wide`` elements, each row ``pitch`` elements behind the one before.


@cache
def _tile_mover(size: int, inwards: bool):
    """The subroutine that moves ``rows`` times ``columns`` elements of so many bytes from an array to scratch (inwards)
    or back. There, rows lie ``down`` and columns ``across`` bytes apart; here, in scratch, rows lie ``pitch`` bytes
    apart."""
    storage = f"uint{8 * size}"
    transpose = transposer(size)
    take, put = loader(storage, region="array"), storer(storage, region="piece")
    take_back, put_back = loader(storage, region="piece"), storer(storage, region="array")

    @subroutine(types.void)
    def move_one(there, far, here, near):
        if inwards:
            put(here, near, take(there, far))
        else:
            put_back(there, far, take_back(here, near))

    @subroutine(types.void)
    def turn(far, across, near, pitch, tall, wide):
        if inwards:
            transpose(far, across, near, pitch, wide, tall, TURNED)
        else:
            transpose(near, pitch, far, across, tall, wide, tall)

    @subroutine(types.void)
    def move_columns(there, down, across, here, pitch, rows, columns):
        for column in range(columns):
            for row in range(rows):
                move_one(there + row * down + column * across, 0, here + row * pitch, column)

    @subroutine(types.void)
    def move_rows(there, down, across, here, pitch, rows, columns):
        for row in range(rows):
            first, near = there + row * down, here + row * pitch
            # The two that are common, with steps that the compiler knows: vectors.
            if across == 0:
                for column in range(columns):
                    move_one(first, 0, near, column)
            elif across == size:
                for column in range(columns):
                    move_one(first, column, near, column)
            else:
                for column in range(columns):
                    move_one(first + column * across, 0, near, column)

    @subroutine(types.void, inline=False)
    def move_tile(there, down, across, here, pitch, rows, columns):
        if rows == 1 or down == 0 or abs(down) >= abs(across):
            move_rows(there, down, across, here, pitch, rows, columns)
        elif down != size:
            move_columns(there, down, across, here, pitch, rows, columns)
        else:
            # Rows narrower than a tile are written to scratch as wide as one: the next row is written over what is too
            # much, and behind the last one there is room for it.
            turned = columns if columns < TURNED else columns // TURNED * TURNED
            for left in range(0, turned, TURNED):
                for top in range(0, rows, TURNED):
                    far, near = there + left * across + top * size, here + top * pitch + left * size
                    tall, wide = min(TURNED, rows - top), min(TURNED, columns - left)
                    if tall == wide == TURNED:  # Numbers that the compiler knows need no masks.
                        turn(far, across, near, pitch, TURNED, TURNED)
                    else:
                        turn(far, across, near, pitch, tall, wide)
            move_columns(there + turned * across, down, across, here + turned * size, pitch, rows, columns - turned)

    return move_tile


@cache
def _flat_mover(size: int, inwards: bool):
    """The subroutine that moves a piece of a flat array."""
    move_tile = _tile_mover(size, inwards)

    @subroutine(types.void)
    def move_piece(there, geometry, start, rows, wide, pitch, here):
        move_tile(there + start * size, pitch * size, size, here, wide * size, rows, wide)

    return move_piece


@cache
def _tile_finder(dimensions: int):
    """The subroutine that looks for the tile that begins with element ``done`` of a piece: the element's index in C
    order, rows and columns. Tiles are of the two last axes: whole lines of the last one where rows follow one another,
    else parts of it as long as a row."""
    innermost = dimensions - 1
    outer = max(0, dimensions - 2)
    PLANE = dimensions > 1

    @subroutine(types.UniTuple(types.int64, 3))
    def find_tile(done, geometry, start, rows, wide, pitch):
        inner, count, in_order = geometry[innermost], rows * wide, pitch == wide
        row = done // wide
        index = start + row * pitch + (done - row * wide)
        place = index % inner
        columns = min(inner - place, count - done if in_order else (row + 1) * wide - done)
        tall = 1
        if PLANE:
            below = geometry[outer] - index // inner % geometry[outer]
            if in_order and columns == inner:
                tall = min(below, (count - done) // inner)
            elif pitch == inner and columns == wide:
                tall = min(below, rows - row)
        return index, tall, columns

    return find_tile


@cache
def _strided_mover(size: int, dimensions: int, inwards: bool):
    """The subroutine that moves a piece of a strided array. Its ``geometry`` has the strides of this one alone."""
    move_tile, find_tile, offset = _tile_mover(size, inwards), _tile_finder(dimensions), strided_offset(dimensions, 0)
    step, outer_step = 2 * dimensions - 1, max(dimensions, 2 * dimensions - 2)

    @subroutine(types.void)
    def move_piece(there, geometry, start, rows, wide, pitch, here):
        across, down = geometry[step], geometry[outer_step]
        done = 0
        while done < rows * wide:
            index, tall, columns = find_tile(done, geometry, start, rows, wide, pitch)
            move_tile(there + offset(index, geometry), down, across, here + done * size, columns * size, tall, columns)
            done += tall * columns

    return move_piece


def _stager(memory: Scratch):
    """(bring, find, give): bring a piece of the inputs into scratch, where it may have ``room`` elements; the addresses
    at which the kernel finds all arrays then; give back the outputs' piece.

    Where flat arrays are brought too (``memory.every``), elements are found at the indices from ``start`` on. Elsewhere
    each is found at the index that it has in C order, so a piece of more than one row needs ``pitch == wide``.
    """
    key = memory.key
    find: list = []
    bring: list = []
    give: list = []
    for k, name in enumerate(key.arrays):
        size, before, apart = memory.staged.get(name, (0, 0, 0))
        find.append(_found(k, size, before, apart))
        if size:
            inwards = name in key.recipe.roles
            if key.layouts[k] == FLAT:
                move = _flat_mover(size, inwards)
            else:
                move = _of_one(_strided_mover(size, key.dimensions, inwards), key.dimensions, key.slot(name))
            (bring if inwards else give).append(_moving(move, k, before, apart))
    moved = "addresses geometry start rows wide pitch scratch room"
    found = tuple_of("addresses start scratch room", *find) if bring or give else _in_place(max(1, len(key.arrays)))
    return in_turn(moved, *bring), found, in_turn(moved, *give)


@cache
def _in_place(count: int):
    """The subroutine that gives the addresses of so many arrays, none of which is in scratch. A kernel that has no
    arrays is given one address."""

    @subroutine(types.UniTuple(types.int64, count))
    def find_all(addresses, start, scratch, room):
        return addresses

    return find_all


@cache
def _of_one(move, dimensions: int, slot: int):
    """The mover of a strided array, which is given the geometry of all."""
    first, end = dimensions * (1 + slot), dimensions * (2 + slot)

    @subroutine(types.void)
    def move_piece(there, geometry, start, rows, wide, pitch, here):
        move(there, geometry[:dimensions] + geometry[first:end], start, rows, wide, pitch, here)

    return move_piece


@cache
def _moving(move, k: int, before: int, apart: int):
    """The subroutine that moves a piece of array k. It begins ``apart`` bytes behind pieces that have ``before`` bytes
    of each element."""

    @subroutine(types.void)
    def move_piece(addresses, geometry, start, rows, wide, pitch, scratch, room):
        move(addresses[k], geometry, start, rows, wide, pitch, scratch + before * room + apart)

    return move_piece


@cache
def _found(k: int, size: int, before: int, apart: int):
    """The subroutine that gives the address of array k; a ``size`` of 0 leaves it where it is."""

    @subroutine(types.int64)
    def find(addresses, start, scratch, room):
        return scratch + before * room + apart - start * size if size else addresses[k]

    return find


def _rows_of(fields: tuple[str, ...], real: str, at: int, row: int):
    """(keep, recall): keep these fields of a sample in rows of scratch, in the compute type; give them back."""
    rows = [_row_of(field, real, at + row * number) for number, field in enumerate(fields)]
    keep = in_turn("scratch lane sample", *(keep for keep, _ in rows))
    return keep, tuple_of("scratch lane", *(recall for _, recall in rows))


@cache
def _row_of(field: str, real: str, at: int):
    PLACE = FIELDS.index(field)
    keep_one, recall_one = storer(real, region="scratch"), loader(real, region="scratch")

    @subroutine(types.void)
    def keep(scratch, lane, sample):
        keep_one(scratch + at, lane, sample[PLACE])

    @subroutine(WIDE_TYPES[real])
    def recall(scratch, lane):
        return recall_one(scratch + at, lane)

    return keep, recall


def _adders(memory: Scratch):
    """(take, add_steps, add_runs): take one sample of a row; then add to the pairs of the outputs the samples of
    ``steps`` times ``wide`` outputs, one step after the other, or those of several runs. The lanes of a block are such
    outputs, and its rows such steps.

    The pairs of sum k have their high parts from ``pairs + 2 k apart`` on, their low parts ``apart`` behind them.
    """
    key = memory.key
    keep, recall = _rows_of(key.fields, key.recipe.compute, memory.kept, memory.field)
    sums, collect = len(key.recipe.sums), collector(key.recipe.sums, key.fields)
    add_element = addition(key.recipe.compensated).add
    add_steps = _step_adder(sums, collect, recall, memory.steps, add_element)
    return keep, add_steps, _run_adder(memory, collect, add_element)


# Low parts are stored first: then LLVM sees that where elements are added to totals, what is stored is what was loaded.
# These low parts may hold anything.


@cache
def _step_adder(sums: int, collect, recall, together: int, add_element):
    """The subroutine that adds the samples of so many steps at once, and of those that are left one after the other."""

    @subroutine(types.void)
    def add(k, scratch, step, number, wide, pairs, apart):
        """Add ``number`` steps to each pair of sum k before the next one."""
        highs = pairs + 2 * k * apart
        lows = highs + apart
        for o in range(wide):
            hi, lo = load_real(highs, o), load_real(lows, o)
            for more in range(number):
                value = chosen(collect(recall(scratch, (step + more) * wide + o)), k)
                hi, lo = add_element(hi, lo, value)
            store_real(lows, o, lo)
            store_real(highs, o, hi)

    add_all = in_turn("scratch step number wide pairs apart", *(partial(add, k) for k in range(sums)))

    @subroutine(types.void)
    def add_steps(scratch, steps, wide, pairs, apart):
        done = 0
        if together > 1:
            done = steps // together * together
            for step in range(0, done, together):
                add_all(scratch, step, together, wide, pairs, apart)
        for step in range(done, steps):
            add_all(scratch, step, 1, wide, pairs, apart)

    return add_steps


# Few outputs would fill a part of a register. Then runs are its lanes: the fields of as many runs are turned, so that
# the same element of all runs lies side by side.


def _turned_adder(collect, recall, part: int, add_element):
    """The subroutine that adds sum k of ``runs`` elements of as many runs, the first of which belongs to output ``o``.
    They are TURNED, which LLVM is not told: it would unroll the outer loop."""

    @subroutine(types.void)
    def add_turned(k, scratch, runs, outputs, o, pairs):
        highs = pairs + 2 * k * part
        for t in range(runs):
            own = highs + 8 * TURNED * o
            for run in range(runs):
                value = chosen(collect(recall(scratch, t * TURNED + run)), k)
                hi, lo = add_element(load_real(own, run), load_real(own + part, run), value)
                store_real(own + part, run, lo)
                store_real(own, run, hi)
            o = o + 1 if o + 1 < outputs else 0

    return add_turned


def _run_adder(memory: Scratch, collect, add_element):
    """The subroutine that adds ``runs`` runs, TURNED at most, of ``length`` kept samples each. Their pairs follow one
    another."""
    key, part, sums = memory.key, memory.part, len(memory.key.recipe.sums)
    if not key.few:
        return in_turn("scratch runs outputs length pairs apart")
    fields, size = len(key.fields), key.itemsize
    _, recall = _rows_of(key.fields, key.recipe.compute, memory.turned, memory.turned_field)
    add_turned = _turned_adder(collect, recall, part, add_element)
    add_all = in_turn("scratch runs outputs o pairs", *(partial(add_turned, k) for k in range(sums)))
    kept, field, transpose = memory.kept, memory.field, transposer(size)
    turned, turned_field, own_pairs = memory.turned, memory.turned_field, memory.pairs

    @subroutine(types.void, inline=False)
    def add_runs(scratch, runs, outputs, length, pairs, apart):
        own = scratch + own_pairs
        for cell in range(2 * sums * part // 8):
            store_real(own, cell, 0.0)
        o = 0
        for t in range(0, length, TURNED):
            for number in range(fields):
                transpose(
                    scratch + kept + number * field + t * size,
                    length * size,
                    scratch + turned + number * turned_field,
                    TURNED * size,
                    TURNED,
                    TURNED,
                    TURNED,
                )
            add_all(scratch, runs, outputs, o, own)
            o = (o + TURNED) % outputs
        for place in range(2 * sums):
            for run in range(runs):
                for o in range(outputs):
                    store_real(
                        pairs + place * apart, run * outputs + o, load_real(own + place * part, TURNED * o + run)
                    )

    return add_runs


_load_count, _store_count = loader("int64", region="outputs"), storer("int64", region="outputs")


@subroutine(types.void)
def _add_alone(address, index, amount):
    _store_count(address, index, _load_count(address, index) + amount)


def _histogram(memory: Scratch):
    """(place, add, add_rows): keep in scratch where one lane of a row falls; then add ``count`` lanes to a histogram,
    or rows of ``wide`` lanes to the histograms from number ``first`` on.

    Samples are vectorised, additions to a histogram are not: hence the two steps.
    """
    key = memory.key
    if not key.recipe.bins:
        arguments = "scratch lane placed", "histogram unit scratch count", "histogram unit scratch count first wide"
        return tuple(in_turn(names) for names in arguments)
    keep_cell, recall_cell = storer("int32", region="scratch"), loader("int32", region="scratch")
    keep, recall = storer("int64", region="scratch"), loader("int64", region="scratch")
    increase = add_atomically if key.shared else _add_alone
    QUANTISED = key.recipe.quantised
    cells_at, positives_at, negatives_at = (memory.placed + memory.row * place for place in range(3))
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


def _row(memory: Scratch, take):
    """The subroutine that works on the elements [start, start + count), at most one row of lanes: writes the
    outputs, takes each sample, behind the first ``filled`` bytes of the rows of fields, and keeps what goes into the
    histogram.

    ``hard`` says that the last row's targets were all 0 or 1. Then this row's are taken for that, and done once more if
    they are not; what it gives is the ``hard`` of the next row.
    """
    key = memory.key
    LOOKS = may_be_hard(key.recipe)
    target = _reader(key, "target")
    read = tuple_of("addresses start lane", *(_reader(key, role) for role in ROLES))
    write = in_turn("addresses start lane outputs", *(_writer(key, output) for output in key.recipe.outputs))
    place, _, _ = _histogram(memory)

    def lanes(sample):
        """The subroutine that does this to each sample, and says whether all targets were 0 or 1 where that is of
        use."""

        @subroutine(types.boolean)
        def each(lane, start, addresses, parameters, ignored, scratch, filled):
            is_hard = True
            if LOOKS:  # Before the other arrays are read: it holds fewer registers.
                y = target(addresses, start, lane)
                is_hard = (y == 0) | (y == 1)
            inputs = read(addresses, start, lane)
            outputs, known, placed = sample(True, inputs, parameters, ignored)
            write(addresses, start, lane, outputs)
            place(scratch, lane, placed)
            take(scratch + filled, lane, known)
            return is_hard

        return over_lanes("start addresses parameters ignored scratch filled", each, key.mixed)

    of_all = lanes(element(key.recipe))
    of_hard = lanes(element(key.recipe, hard=True)) if LOOKS else _not_hard

    @subroutine(types.boolean)
    def row(hard, start, count, addresses, parameters, ignored, scratch, filled):
        if hard:
            hard = of_hard(count, start, addresses, parameters, ignored, scratch, filled)
        if not hard:
            hard = of_all(count, start, addresses, parameters, ignored, scratch, filled)
        return hard

    return row


def _repeats(key: KernelKey):
    """The subroutine that says whether a row can be done once more: not where an output takes the place of an
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


@subroutine(types.boolean)
def _never(addresses):
    return False


@subroutine(types.boolean)
def _not_hard(count, start, addresses, parameters, ignored, scratch, filled):
    return False


def _tree(low: int, merge):
    """The subroutine of the halving tree over the lanes at ``cell``, from ``width`` on. Their low parts lie ``low``
    bytes behind the high parts."""

    @subroutine(types.void)
    def tree(cell, width):
        while width > 0:
            for lane in range(width):
                hi, lo = merge(
                    load_real(cell, lane),
                    load_real(cell + low, lane),
                    load_real(cell, lane + width),
                    load_real(cell + low, lane + width),
                )
                store_real(cell + low, lane, lo)
                store_real(cell, lane, hi)
            width //= 2

    return tree


@subroutine(types.void)
def _clear(scratch, cells):
    for cell in range(cells):
        store_real(scratch, cell, 0.0)


def whole(key: KernelKey):
    """Sum by blocks: block b leaves the pair of sum k at partials[k, :, b]. All samples go into one histogram.

    The samples of ``steps`` rows are kept, and added at once. Pieces of strided arrays have ``room`` elements: those of
    a row or strip of lanes, or of blocks.
    """
    memory = Scratch(key)
    take, add_steps, _ = _adders(memory)
    row, can_repeat = _row(memory, take), _repeats(key)
    bring, find, give = _stager(memory)
    _, add, _ = _histogram(memory)
    sums, size = len(key.recipe.sums), key.itemsize
    lanes, rows, block_size = key.plan.lanes, key.plan.rows, key.plan.block
    apart, strip, pieces, steps = memory.row, key.strip, memory.pieces, memory.steps
    compensated = key.recipe.compensated
    tree = _tree(apart, addition(compensated).merge)

    def blocks(
        first, last, room, n, addresses, geometry, parameters, ignored, scratch, partials, count, histogram, unit
    ):
        hard = again = can_repeat(addresses)
        # Of no element yet. A 0 is a literal, and Numba infers all types once more for each loop around one.
        piece = beyond = first * block_size
        found = find(addresses, piece, scratch + pieces, room)
        for block in range(first, last):
            for k in range(sums):
                _clear(scratch + 2 * k * apart, lanes)
                if compensated:
                    _clear(scratch + (2 * k + 1) * apart, lanes)
            for left in range(0, lanes, strip):
                kept = 0
                for r in range(rows):
                    start = block * block_size + r * lanes + left
                    if start < n:
                        wide = min(strip, lanes - left, n - start)
                        if start < piece or start >= beyond:
                            piece, beyond = start, min(start + room, last * block_size, n)
                            held = beyond - piece
                            bring(addresses, geometry, piece, 1, held, held, scratch + pieces, room)
                            found = find(addresses, piece, scratch + pieces, room)
                        hard = again & row(hard, start, wide, found, parameters, ignored, scratch, size * kept * wide)
                        add(histogram, unit, scratch, wide)
                        kept += 1
                        if kept == steps or r + 1 == rows or start + lanes + wide > n:  # The next row is not as wide.
                            add_steps(scratch, kept, wide, scratch + 8 * left, apart)
                            kept = 0
                        if start + wide == beyond:
                            held = beyond - piece
                            give(addresses, geometry, piece, 1, held, held, scratch + pieces, room)
            width = first_width(lanes, min(lanes, n - block * block_size))
            for k in range(sums):
                totals = scratch + 2 * k * apart
                tree(totals, width)
                store_real(partials, 2 * k * count + block, load_real(totals, 0))
                store_real(partials, (2 * k + 1) * count + block, load_real(totals + apart, 0) if compensated else 0.0)

    return blocks


def along_axes(key: KernelKey):
    """Sum runs of ``chunk`` reduced elements of each output, in order. Element r of output o has index r outputs + o.

    One task is one run of one tile of at most ``widest`` outputs. Run c leaves the pair of sum k for output o at
    partials[k, :, c, o]; high parts and low parts, and those of each sum, lie ``apart`` bytes apart. A row of lanes
    holds as many reduced elements of the tile as fit. What they leave is added to the pairs for at least ``steps``
    reduced elements at once, fewer at the end of a run, or for several runs. Each output has its own histogram.

    Strided arrays are brought into scratch for one row at a time; where predictions or targets are strided, all arrays
    are, for as many elements as a block has.
    """
    memory = Scratch(key, along_axes=True)
    take, add_steps, add_runs = _adders(memory)
    row, can_repeat = _row(memory, take), _repeats(key)
    bring, find, give = _stager(memory)
    _, _, add_rows = _histogram(memory)
    sums, size = len(key.recipe.sums), key.itemsize
    lanes, chunk, room, pieces = key.plan.lanes, key.plan.chunk, key.plan.block, memory.pieces
    EVERY, FEW, steps = memory.every, key.few, memory.steps

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
        apart,
        count,
        histogram,
        unit,
    ):
        tile = min(outputs, widest)
        across = (outputs + tile - 1) // tile
        together = lanes // tile if EVERY or tile == outputs else 1
        deep = room // tile if EVERY else together
        hard = again = can_repeat(addresses)
        member = members = 0
        for task in range(first, last):
            if member == members:
                member = 0
                members = TURNED if FEW and task + TURNED <= last and (task + TURNED) * chunk <= reduced else 1
            # Runs of one tile read on in the same lines of scattered arrays, tiles of one run in those of others.
            run, left = (task % count, task // count * tile) if EVERY else (task // across, task % across * tile)
            end = min((run + 1) * chunk, reduced)
            wide = min(tile, outputs - left)
            pairs = partials + 8 * (run * outputs + left)
            for part in range(2 * sums):
                for o in range(wide):
                    store_real(pairs + part * apart, o, 0.0)
            kept = member * chunk
            r = run * chunk
            while r < end:
                held = min(deep, end - r)
                start = r * outputs + left
                bring(addresses, geometry, start, held, wide, outputs, scratch + pieces, room)
                found = find(addresses, start, scratch + pieces, room)
                done = 0
                while done < held:
                    taken = min(together, held - done)
                    hard = again & row(
                        hard, start + done * wide, taken * wide, found, parameters, ignored, scratch, size * kept * wide
                    )
                    add_rows(histogram, unit, scratch, taken * wide, left, wide)
                    done += taken
                    kept += taken
                    if members == 1 and (kept >= steps or r + done == end):
                        add_steps(scratch, kept, wide, pairs, apart)
                        kept = 0
                give(addresses, geometry, start, held, wide, outputs, scratch + pieces, room)
                r += held
            member += 1
            if member == TURNED:
                add_runs(scratch, TURNED, outputs, chunk * outputs, partials + 8 * (run + 1 - TURNED) * outputs, apart)

    return runs


def combine(plan: Plan):
    """Reduce pairs by blocks: one task for each block of each column.

    Column (k, o) holds ``size`` pairs at source[k, :, j, o]; block b of it leaves its pair at target[k, :, b, o].
    """
    lanes, rows, block_size = plan.lanes, plan.rows, plan.block
    low = 8 * lanes
    tree = _tree(low, merge_pairs)

    def columns(first, last, size, outputs, source, target, blocks, scratch):
        for task in range(first, last):
            o = task % outputs
            block = (task // outputs) % blocks
            k = task // (outputs * blocks)
            base = block * block_size
            width = first_width(lanes, min(lanes, size - base))
            _clear(scratch, max(1, 2 * width))
            _clear(scratch + low, max(1, 2 * width))
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
            tree(scratch, width)
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
