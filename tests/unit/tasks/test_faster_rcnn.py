"""The three Faster R-CNN nets: counts by arithmetic, crops and anchors by hand, what is frozen, what they learn."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tasks.boxes import encode
from tasks.nets import MIN_INPUT_SIZE, NetSpec, build, check_input_size
from tasks.nets.anchors import anchors
from tasks.nets.complexity import count, layer_table
from tasks.nets.faster_rcnn import crop, level
from tasks.nets.frozen import FrozenBatchNorm
from tasks.optim import finish_gradient, flatten
from tasks.rules import RMSprop

pytestmark = pytest.mark.usefixtures("one_thread")
NETS = ("faster_rcnn_vgg", "faster_rcnn_inception_v2", "faster_rcnn_mobilenet")
FROZEN = NETS[1:]
INCEPTION_IS_SLOW = (pytest.param(NETS[1], marks=pytest.mark.slow), NETS[2])  # where its case takes a second
# Table 13: net, input side, billions of Mult-Adds, millions of parameters.
PUBLISHED = [
    (NETS[0], 300, 64.3, 138.5),
    (NETS[1], 300, 118.2, 13.3),
    (NETS[2], 300, 25.2, 6.1),
    (NETS[0], 600, 149.6, 138.5),
    (NETS[1], 600, 129.6, 13.3),
    (NETS[2], 600, 30.5, 6.1),
]
LAYERS_OF_MOBILENET = [  # stride and depth of the separable ones
    *((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512)),
    *((1, 512), (1, 512), (1, 512), (1, 512), (1, 512), (2, 1024), (1, 1024)),
]
COLOURS = {1: (1.0, -1.0, -1.0), 2: (-1.0, 1.0, -1.0), 4: (-0.5, -0.5, 1.0)}
SCENES = [
    [(0.1, 0.15, 0.5, 0.6, 1), (0.55, 0.5, 0.9, 0.85, 2)],
    [(0.3, 0.25, 0.8, 0.75, 4)],
]


# Fewer boxes than the recipe has, each of which goes through a large net.
FEW = {"proposals": 12, "second_stage_boxes": 4}


def meta(name, **options):
    with torch.device("meta"):
        return build(NetSpec(name, **{"num_classes": 91, **options}))


def imagenet(name):
    """The net that ImageNet trains, by its name."""
    return {"faster_rcnn_vgg": "vgg16"}.get(name, name.removeprefix("faster_rcnn_"))


def rpn(depth, side):
    """Weights and Mult-Adds of a 3x3 convolution to 512 and 12 anchors' two scores and four offsets."""
    weights = 9 * depth * 512 + 512 * 12 * (2 + 4)
    return weights, weights * side**2


def behind(features):
    """Weights of 91 scores and 90 classes' boxes."""
    return features * (91 + 90 * 4)


@pytest.mark.parametrize(("size", "mult_adds"), [(300, 25_224_412_096), (600, 30_493_700_224)])
def test_counts_of_mobilenet_by_arithmetic(size, mult_adds):
    side, depth = math.ceil(size / 2), 32
    weights = 27 * depth
    cost = weights * side**2
    for stride, after in LAYERS_OF_MOBILENET[:11]:
        side = math.ceil(side / stride)
        weights += (9 + after) * depth
        cost += (9 + after) * depth * side**2
        depth = after
    assert (depth, side) == (512, math.ceil(size / 16))
    both = (9 + 1024) * 512 + (9 + 1024) * 1024
    per_box = both * 7**2 + behind(1024)  # the first of the two halves 14x14
    assert per_box == 78_209_536
    proposing, proposing_cost = rpn(512, side)
    counted = count(meta(NETS[2]), size)
    assert counted.parameters == weights + proposing + both + behind(1024) == 6_043_072
    assert counted.mult_adds == cost + proposing_cost + 300 * per_box == mult_adds


