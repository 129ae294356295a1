"""TensorFlow's RMSProp, AdaGrad and momentum against arithmetic by hand, timm and torch; learning rates by step."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import RMSpropTF
from torch import nn

from tasks.optim import FlatState
from tasks.rules import Adagrad, Momentum, RMSprop, Staircase

RULES = [RMSprop(0.9, 0.9, 1.0), Adagrad(0.1), Momentum(0.9)]


def state(weights, rule, rate=lambda step: 0.045, average=None):
    return FlatState(weights, rule, rate, average)


def test_three_steps_of_rmsprop_by_hand():
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
def test_rmsprop_equals_timms_over_many_steps_with_a_falling_rate(epsilon, momentum):
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


def test_three_steps_of_momentum_by_hand():
    held = state(torch.tensor([2.0, 1.0], dtype=torch.float64), Momentum(0.5), lambda step: [0.1, 0.1, 0.01][step])
    for gradient in ([0.5, 0.0], [-3.0, 0.0], [0.25, 1.0]):
        held.apply(torch.tensor(gradient, dtype=torch.float64))
    # Velocities 0.5, 0.5 * 0.5 - 3 and -0.5 * 2.75 + 0.25; the last rate is that of all which has gathered.
    assert held.weights.tolist() == pytest.approx([2 - 0.1 * 0.5 + 0.1 * 2.75 + 0.01 * 1.125, 1 - 0.01], rel=1e-12)
    assert held.slots["velocity"].tolist() == pytest.approx([-1.125, 1.0], rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.lists(st.floats(1e-4, 1), min_size=1, max_size=12), st.booleans())
def test_momentum_equals_torchs_sgd_at_any_rates(seed, momentum, rates, constant):
    generator = torch.Generator().manual_seed(seed)
    rates = rates[:1] * len(rates) if constant else rates
    start = torch.randn(37, dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(start.clone())
    oracle = torch.optim.SGD([parameter], lr=1.0, momentum=momentum)
    held = state(start.clone(), Momentum(momentum), rates.__getitem__)
    for rate in rates:
        gradient = torch.randn(37, dtype=torch.float64, generator=generator)
        parameter.grad = gradient.clone()
        oracle.param_groups[0]["lr"] = rate
        oracle.step()
        held.apply(gradient)
    torch.testing.assert_close(held.weights, parameter.data, rtol=1e-12, atol=1e-12)


def test_a_lower_rate_slows_momentums_velocity_at_once_and_leaves_rmsprops():
    fall = [1.0, 0.0]
    moved = {}
    for rule in (Momentum(0.5), RMSprop(1.0, 0.5, 3.0)):  # decay 1: the root stays at 2
        held = state(torch.zeros(1), rule, fall.__getitem__)
        for _ in fall:
            held.apply(torch.ones(1))
        moved[type(rule)] = held.weights.item()
    assert moved == {Momentum: -1.0, RMSprop: -0.5 - 0.25}


@pytest.mark.parametrize("rule", RULES, ids=str)
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
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_rule_on_a_gpu_equals_that_on_a_cpu(rule):
    torch.manual_seed(0)
    weights, gradients = torch.randn(1000), torch.randn(20, 1000)
    held = {device: state(weights.to(device), rule, average=0.9) for device in ("cpu", "cuda")}
    for gradient in gradients:
        for device, one in held.items():
            one.apply(gradient.to(device))
    torch.testing.assert_close(held["cuda"].evaluated.cpu(), held["cpu"].evaluated, rtol=1e-6, atol=1e-7)


def test_staircase():
    schedule = Staircase(initial=0.045, rate=0.94, steps=10, warmup=4)
    assert [schedule(step) for step in range(4)] == pytest.approx([0.045 * (step + 1) / 4 for step in range(4)])
    assert schedule(9) == 0.045
    assert schedule(10) == schedule(19) == pytest.approx(0.045 * 0.94)
    assert Staircase(0.1, 0.5, 2.5, 0)(5) == pytest.approx(0.1 * 0.25)


def test_a_rate_falls_at_listed_steps_as_in_the_recipe_of_faster_rcnn():
    schedule = Staircase(0.003, 0.1, (900_000, 1_200_000), 0)
    drops = {0: 0, 899_999: 0, 900_000: 1, 1_199_999: 1, 1_200_000: 2, 10**7: 2}
    assert {step: schedule(step) for step in drops} == {step: 0.003 * 0.1**n for step, n in drops.items()}


def test_listed_steps_have_the_same_warm_up():
    schedule = Staircase(1.0, 0.5, (1.5, 3), 4)
    assert [schedule(step) for step in range(5)] == [0.25, 0.5, 0.5 * 0.75, 0.25, 0.25]


@given(st.integers(1, 400), st.integers(0, 20), st.integers(0, 500))
def test_a_drop_every_so_many_steps_equals_drops_at_their_multiples(quarters, warmup, step):
    every = quarters / 4  # exact: no rounding puts a multiple on the other side of a step
    listed = tuple(every * count for count in range(1, 4 * 501))
    assert Staircase(0.1, 0.9, every, warmup)(step) == Staircase(0.1, 0.9, listed, warmup)(step)
