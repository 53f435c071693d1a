"""BHoM's two binary cross-entropy objects, as JSON.

BHoM (Buildings and Habitats object Model) describes losses and computes none. Its classes are in
``BH.oM.DeepLearning.Losses`` (GitHub BHoM/BHoM, DeepLearning_oM), its JSON is in BHoM/BHoM_Engine, Serialiser_Engine::

    BinaryCrossEntropy   probabilities    Reduce: No (the default), Mean or Sum
    BCEWithSigmoid       logits           ClassWeights: null or a list of doubles

BHoM does not say what ClassWeights weighs. Read as "classes" it is the pair (w0, w1) of the negative and the positive
class: ``class_weight``. Read as "labels" it is one factor of the loss for each label: ``label_weight``. A list of two
could be either, so nothing is guessed. :func:`write` records the reading and every option that BHoM has no property for
under ``CustomData["gpubce"]``. Where a loss has both weights, ClassWeights holds ``class_weight`` and CustomData
``label_weight``. An infinity or NaN is the string "Infinity", "-Infinity" or "NaN".

BHoM reads CustomData; whether it writes it again depends on its version: Serialise/IBHoMObject.cs of BHoM_Engine at
commit 20c1a54 leaves out Fragments, Tags and CustomData where they are *not* empty. An object that went through such a
version has lost these options, and a list of weights asks for its reading again.
"""

from __future__ import annotations

import json
import reprlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from gpubce.errors import FormatError, OptionError
from gpubce.loss import BinaryCrossEntropy

TYPES = {"BH.oM.DeepLearning.Losses.BinaryCrossEntropy": False, "BH.oM.DeepLearning.Losses.BCEWithSigmoid": True}
"""Whether predictions are logits, for each class of BHoM."""

REDUCTIONS = {"No": "none", "Mean": "mean", "Sum": "sum"}
"""BH.oM.DeepLearning.Reduce in the order of its numbers 0, 1, 2."""

READINGS = {"classes": "class_weight", "labels": "label_weight"}
"""Which option ClassWeights is, for each reading."""

OWN_OPTIONS = tuple(item.name for item in fields(BinaryCrossEntropy) if item.name not in ("from_logits", "reduction"))
"""The options that CustomData can hold."""

WORDS = ("denominator", "dtype")
"""Those of them that are words; the others are numbers, lists of numbers, or null."""

PROPERTIES = {
    "BHoM_Guid": "guid",
    "Name": "name",
    "Fragments": "fragments",
    "Tags": "tags",
    "CustomData": "custom_data",
    "_bhomVersion": "version",
}
"""The field of Metadata for each property that every BHoM object has."""

CUSTOM_OBJECT = ("_t", "_bhomVersion", "BHoM_Guid", "Name")
"""What BHoM adds to our record: it reads a document without a type as a CustomObject, and writes that."""

