"""Convolutions that are scaled by what they make of noise."""

import torch
from torch import nn

from tasks.nets import NetSpec, build
from tasks.nets.unit_variance import scale_to_unit_variance, soft_noise


def test_each_convolution_has_variance_one_and_points_where_it_did():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False), nn.ReLU()]
    before = [layer.weight.clone() for layer in (layers[0], layers[2])]
    bias = layers[0].bias.clone()
    maps = soft_noise(16)
    scale_to_unit_variance(layers, maps)
    first = layers[0](maps)
    second = layers[2](first.relu())
    assert abs(first.var().item() - 1) < 1e-4
    assert abs(second.var().item() - 1) < 1e-4
    factors = [(layers[place].weight / old).flatten() for place, old in zip((0, 2), before, strict=True)]
    torch.testing.assert_close(layers[0].bias / bias, factors[0][:8])
    for factor in factors:
        torch.testing.assert_close(factor, factor[:1].expand_as(factor))


def test_a_layer_that_is_dead_stays_as_it_is():
    layer = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 0.5)
    scale_to_unit_variance([layer], soft_noise(8))
    assert layer.weight.eq(0).all()
    assert layer.bias.eq(0.5).all()


def test_noise_is_within_bounds_and_always_the_same():
    noise = soft_noise(32)
    assert noise.shape == (8, 3, 32, 32)
    assert -1 <= noise.min() < -0.7
    assert 0.7 < noise.max() <= 1
    torch.rand(3)
    assert torch.equal(soft_noise(32), noise)


def test_small_images_reach_the_last_maps_of_ssd_on_vgg_and_nets_with_batch_norm_are_left_alone():
    torch.manual_seed(0)
    net = build(NetSpec("ssd300_vgg", num_classes=5))
    spread = [maps_of(net)[-1].std().item()]
    body = {name: value.clone() for name, value in net.body.state_dict().items()}
    net.settle(64)
    spread.append(maps_of(net)[-1].std().item())
    assert spread[0] < 0.05
    assert 0.3 < spread[1] < 1
    assert all(torch.equal(value, body[name]) for name, value in net.body.state_dict().items())
    other = build(NetSpec("ssd300_mobilenet", num_classes=5))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    other.settle(64)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def maps_of(net):
    """What fc7 and the layers behind it make of noise of 64 px: sides 4, 2, 1, 1 and 1."""
    with torch.no_grad():
        maps = [net.necks[-1](net.read(net.body, soft_noise(64))[-1])]
        for layer in net.added:
            maps.append(layer(maps[-1]))
    assert [found.shape[-1] for found in maps] == [4, 2, 1, 1, 1]
    return maps
