"""Frozen BatchNorm against torch's own in evaluation mode, and under training; layers that are frozen by name."""

import pytest
import torch
from torch import nn

from tasks.nets.frozen import FrozenBatchNorm, freeze, freeze_batch_norm
from tasks.optim import decays, finish_gradient, flatten
from tasks.rules import RMSprop


def layers():
    """A net with BatchNorm at two depths, of two epsilons."""
    inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.01), inner, nn.Flatten())


def made():
    """A net that is frozen, and one that is not, with the same weights and statistics."""
    torch.manual_seed(0)
    unfrozen, frozen = layers(), layers()
    for layer in (unfrozen[1], unfrozen[2][1]):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    unfrozen(torch.randn(8, 3, 6, 6) * 3 + 1)
    freeze_batch_norm(frozen)
    frozen.load_state_dict(unfrozen.state_dict())
    return frozen, unfrozen.eval()


@pytest.mark.parametrize("mode", [True, False])
def test_equals_batch_norm_in_evaluation_whatever_the_mode(mode):
    frozen, unfrozen = made()
    frozen.train(mode)
    pictures = torch.randn(5, 3, 6, 6) * 2 + 1
    torch.testing.assert_close(frozen(pictures), unfrozen(pictures))
    assert frozen.training == frozen[2].training == mode
    assert not frozen[1].training
    assert not frozen[2][1].training


def test_is_frozen_as_soon_as_it_is_made():
    layer = FrozenBatchNorm(2, 0.5)
    layer(torch.randn(4, 2, 3, 3))
    assert layer.running_mean.tolist() == [0.0, 0.0]
    assert layer.num_batches_tracked == 0


def test_training_leaves_it_alone():
    frozen, _ = made()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    flat = flatten(frozen.train())
    assert len(flat.weights) == 12 + 4 + 144 + 4  # the two convolutions
    assert [name for name, decayed in decays(frozen).items() if decayed] == ["0.weight", "2.0.weight"]
    rule = RMSprop(decay=0.9, momentum=0.9, epsilon=1.0)
    slots = rule.slots(flat.weights)
    for _ in range(3):
        flat.clear_gradient()
        frozen(torch.randn(5, 3, 6, 6)).square().mean().backward()
        finish_gradient(flat, weight_decay=0.1, clip_norm=1e-3)
        rule.update(flat.weights, flat.gradient, slots, 0.1)
    changed = {name for name, value in frozen.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias", "2.0.weight", "2.0.bias"}


def test_layers_are_frozen_by_how_their_names_begin_and_have_no_place_in_the_flat_vectors():
    net = layers()
    freeze(net, ["0.", "2.0.bias"])
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == [
        *("0.weight", "0.bias", "2.0.bias"),
    ]
    assert list(decays(net)) == ["1.weight", "1.bias", "2.0.weight", "2.1.weight", "2.1.bias"]
    flat = flatten(net)
    assert len(flat.weights) == 8 + 144 + 8
    assert flat.num_decayed == 144


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        (["0.", "3."], r"frozen: no parameter's name begins with '3\.'; they are: 0\.weight, 0\.bias, 1\.weight, "),
        (["0.", "1.", "2."], r"frozen: 0\., 1\., 2\. leave nothing to train"),
    ],
)
def test_what_freezes_nothing_or_all_is_refused(prefixes, message):
    with pytest.raises(ValueError, match=message):
        freeze(layers(), prefixes)
