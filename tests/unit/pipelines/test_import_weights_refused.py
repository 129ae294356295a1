"""TFLite files that are no MobileNet, or no whole one: each is refused by what is wrong with it."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.unit.pipelines.test_import_weights_tflite import (
    ACTIVATION,
    PADDING,
    imported,
    mobilenet,
    packed,
    random_weights,
)


def option(place, **values):
    def change(graph):
        for name, value in values.items():
            setattr(graph.operators[place].builtinOptions, name, value)

    return change


def tensor(place, number, **values):
    """Changes what operator `place` takes as its input `number`."""

    def change(graph):
        for name, value in values.items():
            setattr(graph.tensors[graph.operators[place].inputs[number]], name, value)

    return change


def quantised(low, high):
    scale = (high - low) / 255
    return schema.QuantizationParametersT(
        scale=np.array([scale], "f4"), zeroPoint=np.array([round(-low / scale)], "i8")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (option(1, padding=PADDING.VALID), "Padding of t5 is VALID, not SAME"),
        (option(0, strideW=1), "StrideW of t2 is 1, not 2"),
        (option(3, dilationHFactor=2), "DilationHFactor of t11 is 2, not 1"),
        (option(0, fusedActivationFunction=ACTIVATION.RELU), "FusedActivationFunction of t2 is RELU, not RELU6"),
        (option(0, fusedActivationFunction=ACTIVATION.NONE), "FusedActivationFunction of t2 is NONE, not RELU6"),
        (option(28, fusedActivationFunction=ACTIVATION.RELU6), "is RELU6, not NONE"),
        (option(27, filterHeight=1), "FilterHeight of the pool is 1, not 2"),
        (lambda graph: graph.operators.pop(), "takes something else than the one before it makes"),
        (lambda graph: graph.operators.pop(4), "operator 4 is DEPTHWISE_CONV_2D, not CONV_2D"),
        (lambda graph: graph.operators.insert(5, graph.operators[-1]), "operator 5 is SOFTMAX, not DEPTHWISE_CONV_2D"),
        (lambda graph: graph.operators.append(graph.operators[0]), "CONV_2D stands behind the last layer"),
        (lambda graph: graph.operators.clear(), "operator 0 is missing, not CONV_2D"),
        (lambda graph: graph.operators[2].inputs.pop(), "lacks its bias"),
        (lambda graph: graph.operators[2].inputs.__setitem__(1, -1), "lacks its weights"),
        (lambda graph: graph.operators[2].inputs.__setitem__(1, 1 << 20), "lacks its weights"),
        (lambda graph: graph.operators[6].inputs.__setitem__(0, 0), "takes something else"),
        (lambda graph: graph.outputs.append(0), "takes something else"),
        (tensor(0, 0, shape=[1, 64]), "its images have shape (1, 64)"),
        (tensor(27, 0, shape=[1, 1]), "not a MobileNet: AVERAGE_POOL_2D makes"),
        (tensor(2, 1, shape=[1 << 30, 1 << 30, 1 << 30, 1]), "tensor t8 of 512 bytes cannot be FLOAT32"),
        (tensor(2, 1, shape=[-16, -1, 1, 8]), "tensor t8 of 512 bytes cannot be FLOAT32"),
        (tensor(2, 1, shape=[8, 1, 1, 16]), "t8's kernel has shape (8, 16, 1, 1), not (16, 8, 1, 1)"),
        (tensor(2, 1, shape=[16, 8]), "t8 has shape (16, 8), not four dimensions"),
        (tensor(2, 1, type=schema.TensorType.INT64), "cannot be INT64"),
        (tensor(2, 1, buffer=0), "tensor t8 of 0 bytes"),
        (tensor(2, 1, buffer=1 << 20), "not a whole TFLite file (buffer 1048576"),
        (tensor(2, 1, type=schema.TensorType.INT32), "t8 (16, 1, 1, 8) has 0 scales and 0 zero points"),
        (lambda graph: setattr(graph.operators[0], "opcodeIndex", 999), "not a whole TFLite file"),
    ],
)
def test_another_net_is_refused_by_what_differs(tmp_path, change, message):
    model = mobilenet(random_weights(0.25, 5), 64)
    change(model.subgraphs[0])
    with pytest.raises(ValueError, match="net.tflite: ") as error:
        imported(packed(model), tmp_path)
    assert message in str(error.value)
    assert not list(tmp_path.glob("*.pt*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensor(0, 0, quantization=quantised(0, 1)), "its images go from 0 to 1, not from -1 to 1"),
        (tensor(1, 0, quantization=quantised(0, 9)), "FusedActivationFunction of t2 is NONE, not RELU6"),
        (option(1, fusedActivationFunction=ACTIVATION.TANH), "FusedActivationFunction of t5 is TANH, not RELU6"),
        (tensor(1, 0, quantization=None), "FusedActivationFunction of t2 is NONE, not RELU6"),
        (tensor(2, 1, quantization=None), "has 0 scales and 0 zero points"),
        (tensor(2, 2, quantization=None), "has 0 scales and 0 zero points"),
    ],
)
def test_a_quantised_net_with_other_ranges_is_refused(tmp_path, change, message):
    model = mobilenet(random_weights(0.25, 5), 64, "u1")
    change(model.subgraphs[0])
    with pytest.raises(ValueError, match="net.tflite: ") as error:
        imported(packed(model), tmp_path)
    assert message in str(error.value)


def test_two_graphs_and_values_that_are_not_finite_are_refused(tmp_path):
    layers = random_weights(0.25, 5)
    model = mobilenet(layers, 64)
    model.subgraphs *= 2
    with pytest.raises(ValueError, match="it has 2 graphs"):
        imported(packed(model), tmp_path)
    layers[4][1][0] = np.inf
    with pytest.raises(ValueError, match="t14's beta has values that are not finite"):
        imported(packed(mobilenet(layers, 64)), tmp_path)


def test_a_buffer_that_many_tensors_claim_is_not_unpacked_for_each(tmp_path):
    model = mobilenet(random_weights(0.25, 5), 64, "u1")
    model.buffers.append(schema.BufferT(data=np.zeros(1 << 22, "u1")))
    for operator in model.subgraphs[0].operators[:27]:
        model.subgraphs[0].tensors[operator.inputs[1]].buffer = len(model.buffers) - 1
    with pytest.raises(ValueError, match="its tensors claim to have 113,"):
        imported(packed(model), tmp_path)


def test_whatever_is_cut_or_overwritten_nothing_but_a_refusal_comes_of_it(tmp_path):
    whole = packed(mobilenet(random_weights(0.25, 5), 64, "u1"))
    generator = np.random.default_rng(0)
    refused = 0
    for length in (8, 9, 60, 1_000, len(whole) // 2):
        with pytest.raises(ValueError, match="not a whole TFLite file"):
            imported(whole[:length], tmp_path)
    header = whole[:4_000] + whole[-8_000:]
    for _ in range(60):
        broken = np.frombuffer(whole, "u1").copy()
        places = generator.integers(8, len(header), 20)
        broken[np.where(places < 4_000, places, places - len(header) + len(whole))] = generator.integers(0, 256, 20)
        try:
            imported(broken.tobytes(), tmp_path)
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path}/net.tflite: ")
            refused += 1
    assert refused > 20


def test_a_shape_of_many_dimensions_is_refused_and_a_long_name_is_cut(tmp_path):
    model = mobilenet(random_weights(0.25, 5), 64)
    model.subgraphs[0].tensors[0].shape = np.ones(1_000, "i4")
    with pytest.raises(ValueError, match="a list of 1,000; allowed are 8"):
        imported(packed(model), tmp_path)
    model = mobilenet(random_weights(0.25, 5), 64)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"x" * 100_000
    assert imported(packed(model), tmp_path)["classifier.bias"].shape == (5,)
