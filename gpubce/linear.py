"""The loss of a linear layer with so many labels that its logits do not fit in memory.

    logits = features weight^T + bias

The product is made in chunks, by the library of the arrays (BLAS, cuBLAS); each chunk's loss and gradient take one pass
over it, and the gradient takes the place of the logits. Targets may be given by their positives alone.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpubce import checks, dispatch
from gpubce.arrays.buffer import first_line
from gpubce.arrays.registry import library_of
from gpubce.errors import ArrayError, DtypeError, InvalidValueError, OptionError, ShapeError
from gpubce.loss import BinaryCrossEntropy, from_options
from gpubce.spec.precision import PRECISIONS
from gpubce.spec.state import LossState

CHUNK = 2**22
"""Logits held at a time, 16 MB of float32. With 256 rows of 128 features and 10^6 labels, a quarter of that takes 1.4
times as long, as a chunk costs about 1 ms beside the product; four times as much saves a fifth."""

ROWS = 2**12
"""Rows in a chunk, at most."""

LAYER = ("features", "weight", "bias")

_MODULES = {"NumPy": "numpy", "CuPy": "cupy", "PyTorch": "torch"}
"""The libraries that make the product."""

FIXED = ("from_logits", "axis", "label_axis", "log_floor", "eps")
"""Options that have no meaning here, or only one."""


class LinearBinaryCrossEntropy:
    """Binary cross-entropy of ``features @ weight.T + bias``, whose logits are never stored whole.

    Parameters
    ----------
    chunk : int, default 2**22
        Logits held at a time. Beside inputs and gradients a call takes about 5 ``chunk`` bytes for float32 (4 for a
        logit, 1 for its target), the part of the weight's gradient that belongs to a chunk, and the sorted positives.
    **options
        Those of :class:`gpubce.BinaryCrossEntropy`: ``reduction`` ("mean" or "sum"), ``denominator``, ``pos_weight``,
        ``label_weight``, ``label_smoothing``, ``gamma`` and so on. Predictions are logits.

    Raises
    ------
    gpubce.errors.OptionError
        For an option without meaning here.

    Notes
    -----
    Arrays are NumPy, CuPy or PyTorch. The product is made by their library, so its bits are not the same on every
    device; the loss of the product's logits has the bits of :class:`gpubce.BinaryCrossEntropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubce import LinearBinaryCrossEntropy
    >>> loss = LinearBinaryCrossEntropy(denominator="rows")
    >>> features = np.array([[1.0, 2.0], [0.5, -1.0]], dtype=np.float32)
    >>> weight = np.array([[0.1, 0.2], [1.0, 0.0], [-1.0, 1.0]], dtype=np.float32)
    >>> positives = [0, 1, 1], [1, 0, 2]                   # rows and labels: (0, 1), (1, 0) and (1, 2)
    >>> value, (of_features, of_weight, of_bias) = loss.value_and_grad(features, weight, None, positives)
    >>> print(value, of_features.shape, of_weight.shape, of_bias)
    3.0235238 (2, 2) (3, 2) None
    """

    def __init__(self, *, chunk: int = CHUNK, **options: Any):
        for name in options:
            if name in FIXED:
                raise OptionError(f"{name} has no meaning for a linear layer, whose logits are reduced: leave it out")
        self.loss = from_options({"from_logits": True, **options})
        if self.loss.reduction == "none":
            raise OptionError("reduction='none' would store all logits' losses: use 'mean' or 'sum'")
        self.chunk = checks.number_of("chunk", chunk, "logits")
        self._parts: dict[tuple[int, int], BinaryCrossEntropy] = {}

    def __repr__(self) -> str:
        return f"LinearBinaryCrossEntropy({self.loss!r}, chunk={self.chunk})"

    def __call__(
        self,
        features: Any,
        weight: Any,
        bias: Any,
        targets: Any,
        *,
        row_weight: Any = None,
        check: bool | str = "auto",
    ) -> Any:
        """The loss.

        Parameters
        ----------
        features : array of shape (rows, d), float16, bfloat16, float32 or float64
        weight : array of shape (labels, d), of the same type, library and device
        bias : array of shape (labels,), one number for all labels, or None
        targets : array of shape (rows, labels), a sparse matrix, or a pair of index arrays
            Dense targets as for :class:`gpubce.BinaryCrossEntropy`; a sparse matrix of SciPy, CuPy or PyTorch, whose
            other targets are 0; or (row numbers, label numbers) of the targets that are 1. Indices of device arrays
            are read on the host once, which waits for the device, as does each chunk of fewer rows than all.
        row_weight : array of shape (rows,), optional
            Multiplies the losses of a row.
        check : {"auto", True, False}
            As for :class:`gpubce.BinaryCrossEntropy`.

        Returns
        -------
        array without axes, in the features' library, float32 or (for float64) float64

        Raises
        ------
        gpubce.errors.ShapeError, DtypeError, ArrayError, InvalidValueError, OptionError, DeviceError
        """
        return self._run(features, weight, bias, targets, row_weight, check, None)[0]

    def value_and_grad(
        self,
        features: Any,
        weight: Any,
        bias: Any,
        targets: Any,
        *,
        row_weight: Any = None,
        grad_scale: Any = 1.0,
        of: Sequence[str] = LAYER,
        check: bool | str = "auto",
    ) -> tuple[Any, tuple[Any, Any, Any]]:
        """The loss, and its gradients with respect to features, weight and bias.

        Each chunk of logits is made once. The gradients have the shapes and types of what they belong to, and are
        multiplied by ``grad_scale``, a number or an array of one number. ``of`` names those that are wanted; the others
        are None, and so is that of a bias that is None. The other arguments and the errors are those of calling the
        object.
        """
        for name in of:
            checks.choice("of", name, LAYER)
        wanted = [name for name in of if name != "bias" or bias is not None]
        return self._run(features, weight, bias, targets, row_weight, check, wanted, grad_scale)

    def _run(
        self,
        features: Any,
        weight: Any,
        bias: Any,
        targets: Any,
        row_weight: Any,
        check: bool | str,
        wanted: Sequence[str] | None,
        grad_scale: Any = 1.0,
    ) -> tuple[Any, tuple[Any, Any, Any]]:
        layer = _Layer.of(features, weight, bias, row_weight)
        checking = checks.checking(check)
        factor = _one_number("grad_scale", grad_scale, layer, layer.library.float64)
        with layer.current():
            source = _targets(targets, layer)
            sums = None if wanted is None else _Gradients(layer, wanted)
            room = _Room(layer)
            total: Any = None
            for part in self._chunks(layer):
                logits = layer.logits(part, room)
                loss = self._of_labels(part.labels, layer.label_count)
                arguments = dispatch.Arguments(logits, source.of(part), layer.weight_of(part), check=checking)
                grad_out = None if sums is None else logits
                try:
                    found = dispatch.state(loss._formula, loss._reduction, arguments, dispatch.Collection(), grad_out)
                except InvalidValueError as error:
                    raise part.placed(error) from None
                source.clear(part)
                total = found if total is None else total + found
                if sums is not None:
                    sums.add(part, logits)
            total = replace(total, rows=float(layer.row_count))
            value = self._finishing(layer.storage).finish(total)
            if sums is None:
                return value, (None, None, None)
            return value, sums.finished(self._scale(total, layer.library) * factor)

    def _chunks(self, layer: _Layer) -> Iterator[_Part]:
        rows = max(1, min(layer.row_count, ROWS, self.chunk))
        labels = max(1, self.chunk // rows)
        for first in range(0, max(1, layer.label_count), labels):  # One chunk at least, though it may be empty.
            for row in range(0, max(1, layer.row_count), rows):
                yield _Part(
                    slice(row, min(row + rows, layer.row_count)), slice(first, min(first + labels, layer.label_count))
                )

    def _of_labels(self, labels: slice, count: int) -> BinaryCrossEntropy:
        """The loss with the options of some labels. Kept, because one call is like the last."""
        whole = {name: getattr(self.loss, name) for name in ("pos_weight", "label_weight")}
        by_label: dict[str, Any] = {name: values for name, values in whole.items() if isinstance(values, tuple)}
        if not by_label:
            return self.loss
        for name, values in by_label.items():
            if len(values) != count:
                raise ShapeError(f"{name} has {len(values)} values, but weight has {count} labels: give one for each")
        key = labels.start, labels.stop
        if key not in self._parts:
            if len(self._parts) > 2 * count // max(1, labels.stop - labels.start):  # Of batches of other sizes.
                self._parts.clear()
            self._parts[key] = replace(self.loss, **{name: values[labels] for name, values in by_label.items()})
        return self._parts[key]

    def _finishing(self, storage: str) -> BinaryCrossEntropy:
        return replace(self.loss, dtype=self.loss.dtype or PRECISIONS[storage].reduced)

    def _scale(self, total: LossState, library: Any) -> Any:
        """What multiplies the elements' gradients: the value that a sum of losses of 1 has. Where nothing is counted
        that is infinite, and the gradients are 0."""
        values = total.values + 0.0
        values[total.sums.index("loss"), 0], values[total.sums.index("loss"), 1] = 1.0, 0.0
        with np.errstate(divide="ignore"):
            scale = replace(self.loss, dtype="float64").finish(replace(total, values=values))
        scale = library.asarray(scale)
        return library.where(library.isinf(scale), library.zeros_like(scale), scale)


def linear_binary_cross_entropy(
    features: Any,
    weight: Any,
    bias: Any,
    targets: Any,
    *,
    row_weight: Any = None,
    chunk: int = CHUNK,
    check: bool | str = "auto",
    **options: Any,
) -> Any:
    """Binary cross-entropy of the logits ``features @ weight.T + bias``, which are never stored whole, in nats.

    ``chunk`` and ``options`` are those of :class:`LinearBinaryCrossEntropy`, the arguments and errors those of calling
    it.

    Examples
    --------
    >>> import numpy as np, gpubce
    >>> features, weight = np.array([[1.0, 2.0]]), np.array([[0.5, 0.0], [0.0, -1.0]])
    >>> print(gpubce.linear_binary_cross_entropy(features, weight, None, np.array([[1, 0]])))
    0.3005024976115396
    """
    loss = LinearBinaryCrossEntropy(chunk=chunk, **options)
    return loss(features, weight, bias, targets, row_weight=row_weight, check=check)


class PairwiseSigmoidLoss:
    """The loss of SigLIP (Zhai et al. 2023): every image beside every text is a problem of its own.

        logits = scale images texts^T + bias,      loss = the sum of their binary cross-entropies / the number of images

    Parameters
    ----------
    chunk : int, default 2**22
        Logits held at a time, as for :class:`LinearBinaryCrossEntropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubce import PairwiseSigmoidLoss
    >>> images, texts = np.eye(3, 2), np.eye(3, 2)[::-1]
    >>> print(PairwiseSigmoidLoss()(images, texts, 10.0, -10.0))
    7.128870717804804
    """

    def __init__(self, *, chunk: int = CHUNK):
        self._linear = LinearBinaryCrossEntropy(chunk=chunk, denominator="rows")

    def __repr__(self) -> str:
        return f"PairwiseSigmoidLoss(chunk={self._linear.chunk})"

    def __call__(
        self,
        images: Any,
        texts: Any,
        scale: Any,
        bias: Any,
        *,
        positives: tuple[Any, Any] | None = None,
        check: bool | str = "auto",
    ) -> Any:
        """The loss, in nats.

        Parameters
        ----------
        images, texts : arrays of shape (n, d) and (m, d)
            Embeddings (SigLIP's have length 1), of one type, library and device.
        scale, bias : numbers, or arrays of one number
            SigLIP's model learns log(scale) and bias, and begins with scale = 10 and bias = -10.
        positives : (image numbers, text numbers), optional
            The pairs that belong together; default is each image and the text of the same number. Those of another
            process's texts are two empty lists.
        """
        layer, scale, bias = self._read(images, texts, scale, bias)
        pairs = self._pairs(layer, positives)
        return self._linear(layer.features, layer.weight * scale, bias, pairs, check=check)

    def value_and_grad(
        self,
        images: Any,
        texts: Any,
        scale: Any,
        bias: Any,
        *,
        positives: tuple[Any, Any] | None = None,
        grad_scale: Any = 1.0,
        check: bool | str = "auto",
    ) -> tuple[Any, tuple[Any, Any, Any, Any]]:
        """The loss, and its gradients with respect to images, texts, scale and bias; the last two are arrays without
        axes. The other arguments are those of calling the object."""
        layer, scale, bias = self._read(images, texts, scale, bias)
        value, (of_images, of_scaled, of_bias) = self._linear.value_and_grad(
            layer.features,
            layer.weight * scale,
            bias,
            self._pairs(layer, positives),
            grad_scale=grad_scale,
            check=check,
        )
        return value, (of_images, of_scaled * scale, (of_scaled * layer.weight).sum(), of_bias)

    @staticmethod
    def _read(images: Any, texts: Any, scale: Any, bias: Any) -> tuple[_Layer, Any, Any]:
        layer = _Layer.of(images, texts, None, None, {"features": "images", "weight": "texts"})
        kind = layer.features.dtype
        return layer, _one_number("scale", scale, layer, kind), _one_number("bias", bias, layer, kind)

    @staticmethod
    def _pairs(layer: _Layer, positives: tuple[Any, Any] | None) -> tuple[Any, Any]:
        if positives is not None:
            return positives
        images, texts = layer.row_count, layer.label_count
        if images != texts:
            raise ShapeError(f"there are {images} images and {texts} texts: give as many of both, or positives")
        return np.arange(images), np.arange(images)


@dataclass(frozen=True)
class _Part:
    """A chunk of the product."""

    rows: slice
    labels: slice

    def placed(self, error: InvalidValueError) -> InvalidValueError:
        """An error for an element of the chunk, with its place in the whole."""
        if error.index is None or len(error.index) != 2:
            return error
        row, label = error.index[0] + self.rows.start, error.index[1] + self.labels.start
        name, index = ("row_weight", (row,)) if error.argument == "weight" else (error.argument, (row, label))
        rest = str(error).partition("]")[2]
        return InvalidValueError(f"{name}{[*index]}{rest}", name, index, error.value)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.labels.stop - self.labels.start


@dataclass(frozen=True)
class _Layer:
    """The arrays of a call."""

    features: Any
    weight: Any
    bias: Any
    row_weight: Any
    storage: str
    library: Any
    """The module numpy, cupy or torch; what is used of it has the same name in all three."""

    @classmethod
    def of(cls, features: Any, weight: Any, bias: Any, row_weight: Any, names: dict[str, str] | None = None) -> _Layer:
        """Read and check the arrays, which users call by ``names``."""
        first, second = (names or {}).get("features", "features"), (names or {}).get("weight", "weight")
        library_name = library_of(features, first).NAME
        if library_name not in _MODULES:
            raise ArrayError(f"{first} is an array of {library_name}: the product is made by NumPy, CuPy or PyTorch")
        given = {first: features, second: weight, "bias": bias, "row_weight": row_weight}
        buffers = {}
        for role, array in given.items():
            number = role == "bias" and isinstance(array, int | float) and not isinstance(array, bool)
            if not number and (array is not None or role == second):
                library = library_of(array, role)
                checks.same_library(first, library_name, role, library.NAME)
                buffers[role] = library.buffer(array)
                checks.same_device(first, buffers[first], role, buffers[role])
                array = np.asarray(array) if library_name == "NumPy" else array
            given[role] = array.detach() if hasattr(array, "detach") else array
        storage = checks.prediction_type(first, buffers[first].storage)
        if storage == "bfloat16" and library_name == "NumPy":
            raise DtypeError(f"{first} has type bfloat16, whose products NumPy does not make: use PyTorch or float32")
        for role in (second, "bias"):
            if role in buffers and buffers[role].storage != storage:
                raise DtypeError(f"{first} has type {storage} and {role} {buffers[role].storage}: convert one of them")
        shapes = {role: buffer.shape for role, buffer in buffers.items()}
        if len(shapes[first]) != 2 or len(shapes[second]) != 2 or shapes[first][1] != shapes[second][1]:
            raise ShapeError(
                f"{first} has shape {shapes[first]} and {second} {shapes[second]}: they must be (rows, d) and "
                "(labels, d)"
            )
        allowed = {"bias": ((), shapes[second][:1]), "row_weight": (shapes[first][:1],)}
        for role, expected in allowed.items():
            if role in shapes and shapes[role] not in expected:
                raise ShapeError(
                    f"{role} has shape {shapes[role]}, {first} {shapes[first]} and {second} {shapes[second]}: {role} "
                    f"must have shape {expected[-1]}"
                )
        library = importlib.import_module(_MODULES[library_name])
        features, weight, bias, row_weight = given.values()
        return cls(features, weight, bias, row_weight, storage, library)

    @property
    def row_count(self) -> int:
        return self.features.shape[0]

    @property
    def label_count(self) -> int:
        return self.weight.shape[0]

    @property
    def name(self) -> str:
        """The library, as messages call it."""
        return library_of(self.features, "features").NAME

    def beside(self, given: Any) -> Any:
        """An array of the library on the features' device; from one of another, it is copied."""
        where = {"device": self.features.device} if self.library.__name__ == "torch" else {}
        given = np.ascontiguousarray(given) if isinstance(given, np.ndarray) else given
        try:
            return self.library.asarray(given, **where)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArrayError(f"targets has indices that are no array: {first_line(error)}") from None

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """The device of the arrays, where the library has a current one; no types of its own in PyTorch."""
        if self.library.__name__ == "torch":  # Types are what they are given as.
            return self.library.autocast(self.features.device.type, enabled=False)
        return self.features.device if self.library.__name__ == "cupy" else contextlib.nullcontext()

    def new(self, shape: tuple[int, ...], kind: Any = None) -> Any:
        """Zeros beside the features."""
        where = {"device": self.features.device} if self.library.__name__ == "torch" else {}
        return self.library.zeros(shape, dtype=self.features.dtype if kind is None else kind, **where)

    def logits(self, part: _Part, room: Any) -> Any:
        """A chunk of the product, in the room for it."""
        logits = room.of(part)
        self.library.matmul(self.features[part.rows], self.weight[part.labels].T, out=logits)
        if self.bias is not None:
            logits += self.bias[part.labels] if np.ndim(self.bias) else self.bias
        return logits

    def weight_of(self, part: _Part) -> Any:
        return None if self.row_weight is None else self.row_weight[part.rows].reshape(-1, 1)


class _Room:
    """Memory for one chunk after the other."""

    def __init__(self, layer: _Layer, kind: Any = None):
        self.layer, self.kind = layer, kind
        self.memory: Any = None

    def of(self, part: _Part) -> Any:
        rows, labels = part.shape
        if self.memory is None:  # The first chunk is the largest.
            self.memory = self.layer.new((rows * labels,), self.kind)
        return self.memory[: rows * labels].reshape(rows, labels)


# Targets ------------------------------------------------------------------------------------------------------------


def _targets(given: Any, layer: _Layer) -> Any:
    """Where the targets of a chunk come from."""
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ShapeError(f"targets is a tuple of {len(given)}: give (row numbers, label numbers)")
        return _Positives.at(given[0], given[1], None, layer)
    entries = _entries(given)
    checks.same_library("features", layer.name, "targets", library_of(entries[0] if entries else given, "targets").NAME)
    if entries is None and layer.library is np:
        library_of(given, "targets").buffer(given)
        given = np.asarray(given)
    expected = layer.row_count, layer.label_count
    if tuple(given.shape) != expected:
        raise ShapeError(
            f"targets has shape {tuple(given.shape)}, but features and weight give logits of shape {expected}: give "
            "targets of that shape, or a pair of index arrays"
        )
    return _Dense(given) if entries is None else _Positives.at(*entries, layer)


def _entries(given: Any) -> tuple[Any, Any, Any] | None:
    """(rows, labels, values) of a sparse matrix of SciPy, CuPy or PyTorch; None for anything else."""
    if str(getattr(given, "layout", "")).startswith("torch.sparse"):
        coordinates = given.to_sparse_coo().coalesce()
        if coordinates.dense_dim():
            raise ShapeError(
                f"targets is a sparse tensor with {coordinates.dense_dim()} dense axes: give one with none"
            )
        return *coordinates.indices(), coordinates.values()
    if hasattr(given, "tocsr") and hasattr(given, "nnz"):
        matrix = given.tocsr(copy=True)
        matrix.sum_duplicates()
        coordinates = matrix.tocoo()
        return coordinates.row, coordinates.col, coordinates.data
    return None


class _Dense:
    """Targets that are stored whole."""

    def __init__(self, targets: Any):
        self.targets = targets

    def of(self, part: _Part) -> Any:
        return self.targets[part.rows, part.labels]

    def clear(self, part: _Part) -> None:
        """There is nothing to clear."""


class _Positives:
    """Targets of which all but a few are 0. Those of a chunk are spread out, one byte each, and cleared afterwards."""

    def __init__(self, rows: Any, labels: Any, values: Any, layer: _Layer):
        order = layer.library.argsort(labels)
        self.rows, self.labels = rows[order], labels[order]
        self.values = None if values is None else values[order]
        self.labels_on_host = _on_host(self.labels)
        self.row_count = layer.row_count
        self.room = _Room(layer, layer.library.uint8 if values is None else values.dtype)
        self.spread: Any = None
        """Where the entries of the chunk stand."""

    @classmethod
    def at(cls, rows: Any, labels: Any, values: Any, layer: _Layer) -> _Positives:
        """From the places of the entries, which must be there."""
        rows, labels = (layer.beside(indices) for indices in (rows, labels))
        if rows.ndim != 1 or tuple(rows.shape) != tuple(labels.shape):
            raise ShapeError(
                f"targets has row numbers of shape {tuple(rows.shape)} and label numbers of shape "
                f"{tuple(labels.shape)}: both must be vectors of one length"
            )
        if len(rows) == 0:  # A list of none is of floats.
            rows, labels = layer.new((0,), layer.library.int64), layer.new((0,), layer.library.int64)
        for name, indices, count in (("row", rows, layer.row_count), ("label", labels, layer.label_count)):
            host = _on_host(indices)
            if host.dtype.kind not in "iu":
                raise DtypeError(f"targets has {name} numbers of type {host.dtype}: they must be integers")
            outside = host[(host < 0) | (host >= count)]
            if outside.size:
                raise InvalidValueError(f"targets has {name} number {outside[0]}: there are {count}, counted from 0")
        kind = layer.library.int64  # PyTorch takes uint8 for a mask, and small types do not hold every number.
        rows, labels = layer.library.asarray(rows, dtype=kind), layer.library.asarray(labels, dtype=kind)
        return cls(rows, labels, values, layer)

    def _entries(self, part: _Part) -> tuple[Any, Any, Any]:
        """Row and label within the chunk, and what stands there."""
        first, last = np.searchsorted(self.labels_on_host, (part.labels.start, part.labels.stop))
        rows, labels = self.rows[first:last] - part.rows.start, self.labels[first:last] - part.labels.start
        values: Any = 1 if self.values is None else self.values[first:last]
        if part.shape[0] < self.row_count:
            inside = (rows >= 0) & (rows < part.shape[0])
            rows, labels = rows[inside], labels[inside]
            values = values if self.values is None else values[inside]
        return rows, labels, values

    def of(self, part: _Part) -> Any:
        targets = self.room.of(part)
        rows, labels, values = self._entries(part)
        targets[rows, labels] = values
        self.spread = rows, labels
        return targets

    def clear(self, part: _Part) -> None:
        self.room.of(part)[self.spread] = 0


def _on_host(array: Any) -> np.ndarray:
    return library_of(array, "targets").to_host(array)


# Gradients ----------------------------------------------------------------------------------------------------------


class _Gradients:
    """The gradients of the layer, from the gradient of each chunk of logits."""

    def __init__(self, layer: _Layer, wanted: Sequence[str]):
        self.layer = layer
        self.kind = getattr(layer.library, PRECISIONS[layer.storage].compute)
        shapes = tuple(layer.features.shape), tuple(layer.weight.shape), (layer.label_count,)
        self.sums: list[Any] = [
            layer.new(shape, self.kind) if name in wanted else None for name, shape in zip(LAYER, shapes, strict=True)
        ]

    def add(self, part: _Part, of_logits: Any) -> None:
        """``of_logits`` are the derivatives of each element's own loss. Sums of float16 and bfloat16 are float32."""
        of_features, of_weight, of_bias = self.sums
        if of_features is not None:
            of_features[part.rows] += self._product(of_logits, self.layer.weight[part.labels])
        if of_weight is not None:
            of_weight[part.labels] += self._product(of_logits.T, self.layer.features[part.rows])
        if of_bias is not None:
            of_bias[part.labels] += of_logits.sum(0, dtype=self.kind)

    def _product(self, one: Any, other: Any) -> Any:
        library = self.layer.library
        if PRECISIONS[self.layer.storage].compute != self.layer.storage:
            one, other = library.asarray(one, dtype=self.kind), library.asarray(other, dtype=self.kind)
        return library.matmul(one, other)

    def finished(self, scale: Any) -> tuple[Any, Any, Any]:
        """Of the reduced loss, which is the sum times ``scale``."""
        for gradient in self.sums:
            if gradient is not None:
                gradient *= scale
        of_features, of_weight, of_bias = self.sums
        if of_bias is not None and np.ndim(self.layer.bias) == 0:
            of_bias = of_bias.sum()
        kind, asarray = self.layer.features.dtype, self.layer.library.asarray
        return tuple(  # type: ignore[return-value]
            None if gradient is None else asarray(gradient, dtype=kind)
            for gradient in (of_features, of_weight, of_bias)
        )


def _one_number(name: str, given: Any, layer: _Layer, kind: Any) -> Any:
    """A number, or an array of one number beside the features."""
    if isinstance(given, int | float | np.floating | np.integer):
        return checks.number(name, float(given), -math.inf, math.inf, "finite")
    library = library_of(given, name)
    checks.same_library("features", layer.name, name, library.NAME)
    checks.one_number(name, library.buffer(given))
    given = given.detach() if hasattr(given, "detach") else given
    return layer.library.asarray(given, dtype=kind).reshape(())
