"""TensorFlow's RMSProp and AdaGrad against arithmetic by hand, timm and torch; flat vectors against torch's."""

import copy
import math

import pytest
import torch
from timm.optim import RMSpropTF
from torch import nn

from tasks.optim import (
    Adagrad,
    FlatState,
    LocalOptimizer,
    RMSprop,
    Staircase,
    decays,
    finish_gradient,
    flatten,
)


def state(weights, rule, rate=lambda step: 0.045, average=None):
    return FlatState(weights, rule, rate, average)


def test_three_steps_by_hand():
    rule = RMSprop(decay=0.9, momentum=0.5, epsilon=1.0)
    weight, mean_square, velocity = 2.0, 1.0, 0.0
    held = state(torch.tensor([2.0]), rule, lambda step: 0.1 / (step + 1))
    for step, gradient in enumerate([0.5, -3.0, 0.25]):
        mean_square += (1 - 0.9) * (gradient**2 - mean_square)
        velocity = 0.5 * velocity + 0.1 / (step + 1) * gradient / math.sqrt(mean_square + 1.0)
        weight -= velocity
        held.apply(torch.tensor([gradient]))
    assert held.weights.item() == pytest.approx(weight, rel=1e-6)
    assert held.slots["mean_square"].item() == pytest.approx(mean_square, rel=1e-6)
    assert held.slots["velocity"].item() == pytest.approx(velocity, rel=1e-6)