@pytest.mark.parametrize(("size", "mult_adds"), [(300, 118_217_148_256), (600, 129_565_855_104)])
def test_counts_of_inception_v2_from_those_of_the_classifier(size, mult_adds):
    rows = {row.name: row for row in layer_table(meta("inception_v2"), size) if row.name.startswith("body.")}
    at_224 = {row.name: row for row in layer_table(meta("inception_v2"), 224)}  # there Mixed_5a sees 14x14, as in a box
    second = [name for name in rows if name.startswith("body.Mixed_5")]
    per_box = sum(at_224[name].mult_adds for name in second) + behind(1024)
    assert per_box == 162_570_240 + 106_774_528 + 111_541_248 + behind(1024) == 381_347_840
    side = math.ceil(size / 16)
    proposing, proposing_cost = rpn(576, side)
    counted = count(meta(NETS[1]), size)
    assert counted.parameters == sum(row.parameters for row in rows.values()) + proposing + behind(1024) == 13_296_280
    first = sum(row.mult_adds for name, row in rows.items() if name not in second)
    assert counted.mult_adds == first + proposing_cost + 300 * per_box == mult_adds


@pytest.mark.parametrize(("size", "mult_adds"), [(300, 64_304_090_112), (600, 149_540_339_712)])
def test_counts_of_vgg_by_arithmetic(size, mult_adds):
    weights = cost = 0
    before, sides = 3, [size >> halvings for halvings in (0, 1, 2, 3, 4)]  # pools round down
    for depth, side, layers in zip((64, 128, 256, 512, 512), sides, (2, 2, 3, 3, 3), strict=True):
        for _ in range(layers):
            weights += 9 * before * depth
            cost += 9 * before * depth * side**2
            before = depth
    per_box = 7 * 7 * 512 * 4096 + 4096 * 4096 + behind(4096)
    proposing, proposing_cost = rpn(512, size // 16)
    counted = count(meta(NETS[0]), size)
    assert counted.parameters == weights + proposing + per_box == 138_491_584
    assert counted.mult_adds == cost + proposing_cost + 300 * per_box == mult_adds


@pytest.mark.parametrize(("name", "size", "mult_adds", "parameters"), PUBLISHED)
def test_counts_round_to_the_published_figures(name, size, mult_adds, parameters):
    counted = count(meta(name), size)
    assert counted.mult_adds / 1e9 == pytest.approx(mult_adds, abs=0.06)  # VGG's 149.54 is printed 149.6
    assert counted.parameters / 1e6 == pytest.approx(parameters, abs=0.06)


def test_a_real_net_is_counted_as_one_without_contents():
    assert count(build(NetSpec(NETS[2], num_classes=91)), 300) == count(meta(NETS[2]), 300)


@pytest.mark.parametrize("size", [64, 75, 96, 150])
@pytest.mark.parametrize("name", NETS)
def test_small_images_have_as_many_proposals(name, size):
    outputs = meta(name, num_classes=7).outputs(torch.empty(2, 3, size, size, device="meta"))
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "logits": (2, 300, 7),
        "offsets": (2, 300, 6, 4),
        "proposals": (2, 300, 4),
    }


def test_vggs_smallest_input_is_the_smallest_of_which_a_map_is_left():
    smallest = MIN_INPUT_SIZE[NETS[0]]
    assert meta(NETS[0])(torch.empty(2, 3, smallest, smallest, device="meta")).shape == (2, 100, 6)
    with pytest.raises(RuntimeError):
        meta(NETS[0])(torch.empty(2, 3, smallest - 1, smallest - 1, device="meta"))
    with pytest.raises(ValueError, match="input size 15 is too small for faster_rcnn_vgg"):
        check_input_size(NETS[0], smallest - 1)


def test_anchors_are_the_published():
    """Scales .25, .5, 1 and 2 of 256 px, in the ratios .5, 1 and 2, around the middles of 16x16 px."""
    at_600 = anchors((level(600),), (38,), 600) * 600
    assert at_600.shape == (38 * 38 * 12, 4)
    cell = at_600[(2 * 38 + 5) * 12 :][:12]
    np.testing.assert_allclose((cell[:, :2] + cell[:, 2:]) / 2, np.tile([88, 40], (12, 1)), rtol=1e-5)
    sides = cell[:, 2:] - cell[:, :2]
    np.testing.assert_allclose(np.sqrt(sides.prod(axis=1)), np.repeat([64, 128, 256, 512], 3), rtol=1e-5)
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], np.tile([0.5, 1, 2], 4), rtol=1e-4)


