"""MobileNets built as TFLite files, run by LiteRT's interpreter, against the imported weights; and files that are none.

The files are made with the writer of LiteRT's own schema, not with the package that reads them.
"""

from itertools import pairwise

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from pipelines.import_weights import import_weights
from tasks.nets import NetSpec, build

TYPES = {"f4": schema.TensorType.FLOAT32, "u1": schema.TensorType.UINT8, "i1": schema.TensorType.INT8}
ACTIVATION, PADDING = schema.ActivationFunctionType, schema.Padding
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
DEPTHS = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)


def random_weights(width, classes, seed=0):
    """27 (kernel, bias), kernels (H, W, in, out), depthwise (H, W, channels, 1), and the last layer's."""
    generator = np.random.default_rng(seed)
    depths = [int(width * depth) for depth in DEPTHS]
    shapes = [(3, 3, 3, depths[0])]
    for before, after in pairwise(depths):
        shapes += [(3, 3, before, 1), (1, 1, before, after)]
    layers = []
    for shape in [*shapes, (1, 1, depths[-1], classes)]:
        depthwise = shape[3] == 1
        fan_in = 9 if depthwise else np.prod(shape[:3])
        kernel = generator.normal(0, (3 / fan_in) ** 0.5, shape)  # so that images make a difference at the end
        bias = generator.normal(0.2, 0.5, shape[2] if depthwise else shape[3])
        layers.append((kernel.astype("f4"), bias.astype("f4")))
    return layers


class Writer:
    """A TFLite model under construction. stored: "f4", "u1" (one scale a tensor) or "i1" (one a channel)."""

    def __init__(self, stored):
        self.stored = stored
        self.graph = schema.SubGraphT(tensors=[], operators=[])
        self.model = schema.ModelT(version=3, subgraphs=[self.graph], operatorCodes=[], buffers=[schema.BufferT()])

    def tensor(self, shape, kind=None, data=None, scale=None, zero_point=None, axis=0):
        if data is not None:
            self.model.buffers.append(schema.BufferT(data=np.frombuffer(data.tobytes(), "u1")))
        quantization = None
        if scale is not None:
            scales, zeros = np.atleast_1d(scale).astype("f4"), np.atleast_1d(zero_point).astype("i8")
            quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=zeros, quantizedDimension=axis)
        place = len(self.graph.tensors)
        kind = TYPES[self.stored] if kind is None else kind
        buffer = 0 if data is None else len(self.model.buffers) - 1
        self.graph.tensors.append(
            schema.TensorT(shape=shape, type=kind, buffer=buffer, name=f"t{place}", quantization=quantization)
        )
        return place

    def computed(self, shape, low, high):
        """A tensor that an operator writes, quantised from low to high where values are."""
        if self.stored == "f4":
            return self.tensor(shape)
        scale = (high - low) / 255
        return self.tensor(shape, scale=scale, zero_point=round(-low / scale) - (128 if self.stored == "i1" else 0))

    def scale(self, tensor):
        quantization = self.graph.tensors[tensor].quantization
        return quantization.scale.astype("f8")

    def weights(self, kernel, axis):
        if self.stored == "f4":
            return self.tensor(kernel.shape, data=kernel)
        if self.stored == "u1":
            low, high = float(kernel.min()), float(kernel.max())
            scale, zero_point = (high - low) / 255, round(-low / ((high - low) / 255))
            data = np.clip(np.round(kernel / scale) + zero_point, 0, 255).astype("u1")
            return self.tensor(kernel.shape, data=data, scale=scale, zero_point=zero_point)
        others = tuple(dimension for dimension in range(kernel.ndim) if dimension != axis)
        scale = np.abs(kernel).max(others, keepdims=True) / 127
        data = np.round(kernel / scale).astype("i1")
        zeros = np.zeros(scale.size)
        return self.tensor(kernel.shape, data=data, scale=scale.reshape(-1), zero_point=zeros, axis=axis)

    def bias(self, bias, images, weights):
        if self.stored == "f4":
            return self.tensor(bias.shape, data=bias)
        scale = self.scale(images) * self.scale(weights)
        data = np.round(bias / scale).astype("i4")
        return self.tensor(bias.shape, schema.TensorType.INT32, data, scale, np.zeros(scale.size))

    def operator(self, name, inputs, output, options=None):
        code = getattr(schema.BuiltinOperator, name)
        self.model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1))
        kind = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        index = len(self.model.operatorCodes) - 1
        self.graph.operators.append(
            schema.OperatorT(index, inputs=inputs, outputs=[output], builtinOptionsType=kind, builtinOptions=options)
        )
        return output