SHOWN = reprlib.Repr()
"""How a wrong value appears in a message: a document can be long and deep."""
SHOWN.maxstring = 100


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a BHoM object says beside the loss.

    All of it is kept as JSON holds it (tuples become lists, infinities and NaN strings), in copies of its own.

    Parameters
    ----------
    guid : str
        BHoM_Guid. Default: a new one, as in BHoM.
    name, tags, fragments
        Name, Tags and Fragments.
    custom_data : dict
        CustomData without the key "gpubce".
    extra : dict
        Properties that BHoM's class does not have. They are written where they were; BHoM reads them into CustomData.
    version : str, optional
        _bhomVersion.

    Raises
    ------
    gpubce.errors.FormatError
        For a value of another type, or a name in ``extra`` or ``custom_data`` that is taken.
    """

    guid: str = field(default_factory=lambda: str(uuid.uuid4()))
    name: str = ""
    tags: tuple[str, ...] = ()
    fragments: list[Any] = field(default_factory=list)
    custom_data: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    version: str | None = None

    def __post_init__(self) -> None:
        kinds = {"name": str, "tags": list, "fragments": list, "custom_data": dict, "extra": dict}
        kept: dict[str, Any] = {}
        for name, kind in kinds.items():
            value = _copied(name, getattr(self, name))
            kept[name] = kind() if value is None else _of_type(name, _listed(value) if kind is list else value, kind)
        kept["tags"] = tuple(_of_type("each of tags", tag, str) for tag in kept["tags"])
        guid = _of_type("guid", self.guid, str)
        try:
            kept["guid"] = str(uuid.UUID(guid))
        except ValueError as error:
            raise FormatError(f"guid is {SHOWN.repr(guid)}, which is not a GUID") from error
        if self.version is not None:
            _of_type("version", self.version, str)
        for where, taken in {"custom_data": {"gpubce"}, "extra": {"_t", "Reduce", "ClassWeights", *PROPERTIES}}.items():
            for name in taken.intersection(kept[where]):
                raise FormatError(f"{where} has the key {name!r}, which is taken: use another name")
        for name, value in kept.items():
            object.__setattr__(self, name, value)  # Frozen: set once, here.


def read(
    document: str | bytes | dict[str, Any], /, *, class_weights: str | None = None
) -> tuple[BinaryCrossEntropy, Metadata]:
    """The loss that a BHoM object describes, and what else the object says.

    Parameters
    ----------
    document : str, bytes or dict
        JSON, or what a JSON parser made of it.
    class_weights : {"classes", "labels"}, optional
        What ClassWeights is: the pair (w0, w1) of the two classes, or one weight per label. Needed where there is such
        a list, unless the document records it, which it does if :func:`write` made it.

    Raises
    ------
    gpubce.errors.FormatError
        For a document that is not such an object, or that says what a loss cannot be. An unknown Reduce is one, where
        BHoM itself would silently read No.
    gpubce.errors.OptionError
        For a ``class_weights`` that is missing, unknown, or not what the document records.

    Examples
    --------
    >>> from gpubce.adapters import bhom
    >>> text = '''{"_t": "BH.oM.DeepLearning.Losses.BCEWithSigmoid", "Reduce": "Mean", "ClassWeights": [1.0, 3.0],
    ...            "BHoM_Guid": "5b0b3a4e-8f0e-4c55-9d3a-0c6a8f6f2d11", "Name": "doors"}'''
    >>> loss, metadata = bhom.read(text, class_weights="classes")
    >>> loss
    BinaryCrossEntropy(from_logits=True, class_weight=(1.0, 3.0))
    >>> metadata.name
    'doors'
    >>> bhom.read(text)
    Traceback (most recent call last):
        ...
    gpubce.errors.OptionError: ClassWeights has 2 values, and BHoM does not say what they weigh: pass \
