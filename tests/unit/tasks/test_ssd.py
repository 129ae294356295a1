"""The three SSD300 nets: counts by arithmetic, maps by shape, torchvision's SSD for VGG."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tasks.boxes import encode
from tasks.nets import NetSpec, build
from tasks.nets.complexity import count
from tasks.nets.inception import PaddedConv
from tasks.nets.ssd import L2Norm, ValidConv, reduced_fc

pytestmark = pytest.mark.usefixtures("one_thread")
NETS = ("ssd300_vgg", "ssd300_inception_v2", "ssd300_mobilenet")
VGG_IS_SLOW = (pytest.param(NETS[0], marks=pytest.mark.slow), *NETS[1:])  # where its case takes a second
# Table 13: billions of Mult-Adds and millions of parameters.
PUBLISHED = {
    "ssd300_vgg": (34.9, 33.1),
    "ssd300_inception_v2": (3.8, 13.7),
    "ssd300_mobilenet": (1.2, 6.8),
}
# Side and depth of the body's two maps at 300 px.
TENSORFLOW_MAPS = {
    "ssd300_inception_v2": ((19, 576), (10, 1024)),
    "ssd300_mobilenet": ((19, 512), (10, 1024)),
}
COLOURS = {1: (1.0, -1.0, -1.0), 2: (-1.0, 1.0, -1.0), 4: (-0.5, -0.5, 1.0)}
SCENES = [
    [(0.1, 0.15, 0.5, 0.6, 1), (0.55, 0.5, 0.9, 0.85, 2)],
    [(0.3, 0.25, 0.8, 0.75, 4)],
    [(0.05, 0.05, 0.35, 0.4, 2), (0.6, 0.1, 0.9, 0.45, 4), (0.3, 0.6, 0.7, 0.95, 1)],
    [(0.1, 0.3, 0.9, 0.7, 2)],
]


def meta(name, **options):
    with torch.device("meta"):
        return build(NetSpec(name, **{"num_classes": 91, **options}))


def halved(side):
    return math.ceil(side / 2)


def predictors(maps, shapes, kernel):
    """Weights and Mult-Adds of 91 scores and 4 offsets for each shape on maps (side, depth)."""
    sizes = [kernel**2 * depth * shape * (91 + 4) for (_, depth), shape in zip(maps, shapes, strict=True)]
    return sum(sizes), sum(size * side**2 for size, (side, _) in zip(sizes, maps, strict=True))


def added_by_tensorflow(maps):
    """Four times a 1x1 to half the depth and a 3x3 of stride 2; the maps they make are added to `maps`."""
    weights = mult_adds = 0
    for depth in (512, 256, 256, 128):
        side, before = maps[-1]
        weights += before * depth // 2 + 9 * depth // 2 * depth
        mult_adds += before * depth // 2 * side**2 + 9 * depth // 2 * depth * halved(side) ** 2
        maps = [*maps, (halved(side), depth)]
    return maps, weights, mult_adds


@pytest.mark.parametrize(
    ("name", "weights", "mult_adds"),
    [("ssd300_mobilenet", 6_791_360, 1_237_129_408), ("ssd300_inception_v2", 13_767_896, 3_782_704_544)],
)
def test_counts_of_the_nets_with_batch_norm_by_arithmetic(name, weights, mult_adds):
    body = count(meta(name.removeprefix("ssd300_")), 300)
    maps, added, added_cost = added_by_tensorflow(TENSORFLOW_MAPS[name])
    assert [side for side, _ in maps] == [19, 10, 5, 3, 2, 1]
    heads, head_cost = predictors(maps, (3, 6, 6, 6, 6, 6), kernel=1)
    counted = count(meta(name), 300)
    assert counted.parameters == body.parameters - 1024 * 91 + added + heads == weights
    assert counted.mult_adds == body.mult_adds - 1024 * 91 + added_cost + head_cost == mult_adds


def test_counts_of_vgg_by_arithmetic():
    weights = mult_adds = 0
    before, sides = 3, (300, 150, 75, 38, 19)  # the third pool rounds up
    for side, depth, layers in zip(sides, (64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for _ in range(layers):
            weights += 9 * before * depth
            mult_adds += 9 * before * depth * side**2
            before = depth
    behind = [  # kernel, channels before and after, side after
        *((3, 512, 1024, 19), (1, 1024, 1024, 19)),  # fc6 and fc7
        *((1, 1024, 256, 19), (3, 256, 512, 10), (1, 512, 128, 10), (3, 128, 256, 5)),
        *((1, 256, 128, 5), (3, 128, 256, 3), (1, 256, 128, 3), (3, 128, 256, 1)),
    ]
    weights += sum(kernel**2 * before * after for kernel, before, after, _ in behind)
    mult_adds += sum(kernel**2 * before * after * side**2 for kernel, before, after, side in behind)
    maps = ((38, 512), (19, 1024), (10, 512), (5, 256), (3, 256), (1, 256))
    heads, head_cost = predictors(maps, (4, 6, 6, 6, 4, 4), kernel=3)
    counted = count(meta("ssd300_vgg"), 300)
    assert counted.parameters == weights + heads == 35_630_272
    assert counted.mult_adds == mult_adds + head_cost == 34_858_153_472
    behind_fc7 = sum(kernel**2 * before * after for kernel, before, after, _ in behind[2:])
    assert abs(counted.parameters - behind_fc7 - 33.1e6) < 0.1e6  # what the paper's figure seems to be without


@pytest.mark.parametrize("name", NETS)
def test_counts_round_to_the_published_figures(name):
    counted = count(meta(name), 300)
    mult_adds, parameters = PUBLISHED[name]
    assert counted.mult_adds / 1e9 == pytest.approx(mult_adds, abs=0.05)
    if name != "ssd300_vgg":
        assert counted.parameters / 1e6 == pytest.approx(parameters, abs=0.07)


@pytest.mark.parametrize(("name", "total"), [("ssd300_vgg", 8732), (NETS[1], 1917), (NETS[2], 1917)])
def test_outputs_have_a_row_for_every_anchor(name, total):
    outputs = meta(name).outputs(torch.empty(2, 3, 300, 300, device="meta"))
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "logits": (2, total, 91),
        "offsets": (2, total, 4),
        "anchors": (2, total, 4),
    }


@pytest.mark.parametrize("name", NETS)
def test_rows_of_the_outputs_are_the_maps_cells_in_the_order_of_the_anchors(name):
    torch.manual_seed(0)
    net = build(NetSpec(name, num_classes=3)).eval()
    maps = {}
    for kind in ("logits", "offsets"):
        for level, predictor in enumerate(getattr(net, kind)):
            key = kind, level
            predictor.register_forward_hook(lambda _, __, output, key=key: maps.update({key: output}))
    with torch.no_grad():
        outputs = net.outputs(torch.rand(2, 3, 96, 96) * 2 - 1)
    place = 0
    for level, (shapes, step) in enumerate(net.head.levels):
        side = maps["logits", level].shape[-1]
        for row in range(side):
            for column in range(side):
                for number in range(len(shapes)):
                    for kind, values in (("logits", 3), ("offsets", 4)):
                        expected = maps[kind, level][:, number * values : (number + 1) * values, row, column]
                        assert torch.equal(outputs[kind][:, place], expected)
                    x1, y1, x2, y2 = outputs["anchors"][1, place].tolist()
                    cell = 1 / side if step is None else step / 96
                    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx(((column + 0.5) * cell, (row + 0.5) * cell))
                    assert (x2 - x1, y2 - y1) == pytest.approx(shapes[number])
                    place += 1
    assert place == outputs["logits"].shape[1] == outputs["anchors"].shape[1]


@pytest.mark.parametrize("size", [1, 64, 75, 96, 150])
@pytest.mark.parametrize("name", NETS)
def test_small_images_work_on_smaller_grids(name, size):
    outputs = meta(name, num_classes=7).outputs(torch.empty(2, 3, size, size, device="meta"))
    shapes = (4, 6, 6, 6, 4, 4) if name == "ssd300_vgg" else (3, 6, 6, 6, 6, 6)
    first = 3 if name == "ssd300_vgg" else 4  # how often the first map's side is halved
    sides = [size]
    for _ in range(first + (3 if name == "ssd300_vgg" else 5)):
        sides.append(halved(sides[-1]))
    sides = sides[first:]
    if name == "ssd300_vgg":
        sides += [max(sides[-1] - 2, 1), max(sides[-1] - 4, 1)]
    expected = sum(shape * side**2 for shape, side in zip(shapes, sides, strict=True))
    assert outputs["logits"].shape == (2, expected, 7)
    assert outputs["anchors"].shape == (2, expected, 4)


@pytest.mark.parametrize("name", NETS)
def test_below_its_body_are_the_names_of_the_net_that_imagenet_trains(name):
    theirs = meta({"ssd300_vgg": "vgg16"}.get(name, name.removeprefix("ssd300_"))).state_dict()
    ours = meta(name).body.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items() if not key.startswith("classifier")
    }


@pytest.mark.parametrize("name", VGG_IS_SLOW)
def test_an_image_gives_the_same_alone_and_in_a_batch(name):
    torch.manual_seed(0)
    net = build(NetSpec(name, num_classes=5)).eval()
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        together = net(pictures)
        for image in range(3):
            (alone,) = net(pictures[image : image + 1])
            assert (alone[:, 5] > 0).all()
            assert torch.equal(alone[:, 5], together[image, :, 5])
            torch.testing.assert_close(alone, together[image], atol=1e-5, rtol=1e-4)


def found_in(detections):
    """The rows of an image that are no filling, by what they say."""
    kept = detections[detections[:, 5] > 0]
    return {"boxes": kept[:, :4], "scores": kept[:, 4], "labels": kept[:, 5].long()}


def outputs_of(net, wanted, size):
    """Raw outputs that say `wanted`, objects (anchor, box, label), surer of the first, and background elsewhere."""
    with torch.no_grad():
        outputs = net.outputs(torch.zeros(1, 3, size, size))
    logits = torch.full_like(outputs["logits"], -4.0)
    logits[..., 0] = 4.0
    offsets = torch.zeros_like(outputs["offsets"])
    for anchor, box, label in wanted:
        logits[0, anchor, 0] = -4.0
        logits[0, anchor, label] = 4.0 - anchor / 10
        offsets[0, anchor] = encode(torch.tensor(box), outputs["anchors"][0, anchor])
    return {**outputs, "logits": logits, "offsets": offsets}


@pytest.mark.parametrize("name", ["ssd300_vgg", "ssd300_mobilenet"])
def test_detections_are_what_the_outputs_say(name):
    net = build(NetSpec(name, num_classes=5, score_threshold=0.5)).eval()
    wanted = [
        (3, [0.1, 0.2, 0.5, 0.6], 4),
        (4, [0.1, 0.2, 0.5, 0.61], 4),  # suppressed by the one before
        (5, [0.1, 0.2, 0.5, 0.62], 1),  # another class is not
        (9, [-0.2, 0.5, 0.3, 1.4], 2),  # cut at the image's edges
        (12, [1.1, 1.1, 1.4, 1.4], 3),  # outside
    ]
    found = found_in(net.detect(outputs_of(net, wanted, 64))[0])
    assert found["labels"].tolist() == [4, 1, 2]
    expected = torch.tensor([wanted[0][1], wanted[2][1], [0.0, 0.5, 0.3, 1.0]])
    torch.testing.assert_close(found["boxes"], expected, atol=1e-5, rtol=0)
    assert found["scores"].min() > 0.9
    two = build(NetSpec(name, num_classes=5, score_threshold=0.5, max_detections=2)).eval()
    assert two.detect(outputs_of(two, wanted, 64))[0, :, 5].tolist() == [4, 1]


@pytest.mark.parametrize(("name", "scores"), [("ssd300_vgg", "softmax"), (NETS[1], "sigmoid"), (NETS[2], "sigmoid")])
def test_scores_are_of_the_published_kind(name, scores):
    net = build(NetSpec(name, num_classes=3, score_threshold=0.05)).eval()
    outputs = outputs_of(net, [], 64)
    outputs["logits"][0, 0] = torch.tensor([1.0, 2.0, 3.0])
    found = found_in(net.detect(outputs)[0])
    row = torch.tensor([3.0, 2.0])  # of the classes that are no background, best first
    expected = row.sigmoid() if scores == "sigmoid" else row.exp() / torch.tensor([1.0, 2.0, 3.0]).exp().sum()
    torch.testing.assert_close(found["scores"], expected)


@pytest.mark.parametrize("name", VGG_IS_SLOW)
def test_losses_of_images_reach_every_weight(name):
    torch.manual_seed(0)
    net = build(NetSpec(name, num_classes=5))
    pictures, targets = drawn(64)
    losses = net.losses(pictures, targets)
    sum(losses.values()).backward()
    still = {key for key, value in net.named_parameters() if value.grad is None or not value.grad.isfinite().all()}
    assert not still
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.body.parameters())


def test_l2_norm_and_its_scale():
    layer, maps = L2Norm(3, 20.0), torch.randn(2, 3, 4, 5)
    normed = layer(maps)
    torch.testing.assert_close(normed.norm(dim=1), torch.full((2, 4, 5), 20.0))
    torch.testing.assert_close(normed[0, :, 1, 2], 20 * maps[0, :, 1, 2] / maps[0, :, 1, 2].norm())
    zeros = torch.zeros(1, 3, 1, 1, requires_grad=True)
    layer(zeros).sum().backward()
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize(("size", "pads"), [((3, 5), (0, 0, 0, 0)), ((2, 4), (0, 0, 0, 1)), ((1, 1), (1, 1, 1, 1))])
def test_convolutions_without_padding_take_smaller_maps_with_zeros_around(size, pads):
    layer, maps = ValidConv(2, 3, 3), torch.randn(1, 2, *size)
    torch.testing.assert_close(layer(maps), F.conv2d(F.pad(maps, pads), layer.weight, layer.bias))


def test_fc6_and_fc7_are_those_of_a_classifier_with_every_third_place_and_every_fourth_output():
    """The oracle: VGG's own layers, of which all else is zero, at the 7x7 places that its last pool leaves of 13x13."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    classifier = vgg16(num_classes=3, init_weights=False).state_dict()
    net = build(NetSpec("ssd300_vgg", num_classes=5))
    net.load_state_dict(net.derive(classifier), strict=False)
    conv5 = torch.randn(1, 512, 13, 13).relu()
    pooled = F.max_pool2d(conv5, 3, stride=1, padding=1)[..., ::2, ::2]
    assert pooled.shape[2:] == (7, 7)
    kept = torch.zeros(7, 7, dtype=torch.bool)
    kept[::3, ::3] = True
    weights = [classifier[f"classifier.{name}"] for name in ("0.weight", "0.bias", "3.weight", "3.bias")]
    others = torch.arange(4096) % 4 > 0
    fc6 = F.linear((pooled * kept).flatten(1), *weights[:2]).relu().masked_fill(others, 0)
    fc7 = F.linear(fc6, *weights[2:]).relu()
    torch.testing.assert_close(net.necks[1](conv5)[..., 6, 6], fc7[:, ~others], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classifier.3.bias": None}, "'classifier.3.bias' is absent, it must be .4096,."),
        ({"classifier.0.weight": torch.zeros(8, 9)}, "'classifier.0.weight' is .8, 9., it must be .4096, 25088."),
    ],
)
def test_fully_connected_layers_that_are_not_vggs_are_named(changed, message):
    with torch.device("meta"):
        state = {**build(NetSpec("vgg16", num_classes=3)).state_dict(), **changed}
    with pytest.raises(ValueError, match=message):
        reduced_fc({name: value for name, value in state.items() if value is not None})


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_options_reach_the_added_layers(padding):
    options = {"batch_norm_decay": 0.9, "batch_norm_epsilon": 0.01, "activation": "relu", "padding": padding}
    net = meta("ssd300_mobilenet", **options)
    added = list(net.added.modules())
    norms = {(norm.eps, round(norm.momentum, 6)) for norm in added if isinstance(norm, nn.BatchNorm2d)}
    assert norms == {(0.01, 0.1)}
    assert sum(isinstance(layer, nn.ReLU) for layer in added) == 8
    halving = [layer for layer in added if isinstance(layer, PaddedConv) and layer.stride == (2, 2)]
    assert [layer.same for layer in halving] == [padding == "same"] * 4
    assert net.body.turned == (padding == "same")


