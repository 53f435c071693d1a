"""BHoM's JSON: what is written is read again, and what is not understood is refused."""

import json
import math
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubce import BinaryCrossEntropy
from gpubce.adapters.bhom import Metadata, read, write
from gpubce.errors import FormatError, OptionError

PROBABILITIES = "BH.oM.DeepLearning.Losses.BinaryCrossEntropy"
LOGITS = "BH.oM.DeepLearning.Losses.BCEWithSigmoid"
GUID = "5b0b3a4e-8f0e-4c55-9d3a-0c6a8f6f2d11"


def document(**properties):
    return {"_t": PROBABILITIES, **properties}


def with_options(**record):
    return document(CustomData={"gpubce": record})


# There and back -----------------------------------------------------------------------------------------------------

LOSSES = [
    {},
    {"from_logits": True, "reduction": "sum"},
    {"reduction": "none", "ignore_index": 255},
    {"ignore_index": math.nan},
    {"ignore_index": -math.inf},
    {"ignore_index": np.int64(-(2**63))},
    {"log_floor": None},
    {"log_floor": -50.0},
    {"from_logits": True, "log_floor": None},
    {"eps": 1e-7, "base": 2, "dtype": np.float64},
    {"axis": (0, -1), "denominator": "rows", "label_axis": 0},
    {"pos_weight": 3.0, "label_smoothing": 0.1, "gamma": 2.0, "alpha": 0.25},
    {"class_weight": (1.0, 3.0), "pos_weight": [1.0, 2.0, 3.0], "denominator": "weights"},
    {"label_weight": [1.0, 0.5]},
    {"label_weight": 0.5},
    {"class_weight": (0.1, 0.2), "label_weight": [1.0, 0.5], "denominator": "positives"},
]


@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_losses_survive(options):
    loss, metadata = BinaryCrossEntropy(**options), Metadata(name="doors", version="8.2")
    assert read(write(loss, metadata)) == (loss, metadata)
    assert read(write(loss, metadata).encode()) == (loss, metadata)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.builds(
        Metadata,
        guid=st.uuids().map(str),
        name=st.text(),
        tags=st.lists(st.text(), max_size=3),
        fragments=st.lists(JSON, max_size=3),
        custom_data=st.dictionaries(st.text(), JSON, max_size=3).filter(lambda data: "gpubce" not in data),
        extra=st.dictionaries(st.text("abc_", min_size=1), JSON, max_size=3).filter(lambda data: "_t" not in data),
        version=st.none() | st.text(),
    ),
    st.builds(
        BinaryCrossEntropy,
        from_logits=st.booleans(),
        reduction=st.sampled_from(["none", "sum", "mean"]),
        class_weight=st.none() | st.tuples(st.floats(0, 1e300), st.floats(0, 1e300)),
        label_weight=st.none() | st.floats(0, 1e300) | st.lists(st.floats(0, 1e300), min_size=2),
        ignore_index=st.none() | st.integers(-(2**63), 2**64) | st.floats(),
        log_floor=st.none() | st.floats(-1e300, -1e-300),
    ),
)
def test_everything_survives(metadata, loss):
    assert read(write(loss, metadata)) == (loss, metadata)


def test_what_is_written_is_the_json_of_bhom():
    loss = BinaryCrossEntropy(class_weight=(1, 3), label_weight=[1, math.pi], ignore_index=math.nan, log_floor=None)
    metadata = Metadata(guid=GUID.upper(), tags=["a"], custom_data={"x": math.inf}, extra={"Y": 1}, version="8.2")
    record = {"class_weights": "classes", "label_weight": [1, math.pi], "ignore_index": "NaN", "log_floor": None}
    assert json.loads(write(loss, metadata), parse_constant=pytest.fail) == {
        "_t": PROBABILITIES,
        "Reduce": "Mean",
        "ClassWeights": [1.0, 3.0],
        "BHoM_Guid": GUID,
        "Name": "",
        "Tags": ["a"],
        "CustomData": {"x": "Infinity", "gpubce": record},
        "Y": 1,
        "_bhomVersion": "8.2",
    }
    plain = json.loads(write(BinaryCrossEntropy(from_logits=True, reduction="none")))
    uuid.UUID(plain.pop("BHoM_Guid"))
    assert plain == {"_t": LOGITS, "Reduce": "No", "ClassWeights": None, "Name": ""}
    labels = json.loads(write(BinaryCrossEntropy(label_weight=[1, 2])))
    assert (labels["ClassWeights"], labels["CustomData"]) == ([1.0, 2.0], {"gpubce": {"class_weights": "labels"}})


