"""Binary cross-entropy as an object, and as two functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from gpubce import checks, dispatch
from gpubce.conventions import explain, options_like
from gpubce.errors import OptionError
from gpubce.made_once import made_once
from gpubce.spec.recipe import LOGIT, PROBABILITY
from gpubce.spec.state import LossState

DEFAULT_LOG_FLOOR = -100.0
"""PyTorch's: the logarithm of a probability is not taken to be below this."""

_EACH = dispatch.Reduction("none")

RECIPROCAL_CAP = 1e12
"""PyTorch's: beside a floor, 1 / p and 1 / (1 - p) are not taken to be above this."""


class Unset:
    """The type of UNSET, which differs from None: "decide by the other options"."""

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"


UNSET = Unset()


@dataclass(frozen=True, kw_only=True, repr=False)
class BinaryCrossEntropy:
    """Binary cross-entropy with its options checked once, to be called many times.

    For one element with prediction p (a probability, or a logit x with p = 1 / (1 + exp(-x))), target y in [0, 1] and
    weight w::

        loss = w ( -w1 y log p - w0 (1 - y) log(1 - p) )        in nats

    An instance is an immutable value: equal options are equal objects.

    Parameters
    ----------
    from_logits : bool, default False
        Whether predictions are logits (any real number, infinite ones too) or probabilities in [0, 1].
    reduction : {"mean", "sum", "none"}
        What the elements' losses are reduced to.
    denominator : {"elements", "weights", "positives", "rows"}
        What "mean" divides by: the number of counted elements (PyTorch without a mask); the sum of weight times
        label_weight, without class factors (scikit-learn); max(sum of weight times label_weight times unsmoothed
        target, 1); or the number of elements over the number of labels, masks ignored.
    axis : int or tuple of int, optional
        Reduce only these axes; 0 gives one loss per label.
    pos_weight : float or one per label, optional
        Multiplies w1 (PyTorch).
    class_weight : (float, float), optional
        (w0, w1), for negative and positive.
    label_weight : float or one per label, optional
        Multiplies w.
    label_axis : int, default -1
        The axis that holds the labels. An array of one axis is one label.
    label_smoothing : float in [0, 1), default 0
        y becomes y (1 - s) + s / 2 (Keras), before anything else uses it.
    gamma : float >= 0, default 0
        Focal loss (Lin et al. 2017, eq. 5): the loss is multiplied by (1 - p_t)^gamma, 1 - p_t = p (1 - y) +
        (1 - p) y. The hessian is the true second derivative, which can be negative.
    alpha : float in [0, 1], optional
        The loss is multiplied by alpha y + (1 - alpha) (1 - y) (same source).
    ignore_index : number, optional
        Elements whose target has this value are not counted. It is compared in the targets' own type; NaN is allowed
        for floating-point targets.
    log_floor : float < 0 or None, optional
        Logarithms are not below this; None is exact. Unset, it is -100 for probabilities without ``eps`` (PyTorch)
        and None otherwise. With a floor, 1/p and 1/(1 - p) in derivatives are at most 1e12 (PyTorch's limit), and
        derivatives along logits are those of the loss without the floor.
    eps : float in (0, 0.5) or a pair, optional
        Probabilities only: clip p to [eps, 1 - eps] first; derivatives are 0 outside. Not together with
        ``log_floor``. The bounds are exact in every type: where 1 - eps rounds to 1, log(1 - p) is still log(eps). A
        pair (low, high) clips to [low, 1 - high], for libraries whose 1 - eps is rounded; high may be 0.
    base : float > 1, optional
        The unit of values and derivatives: None is nats, 2 is bits.
    dtype : floating-point type, optional
        The type of a reduced value. Default: float32; float64 for float64 predictions.

    Raises
    ------
    gpubce.errors.OptionError
        For a value out of range or a combination without meaning.

    Notes
    -----
    Predictions are float16, bfloat16, float32 or float64 of any shape and strides; targets have the same shape and are
    bool, any integer or any of those types. Each element is computed in float32, or float64 for float64 predictions;
    sums are kept in pairs of float64. The same input gives the same bits on every device.

    At the edges the value is the mathematical limit: 0 for a logit of +inf and y = 1, inf for y = 0, and so on. An
    element that is not counted (``mask``, ``ignore_index``) gives 0. Weight 0 gives 0 unless the prediction is NaN.
    The mean of nothing is NaN, the sum 0.

    An invalid element (a target or probability outside [0, 1] or a NaN target, a weight that is negative or not
    finite) raises InvalidValueError for host arrays; for device arrays it makes the result NaN and is counted in
    ``state(...).invalid``. A NaN prediction is not invalid; it gives NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubce import BinaryCrossEntropy
    >>> loss = BinaryCrossEntropy(from_logits=True, pos_weight=3.0)
    >>> loss
    BinaryCrossEntropy(from_logits=True, pos_weight=3.0)
    >>> logits = np.array([2.0, -1.0], dtype=np.float32)
    >>> print(loss(logits, np.array([True, False])))
    0.34702283
    >>> value, gradient = loss.value_and_grad(logits, np.array([True, False]))
    >>> print(gradient)
    [-0.17880438  0.13447072]
    """

    from_logits: bool = False
    reduction: str = "mean"
    denominator: str = "elements"
    axis: int | tuple[int, ...] | None = None
    pos_weight: Any = None
    class_weight: tuple[float, float] | None = None
    label_weight: Any = None
    label_axis: int = -1
    label_smoothing: float = 0.0
    gamma: float = 0.0
    alpha: float | None = None
    ignore_index: float | int | None = None
    log_floor: float | Unset | None = UNSET
    eps: float | tuple[float, float] | None = None
    base: float | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        keep = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731  (frozen: set once, here)
        keep("from_logits", checks.flag("from_logits", self.from_logits))
        checks.choice("reduction", self.reduction, checks.REDUCTIONS)
        checks.choice("denominator", self.denominator, checks.DENOMINATORS)
        keep("axis", checks.axes(self.axis))
        if self.axis is not None and self.reduction == "none":
            raise OptionError(f"axis={self.axis} with reduction='none': leave one of them out")
        if self.denominator != "elements" and self.reduction != "mean":
            raise OptionError(
                f"denominator={self.denominator!r} with reduction={self.reduction!r}: only a mean has a denominator"
            )
        keep("pos_weight", checks.label_vector("pos_weight", self.pos_weight))
        keep("label_weight", checks.label_vector("label_weight", self.label_weight))
        if self.class_weight is not None:
            pair = checks.numbers("class_weight", self.class_weight)
            if len(pair) != 2:
                raise OptionError(f"class_weight has {len(pair)} values: it is the pair (w0, w1) of the two classes")
            keep("class_weight", pair)
        keep("label_axis", checks.axis_number("label_axis", self.label_axis))
        keep(
            "label_smoothing",
            checks.number("label_smoothing", self.label_smoothing, 0.0, 1.0, "at least 0 and below 1", open_high=True),
        )
        keep("gamma", checks.number("gamma", self.gamma, 0.0, math.inf, "finite and not negative"))
        if self.alpha is not None:
            keep("alpha", checks.number("alpha", self.alpha, 0.0, 1.0, "between 0 and 1"))
        if self.ignore_index is not None:
            checks.real("ignore_index", self.ignore_index)
            if self.ignore_index != self.ignore_index:
                keep("ignore_index", math.nan)  # One object, so that equal options are equal.
        if self.eps is not None:
            if self.from_logits:
                raise OptionError("eps clips probabilities, but from_logits=True: leave eps out")
            if not isinstance(self.log_floor, Unset):
                raise OptionError("eps and log_floor both limit the loss: give one of them")
            keep("eps", checks.clip_bounds(self.eps))
        if self.log_floor is not None and not isinstance(self.log_floor, Unset):
            rule = "finite and negative, or None for exact logarithms"
            keep("log_floor", checks.number("log_floor", self.log_floor, -math.inf, -math.ulp(0.0), rule))
        if self.base is not None:
            keep("base", checks.number("base", self.base, math.nextafter(1.0, 2.0), math.inf, "above 1, or None"))
        keep("dtype", checks.result_type(self.dtype))

    def __repr__(self) -> str:
        changed = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) is not field.default and getattr(self, field.name) != field.default
        )
        return f"BinaryCrossEntropy({', '.join(changed)})"

    # Calls ----------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        predictions: Any,
        targets: Any,
        *,
        weight: Any = None,
        mask: Any = None,
        out: Any = None,
        device: str = "auto",
        stream: Any = None,
        check: bool | str = "auto",
    ) -> Any:
        """The loss.

        Parameters
        ----------
        predictions : array of float16, bfloat16, float32 or float64, any shape
            Logits or probabilities. NumPy, CuPy, Numba or PyTorch, or anything with DLPack or the CUDA array interface;
            all arrays of a call are of one library and on one device.
        targets : array of bool, integers or floats, the same shape
            In [0, 1].
        weight : array or number, optional
            Per element, broadcastable to the predictions; finite and not negative.
        mask : bool array, optional
            Broadcastable to the predictions; True = counted.
        out : array, optional
            Written and returned. If the call raises, it may have been written.
        device : {"auto", "cpu", "cuda"}
            Where host arrays are computed. Device arrays are always computed where they are.
        stream : stream or int, optional
            The CUDA stream; default is the current one of the arrays' library.
        check : {"auto", True, False}
            "auto": host arrays raise on an invalid value, device arrays give NaN. True: raise (waits for the device).
            False: never raise.

        Returns
        -------
        array
            In the library and on the device of the predictions: of their shape and type for reduction "none", without
            the reduced axes otherwise.

        Raises
        ------
        gpubce.errors.ShapeError, DtypeError, ArrayError, InvalidValueError, OptionError, DeviceError
        """
        return dispatch.value(
            self._formula, self._reduction, _arguments(predictions, targets, weight, mask, device, stream, check), out
        )

    def value_and_grad(
        self,
        predictions: Any,
        targets: Any,
        *,
        weight: Any = None,
        mask: Any = None,
        out: Any = None,
        grad_out: Any = None,
        grad_scale: Any = 1.0,
        device: str = "auto",
        stream: Any = None,
        check: bool | str = "auto",
    ) -> tuple[Any, Any]:
        """The loss, and its gradient with respect to the predictions, in one pass.

        The gradient is that of the reduced value (of each element where reduction is "none"), has the shape and type
        of the predictions, and is multiplied once by ``grad_scale`` over the denominator. ``grad_out`` may be the
        predictions themselves. ``grad_scale`` is a number or an array of one floating-point number beside the
        predictions: loss scaling, without which a float16 gradient of a mean is 0 from 2^24 elements on.

        The other arguments, the errors and the units are those of calling the object.

        Examples
        --------
        >>> import numpy as np, gpubce
        >>> loss = gpubce.BinaryCrossEntropy(from_logits=True)
        >>> value, gradient = loss.value_and_grad(np.zeros(4), np.array([0, 1, 1, 1]))
        >>> print(gradient)
        [ 0.125 -0.125 -0.125 -0.125]
        """
        arguments = _arguments(predictions, targets, weight, mask, device, stream, check)
        return dispatch.value_and_grad(self._formula, self._reduction, arguments, out, grad_out, grad_scale)

    def grad_and_hess(
        self,
        predictions: Any,
        targets: Any,
        *,
        weight: Any = None,
        mask: Any = None,
        grad_out: Any = None,
        hess_out: Any = None,
        grad_scale: Any = 1.0,
        device: str = "auto",
        stream: Any = None,
        check: bool | str = "auto",
    ) -> tuple[Any, Any]:
        """The first and second derivative of each element's own loss, whatever the reduction: what boosting needs.

        Both have the shape and type of the predictions. The other arguments and the errors are those of
        :meth:`value_and_grad`.

        Examples
        --------
        >>> import numpy as np, gpubce
        >>> loss = gpubce.BinaryCrossEntropy(from_logits=True)
        >>> gradient, hessian = loss.grad_and_hess(np.zeros(2), np.array([0, 1]))
        >>> print(gradient, hessian)
        [ 0.5 -0.5] [0.25 0.25]
        """
        arguments = _arguments(predictions, targets, weight, mask, device, stream, check)
        wanted = {"gradient": grad_out, "hessian": hess_out}
        gradient, hessian = dispatch.derivatives(self._formula, _EACH, arguments, wanted, grad_scale)
        return gradient, hessian

    def state(
        self,
        predictions: Any,
        targets: Any,
        *,
        weight: Any = None,
        mask: Any = None,
        device: str = "auto",
        stream: Any = None,
        check: bool | str = "auto",
        baseline: Any = None,
        sums: tuple[str, ...] = (),
        threshold: float = 0.5,
        bins: int = 0,
        max_weight: float | None = None,
    ) -> LossState:
        """The unfinished sums of this batch, to be merged with others and given to :meth:`finish`.

        ``sums`` names further quantities to be summed (see :class:`gpubce.LossState`); some of them compare the
        probability with ``threshold``, or the loss with that of ``baseline``, other predictions of the same targets, in
        a type that is computed alike. ``bins``, a power of two, asks for a histogram of the logits of each class;
        weights then need ``max_weight``, the largest weight times label_weight there will be. With reduction "none"
        there is nothing to sum, and OptionError is raised.
        """
        if self.reduction == "none":
            raise OptionError("reduction='none' has no state: use 'mean' or 'sum'")
        from gpubce.spec.quantities import QUANTITIES

        if not isinstance(sums, list | tuple):
            raise OptionError(f"sums={checks.shown(sums)} is not a tuple of names: give ('weight',) for one")
        for name in sums:
            checks.choice("sums", name, tuple(QUANTITIES))
        arguments = _arguments(predictions, targets, weight, mask, device, stream, check, baseline)
        checks.has_baseline(sums, baseline)
        collection = dispatch.Collection(
            tuple(sums),
            checks.number("threshold", threshold, 0.0, 1.0, "between 0 and 1"),
            checks.bin_count(bins),
            checks.largest_weight(max_weight),
        )
        return dispatch.state(self._formula, self._reduction, arguments, collection)

    def finish(self, state: LossState) -> Any:
        """The value that a state stands for, in ``dtype`` (default float64), beside the state's values."""
        if not isinstance(state, LossState):
            raise OptionError(f"finish takes a LossState, not {type(state).__name__}")
        return dispatch.finish(self._formula, self._reduction, state)

    # Whose number it is -----------------------------------------------------------------------------------------------

    @classmethod
    def like(cls, library: str, *, predictions: Any = "float64", **options: Any) -> BinaryCrossEntropy:
        """The options that give another library's number: its limits, its denominator and its unit.

        Parameters
        ----------
        library : {"torch", "keras", "sklearn", "xgboost", "torcheval", "cuml"}
            "xgboost" is its metric logloss, of the probabilities it predicts; "torcheval" the cross-entropy that its
            normalized entropy divides. Weights are per element, so those of samples with several labels have shape
            (n, 1).
        predictions : floating-point type
            The type of the predictions: "sklearn" and "cuml" clip by it. Keras converts to float32 in any case: do so
            too.
        **options
            Others of this class. ``reduction`` "none" of "keras" is the mean over the last axis, as there; "sum" adds
            such means, which is refused.

        Raises
        ------
        gpubce.errors.OptionError
            For an unknown library, an option that it decides, and logits where it takes none.

        Notes
        -----
        Derivatives are those of this package's formula: beside probabilities of exactly 0 and 1, PyTorch has 0 where
        they are right.

        Examples
        --------
        >>> import numpy as np, gpubce
        >>> p, y = np.array([0.0, 0.5]), np.array([1, 1])
        >>> for library in ("torch", "keras", "sklearn", "xgboost", "cuml"):
        ...     print(library, round(float(gpubce.BinaryCrossEntropy.like(library)(p, y)), 4))
        torch 50.3466
        keras 8.4056
        sklearn 18.3684
        xgboost 18.7673
        cuml 17.616
        """
        return from_options(options_like(library, predictions, options))

    def explain(self) -> str:
        """What the number is, in words: which mean, which limits, which unit, and which libraries agree.

        Examples
        --------
        >>> import gpubce
        >>> print(gpubce.BinaryCrossEntropy.like("sklearn").explain())
        Binary cross-entropy of probabilities, in nats.
        The mean over all elements: their sum divided by the sum of the weights (weight and label_weight, not the
        factors of the classes).
        Probabilities are first clipped to [2.22e-16, 1 - 2.22e-16], so a confident miss costs at most 36.04 nats,
        before weights.
        sklearn.metrics.log_loss averages and limits in this way.
        """
        return explain(self)

    @property
    def _floor(self) -> float | None:
        """The limit of logarithms; None for none."""
        if isinstance(self.log_floor, Unset):
            return None if self.from_logits or self.eps is not None else DEFAULT_LOG_FLOOR
        return self.log_floor

    @property
    def _bounds(self) -> Any:
        """How far clipped probabilities stay from 0 and from 1; of use where ``eps`` is given."""
        return self.eps if isinstance(self.eps, tuple) else (self.eps, self.eps)

    def _reduced_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of an array with so many that are reduced."""
        if self.reduction == "none":
            return ()
        axes: Any = range(ndim) if self.axis is None else self.axis
        return tuple(sorted(axis % ndim for axis in axes))

    # What the options mean to a kernel --------------------------------------------------------------------------------

    @made_once
    def _reduction(self) -> dispatch.Reduction:
        return dispatch.Reduction(self.reduction, self.denominator, self.axis, self.dtype)  # type: ignore[arg-type]

    @made_once
    def _formula(self) -> dispatch.Formula:
        parameters: dict[str, float] = {}
        scalar_pos_weight = self.pos_weight if isinstance(self.pos_weight, float) else 1.0
        w0, w1 = self.class_weight or (1.0, 1.0)
        if (w0, w1 * scalar_pos_weight) != (1.0, 1.0):
            parameters |= {"negative_factor": w0, "positive_factor": w1 * scalar_pos_weight}
        if self.label_smoothing:
            parameters |= {"smoothing_keep": 1.0 - self.label_smoothing, "smoothing_half": self.label_smoothing / 2.0}
        if self.alpha is not None:
            parameters |= {"alpha_positive": self.alpha, "alpha_negative": 1.0 - self.alpha}
        if self.gamma:
            # The hessian at p = 0, y = 0 along probabilities is that of p^(gamma + 1).
            corner = 2.0 if self.gamma == 1.0 else (0.0 if self.gamma > 1.0 else math.inf)
            parameters |= {"gamma": self.gamma, "focal_corner": 0.0 if self.from_logits else corner}
        if self._floor is not None:
            parameters |= {"log_cap": -self._floor, "reciprocal_cap": RECIPROCAL_CAP}
        if self.eps is not None:
            low, high = self._bounds
            parameters |= {
                "clip_low": low,
                "clip_low_log": -math.log(low),
                "clip_low_rest": -math.log1p(-low),
                "clip_high": high,
                "clip_high_log": -math.log(high) if high else 0.0,  # No 1 - p is below 0.
                "clip_high_rest": -math.log1p(-high),
            }
        label_weight = self.label_weight
        return dispatch.Formula(
            space=LOGIT if self.from_logits else PROBABILITY,
            parameters=tuple(parameters.items()),
            pos_weight=self.pos_weight if isinstance(self.pos_weight, tuple) else None,
            label_weight=(label_weight,) if isinstance(label_weight, float) else label_weight,
            label_axis=self.label_axis,
            ignore_index=self.ignore_index,
            unit=1.0 if self.base is None else 1.0 / math.log(self.base),
        )


def _arguments(
    predictions: Any,
    targets: Any,
    weight: Any,
    mask: Any,
    device: str,
    stream: Any,
    check: bool | str,
    baseline: Any = None,
) -> dispatch.Arguments:
    checks.choice("device", device, checks.DEVICES)
    return dispatch.Arguments(predictions, targets, weight, mask, device, stream, checks.checking(check), baseline)


def binary_cross_entropy(
    probabilities: Any,
    targets: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    out: Any = None,
    device: str = "auto",
    stream: Any = None,
    check: bool | str = "auto",
    **options: Any,
) -> Any:
    """Binary cross-entropy of probabilities, in nats.

    ``options`` are those of :class:`BinaryCrossEntropy`, the arguments and errors those of calling it.

    Examples
    --------
    >>> import numpy as np, gpubce
    >>> print(gpubce.binary_cross_entropy(np.array([0.5, 0.25]), np.array([1, 0]), base=2))
    0.7075187496394219
    """
    loss = _of_function(False, options)
    arguments = _arguments(probabilities, targets, weight, mask, device, stream, check)
    return dispatch.value(loss._formula, loss._reduction, arguments, out)


def binary_cross_entropy_with_logits(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    out: Any = None,
    device: str = "auto",
    stream: Any = None,
    check: bool | str = "auto",
    **options: Any,
) -> Any:
    """Binary cross-entropy of logits, in nats.

    ``options`` are those of :class:`BinaryCrossEntropy`, the arguments and errors those of calling it.

    Examples
    --------
    >>> import numpy as np, gpubce
    >>> logits = np.array([np.inf, -np.inf, 0.0])
    >>> print(gpubce.binary_cross_entropy_with_logits(logits, np.array([1, 0, 1]), reduction="none"))
    [0.         0.         0.69314718]
    """
    loss = _of_function(True, options)
    arguments = _arguments(logits, targets, weight, mask, device, stream, check)
    return dispatch.value(loss._formula, loss._reduction, arguments, out)


def _of_function(from_logits: bool, options: dict[str, Any]) -> BinaryCrossEntropy:
    """The object for the options of a function; an unknown one is named."""
    if "from_logits" in options:
        raise OptionError("from_logits is fixed by the function's name: leave it out, or use the other function")
    if IMMUTABLE.issuperset(map(type, options.values())):
        return _remembered(from_logits, **options)
    return from_options({"from_logits": from_logits, **options})


IMMUTABLE = frozenset({bool, int, float, str, type(None)})
"""The types of options by which more can be remembered."""


@lru_cache(maxsize=256, typed=True)
def _remembered(from_logits: bool, **options: Any) -> BinaryCrossEntropy:
    """The checks of 17 options take as long as the loss of 4,000 elements. Only for numbers and names: an array may
    change, and stay the same key."""
    return from_options({"from_logits": from_logits, **options})


def from_options(options: dict[str, Any]) -> BinaryCrossEntropy:
    """The object for options that come by keyword. Raises OptionError for one that there is not."""
    known = {field.name for field in fields(BinaryCrossEntropy)}
    for name in options:
        if name not in known:
            raise OptionError(f"{name!r} is not an option: there are {', '.join(sorted(known))}")
    return BinaryCrossEntropy(**options)
