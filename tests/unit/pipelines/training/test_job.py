"""What a run's values become for the processes that train it: its update rule and its learning rate."""

from dataclasses import fields, replace
from typing import get_args

import pytest

from pipelines.training.job import RULES, check_kind, net_spec
from pipelines.training.run import AdagradUpdates, MomentumUpdates, Optimizer, RMSpropUpdates, Run, Updates
from tasks.rules import Adagrad, Momentum, RMSprop

AROUND = {"learning_rate": 0.1, "weight_decay": 0.01, "clip_norm": 10.0, "weight_average": 0.99}
CASES = [
    (RMSpropUpdates(rule="rmsprop", decay=0.9, momentum=0.8, epsilon=0.5, **AROUND), RMSprop(0.9, 0.8, 0.5)),
    (AdagradUpdates(rule="adagrad", initial_accumulator=0.2, **AROUND), Adagrad(0.2)),
    (MomentumUpdates(rule="momentum", momentum=0.7, **AROUND), Momentum(0.7)),
]


@pytest.mark.parametrize(("updates", "rule"), CASES, ids=lambda value: type(value).__name__)
def test_the_rule_is_that_of_the_values(make_job, updates, rule):
    job = make_job()
    job = replace(job, run=job.run.model_copy(update={"optimizer": updates}))
    assert job.rule == job.servers.rule == rule
    assert job.learning_rate(0) == 0.1


def test_every_rule_has_values_of_its_names():
    sections = get_args(get_args(Optimizer)[0])
    assert {get_args(section.model_fields["rule"].annotation)[0] for section in sections} == RULES.keys()
    for section in sections:
        (name,) = get_args(section.model_fields["rule"].annotation)
        own = section.model_fields.keys() - Updates.model_fields.keys() - {"rule"}
        assert own == {field.name for field in fields(RULES[name])}


@pytest.mark.parametrize(("workers", "per_epoch"), [({}, 12), ({"kind": "ddp", "num_workers": 2}, 6)])
def test_epochs_become_steps(make_job, workers, per_epoch):
    """96 images, 8 at a time on each of the workers."""
    every = make_job(**workers, schedule={"decay_rate": 0.5, "decay_epochs": 1.5}).learning_rate
    assert every.steps == 1.5 * per_epoch
    listed = make_job(
        **workers, schedule={"decay_rate": 0.1, "decay_epochs": [1, 2.5], "warmup_steps": 2}
    ).learning_rate
    assert listed.steps == (per_epoch, 2.5 * per_epoch)
    assert (listed.initial, listed.rate, listed.warmup) == (0.1, 0.1, 2)
    steps = [0, per_epoch - 1, per_epoch, 2.5 * per_epoch - 1, 2.5 * per_epoch]
    assert [listed(step) for step in steps] == pytest.approx([0.05, 0.1, 0.01, 0.01, 0.001])


BOXES = {"proposals": 8, "second_stage_boxes": 4, "score_threshold": 0.1, "nms_iou": 0.5, "max_detections": 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": "ssd300_mobilenet"}, "net is 'ssd300_mobilenet'; task imagenet needs one of: alexnet, "),
        (
            {"task": "object_detection"},
            "net is 'mobilenet'; task object_detection needs one of: faster_rcnn_inception_v2, ",
        ),
        ({"detection": BOXES}, "detection must be null: mobilenet is a classifier"),
        (
            {"task": "object_detection", "net": "ssd300_vgg"},
            "detection must be given: ssd300_vgg is a detector",
        ),
        (
            {"task": "object_detection", "net": "ssd300_vgg", "detection": BOXES, "teacher": "other"},
            "teacher is other; a detector learns from boxes, so it must be null",
        ),
    ],
)
def test_nets_are_of_the_kind_that_their_task_needs(make_job, changes, message):
    values = make_job().run.model_dump()
    check_kind(Run.model_validate(values))
    with pytest.raises(ValueError, match=message):
        check_kind(Run.model_validate({**values, **changes}))


def test_a_detectors_net_knows_its_boxes_and_what_is_shown_of_them_is_no_part_of_its_identity(make_job):
    values = {**make_job().run.model_dump(), "task": "object_detection", "net": "ssd300_vgg", "detection": BOXES}
    run = Run.model_validate(values)
    spec = net_spec(run, 91)
    assert {key: getattr(spec, key) for key in BOXES} == BOXES
    for key, value in {"score_threshold": 0.2, "nms_iou": 0.3, "max_detections": 9}.items():
        other = Run.model_validate({**values, "detection": {**BOXES, key: value}})
        assert other.identity() == run.identity()
    for key in ("proposals", "second_stage_boxes"):
        other = Run.model_validate({**values, "detection": {**BOXES, key: 9}})
        assert other.identity() != run.identity()


def test_workers_that_may_join_have_their_places_in_the_data_and_claim_nothing_of_a_cluster(make_job):
    run = make_job(kind="async", num_workers=2, extra_workers=3).run
    assert run.world == 5
    assert run.bundles == make_job(kind="async", num_workers=2).run.bundles
    with pytest.raises(ValueError, match="extra_workers is 1; kind ddp has none"):
        make_job(kind="ddp", num_workers=2, extra_workers=1)


def test_what_is_dealt_makes_another_run_where_it_is_said_and_none_where_it_is_not(make_job):
    run = make_job().run
    assert "deal" not in run.identity()
    assert Run.model_validate(run.model_dump(exclude={"deal"})).identity() == run.identity()
    assert make_job(deal="shards").run.identity() == {**run.identity(), "deal": "shards"}
    with pytest.raises(ValueError, match="deal is shards; with images_per_identity people are dealt, use samples"):
        make_job(deal="shards", images_per_identity=2)


def test_what_is_frozen_makes_another_run_and_needs_weights_to_keep(make_job):
    run = make_job(init_from="other").run
    assert "frozen" not in run.identity()
    frozen = ("body.conv0.",)
    assert make_job(init_from="other", frozen=frozen).run.identity() == {**run.identity(), "frozen": frozen}
    with pytest.raises(ValueError, match="frozen is body.conv0.; without init_from there is nothing to keep"):
        make_job(frozen=frozen)


def test_where_images_are_decoded_makes_another_run_and_a_gpu_needs_one(make_job):
    run = make_job().run
    assert "decode" not in run.identity()
    assert Run.model_validate(run.model_dump(exclude={"decode"})).identity() == run.identity()
    assert make_job(decode="gpu", worker_gpus=1).run.identity() == {**run.identity(), "decode": "gpu"}
    with pytest.raises(ValueError, match="decode is gpu, but worker_gpus is 0: use cpu, or give workers a GPU"):
        make_job(decode="gpu", worker_gpus=0)


def test_how_many_gradients_that_are_not_finite_are_borne_is_told_to_the_servers_and_makes_no_other_run(make_job):
    one, other = make_job(max_not_finite=3), make_job()
    assert (one.servers.max_not_finite, other.servers.max_not_finite) == (3, 10)
    assert one.run.identity() == other.run.identity()
