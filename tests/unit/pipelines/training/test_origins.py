"""Weights to start from: what is taken over, and what is refused before anything is trained."""

import os
from dataclasses import replace
from random import Random

import pytest
import torch

from pipelines.training.job import net_spec
from pipelines.training.loop import WEIGHTS, train_local
from pipelines.training.origins import Initial, Origin, heads_of, initial, initialise, load_weights
from tasks.nets import CLASSIFIERS, DETECTORS, NetSpec, build

SPEC = NetSpec("mobilenet", width=0.25, num_classes=3)


@pytest.fixture
def run(make_job):
    return make_job().run


@pytest.fixture
def origin(tmp_path):
    torch.manual_seed(11)
    net = build(SPEC)
    net(torch.rand(4, 3, 32, 32))  # moves the statistics
    torch.save(net.state_dict(), tmp_path / "one.pt")
    return Origin("one", tmp_path / "one.pt", SPEC, None, ("a", "b", "c"))


def file_of(origin, path, **changes):
    """A file of the origin's weights, some replaced; a tensor that is None is left out."""
    state = {**torch.load(origin.weights, weights_only=True), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return Origin(str(path), path)


def started(start, spec=SPEC):
    net = build(spec)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    initialise(net, start)
    return net.state_dict(), before


@pytest.mark.parametrize(
    ("classes", "keeps"), [(["a", "b", "c"], True), (["a", "c", "b"], False), (["x", "y", "z"], False)]
)
def test_the_last_layer_is_kept_for_the_same_classes_in_the_same_order(run, origin, classes, keeps):
    start = initial(run, SPEC, classes, origin)
    assert start.keep_head is keeps
    state, before = started(start)
    taken = torch.load(origin.weights, weights_only=True)
    for name, value in state.items():
        source = before if name.startswith("classifier.") and not keeps else taken
        assert torch.equal(value, source[name]), name
    assert not torch.equal(state["body.conv0.norm.running_mean"], torch.zeros(8))


def test_other_classes_get_a_fresh_last_layer_of_their_own_size(run, origin):
    spec = replace(SPEC, num_classes=5)
    start = initial(run, spec, list("vwxyz"), origin)
    state, before = started(start, spec)
    assert torch.equal(state["classifier.weight"], before["classifier.weight"])
    assert torch.equal(
        state["body.conv3.pointwise.weight"],
        torch.load(origin.weights, weights_only=True)["body.conv3.pointwise.weight"],
    )


def test_of_a_file_the_last_layer_is_kept_where_it_fits_or_may_be_absent(run, origin, tmp_path):
    whole = file_of(origin, tmp_path / "whole.pt")
    assert initial(run, SPEC, ["q", "r", "s"], whole).keep_head
    assert not initial(run, replace(SPEC, num_classes=4), list("qrst"), whole).keep_head
    body = file_of(origin, tmp_path / "body.pt", **{"classifier.weight": None, "classifier.bias": None})
    assert not initial(run, SPEC, ["q", "r", "s"], body).keep_head


def test_what_does_not_fit_is_named(run, origin, tmp_path):
    where = f"run {run.name}: init_from"
    with pytest.raises(
        ValueError, match=f"{where} one: 'body.conv0.conv.weight' is .8, 3, 3, 3., it must be .16, 3, 3"
    ):
        initial(run, replace(SPEC, width=0.5), "abc", origin)
    with pytest.raises(ValueError, match=f"{where} one has 'body.conv0.*', which alexnet of width 1.0 has not"):
        initial(run, NetSpec("alexnet", num_classes=3), "abc", origin)
    name = "body.conv2.pointwise_norm.running_var"
    with pytest.raises(ValueError, match=f"{where} .*less.pt: '{name}' is absent, it must be"):
        initial(run, SPEC, "abc", file_of(origin, tmp_path / "less.pt", **{name: None}))
    with pytest.raises(ValueError, match=f"{where} .*more.pt has 'extra', which mobilenet of width 0.25 has not"):
        initial(run, SPEC, "abc", file_of(origin, tmp_path / "more.pt", extra=torch.zeros(1)))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"], ids=["empty", "text", "cut"])
def test_a_file_that_holds_no_weights_is_named(run, tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^run {run.name}: init_from .*bad\.pt holds no weights: .+$"):
        initial(run, SPEC, "abc", Origin("bad.pt", tmp_path / "bad.pt"))


class Intruder:
    """Its pickle makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_file_of_something_else_is_named_and_not_run(run, tmp_path):
    path, made = tmp_path / "else.pt", tmp_path / "made"
    for content in ([1, 2], None, {"state": {}}, {1: torch.zeros(1)}, {"a": Intruder(made)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"init_from .*else\.pt holds no weights: ") as error:
            initial(run, SPEC, "abc", Origin("else.pt", path))
        assert "\n" not in str(error.value)
    assert not made.exists()


def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path):
    """Cut anywhere, or with any one bit turned: torch itself reads most of these, with other numbers in them."""
    whole, path, random = {"a": torch.arange(300.0), "b": torch.ones(2, 3)}, tmp_path / "bad.pt", Random(1)
    torch.save(whole, path)
    content = path.read_bytes()
    refused = 0
    for trial in range(300):
        damaged = bytearray(content)
        damaged[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged if trial % 2 else content[: random.randrange(len(content))])
        try:
            read = load_weights(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path} holds no weights: ")
            assert "\n" not in str(error)
        else:
            assert all(torch.equal(read[name], value) for name, value in whole.items())
    assert refused > 200


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_last_layer_is_what_depends_on_the_number_of_classes(name):
    with torch.device("meta"):
        net, other = (build(NetSpec(name, num_classes=classes)).state_dict() for classes in (7, 9))
        head = heads_of(build(NetSpec(name)))
    assert {key for key in net if net[key].shape != other[key].shape} == {key for key in net if key.startswith(head)}


def test_a_run_begins_where_its_origin_ended(make_job, origin):
    """At a rate that moves nothing, and with statistics that stay, all comes out as it went in."""
    still = {"optimizer": {"learning_rate": 1e-12, "weight_average": None}, "net_options": {"batch_norm_decay": 1.0}}
    job = make_job(initial=Initial(origin.weights, True), **still)
    assert net_spec(job.run, 3).width == SPEC.width
    train_local(job)
    one, other = (torch.load(path, weights_only=True) for path in (job.folder / WEIGHTS, origin.weights))
    for name in [name for name, value in one.items() if value.is_floating_point()]:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-8)


def test_a_fresh_last_layer_is_the_one_that_the_run_would_have_without_an_origin(make_job, origin):
    still = {"optimizer": {"learning_rate": 1e-12, "weight_average": None}}
    jobs = [make_job(initial=start, **still) for start in (Initial(origin.weights, False), None)]
    for job in jobs:
        train_local(job)
    one, other = (torch.load(job.folder / WEIGHTS, weights_only=True) for job in jobs)
    torch.testing.assert_close(one["classifier.weight"], other["classifier.weight"], rtol=0, atol=1e-8)
    assert not torch.allclose(one["body.conv0.conv.weight"], other["body.conv0.conv.weight"])


def test_what_is_frozen_is_left_as_it_was_and_all_else_is_trained(make_job, origin):
    frozen = ("body.conv0.", "body.conv1.")
    job = make_job(initial=Initial(origin.weights, True), init_from="one", frozen=frozen)
    train_local(job)
    one, other = (torch.load(path, weights_only=True) for path in (job.folder / WEIGHTS, origin.weights))
    parameters = {name for name, _ in build(SPEC).named_parameters()}
    kept = {name for name in parameters if torch.equal(one[name], other[name])}
    assert kept == {name for name in parameters if name.startswith(frozen)}


@pytest.mark.parametrize(
    ("key", "value"), [("padding", "symmetric"), ("activation", "relu"), ("batch_norm_epsilon", 0.01)]
)
def test_weights_of_another_way_of_computing_are_refused(run, origin, key, value):
    with pytest.raises(ValueError, match=f"was trained with {key} .*, the run has {value}"):
        initial(run, replace(SPEC, **{key: value}), "abc", origin)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_heads_are_what_depends_on_the_number_of_classes(name):
    with torch.device("meta"):
        net, other = (build(NetSpec(name, num_classes=classes)).state_dict() for classes in (7, 9))
        head = heads_of(build(NetSpec(name)))
    assert {key for key in net if net[key].shape != other[key].shape} <= {key for key in net if key.startswith(head)}


DETECTOR = NetSpec("ssd300_mobilenet", num_classes=91)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A MobileNet of full width, trained for other classes than a detector finds."""
    torch.manual_seed(12)
    net, path = build(NetSpec("mobilenet", num_classes=5)), tmp_path_factory.mktemp("classifier") / "weights.pt"
    with torch.no_grad():
        net(torch.rand(4, 3, 32, 32))
    torch.save(net.state_dict(), path)
    return Origin("imagenet_run", path, NetSpec("mobilenet", num_classes=5), None, tuple("abcde"))


@pytest.mark.parametrize("net", ["ssd300_mobilenet", "faster_rcnn_mobilenet"])
@pytest.mark.parametrize("is_file", [False, True])
def test_a_detector_takes_a_classifiers_body_and_keeps_the_rest_as_it_is(run, classifier, net, is_file):
    spec = replace(DETECTOR, net=net)
    start = initial(run, spec, ["1 a"], Origin("weights.pt", classifier.weights) if is_file else classifier)
    assert start == Initial(classifier.weights, keep_head=False, into="body.")
    state, before = started(start, spec)
    taken = torch.load(classifier.weights, weights_only=True)
    for name, value in state.items():
        expected = taken[name.removeprefix("body.")] if name.startswith("body.") else before[name]
        assert torch.equal(value, expected), name
    assert {name.removeprefix("body.") for name in state if name.startswith("body.")} == {
        name for name in taken if not name.startswith("classifier.")
    }


@pytest.mark.parametrize(("classes", "keeps"), [(["1 a", "90 b"], True), (["2 a", "90 b"], False)])
def test_a_detector_starts_from_a_detector_whole_or_but_for_what_is_of_classes(run, tmp_path, classes, keeps):
    torch.manual_seed(13)
    path = tmp_path / "weights.pt"
    torch.save(build(DETECTOR).state_dict(), path)
    start = initial(run, DETECTOR, classes, Origin("other", path, DETECTOR, None, ("1 a", "90 b")))
    assert start == Initial(path, keep_head=keeps)
    state, before = started(start, DETECTOR)
    taken = torch.load(path, weights_only=True)
    for name, value in state.items():
        fresh = name.startswith(("logits.", "offsets.")) and not keeps
        assert torch.equal(value, (before if fresh else taken)[name]), name


@pytest.mark.parametrize("is_file", [False, True])
def test_a_detector_takes_the_body_of_another_kind_of_detector(run, tmp_path, is_file):
    torch.manual_seed(14)
    path, spec = tmp_path / "weights.pt", replace(DETECTOR, net="faster_rcnn_mobilenet")
    torch.save(build(DETECTOR).state_dict(), path)
    origin = Origin("other", path) if is_file else Origin("other", path, DETECTOR, None, ("1 a", "90 b"))
    start = initial(run, spec, ["1 a", "90 b"], origin)
    assert start == Initial(path, keep_head=False, into="body.", part="body.")
    state, before = started(start, spec)
    taken = torch.load(path, weights_only=True)
    assert {name for name in taken if name.startswith("body.")} == {name for name in state if name.startswith("body.")}
    for name, value in state.items():
        assert torch.equal(value, (taken if name.startswith("body.") else before)[name]), name


@pytest.mark.slow
def test_ssd_takes_vggs_fully_connected_layers_beside_its_body_and_refuses_other_ones(run, tmp_path):
    torch.manual_seed(15)
    spec, path = NetSpec("ssd300_vgg", num_classes=5), tmp_path / "vgg.pt"
    taken = build(NetSpec("vgg16", num_classes=3)).state_dict()
    torch.save(taken, path)
    state, before = started(initial(run, spec, ["1 a"], Origin("vgg", path)), spec)
    assert torch.equal(state["necks.1.1.bias"], taken["classifier.0.bias"][::4])
    assert torch.equal(state["necks.1.3.weight"][..., 0, 0], taken["classifier.3.weight"][::4, ::4])
    assert torch.equal(state["body.features.28.weight"], taken["features.28.weight"])
    assert torch.equal(state["added.0.0.weight"], before["added.0.0.weight"])
    torch.save({**taken, "classifier.0.bias": torch.zeros(7)}, path)
    with pytest.raises(ValueError, match=f"{run.name}: init_from vgg: 'classifier.0.bias' is .7,., it must be .4096,."):
        initial(run, spec, ["1 a"], Origin("vgg", path))


def test_a_body_that_is_not_the_detectors_is_refused(run, classifier, origin):
    where = f"run {run.name}: init_from"
    with pytest.raises(ValueError, match=f"{where} imagenet_run: 'body.Conv2d_1a_7x7.depthwise.weight' is absent"):
        initial(run, replace(DETECTOR, net="faster_rcnn_inception_v2"), ["1 a"], classifier)
    with pytest.raises(
        ValueError, match=f"{where} one: 'body.conv0.conv.weight' is .8, 3, 3, 3., it must be .32, 3, 3"
    ):
        initial(run, DETECTOR, ["1 a"], origin)
    with pytest.raises(ValueError, match="imagenet_run was trained with padding same, the run has symmetric"):
        initial(run, replace(DETECTOR, padding="symmetric"), ["1 a"], classifier)
    other = replace(DETECTOR, net="faster_rcnn_inception_v2")
    with pytest.raises(ValueError, match=f"{where} detector: 'body.conv0.conv.weight' is absent"):
        initial(run, DETECTOR, ["1 a"], Origin("detector", classifier.weights, other))


@pytest.mark.parametrize("name", ["added.0.0.weight", "body.body.conv0.conv.weight"])
def test_a_detector_that_lacks_something_is_refused_and_not_taken_for_another_kind(run, tmp_path, name):
    path, state = tmp_path / "weights.pt", build(DETECTOR).state_dict()
    del state[name]
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"init_from {path}: '{name}' is absent"):
        initial(run, DETECTOR, ["1 a"], Origin(str(path), path))