def test_anchors_are_in_pixels_from_300_on_and_below_it_shrink_with_the_image():
    pixels = [anchors((level(size),), (2,), size) * size for size in (300, 450, 600)]
    np.testing.assert_allclose(pixels[0], pixels[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pixels[0], pixels[2], rtol=1e-4, atol=1e-4)
    assert level(300) == level(75) == level(150)  # in units of the side
    assert {shape.width for shape in level(100).shapes[1::3]} == {64 / 300, 128 / 300, 256 / 300, 512 / 300}


def crop_and_resize(image, box, size):
    """TensorFlow's rule for one box of an image (C, H, W), written point by point."""
    channels, height, width = image.shape
    x1, y1, x2, y2 = box
    found = np.zeros((channels, size, size))
    for row in range(size):
        for column in range(size):
            y = y1 * (height - 1) + row * (y2 - y1) * (height - 1) / (size - 1)
            x = x1 * (width - 1) + column * (x2 - x1) * (width - 1) / (size - 1)
            top, left = int(np.floor(y)), int(np.floor(x))
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
            lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
            found[:, row, column] = upper * (1 - y + top) + lower * (y - top)
    return found


def test_crops_are_tensorflows():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 7, 7)
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.1, 0.3, 0.45, 0.9]], [[0.7, 0.0, 1.0, 0.2], [0.0, 0.0, 0.0, 0.0]]])
    found = crop(maps, boxes)
    assert found.shape == (4, 3, 14, 14)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for place in range(4):
        expected = crop_and_resize(maps[place // 2].numpy(), boxes[place // 2, place % 2].tolist(), 14)
        np.testing.assert_allclose(found[place], expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("name", FROZEN)
def test_the_two_stages_one_behind_the_other_are_the_imagenet_net(name, padding):
    torch.manual_seed(0)
    classifier = build(NetSpec(imagenet(name), num_classes=3, padding=padding, batch_norm_decay=0.0))
    pictures = torch.rand(2, 3, 80, 80) * 2 - 1
    classifier(pictures)  # for statistics, without which nothing arrives
    net = build(NetSpec(name, num_classes=3, padding=padding))
    net.body.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("classifier")})
    with torch.no_grad():
        maps = classifier.eval().features(pictures)
        found = net.first(net.body, pictures)
        wanted = maps["conv11" if "mobilenet" in name else "Mixed_4e"]
        torch.testing.assert_close(found, wanted)
        assert wanted.std() > 0.1
        last = maps["conv13" if "mobilenet" in name else "Mixed_5c"].mean(dim=(2, 3))
        torch.testing.assert_close(net.second(net.body, found), last)


@pytest.mark.slow
def test_vggs_two_stages_one_behind_the_other_are_the_imagenet_net():
    """On features of its own kind: 14x14 before the last pool."""
    torch.manual_seed(0)
    net = build(NetSpec(NETS[0], num_classes=3, dropout=0.5)).eval()
    classifier = meta("vgg16", num_classes=3, dropout=0.5)
    classifier.classifier[6] = nn.Identity()
    classifier.load_state_dict(net.body.state_dict(), assign=True)
    pictures = torch.rand(1, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        found = net.first(net.body, pictures)
        assert found.shape == (1, 512, 14, 14)
        torch.testing.assert_close(net.second(net.body, found), classifier.eval()(pictures), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_below_its_body_are_the_names_of_the_net_that_imagenet_trains(name):
    theirs, ours = meta(imagenet(name)).state_dict(), meta(name).body.state_dict()
    last = "classifier.6" if name == "faster_rcnn_vgg" else "classifier"
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items() if not key.startswith(last)
    }


def with_statistics(name, pictures, **options):
    """A net whose BatchNorm is that of an ImageNet net which has seen these pictures."""
    classifier = build(NetSpec(imagenet(name), num_classes=3, batch_norm_decay=0.0))
    with torch.no_grad():
        classifier(pictures)
    net = build(NetSpec(name, num_classes=5, **options))
    net.body.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("classifier")})
    return net


