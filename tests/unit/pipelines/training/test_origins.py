"""Weights to start from: what is taken over, and what is refused before anything is trained."""

from dataclasses import replace

import pytest
import torch

from pipelines.training.job import net_spec
from pipelines.training.loop import WEIGHTS, train_local
from pipelines.training.origins import Initial, Origin, head_of, initial, initialise
from tasks.nets import NetSpec, build

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
    with pytest.raises(ValueError, match=r"bad\.pt holds no weights"):
        initial(run, SPEC, "abc", Origin("bad.pt", tmp_path / "bad.pt"))


def test_a_file_of_something_else_is_named(run, tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds no weights"):
        initial(run, SPEC, "abc", Origin("list.pt", tmp_path / "list.pt"))


@pytest.mark.parametrize(
    ("net", "head"), [("mobilenet", "classifier."), ("squeezenet", "classifier.1."), ("vgg16", "classifier.6.")]
)
def test_the_last_layer_of_each_net(net, head):
    with torch.device("meta"):
        assert head_of(build(NetSpec(net))) == head


def test_a_run_begins_where_its_origin_ended(make_job, origin):
    """At a rate that moves nothing, the weights come out as they went in."""
    job = make_job(initial=Initial(origin.weights, True), optimizer={"learning_rate": 1e-12, "weight_average": None})
    assert net_spec(job.run, 3).width == SPEC.width
    train_local(job)
    one, other = (torch.load(path, weights_only=True) for path in (job.folder / WEIGHTS, origin.weights))
    for name in ("body.conv0.conv.weight", "classifier.weight", "body.conv13.pointwise.weight"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-8)
