"""The state of flat vectors goes on bit for bit; flat nets, weight decay and clipping against torch's."""

import copy

import pytest
import torch
from torch import nn

from tasks.optim import FlatState, LocalOptimizer, decays, finish_gradient, flatten
from tasks.rules import Adagrad, Momentum, RMSprop


def state(weights, rule, rate=lambda step: 0.045, average=None):
    return FlatState(weights, rule, rate, average)


def test_average_follows_tensorflows_exponential_moving_average():
    held = state(torch.tensor([0.0]), RMSprop(0.9, 0.0, 1.0), average=0.5)
    average = 0.0
    for step in range(8):
        held.apply(torch.tensor([-1.0]))
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * held.weights.item()
    assert held.evaluated.item() == pytest.approx(average, rel=1e-6)
    assert state(torch.tensor([3.0]), held.rule).evaluated.item() == 3.0


@pytest.mark.parametrize("rule", [RMSprop(0.9, 0.9, 1.0), Adagrad(0.1), Momentum(0.9)], ids=str)
def test_state_dict_goes_on_bit_for_bit_and_refuses_another_shape(rule):
    torch.manual_seed(1)
    gradients = torch.randn(6, 100)
    straight = state(torch.zeros(100), rule, average=0.9)
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


def test_a_state_of_another_rule_is_refused():
    other = state(torch.zeros(4), RMSprop(0.9, 0.9, 1.0)).state_dict()
    with pytest.raises(ValueError, match="slots .'mean_square', 'velocity'. does not fit .* slots .'accumulator'."):
        state(torch.zeros(4), Adagrad(0.1)).load_state_dict(other)
    with pytest.raises(ValueError, match="slots .'mean_square', 'velocity'. does not fit .* slots .'velocity'."):
        state(torch.zeros(4), Momentum(0.9)).load_state_dict(other)


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