def test_metadata_shares_nothing():
    source = document(CustomData={"a": [1], "gpubce": {"gamma": 2}}, Fragments=[{"b": 2}], Other={"c": 3})
    before = json.dumps(source)
    _, metadata = read(source)
    assert (metadata.custom_data, metadata.fragments, metadata.extra) == ({"a": [1]}, [{"b": 2}], {"Other": {"c": 3}})
    metadata.custom_data["a"].append(2)
    metadata.extra["Other"].clear()
    assert json.dumps(source) == before
    own = {"a": [1]}
    Metadata(custom_data=own).custom_data["a"].append(2)
    assert own == {"a": [1]}
    assert read(document())[1].guid != read(document())[1].guid


def test_absent_and_null_properties_are_the_defaults_of_bhom():
    expected = BinaryCrossEntropy(reduction="none")
    nulls = document(BHoM_Guid=f"{{{GUID}}}", ClassWeights=None, Name=None, Tags=None, Fragments=None, CustomData=None)
    assert read(document())[0] == expected
    assert read(nulls) == (expected, Metadata(guid=GUID))


def test_what_bhom_makes_of_a_record_is_read():
    """BHoM holds our record as a CustomObject, and types the lists in it."""
    wrapped = {"_t": "System.Collections.Generic.List`1[[System.Object, mscorlib]]", "_v": [1, 2.0]}
    record = {"pos_weight": wrapped, "class_weights": "classes", "BHoM_Guid": GUID, "Name": "gpubce"}
    text = json.dumps(document(ClassWeights=[1, 3], CustomData={"gpubce": record}, Fragments={"_Items": [1]}))
    loss, metadata = read(text)
    assert loss == BinaryCrossEntropy(reduction="none", class_weight=(1, 3), pos_weight=(1, 2))
    assert (metadata.custom_data, metadata.fragments) == ({}, [1])


def test_bare_non_finite_numbers_are_read():
    text = f'{{"_t": "{LOGITS}", "CustomData": {{"gpubce": {{"ignore_index": NaN}}, "x": -Infinity, "y": 1e999}}}}'
    loss, metadata = read(text)
    assert loss == BinaryCrossEntropy(from_logits=True, reduction="none", ignore_index=math.nan)
    assert metadata.custom_data == {"x": "-Infinity", "y": "Infinity"}


# Values -------------------------------------------------------------------------------------------------------------


def enum(value, type_name="BH.oM.DeepLearning.Reduce"):
    return {"_t": "System.Enum", "TypeName": type_name, "Value": value}


@pytest.mark.parametrize(
    ("value", "reduction"),
    [
        *(("No", "none"), ("Mean", "mean"), ("Sum", "sum"), (0, "none"), (1, "mean"), (2, "sum")),
        (enum("Mean"), "mean"),
        (enum("Sum", "BH.oM.DeepLearning.Reduce, DeepLearning_oM, Version=8.0.0.0"), "sum"),
        (enum("Sum", {"_t": "System.Type", "Name": "BH.oM.DeepLearning.Reduce", "_bhomVersion": "8.2"}), "sum"),
    ],
)
def test_forms_of_the_enum(value, reduction):
    assert read(document(Reduce=value))[0].reduction == reduction


