"""Whose number is it? The options that give the figures of other libraries, and any options in words.

What each library does was read in its source; the comments give the versions. The tests compare with the libraries
themselves, but for cuML, which needs a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubce import checks
from gpubce.errors import OptionError

if TYPE_CHECKING:
    from gpubce.loss import BinaryCrossEntropy


@dataclass(frozen=True)
class Convention:
    """How a library limits logarithms, and what its mean divides by."""

    function: str
    clip: float | str | None = None
    """Probabilities are clipped to [clip, 1 - clip], both rounded to the predictions' type; "epsilon" is the spacing of
    that type at 1."""
    clip_type: str | None = None
    """The type that predictions are converted to before, if they are."""
    log_floor: float | None = None
    denominator: str = "elements"
    logits: bool = False
    """Whether it takes logits, which it does not clip."""
    averages_rows: bool = False
    """Whether "none" still averages the last axis."""


CONVENTIONS = {
    "torch": Convention("torch.nn.BCELoss or BCEWithLogitsLoss", log_floor=-100.0, logits=True),  # 2.13
    "keras": Convention(  # 3.15; its NumPy backend clips logits too.
        "keras.losses.BinaryCrossentropy", clip=1e-7, clip_type="float32", logits=True, averages_rows=True
    ),
    "sklearn": Convention("sklearn.metrics.log_loss", clip="epsilon", denominator="weights"),  # 1.5 to 1.9
    "xgboost": Convention(  # 3.2: logarithms of float32(1e-16) and above
        "the logloss of XGBoost, of predicted probabilities",
        log_floor=math.log(float(np.float32(1e-16))),
        denominator="weights",
    ),
    "torcheval": Convention(  # 0.0.7
        "the cross-entropy in torcheval's binary_normalized_entropy",
        log_floor=-100.0,
        denominator="weights",
        logits=True,
    ),
    "cuml": Convention("cuml.metrics.log_loss", clip=1e-15, denominator="weights"),  # 25.x, read only
}

DECIDED = ("denominator", "log_floor", "eps", "base")
"""What a convention decides."""


def options_like(library: str, predictions: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a BinaryCrossEntropy with a library's number for predictions of that type."""
    convention = CONVENTIONS[checks.choice("library", library, tuple(CONVENTIONS))]
    storage = checks.result_type(predictions) or "float64"
    for name in DECIDED:
        if name in given:
            raise OptionError(f"{name} is what like({library!r}) decides: leave it out")
    options: dict[str, Any] = {"reduction": "mean", "from_logits": False, **given}
    if options["from_logits"] and not convention.logits:
        raise OptionError(f"{convention.function} takes probabilities only: leave from_logits out")
    if not options["from_logits"]:
        if convention.clip is not None:
            options["eps"] = _rounded_clip(convention.clip, convention.clip_type or storage)
        else:
            options["log_floor"] = convention.log_floor
    if options["reduction"] == "mean":
        options["denominator"] = convention.denominator
    if options["reduction"] == "sum" and convention.averages_rows:
        raise OptionError(f"reduction='sum' of {convention.function} adds means of rows: take its mean times the rows")
    if options["reduction"] == "none" and convention.averages_rows and "axis" not in options:
        options |= {"reduction": "mean", "axis": -1}
    return options


def _rounded_clip(clip: float | str, storage: str) -> float | tuple[float, float]:
    """How far from 0 and from 1 the clipped probabilities of a type stay: 1 - clip is rounded, perhaps to 1."""
    if storage == "bfloat16":
        raise OptionError("predictions='bfloat16': libraries that clip do not take this type; convert to float32")
    real = np.dtype(storage).type
    low = real(np.finfo(real).eps if clip == "epsilon" else clip)
    if low == 0:
        raise OptionError(f"predictions={storage!r}: {clip} is 0 in that type, so that nothing is clipped at 0")
    return checks.clip_bounds((float(low), float(real(1) - (real(1) - low))))


# In words -----------------------------------------------------------------------------------------------------------