@pytest.mark.parametrize("name", FROZEN)
def test_every_batch_norm_is_frozen(name):
    norms = [layer for layer in meta(name).modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) > 20
    assert all(isinstance(layer, FrozenBatchNorm) and layer.eps == 0.001 for layer in norms)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in meta(NETS[0]).modules())


def test_a_step_moves_everything_but_batch_norm():
    torch.manual_seed(0)
    net = with_statistics(NETS[2], drawn(64)[0], **FEW).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    flat = flatten(net)
    sum(net.losses(*drawn(64)).values()).backward()
    finish_gradient(flat, weight_decay=0.1, clip_norm=10.0)
    rule = RMSprop(decay=0.9, momentum=0.9, epsilon=1.0)
    rule.update(flat.weights, flat.gradient, rule.slots(flat.weights), 0.01)
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "norm" not in key}


def test_an_anchors_outputs_depend_on_the_cells_around_it():
    """Rows, cells and shapes are in one order. Where maps lie is what the test of the two stages says."""
    net = build(NetSpec(NETS[2], num_classes=3))
    maps = torch.zeros(1, 512, 10, 10)
    net.first = lambda body, images: maps
    pictures = torch.zeros(1, 3, 160, 160)
    with torch.no_grad():
        _, logits, offsets, boxes = net._first_stage(pictures)
        maps[0, :, 2, 7] = 1.0
        moved = net._first_stage(pictures)
        assert (logits != moved[1]).any(dim=-1).equal((offsets != moved[2]).any(dim=-1))
        middles = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
        near = ((middles - torch.tensor([0.75, 0.25])).abs() < 0.11).all(dim=-1)  # 0.1 is a cell
        assert near.sum() == 9 * 12
        assert torch.equal((logits != moved[1])[0].any(dim=-1), near)
        for layer in (net.rpn_logits, net.rpn_offsets):
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(len(layer.bias)))
        _, logits, offsets, _ = net._first_stage(pictures)
    assert torch.equal(logits[0, 12:24].flatten(), torch.arange(24.0))
    assert torch.equal(offsets[0, 12:24].flatten(), torch.arange(48.0))


@pytest.mark.parametrize("name", INCEPTION_IS_SLOW)
def test_an_image_gives_the_same_alone_and_in_a_batch(name):
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 80, 80) * 2 - 1
    net = with_statistics(name, pictures, **FEW).eval()
    with torch.no_grad():
        together = net(pictures)
        for image in range(3):
            (alone,) = net(pictures[image : image + 1])
            assert 12 <= (alone[:, 5] > 0).sum() <= 48
            assert torch.equal(alone[:, 5], together[image, :, 5])
            torch.testing.assert_close(alone, together[image], atol=1e-5, rtol=1e-4)


def found_in(detections):
    """The rows of an image that are no filling, by what they say."""
    kept = detections[detections[:, 5] > 0]
    return {"boxes": kept[:, :4], "scores": kept[:, 4], "labels": kept[:, 5].long()}


def outputs_of(wanted, classes=5):
    """Raw outputs that say `wanted`, objects (proposal, box, label), surer of the first, and background elsewhere."""
    places = torch.zeros(1, 300, 4)
    places[0, :20] = torch.tensor([0.2, 0.2, 0.6, 0.6])
    logits = torch.full((1, 300, classes), -4.0)
    logits[..., 0] = 4.0
    offsets = torch.zeros(1, 300, classes - 1, 4)
    for place, box, label in wanted:
        logits[0, place, 0] = -4.0
        logits[0, place, label] = 4.0 - place / 10
        offsets[0, place, label - 1] = encode(torch.tensor(box), places[0, place])
    return {"logits": logits, "offsets": offsets, "proposals": places}