class_weights='classes' for the pair (w0, w1) of the two classes, or class_weights='labels' for one weight per label
    """
    if class_weights is not None:
        _one_reading("class_weights", class_weights, OptionError)
    rest = _parsed(document)
    type_name = rest.pop("_t", None)
    if not isinstance(type_name, str) or type_name not in TYPES:
        found = "is missing" if type_name is None else f"is {SHOWN.repr(type_name)}"
        raise FormatError(f"the type of the object, _t, {found}: supported are {' and '.join(TYPES)}")
    reduction = _reduction(rest.pop("Reduce", "No"))
    weights = _listed(rest.pop("ClassWeights", None))
    properties = {PROPERTIES[name]: rest.pop(name) for name in PROPERTIES if name in rest}

    recorded, options = None, {}
    custom_data = properties.get("custom_data") or {}
    for name, value in _own_record(custom_data):
        if name == "class_weights":
            recorded = _one_reading("CustomData['gpubce']['class_weights']", value, FormatError)
        else:
            options[name] = value
    if class_weights is not None and recorded not in (None, class_weights):
        raise OptionError(
            f"class_weights={class_weights!r}, but the document records {recorded!r}: leave class_weights out"
        )
    if weights is not None:
        option, values = _weights(weights, class_weights or recorded)
        if option in options:
            raise FormatError(f"ClassWeights and CustomData['gpubce'] both give {option}: remove one of them")
        options[option] = values
    try:
        loss = BinaryCrossEntropy(from_logits=TYPES[type_name], reduction=reduction, **options)
    except OptionError as error:
        raise FormatError(f"{type_name} says what a loss cannot be: {error}") from error
    return loss, Metadata(**properties, extra=rest)


def write(loss: BinaryCrossEntropy, metadata: Metadata | None = None) -> str:
    """The BHoM object for a loss, as JSON: ``read(write(loss, metadata)) == (loss, metadata)``.

    Fragments, Tags and CustomData are left out where they are empty, as BHoM does. Without ``metadata`` the object has
    a new BHoM_Guid and no name.

    Raises
    ------
    gpubce.errors.OptionError
        For arguments of another type.

    Examples
    --------
    >>> from gpubce import BinaryCrossEntropy
    >>> from gpubce.adapters import bhom
    >>> metadata = bhom.Metadata(guid="5b0b3a4e-8f0e-4c55-9d3a-0c6a8f6f2d11", version="8.2")
    >>> print(bhom.write(BinaryCrossEntropy(class_weight=(1, 3), eps=1e-7), metadata))
    {"_t": "BH.oM.DeepLearning.Losses.BinaryCrossEntropy", "Reduce": "Mean", "ClassWeights": [1.0, 3.0], \
"BHoM_Guid": "5b0b3a4e-8f0e-4c55-9d3a-0c6a8f6f2d11", "Name": "", \
"CustomData": {"gpubce": {"eps": 1e-07, "class_weights": "classes"}}, "_bhomVersion": "8.2"}
    """
    metadata = Metadata() if metadata is None else metadata
    if not isinstance(loss, BinaryCrossEntropy) or not isinstance(metadata, Metadata):
        found = f"{type(loss).__name__} and {type(metadata).__name__}"
        raise OptionError(f"write takes a BinaryCrossEntropy and a Metadata, not {found}")
    defaults = BinaryCrossEntropy()
    own = {name: getattr(loss, name) for name in OWN_OPTIONS if getattr(loss, name) != getattr(defaults, name)}
    weights: tuple[float, ...] | None = None
    for reading, option in READINGS.items():
        if option in own and weights is None:
            value = own.pop(option)
            weights = value if isinstance(value, tuple) else (value,)
            own["class_weights"] = reading
    document: dict[str, Any] = {
        "_t": next(name for name, from_logits in TYPES.items() if from_logits == loss.from_logits),
        "Reduce": next(name for name, reduction in REDUCTIONS.items() if reduction == loss.reduction),
        "ClassWeights": weights,
        "BHoM_Guid": metadata.guid,
        "Name": metadata.name,
    }
    custom_data = metadata.custom_data | ({"gpubce": own} if own else {})
    optional = {"Fragments": metadata.fragments, "Tags": metadata.tags, "CustomData": custom_data}
    document |= {name: value for name, value in optional.items() if value} | metadata.extra
    if metadata.version is not None:
        document["_bhomVersion"] = metadata.version
    return json.dumps(_copied("the object", document), allow_nan=False)


# JSON ---------------------------------------------------------------------------------------------------------------


def _parsed(document: Any) -> dict[str, Any]:
    """The properties of an object, to be taken apart."""
    if isinstance(document, dict):
        return dict(_copied("the document", document))
    if not isinstance(document, str | bytes | bytearray):
        raise FormatError(f"a BHoM object is JSON text or a dict, not {type(document).__name__}")
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error} (give the text itself, not the name of a file)") from error
    return dict(_of_type("the document", parsed, dict))


def _copied(what: str, value: Any) -> Any:
    """A deep copy, as JSON holds it."""
    try:
        return json.loads(json.dumps(value, default=_plain_number), parse_constant=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{what} cannot be written as JSON: {error}") from error


def _plain_number(value: Any) -> int | float:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no JSON type")


def _listed(value: Any) -> Any:
    """A list without the document that BHoM puts around it where the property's type is not that of the list."""
    if isinstance(value, dict):
        return value.get("_v", value.get("_Items", value))
    return value