def _limits(loss: BinaryCrossEntropy) -> str:
    if loss.eps is not None:
        low, high = loss._bounds
        if low == high:
            bounds, most = f"1 - {low:.3g}", f"at most {-math.log(low):.4g} nats"
        elif high:
            bounds, most = f"1 - {high:.3g}", f"{-math.log(low):.4g} or {-math.log(high):.4g} nats"
        else:
            bounds, most = "1", f"{-math.log(low):.4g} nats where the target is 1, and infinitely many where it is 0"
        clipped = f"Probabilities are first clipped to [{low:.3g}, {bounds}]"
        return f"{clipped}, so a confident miss costs {most}, before weights."
    if (floor := loss._floor) is not None:
        return (
            f"Logarithms are not below {floor:.4g}: a confident miss costs at most {-floor:.4g} nats, before weights."
        )
    return "Nothing is clipped: a prediction that is certain and wrong costs an infinite loss."


def _reduction(loss: BinaryCrossEntropy) -> str:
    over = "all elements"
    if loss.axis is not None:
        over = f"axis {loss.axis[0]}" if len(loss.axis) == 1 else f"axes {loss.axis}"  # type: ignore[index,arg-type]
    if loss.reduction == "none":
        return "One loss for each element; nothing is reduced."
    if loss.reduction == "sum":
        return f"The sum over {over}, divided by nothing."
    by = {
        "elements": "the number of elements that are counted, whatever their weights",
        "weights": "the sum of the weights (weight and label_weight, not the factors of the classes)",
        "positives": "the sum of the weighted targets, or 1 where that is less",
        "rows": "the number of rows, each of which is all labels of one sample; masked elements count",
    }[loss.denominator]
    return f"The mean over {over}: their sum divided by {by}."


def explain(loss: BinaryCrossEntropy) -> str:
    """The options in words, one sentence each."""
    unit = "nats" if loss.base is None else "bits" if loss.base == 2 else f"units of ln {loss.base:g} nats"
    lines = [f"Binary cross-entropy of {'logits' if loss.from_logits else 'probabilities'}, in {unit}."]
    lines += [_reduction(loss), _limits(loss)]
    if loss.label_smoothing:
        s = loss.label_smoothing
        lines.append(f"Targets are smoothed: 0 becomes {s / 2:g} and 1 becomes {1 - s / 2:g}.")
    if loss.class_weight is not None:
        w0, w1 = loss.class_weight
        lines.append(f"The negative part of each loss is multiplied by {w0:g}, the positive part by {w1:g}.")
    if loss.pos_weight is not None:
        which = f"{loss.pos_weight:g}" if isinstance(loss.pos_weight, float) else "a factor of its label"
        lines.append(f"The positive part is multiplied by {which}; no denominator contains this.")
    if loss.label_weight is not None:
        which = f"{loss.label_weight:g}" if isinstance(loss.label_weight, float) else "the weight of its label"
        lines.append(f"Each loss is multiplied by {which}.")
    if loss.alpha is not None:
        lines.append(f"Positives are multiplied by {loss.alpha:g} and negatives by {1 - loss.alpha:g} (focal alpha).")
    if loss.gamma:
        lines.append(f"Each loss is multiplied by (1 - p_t)^{loss.gamma:g} (focal gamma), so it is no log-likelihood.")
    if loss.ignore_index is not None:
        lines.append(f"Elements whose target is {loss.ignore_index} are not counted.")
    lines += [f"{CONVENTIONS[name].function} averages and limits in this way." for name in _same(loss)]
    return "\n".join(lines)


def _same(loss: BinaryCrossEntropy) -> list[str]:
    """The libraries with this mean, these limits and this unit, for float64 or float32 predictions."""
    if (loss.reduction, loss.axis, loss.base) != ("mean", None, None):
        return []
    own = {"denominator": loss.denominator, "log_floor": loss._floor, "eps": loss.eps}
    found = []
    for name, convention in CONVENTIONS.items():
        if convention.logits or not loss.from_logits:
            theirs = [options_like(name, real, {"from_logits": loss.from_logits}) for real in ("float64", "float32")]
            if any(all(options.get(key) == value for key, value in own.items()) for options in theirs):
                found.append(name)
    return found