WEIGHTS = [" 2.0", 3]


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize(
    ("reading", "expected"), [("classes", {"class_weight": (2, 3)}), ("labels", {"label_weight": (2, 3)})]
)
def test_both_readings_of_the_weights(reading, expected, record):
    source = document(ClassWeights=WEIGHTS, CustomData={"gpubce": {"class_weights": reading} if record else {}})
    expected = BinaryCrossEntropy(reduction="none", **expected)
    assert read(source, class_weights=reading)[0] == expected
    if record:
        assert read(source)[0] == expected


@pytest.mark.parametrize(
    ("type_name", "reading", "factors"),
    [
        (LOGITS, "classes", [[3.0, 2.0], [2.0, 3.0]]),
        (LOGITS, "labels", [[2.0, 3.0], [2.0, 3.0]]),
        (PROBABILITIES, "classes", [[3.0, 2.0], [2.0, 3.0]]),
    ],
)
def test_a_loss_that_was_read_computes(type_name, reading, factors):
    targets = np.array([[1, 0], [0, 1]])
    probabilities = np.array([[0.9, 0.2], [0.25, 0.5]])
    loss, _ = read({"_t": type_name, "Reduce": "Sum", "ClassWeights": WEIGHTS}, class_weights=reading)
    predictions = np.log(probabilities / (1 - probabilities)) if type_name == LOGITS else probabilities
    by_hand = -np.array(factors) * np.log(np.where(targets == 1, probabilities, 1 - probabilities))
    np.testing.assert_allclose(loss(predictions, targets), by_hand.sum(), rtol=1e-14)


# Refusals -----------------------------------------------------------------------------------------------------------