def _of_type(what: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        name = {str: "a string", list: "a list", dict: "a JSON object"}[kind]
        raise FormatError(f"{what} is {SHOWN.repr(value)}, which is not {name}")
    return value


def _number(what: str, value: Any) -> int | float:
    """A number, or a string that BHoM would read as one."""
    try:
        if isinstance(value, str) and "_" not in value:
            return float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            float(value)  # An integer that no double can hold raises.
            return value
    except (ValueError, OverflowError):
        pass
    raise FormatError(f"{what} is {SHOWN.repr(value)}, which is not a number")


# Properties ---------------------------------------------------------------------------------------------------------


def _reduction(value: Any) -> str:
    """A reduction from the forms that BHoM reads: a name, a number, or a System.Enum document."""
    name = value
    if isinstance(value, dict):
        type_name = value.get("TypeName")
        if isinstance(type_name, dict):  # A System.Type document.
            type_name = type_name.get("Name")
        if isinstance(type_name, str) and type_name.split(",")[0] == "BH.oM.DeepLearning.Reduce":
            name = value.get("Value")
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(REDUCTIONS):
        name = tuple(REDUCTIONS)[value]
    if not isinstance(name, str) or name not in REDUCTIONS:
        raise FormatError(f"Reduce is {SHOWN.repr(value)}, which is not one of {', '.join(REDUCTIONS)} (or 0, 1, 2)")
    return REDUCTIONS[name]


def _weights(values: Any, reading: str | None) -> tuple[str, tuple[float, ...]]:
    """The option that ClassWeights is, and its value."""
    _of_type("ClassWeights", values, list)
    classes = "class_weights='classes' for the pair (w0, w1) of the two classes"
    labels = "class_weights='labels' for one weight per label"
    count = f"ClassWeights has {len(values)} value{'s' * (len(values) != 1)}"
    if not values:
        raise FormatError(f"{count}: write null for no weights, otherwise pass {classes}, or {labels}")
    if reading is None:
        raise OptionError(f"{count}, and BHoM does not say what they weigh: pass {classes}, or {labels}")
    if reading == "classes" and len(values) != 2:
        raise FormatError(f"{count}, which is no pair, but the reading is {classes}: pass {labels}")
    return READINGS[reading], tuple(_number(f"ClassWeights[{k}]", value) for k, value in enumerate(values))


def _one_reading(what: str, value: Any, error: type[Exception]) -> str:
    if not isinstance(value, str) or value not in READINGS:
        raise error(f"{what} is {SHOWN.repr(value)}, which is not one of {', '.join(map(repr, READINGS))}")
    return value


def _own_record(custom_data: Any) -> Iterator[tuple[str, Any]]:
    """The entries of CustomData["gpubce"], which is taken out."""
    record = _of_type("CustomData", custom_data, dict).pop("gpubce", {})
    for name, value in _of_type("CustomData['gpubce']", record, dict).items():
        what, value = f"CustomData['gpubce'][{name!r}]", _listed(value)
        if name in CUSTOM_OBJECT:
            continue
        if name not in (*OWN_OPTIONS, "class_weights"):
            raise FormatError(f"{what} is not an option: there are {', '.join(OWN_OPTIONS)}, class_weights")
        if name in WORDS:
            yield name, _of_type(what, value, str)
        elif isinstance(value, list):
            yield name, tuple(_number(what, item) for item in value)
        else:
            yield name, value if value is None or name == "class_weights" else _number(what, value)
