"""Each detector learns a batch by heart: losses, boxes and scores mean the same things."""

import pytest
import torch

from tasks.augment import normalise
from tasks.base import Batch, TestSet, View
from tasks.detection import OBJECT_DETECTION, DetectionAP, collator, num_outputs
from tasks.nets import NetSpec, build

DRAWN = ("1 red box", "2 green box", "4 blue box")


def thing(category, box, crowd=False):
    return {"category": category, "box": box, "crowd": crowd}


def drawn(size):
    """Two pictures of coloured boxes on dull noise, their targets, and a third with a crowd alone."""
    scenes = [
        [thing(1, [0.1, 0.15, 0.4, 0.45]), thing(2, [0.55, 0.5, 0.35, 0.35])],
        [thing(4, [0.3, 0.25, 0.5, 0.5])],
        [thing(1, [0.2, 0.2, 0.4, 0.4], crowd=True)],
    ]
    colours = {1: (255, 0, 0), 2: (0, 255, 0), 4: (60, 60, 255)}
    images = torch.randint(100, 156, (3, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = []
    for image, things in enumerate(scenes):
        for one in things:
            one["box"] = [side * size for side in one["box"]]
            left, top, width, height = map(round, one["box"])
            one["area"] = one["box"][2] * one["box"][3]
            images[image, top : top + height, left : left + width] = torch.tensor(
                colours[one["category"]], dtype=torch.uint8
            )
        samples.append({"image_id": image + 1, "objects": things, "view": View((0, 0, size, size), flipped=False)})
    return images, samples


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "size", "steps", "rate"),
    [
        pytest.param("ssd300_vgg", 64, 80, 4e-4, marks=pytest.mark.long),
        pytest.param("ssd300_inception_v2", 64, 150, 2e-3, marks=pytest.mark.long),
        pytest.param("ssd300_mobilenet", 96, 150, 2e-3, marks=pytest.mark.slow),
        pytest.param("faster_rcnn_vgg", 64, 110, 3e-4, marks=pytest.mark.long),  # 138 million weights to update
        pytest.param("faster_rcnn_inception_v2", 80, 80, 4e-4, marks=pytest.mark.long),
        pytest.param("faster_rcnn_mobilenet", 96, 100, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_a_batch_is_learned_by_heart(name, size, steps, rate):
    """Until its AP is above .9, seen as in training: of three maps of 1x1 BatchNorm's running variance is another.

    Faster R-CNN has fewer boxes than the recipe.
    """
    torch.manual_seed(0)
    images, samples = drawn(size)
    batch = Batch(images, torch.empty(0, 4), collator(DRAWN)(samples))
    net = build(
        NetSpec(
            name, num_classes=num_outputs(DRAWN), batch_norm_decay=0.8, proposals=64, second_stage_boxes=16, dropout=0.0
        )
    ).to(memory_format=torch.channels_last)
    if name in ("faster_rcnn_inception_v2", "faster_rcnn_mobilenet"):  # whose BatchNorm is frozen
        classifier = build(NetSpec(name.removeprefix("faster_rcnn_"), num_classes=3, batch_norm_decay=0.0))
        with torch.no_grad():
            classifier(normalise(images))
        state = {key: value for key, value in classifier.state_dict().items() if not key.startswith("classifier")}
        net.body.load_state_dict(state)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        parts = OBJECT_DETECTION.run(net, normalise(images), batch.targets)
        OBJECT_DETECTION.loss(parts, batch.targets).backward()
        optimizer.step()
        schedule.step()
    evaluator = DetectionAP(TestSet(DRAWN))
    with torch.no_grad():
        evaluator.update(net(normalise(images)), batch.targets)
    assert evaluator.compute().metrics["ap"] > 0.9
