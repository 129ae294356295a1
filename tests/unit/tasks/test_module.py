"""The one training step: what its loss is, with and without a teacher, and that a teacher is no part of the module."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.augment import distort, normalise
from tasks.base import Batch
from tasks.face_attributes import FACE_ATTRIBUTES
from tasks.face_embedding import FACE_EMBEDDING
from tasks.imagenet import IMAGENET
from tasks.module import TaskModule

ROOT = Path(__file__).parents[3]


class Net(nn.Module):
    """Has all that a net can have: a convolution, statistics and dropout."""

    def __init__(self, outputs=4):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.last = nn.Linear(6, outputs)

    def forward(self, images):
        return self.last(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))


class Steps:
    """Stands in for an optimizer of which the module asks how far it is."""

    steps = 0


@pytest.fixture
def nets():
    torch.manual_seed(0)
    return Net(), Net().eval().requires_grad_(False)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8, generator=generator)
    seen = torch.randint(0, 256, (5, 12, 12, 3), dtype=torch.uint8, generator=generator)
    distortions = torch.tensor([[1.0, 0.1, 0.7, 1.0]] * 5)
    return Batch(images, distortions, {"label": torch.tensor([0, 3, 1, 1, 2]), "teacher_images": seen})


def module_of(net, teacher=None, task=IMAGENET):
    module = TaskModule(task, net, lambda net: Steps(), lambda steps: 7 + steps, teacher)
    module.configure_optimizers()
    return module


def kept(batch, predictions):
    targets = {name: value for name, value in batch.targets.items() if name != "teacher_images"}
    return batch._replace(targets={**targets, "taught": predictions})


def test_without_a_teacher_the_loss_is_that_of_the_labels(nets, batch):
    net, _ = nets
    module = module_of(copy.deepcopy(net))
    labelled = batch._replace(targets={"label": batch.targets["label"]})
    loss = module.training_step(labelled)
    torch.manual_seed(7)
    outputs = net(distort(batch.images, batch.distortions))
    assert torch.equal(loss, F.cross_entropy(outputs, batch.targets["label"]))
    hits = (outputs.argmax(dim=1) == batch.targets["label"]).float().mean()
    assert module.metrics["top1"] == hits
    assert module.metrics["loss"] == loss
    assert not any(value.requires_grad for value in module.metrics.values())


def test_a_step_depends_on_the_number_of_steps_alone(nets, batch):
    module = module_of(nets[0])
    one = module.training_step(batch)
    torch.rand(100)
    assert torch.equal(one, module.training_step(batch))
    module.optimizer.steps = 1
    assert not torch.equal(one, module.training_step(batch)), "another dropout"


by_task = {
    "imagenet": (
        IMAGENET,
        lambda mine, theirs: -(F.softmax(theirs, 1) * F.log_softmax(mine, 1)).sum(1).mean(),
    ),
    "face_attributes": (
        FACE_ATTRIBUTES,
        lambda mine, theirs: (
            -(theirs.sigmoid() * F.logsigmoid(mine) + (1 - theirs.sigmoid()) * F.logsigmoid(-mine)).mean()
        ),
    ),
    "face_embedding": (
        FACE_EMBEDDING,
        lambda mine, theirs: (2 - 2 * F.cosine_similarity(mine, theirs)).mean(),
    ),
}


@pytest.mark.parametrize(("task", "expected"), by_task.values(), ids=by_task)
def test_a_students_loss_is_its_distance_to_what_the_teacher_says_of_the_whole_image(nets, batch, task, expected):
    net, teacher = nets
    at_every_step = module_of(copy.deepcopy(net), teacher, task)
    loss = at_every_step.training_step(batch)
    torch.manual_seed(7)
    outputs = net(distort(batch.images, batch.distortions))
    said = teacher(normalise(batch.targets["teacher_images"]))
    torch.testing.assert_close(loss, expected(outputs, said), rtol=1e-5, atol=1e-6)
    assert at_every_step.metrics.keys() == {"loss"}, "the labels are not asked for"
    again = module_of(copy.deepcopy(net), task=task)
    assert torch.equal(again.training_step(kept(batch, task.predict(said))), loss)


def test_a_teacher_is_neither_trained_nor_moved_nor_saved(nets, batch):
    net, teacher = nets
    before = copy.deepcopy(teacher.state_dict())
    module = module_of(net, teacher)
    assert {id(value) for value in module.parameters()} == {id(value) for value in net.parameters()}
    assert {id(value) for value in module.buffers()} == {id(value) for value in net.buffers()}
    assert module.state_dict().keys() == {f"net.{name}" for name in net.state_dict()}
    module.train()
    moved = net.norm.running_mean.clone()
    module.training_step(batch).backward()
    assert not torch.equal(net.norm.running_mean, moved)
    assert not any(each.training for each in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(value.grad is None for value in teacher.parameters())
    assert all(value.grad is not None for value in net.parameters())


def test_a_teacher_runs_in_the_precision_of_the_step(nets, batch):
    net, teacher = nets
    seen = {}
    for name, each in {"student": net, "teacher": teacher}.items():
        each.last.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module_of(net, teacher).training_step(batch)
    assert seen == {"student": torch.bfloat16, "teacher": torch.bfloat16}
    assert loss.dtype == torch.float32


CHILD = """
import sys, copy, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tasks.base import Batch
from tasks.imagenet import IMAGENET
from tasks.module import TaskModule
from tasks.nets import NetSpec, build

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)
spec = NetSpec("mobilenet", width=0.25, num_classes=3)
net, teacher = build(spec), build(spec).eval().requires_grad_(False)
before = copy.deepcopy(teacher.state_dict())
module = TaskModule(IMAGENET, net, lambda net: None, lambda steps: 0, teacher)
module.optimizer = type("Steps", (), {"steps": 0})
module.forward = module.training_step
wrapped = DistributedDataParallel(module)
images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
batch = Batch(images, torch.tensor([[0.0, 0.0, 1.0, 0.0]] * 4), {"teacher_images": images})
for _ in range(2):
    wrapped(batch).backward()

def of_both(tensor):
    found = [torch.empty_like(tensor) for _ in range(2)]
    distributed.all_gather(found, tensor)
    return found

assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
assert torch.equal(*of_both(net.classifier.weight.detach())), "the student is one net"
assert torch.equal(*of_both(net.classifier.weight.grad))
assert not torch.equal(*of_both(teacher.classifier.weight)), "a teacher is each worker's own"
"""


@pytest.mark.slow
def test_ddp_leaves_the_teacher_alone(tmp_path):
    """Two processes whose teachers differ, as they never do in a run: nothing makes them alike."""
    command = [sys.executable, "-c", CHILD]
    children = [subprocess.Popen([*command, str(rank), tmp_path / "store"], cwd=ROOT) for rank in range(2)]
    assert [child.wait(timeout=100) for child in children] == [0, 0]