def convolution(writer, images, kernel, bias, stride, output, activation):
    if kernel.shape[3] == 1 and kernel.shape[2] == bias.size:
        weights = writer.weights(kernel.transpose(3, 0, 1, 2).copy(), axis=3)
        options, name = schema.DepthwiseConv2DOptionsT(depthMultiplier=1), "DEPTHWISE_CONV_2D"
    else:
        weights = writer.weights(kernel.transpose(3, 0, 1, 2).copy(), axis=0)
        options, name = schema.Conv2DOptionsT(), "CONV_2D"
    options.padding, options.fusedActivationFunction = PADDING.SAME, activation
    options.strideH = options.strideW = stride
    options.dilationHFactor = options.dilationWFactor = 1
    return writer.operator(name, [images, weights, writer.bias(bias, images, weights)], output, options)


def mobilenet(layers, size, stored="f4", pool="AVERAGE_POOL_2D", last="CONV_2D", softmax=True, logits=(-20, 20)):
    """A model as the authors' converter writes it. logits: their range, which a quantised model has to state."""
    writer = Writer(stored)
    # The authors' files of bytes name no activation: the range from 0 to 6 is one.
    activation = ACTIVATION.NONE if stored == "u1" else ACTIVATION.RELU6
    first = current = writer.computed((1, size, size, 3), -1, 127 / 128)
    strides = [2, *(stride for block in STRIDES for stride in (block, 1))]
    for (kernel, bias), stride in zip(layers, strides, strict=False):
        size = -(-size // stride)
        output = writer.computed((1, size, size, bias.size), 0, 6)
        current = convolution(writer, current, kernel, bias, stride, output, activation)
    kernel, bias = layers[-1]
    channels = kernel.shape[2]
    pooled = writer.computed((1, 1, 1, channels), 0, 6)
    if pool == "MEAN":
        axes = writer.tensor((2,), schema.TensorType.INT32, np.array([1, 2], "i4"))
        current = writer.operator("MEAN", [current, axes], pooled, schema.ReducerOptionsT(keepDims=True))
    else:
        options = schema.Pool2DOptionsT(
            padding=PADDING.VALID, strideW=2, strideH=2, filterWidth=size, filterHeight=size
        )
        current = writer.operator(pool, [current], pooled, options)
    if last == "CONV_2D":
        output = writer.computed((1, 1, 1, bias.size), *logits)
        current = convolution(writer, current, kernel, bias, 1, output, ACTIVATION.NONE)
        current = reshaped(writer, current, writer.computed((1, bias.size), *logits))
    else:
        current = reshaped(writer, current, writer.computed((1, channels), 0, 6))
        weights = writer.weights(kernel[0, 0].T.copy(), axis=0)
        inputs = [current, weights, writer.bias(bias, current, weights)]
        output = writer.computed((1, bias.size), *logits)
        current = writer.operator("FULLY_CONNECTED", inputs, output, schema.FullyConnectedOptionsT())
    if softmax:
        probabilities = writer.computed((1, bias.size), 0, 255 / 256)
        current = writer.operator("SOFTMAX", [current], probabilities, schema.SoftmaxOptionsT(beta=1.0))
    writer.graph.inputs, writer.graph.outputs = [first], [current]
    return writer.model


def reshaped(writer, current, output):
    shape = np.array(writer.graph.tensors[output].shape, "i4")
    inputs = [current, writer.tensor((2,), schema.TensorType.INT32, shape)]
    return writer.operator("RESHAPE", inputs, output, schema.ReshapeOptionsT(newShape=shape))


def packed(model):
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def interpreted(content, images):
    """What the interpreter makes of images (N, S, S, 3) in [-1, 1], dequantised."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (first,), (last,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for image in images:
        scale, zero_point = first["quantization"]
        stored = np.round(image / scale + zero_point).astype(first["dtype"]) if scale else image
        interpreter.set_tensor(first["index"], stored[None])
        interpreter.invoke()
        scale, zero_point = last["quantization"]
        output = interpreter.get_tensor(last["index"])[0]
        outputs.append((output.astype("f4") - zero_point) * scale if scale else output)
    return np.array(outputs)


def random_images(size, count=3):
    generator = np.random.default_rng(1)
    patches = generator.uniform(-1, 1, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return (np.round((0.7 * patches + generator.uniform(-0.25, 0.25, patches.shape)) * 128) / 128).astype("f4")


def imported(content, folder):
    (folder / "net.tflite").write_bytes(content)
    import_weights(folder / "net.tflite", folder / "net.pt")
    return torch.load(folder / "net.pt", weights_only=True)


def logits(state, images, width, **options):
    net = build(NetSpec("mobilenet", width=width, num_classes=len(state["classifier.bias"]), **options)).eval()
    net.load_state_dict(state)
    with torch.inference_mode():
        return net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize(
    ("width", "size", "classes", "pool", "last"),
    [
        (0.25, 64, 7, "AVERAGE_POOL_2D", "CONV_2D"),
        (0.5, 72, 7, "MEAN", "FULLY_CONNECTED"),
        (0.25, 96, 1001, "AVERAGE_POOL_2D", "CONV_2D"),
        pytest.param(1.0, 224, 1001, "AVERAGE_POOL_2D", "CONV_2D", marks=pytest.mark.slow),
    ],
)
def test_the_imported_net_computes_what_the_interpreter_computes(tmp_path, width, size, classes, pool, last):
    images = random_images(size)
    content = packed(mobilenet(random_weights(width, classes), size, pool=pool, last=last, softmax=False))
    known = interpreted(content, images)
    if classes == 1001:
        known = known[:, 1:]
    state = imported(content, tmp_path)
    assert known.std(axis=0).mean() > 0.1, "the images make no difference"
    assert np.abs(logits(state, images, width) - known).max() < 1e-3
    if size % 32 == 0:
        assert np.abs(logits(state, images, width, padding="symmetric") - known).max() > 0.1


def test_softmax_behind_the_last_layer_is_left_out(tmp_path):
    images = random_images(64)
    content = packed(mobilenet(random_weights(0.25, 5), 64))
    probabilities = torch.from_numpy(logits(imported(content, tmp_path), images, 0.25)).softmax(dim=1)
    np.testing.assert_allclose(probabilities, interpreted(content, images), atol=1e-5)


def dequantised(graph, tensor, model):
    """What the bytes of a stored tensor mean, by the schema's rule, one index of its axis at a time."""
    data = bytes(model.buffers[tensor.buffer].data)
    kind = {schema.TensorType.UINT8: "u1", schema.TensorType.INT8: "i1", schema.TensorType.INT32: "<i4"}[tensor.type]
    stored = np.frombuffer(data, kind).reshape(tensor.shape).astype("f8")
    quantization = tensor.quantization
    if len(quantization.scale) == 1:
        return quantization.scale[0] * (stored - quantization.zeroPoint[0])
    slices = np.moveaxis(stored, quantization.quantizedDimension, 0)
    pairs = zip(slices, quantization.scale, quantization.zeroPoint, strict=True)
    return np.moveaxis(
        np.stack([scale * (part - zero) for part, scale, zero in pairs]), 0, quantization.quantizedDimension
    )


@pytest.mark.parametrize("stored", ["u1", "i1"])
def test_quantised_weights_mean_what_the_schema_says(tmp_path, stored):
    model = mobilenet(random_weights(0.25, 1001), 64, stored)
    state = imported(packed(model), tmp_path)
    (graph,) = model.subgraphs
    convolutions = [operator for operator in graph.operators if len(operator.inputs) == 3]
    names = [name for name in state if name.endswith(("conv.weight", "depthwise.weight", "pointwise.weight"))]
    assert len(names) == 27
    for name, operator in zip([*names, "classifier.weight"], convolutions, strict=True):
        kernel = dequantised(graph, graph.tensors[operator.inputs[1]], model)
        bias = dequantised(graph, graph.tensors[operator.inputs[2]], model)
        if name == "classifier.weight":
            np.testing.assert_allclose(state[name], kernel[1:, 0, 0], rtol=1e-6)
            np.testing.assert_allclose(state["classifier.bias"], bias[1:], rtol=1e-6)
            continue
        torch_axes = kernel.transpose((3, 0, 1, 2) if "depthwise" in name else (0, 3, 1, 2))
        np.testing.assert_allclose(state[name], torch_axes[:, :, ::-1, ::-1], rtol=1e-6)
        norm = name.replace("conv.weight", "norm").replace(".weight", "_norm")
        np.testing.assert_allclose(state[f"{norm}.bias"], bias, rtol=1e-6)


@pytest.mark.parametrize("stored", ["u1", "i1"])
def test_the_float_net_is_near_to_the_quantised_one(tmp_path, stored):
    """The interpreter rounds every activation to a byte, which the imported net does not."""
    images = random_images(96, count=6)
    content = packed(mobilenet(random_weights(0.25, 50), 96, stored, softmax=False))
    known, state = interpreted(content, images), imported(content, tmp_path)
    ours, elsewhere = logits(state, images, 0.25), logits(state, images, 0.25, padding="symmetric")
    assert correlation(ours, known) > 0.85
    assert correlation(elsewhere, known) < 0.5


def correlation(ours, known):
    """Of what is left of logits (N, classes) without their mean over the images."""
    return np.corrcoef((ours - ours.mean(axis=0)).ravel(), (known - known.mean(axis=0)).ravel())[0, 1]