def test_detections_are_what_the_outputs_say():
    net = meta(NETS[2], num_classes=5, score_threshold=0.5)
    wanted = [
        (3, [0.1, 0.2, 0.5, 0.6], 4),
        (4, [0.1, 0.2, 0.5, 0.61], 4),  # suppressed by the one before
        (5, [0.1, 0.2, 0.5, 0.62], 1),  # another class is not
        (9, [-0.2, 0.5, 0.3, 1.4], 2),  # cut at the image's edges
        (12, [1.1, 1.1, 1.4, 1.4], 3),  # outside
    ]
    outputs = outputs_of(wanted)
    outputs["logits"][0, 200] = torch.tensor([-4.0, 4.0, -4.0, -4.0, -4.0])  # a place that no proposal fills
    found = found_in(net.detect(outputs)[0])
    assert found["labels"].tolist() == [4, 1, 2]
    expected = torch.tensor([wanted[0][1], wanted[2][1], [0.0, 0.5, 0.3, 1.0]])
    torch.testing.assert_close(found["boxes"], expected, atol=1e-5, rtol=0)
    two = meta(NETS[2], num_classes=5, score_threshold=0.5, max_detections=2)
    assert two.detect(outputs)[0, :, 5].tolist() == [4, 1]
    found = found_in(net.detect(outputs_of([(0, [0.1, 0.2, 0.5, 0.6], 3)]))[0])
    shares = torch.tensor([-4.0, -4.0, -4.0, 4.0, -4.0]).softmax(0)
    torch.testing.assert_close(found["scores"], shares[3:4])


@pytest.mark.parametrize("objects", [0, 3])
@pytest.mark.parametrize("name", INCEPTION_IS_SLOW)
def test_losses_are_finite_and_reach_every_weight_that_learns(name, objects):
    torch.manual_seed(0)
    pictures, targets = drawn(64)
    net = with_statistics(name, pictures, **FEW)
    if objects:
        targets["crowd"][1] = True
    losses = net.losses(pictures, {key: value[:, :objects] for key, value in targets.items()})
    assert losses.keys() == {"rpn_classification", "rpn_localisation", "classification", "localisation"}
    assert losses["rpn_classification"] > 0
    assert losses["classification"] > 0
    assert (losses["rpn_localisation"] > 0) == bool(objects)
    sum(losses.values()).backward()
    assert all(value.grad.isfinite().all() for value in net.parameters() if value.requires_grad)
    still = {key for key, value in net.named_parameters() if value.requires_grad and not value.grad.any()}
    assert all("offsets" in key for key in still)
    assert objects == 0 or not any(key.startswith("rpn") for key in still)


def test_losses_are_repeated_by_a_seed():
    torch.manual_seed(0)
    pictures, targets = drawn(64)
    net = with_statistics(NETS[2], pictures, **FEW)
    both = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        both.append(torch.stack(list(net.losses(pictures, targets).values())))
    assert torch.equal(both[0], both[1])
    assert not torch.equal(both[0], both[2])


def test_predictors_start_as_tensorflows():
    torch.manual_seed(0)
    net = build(NetSpec(NETS[2], num_classes=91))
    for layer in (net.rpn[0], net.rpn_logits, net.rpn_offsets):
        assert layer.weight.abs().max() <= 0.02
        assert layer.weight.std().item() == pytest.approx(0.01 * 0.8796, rel=0.02)  # of what is left at two deviations
    for layer in (net.logits, net.offsets):
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / sum(layer.weight.shape)), rel=0.01)
    assert not any(value.any() for key, value in net.named_parameters() if key.endswith("bias"))


def test_images_that_are_not_square_and_a_width_are_refused():
    with pytest.raises(ValueError, match="images are 80x64; Faster R-CNN takes square ones"):
        meta(NETS[2])(torch.empty(2, 3, 64, 80, device="meta"))
    for name in NETS:
        with pytest.raises(ValueError, match=rf"width is 0\.5; {name} has no width multiplier"):
            build(NetSpec(name, width=0.5))


def drawn(size):
    """Two images of coloured boxes on dull noise, and their targets."""
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    boxes, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    for image, objects in enumerate(SCENES):
        for place, (x1, y1, x2, y2, label) in enumerate(objects):
            boxes[image, place], labels[image, place] = torch.tensor([x1, y1, x2, y2]), label
            left, top, right, bottom = (round(side * size) for side in (x1, y1, x2, y2))
            pictures[image, :, top:bottom, left:right] = torch.tensor(COLOURS[label])[:, None, None]
    return pictures, {"boxes": boxes, "labels": labels, "crowd": torch.zeros(2, 3, dtype=torch.bool)}