TYPE = "supported are BH.oM.DeepLearning.Losses.BinaryCrossEntropy and BH.oM.DeepLearning.Losses.BCEWithSigmoid"
BOTH = r"class_weights='classes' for the pair \(w0, w1\) of the two classes, or class_weights='labels' for one weight"
REFUSED = [
    ("{", r"not JSON: .* \(give the text itself"),
    (b"\xff\xff", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"a": ' + "9" * 5000 + "}", "not JSON"),
    ("[1]", r"the document is \[1\], which is not a JSON object"),
    (None, "JSON text or a dict, not NoneType"),
    ({"_t": {1, 2}}, "the document cannot be written as JSON: set is no JSON type"),
    ({"Reduce": "Mean"}, f"_t, is missing: {TYPE}"),
    ({"_t": "BH.oM.DeepLearning.Losses.L1"}, f"_t, is 'BH.oM.DeepLearning.Losses.L1': {TYPE}"),
    ({"_t": [PROBABILITIES]}, f"_t, is .*: {TYPE}"),
    *(
        (document(Reduce=value), r"Reduce is .* not one of No, Mean, Sum \(or 0, 1, 2\)")
        for value in (
            "mean",
            "None",
            3,
            -1,
            1.0,
            True,
            None,
            [],
            enum("mean"),
            enum(None),
            enum("Mean", "BH.oM.Base.Reduce"),
            {},
        )
    ),
    (document(ClassWeights=1.0), "ClassWeights is 1.0, which is not a list"),
    (document(ClassWeights=[]), f"ClassWeights has 0 values: write null for no weights, otherwise pass {BOTH}"),
    (document(BHoM_Guid="x"), "guid is 'x', which is not a GUID"),
    (document(BHoM_Guid=None), "guid is None, which is not a string"),
    (document(Name=1), "name is 1, which is not a string"),
    (document(Tags=[1]), "each of tags is 1, which is not a string"),
    (document(Fragments="x"), "fragments is 'x', which is not a list"),
    (document(CustomData=[1]), r"CustomData is \[1\], which is not a JSON object"),
    (document(_bhomVersion=8.2), "version is 8.2, which is not a string"),
    (document(CustomData={"gpubce": None}), r"CustomData\['gpubce'\] is None, which is not a JSON object"),
    (with_options(gama=2), r"CustomData\['gpubce'\]\['gama'\] is not an option: there are .*gamma"),
    (with_options(reduction="sum"), r"\['reduction'\] is not an option"),
    (with_options(gamma="two"), r"\['gamma'\] is 'two', which is not a number"),
    (with_options(gamma="1_0"), r"\['gamma'\] is '1_0', which is not a number"),
    (with_options(ignore_index=10**400), r"\['ignore_index'\] is .* which is not a number"),
    (with_options(pos_weight=[True]), r"\['pos_weight'\] is True, which is not a number"),
    (with_options(pos_weight={}), r"\['pos_weight'\] is {}, which is not a number"),
    (with_options(dtype=1), r"\['dtype'\] is 1, which is not a string"),
    (with_options(class_weights="both"), r"\['class_weights'\] is 'both', which is not one of 'classes', 'labels'"),
    (with_options(gamma=-1), f"{PROBABILITIES} says what a loss cannot be: gamma=-1 is out of range"),
    (with_options(denominator="rows"), "only a mean has a denominator"),
    (with_options(gamma=None), "gamma=None is not a number"),
]


@pytest.mark.parametrize(("source", "message"), REFUSED, ids=range(len(REFUSED)))
def test_documents_that_are_refused(source, message):
    with pytest.raises(FormatError, match=message):
        read(source)


@pytest.mark.parametrize(
    ("weights", "record", "reading", "error", "message"),
    [
        ([1, 2], None, None, OptionError, f"has 2 values, and BHoM does not say what they weigh: pass {BOTH}"),
        ([1], None, None, OptionError, "has 1 value, and BHoM"),
        ([1, 2, 3], None, "classes", FormatError, "has 3 values, which is no pair, .* pass class_weights='labels'"),
        ([1, 2], None, "both", OptionError, "class_weights is 'both', which is not one of 'classes', 'labels'"),
        ([1, 2], None, ["classes"], OptionError, "class_weights is .*, which is not one of"),
        ([1, 2], "labels", "classes", OptionError, "class_weights='classes', but the document records 'labels'"),
        (None, "labels", "classes", OptionError, "the document records 'labels': leave class_weights out"),
        ([1, "x"], None, "labels", FormatError, r"ClassWeights\[1\] is 'x', which is not a number"),
        ([None], None, "labels", FormatError, r"ClassWeights\[0\] is None, which is not a number"),
        ([1, -2], None, "labels", FormatError, "label_weight=-2 is out of range"),
        ([1, "NaN"], None, "classes", FormatError, "class_weight=nan is out of range"),
    ],
)
def test_weights_that_are_refused(weights, record, reading, error, message):
    source = document(ClassWeights=weights, CustomData={"gpubce": {"class_weights": record} if record else {}})
    with pytest.raises(error, match=message):
        read(source, class_weights=reading)


def test_weights_given_twice_are_refused():
    source = document(ClassWeights=[1, 2], CustomData={"gpubce": {"class_weight": [1, 2]}})
    with pytest.raises(FormatError, match=r"ClassWeights and CustomData\['gpubce'\] both give class_weight"):
        read(source, class_weights="classes")


def test_what_cannot_be_written_is_refused():
    with pytest.raises(OptionError, match="takes a BinaryCrossEntropy and a Metadata, not dict and Metadata"):
        write({})
    with pytest.raises(OptionError, match="not BinaryCrossEntropy and dict"):
        write(BinaryCrossEntropy(), {})
    with pytest.raises(FormatError, match="custom_data has the key 'gpubce', which is taken"):
        Metadata(custom_data={"gpubce": {}})
    with pytest.raises(FormatError, match="extra has the key 'Reduce', which is taken"):
        Metadata(extra={"Reduce": "Mean"})
    with pytest.raises(FormatError, match="fragments cannot be written as JSON: object is no JSON type"):
        Metadata(fragments=[object()])