def test_added_layers_start_as_tensorflows():
    torch.manual_seed(0)
    net = build(NetSpec("ssd300_mobilenet", num_classes=91))
    for part in (net.added, net.logits, net.offsets):
        kernels = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)]
        weights = torch.cat([layer.weight.detach().flatten() for layer in kernels])
        assert weights.abs().max() <= 0.06
        assert weights.std().item() == pytest.approx(0.03 * 0.8796, rel=0.05)  # of what is left at two deviations
        assert not any(layer.bias.any() for layer in kernels if layer.bias is not None)


def test_images_that_are_not_square_and_a_width_are_refused():
    with pytest.raises(ValueError, match="images are 80x64; SSD takes square ones"):
        meta("ssd300_mobilenet")(torch.empty(2, 3, 64, 80, device="meta"))
    for name in NETS:
        with pytest.raises(ValueError, match=rf"width is 0\.5; {name} has no width multiplier"):
            build(NetSpec(name, width=0.5))


@pytest.mark.slow
def test_vgg_equals_torchvisions():
    """At 272 px, where every pool halves an even side: torchvision's round up at one place only."""
    from torchvision.models.detection import ssd300_vgg16

    torch.manual_seed(0)
    ours = build(NetSpec("ssd300_vgg", num_classes=5)).eval()
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=5).eval()
    layers = [layer for layer in theirs.backbone.modules() if isinstance(layer, nn.Conv2d)]
    mine = [layer for part in (ours.body, ours.necks, ours.added) for layer in part.modules()]
    heads = [*theirs.head.classification_head.module_list, *theirs.head.regression_head.module_list]
    pairs = [
        *zip([layer for layer in mine if isinstance(layer, nn.Conv2d)], layers, strict=True),
        *zip([*ours.logits, *ours.offsets], heads, strict=True),
    ]
    with torch.no_grad():
        for layer, other in pairs:
            other.load_state_dict(layer.state_dict())
        pictures = torch.rand(1, 3, 272, 272) * 2 - 1
        expected = theirs.head(list(theirs.backbone(pictures).values()))
        outputs = ours.outputs(pictures)
    torch.testing.assert_close(outputs["logits"], expected["cls_logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs["offsets"], expected["bbox_regression"], atol=1e-4, rtol=1e-4)


def drawn(size):
    """Four images of coloured boxes on dull noise, and their targets."""
    pictures = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    boxes, labels = torch.zeros(4, 3, 4), torch.zeros(4, 3, dtype=torch.int64)
    for image, objects in enumerate(SCENES):
        for place, (x1, y1, x2, y2, label) in enumerate(objects):
            boxes[image, place], labels[image, place] = torch.tensor([x1, y1, x2, y2]), label
            left, top, right, bottom = (round(side * size) for side in (x1, y1, x2, y2))
            pictures[image, :, top:bottom, left:right] = torch.tensor(COLOURS[label])[:, None, None]
    return pictures, {"boxes": boxes, "labels": labels, "crowd": torch.zeros(4, 3, dtype=torch.bool)}


@pytest.mark.parametrize("name", VGG_IS_SLOW)
def test_the_loss_waits_for_nothing_that_the_device_computes(name):
    """So that a GPU is never without work, and a whole step can be one CUDA graph."""
    net, images, targets = small(name)
    wanted = net.losses(images, targets)  # which makes the anchors
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # where no value can be looked at
        fake = {key: mode.from_tensor(value) for key, value in targets.items()}
        found = net.losses(mode.from_tensor(images), fake)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_loss_is_one_graph_for_a_compiler(name):
    net, images, targets = small(name)
    compiled = torch.compile(net.losses, fullgraph=True, dynamic=False, backend="eager")
    for key, loss in net.losses(images, targets).items():
        torch.testing.assert_close(compiled(images, targets)[key], loss)


def small(name):
    """A net, two images and an object in each."""
    torch.manual_seed(0)
    targets = {
        "boxes": torch.tensor([[[0.1, 0.1, 0.5, 0.5]], [[0.3, 0.2, 0.9, 0.8]]]),
        "labels": torch.tensor([[1], [2]]),
        "crowd": torch.zeros(2, 1, dtype=torch.bool),
    }
    return build(NetSpec(name, num_classes=3)), torch.randn(2, 3, 96, 96), targets