@pytest.mark.parametrize("epsilon", [1.0, 1e-3, 1e-10])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_timm_over_many_steps_with_a_falling_rate(epsilon, momentum):
    torch.manual_seed(0)
    length = 1037
    start = torch.randn(length, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    oracle = RMSpropTF([parameter], lr=1.0, alpha=0.9, eps=epsilon, momentum=momentum)
    held = state(start.clone(), RMSprop(0.9, momentum, epsilon), lambda step: 0.05 * 0.8 ** (step // 5))
    for step in range(30):
        gradient = torch.randn(length, dtype=torch.float64)
        parameter.grad = gradient.clone()
        oracle.param_groups[0]["lr"] = 0.05 * 0.8 ** (step // 5)
        oracle.step()
        held.apply(gradient)
    torch.testing.assert_close(held.weights, parameter.data, rtol=1e-12, atol=1e-12)


def test_differs_from_torch_rmsprop_as_documented():
    parameter = nn.Parameter(torch.tensor([1.0]))
    parameter.grad = torch.tensor([0.5])
    torch.optim.RMSprop([parameter], lr=0.1, alpha=0.9, eps=1.0).step()
    held = state(torch.tensor([1.0]), RMSprop(0.9, 0.0, 1.0), lambda step: 0.1)
    held.apply(torch.tensor([0.5]))
    assert parameter.item() == pytest.approx(1 - 0.1 * 0.5 / (math.sqrt(0.1 * 0.25) + 1.0))
    assert held.weights.item() == pytest.approx(1 - 0.1 * 0.5 / math.sqrt(0.9 + 0.1 * 0.25 + 1.0))


@pytest.mark.parametrize("rule", [RMSprop(0.9, 0.9, 1.0), Adagrad(0.1)], ids=str)
def test_cutting_the_vector_changes_no_bit(rule):
    torch.manual_seed(0)
    weights, gradients = torch.randn(10_007), torch.randn(5, 10_007)
    whole = state(weights.clone(), rule, average=0.99)
    parts = [state(part.clone(), whole.rule, average=0.99) for part in (weights[:5003], weights[5003:])]
    for gradient in gradients:
        whole.apply(gradient)
        for part, piece in zip(parts, (gradient[:5003], gradient[5003:]), strict=True):
            part.apply(piece)
    assert torch.equal(whole.weights, torch.cat([part.weights for part in parts]))
    assert torch.equal(whole.evaluated, torch.cat([part.evaluated for part in parts]))


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [RMSprop(0.9, 0.9, 1.0), Adagrad(0.1)], ids=str)
def test_the_rule_on_a_gpu_equals_that_on_a_cpu(rule):
    torch.manual_seed(0)
    weights, gradients = torch.randn(1000), torch.randn(20, 1000)
    held = {device: state(weights.to(device), rule, average=0.9) for device in ("cpu", "cuda")}
    for gradient in gradients:
        for device, one in held.items():
            one.apply(gradient.to(device))
    torch.testing.assert_close(held["cuda"].evaluated.cpu(), held["cpu"].evaluated, rtol=1e-6, atol=1e-7)


def test_average_follows_tensorflows_exponential_moving_average():
    held = state(torch.tensor([0.0]), RMSprop(0.9, 0.0, 1.0), average=0.5)
    average = 0.0
    for step in range(8):
        held.apply(torch.tensor([-1.0]))
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * held.weights.item()
    assert held.evaluated.item() == pytest.approx(average, rel=1e-6)
    assert state(torch.tensor([3.0]), held.rule).evaluated.item() == 3.0


def test_state_dict_goes_on_bit_for_bit_and_refuses_another_shape():
    torch.manual_seed(1)
    gradients = torch.randn(6, 100)
    straight = state(torch.zeros(100), RMSprop(0.9, 0.9, 1.0), average=0.9)
    for gradient in gradients:
        straight.apply(gradient)
    first = state(torch.zeros(100), straight.rule, average=0.9)
    for gradient in gradients[:3]:
        first.apply(gradient)
    saved = copy.deepcopy(first.state_dict())
    second = state(torch.full((100,), 7.0), straight.rule, average=0.9)
    second.load_state_dict(saved)
    for gradient in gradients[3:]:
        second.apply(gradient)
    assert torch.equal(second.evaluated, straight.evaluated)
    assert second.step == straight.step == 6
    with pytest.raises(ValueError, match="100 weights with slots .* does not fit 3 weights"):
        state(torch.zeros(3), straight.rule, average=0.9).load_state_dict(saved)


def test_two_steps_of_adagrad_by_hand():
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    flat = FlatState(weights, Adagrad(0.1), lambda step: 0.5, None)
    flat.apply(torch.tensor([0.3, 0.0], dtype=torch.float64))  # accumulator 0.1 + 0.09
    flat.apply(torch.tensor([0.4, 1.0], dtype=torch.float64))  # 0.19 + 0.16, and 0.1 + 1
    assert weights[0].item() == pytest.approx(1 - 0.5 * 0.3 / math.sqrt(0.19) - 0.5 * 0.4 / math.sqrt(0.35), rel=1e-12)
    assert weights[1].item() == pytest.approx(-2 - 0.5 / math.sqrt(1.1), rel=1e-12)
    assert flat.slots["accumulator"].tolist() == pytest.approx([0.35, 1.1], rel=1e-12)


def test_adagrad_equals_torchs_without_epsilon_and_goes_on_from_its_state():
    torch.manual_seed(4)
    weights, gradients = torch.randn(50, dtype=torch.float64), torch.randn(12, 50, dtype=torch.float64)
    rate = Staircase(0.05, 0.5, 5, 0)
    other = nn.Parameter(weights.clone())
    oracle = torch.optim.Adagrad([other], lr=1.0, initial_accumulator_value=0.1, eps=0)
    average = weights.clone()
    flat = FlatState(weights, Adagrad(0.1), rate, 0.9)
    for step, gradient in enumerate(gradients):
        if step == 6:  # as after a kill
            kept = copy.deepcopy(flat.state_dict())
            flat = FlatState(torch.zeros(50, dtype=torch.float64), Adagrad(0.1), rate, 0.9)
            flat.load_state_dict(kept)
        other.grad = gradient.clone()
        oracle.param_groups[0]["lr"] = rate(step)
        oracle.step()
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * other.detach()
        flat.apply(gradient)
    torch.testing.assert_close(flat.weights, other.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat.evaluated, average, rtol=1e-12, atol=1e-15)


def test_a_state_of_another_rule_is_refused():
    other = state(torch.zeros(4), RMSprop(0.9, 0.9, 1.0)).state_dict()
    with pytest.raises(ValueError, match="slots .'mean_square', 'velocity'. does not fit .* slots .'accumulator'."):
        state(torch.zeros(4), Adagrad(0.1)).load_state_dict(other)


def test_staircase():
    schedule = Staircase(initial=0.045, rate=0.94, steps=10, warmup=4)
    assert [schedule(step) for step in range(4)] == pytest.approx([0.045 * (step + 1) / 4 for step in range(4)])
    assert schedule(9) == 0.045
    assert schedule(10) == schedule(19) == pytest.approx(0.045 * 0.94)
    assert Staircase(0.1, 0.5, 2.5, 0)(5) == pytest.approx(0.1 * 0.25)


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    net(torch.zeros(1, 3, 8, 8))
    return net.to(memory_format=torch.channels_last)


def test_decay_spares_depthwise_filters_batch_norm_and_biases():
    assert {name for name, decayed in decays(small_net()).items() if decayed} == {"0.weight", "3.weight", "5.weight"}


def test_flatten_keeps_values_strides_and_aliases_both_ways():
    net = small_net()
    before = {name: (value.clone(), value.stride()) for name, value in net.state_dict().items()}
    flat = flatten(net)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]
    assert len(flat.weights) == sum(p.numel() for p in net.parameters())
    assert flat.num_decayed == sum(p.numel() for name, p in net.named_parameters() if decays(net)[name])
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert flat.gradient.abs().sum() == pytest.approx(
        sum(p.grad.abs().sum().item() for p in net.parameters()), rel=1e-5
    )
    flat.weights.zero_()
    flat.statistics.fill_(5)
    assert all((p == 0).all() for p in net.parameters())
    assert (net[1].running_mean == 5).all()


def test_a_net_without_buffers_is_flattened():
    flat = flatten(nn.Linear(3, 2))
    assert (len(flat.weights), len(flat.statistics), flat.num_decayed) == (8, 0, 6)


def test_decay_and_clipping_equal_torchs_on_parameter_groups():
    ours, theirs = small_net(), small_net()
    images = torch.randn(4, 3, 8, 8)
    flat = flatten(ours)
    for net in (ours, theirs):
        net(images).square().sum().backward()
    finish_gradient(flat, weight_decay=0.1, clip_norm=0.7)
    for name, parameter in theirs.named_parameters():
        if decays(theirs)[name]:
            parameter.grad += 0.1 * parameter.data
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)
    assert flat.gradient.norm().item() == pytest.approx(0.7, rel=1e-5)


def test_a_short_gradient_is_not_lengthened():
    net = small_net()
    flat = flatten(net)
    flat.gradient.fill_(1e-6)
    finish_gradient(flat, weight_decay=0.0, clip_norm=2.0)
    assert (flat.gradient == 1e-6).all()


def test_optimizer_trains_a_net():
    net = small_net()
    optimizer = LocalOptimizer(
        net,
        lambda flat: finish_gradient(flat, 0.0, None),
        lambda weights: state(weights, RMSprop(0.9, 0.9, 1.0), lambda step: 0.05),
    )
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 2

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(40)]
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.steps == 40
