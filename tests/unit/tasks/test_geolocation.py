"""Labels of photos by the cells that hold them, and what is learned of photos that none holds."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import TASKS, s2
from tasks.geolocation import GEOLOCATION, NO_CELL, batch_metrics, collator, loss

ROOT = Path(__file__).parents[3]
PARIS, SYDNEY, ATLANTIC = (48.85, 2.35), (-33.87, 151.21), (30.0, -40.0)


def tokens(*places, level=8):
    leaves = s2.leaves(*np.array(places).T)
    return tuple(s2.token(cell) for cell in np.unique(s2.parents(leaves, level)).tolist())


def fields(*places):
    return [{"latitude": latitude, "longitude": longitude} for latitude, longitude in places]


def test_photos_are_labelled_by_the_cell_that_holds_them():
    cells = tokens(PARIS, SYDNEY)
    targets = collator(cells)(fields(SYDNEY, PARIS, ATLANTIC, (48.86, 2.36)))
    first, second = (collator((cell,))(fields(PARIS))["label"].item() for cell in cells)
    paris = 0 if first == 0 else 1
    assert {first, second} == {0, NO_CELL}
    assert targets["label"].tolist() == [1 - paris, paris, NO_CELL, paris]
    assert targets["label"].dtype == torch.int64
    assert targets["place"].dtype == torch.float64
    assert targets["place"].tolist() == [list(place) for place in (SYDNEY, PARIS, ATLANTIC, (48.86, 2.36))]


def test_photos_without_places_have_no_targets_and_none_may_lack_one_alone():
    collate = collator(tokens(PARIS))
    assert collate([{"name": "a"}, {"name": "b"}]) == {}
    with pytest.raises(ValueError, match="'latitude': 1 of 2 samples have one"):
        collate([*fields(PARIS), {"name": "b"}])


def test_a_table_without_cells_is_refused():
    with pytest.raises(ValueError, match="its table in params.yaml names none"):
        collator(())


def test_a_token_that_is_none_is_refused():
    with pytest.raises(ValueError, match="zzz"):
        collator(("zzz",))


def test_photos_of_dropped_cells_are_not_learned_from():
    outputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True, generator=torch.manual_seed(0))
    labels = torch.tensor([2, NO_CELL, 0, NO_CELL])
    found = loss(outputs, {"label": labels})
    kept = outputs[[0, 2]].float().log_softmax(dim=1)
    assert found.item() == pytest.approx(-(kept[0, 2] + kept[1, 0]).item() / 2, rel=1e-6)
    found.backward()
    assert outputs.grad[[1, 3]].abs().max() == 0
    assert outputs.grad[[0, 2]].abs().max() > 0


def test_a_batch_of_photos_of_dropped_cells_alone_teaches_nothing():
    outputs = torch.randn(2, 3, requires_grad=True)
    targets = {"label": torch.tensor([NO_CELL, NO_CELL])}
    found = loss(outputs, targets)
    found.backward()
    assert found.item() == 0
    assert outputs.grad.abs().max() == 0
    assert math.isnan(batch_metrics(outputs.detach(), targets)["cell_accuracy"])


def test_the_curve_shows_the_share_of_photos_with_a_cell_that_are_in_the_likeliest_one():
    outputs = torch.tensor([[3.0, 1.0], [3.0, 1.0], [0.0, 1.0], [9.0, 0.0]])
    targets = {"label": torch.tensor([0, 1, 1, NO_CELL])}
    assert batch_metrics(outputs, targets)["cell_accuracy"].item() == pytest.approx(2 / 3)


def test_the_task_is_registered_and_predicts_probabilities():
    assert TASKS["geolocation"] is GEOLOCATION
    predicted = GEOLOCATION.predict(torch.tensor([[0.0, math.log(3)]], dtype=torch.bfloat16))
    assert predicted.dtype == torch.float32
    assert predicted.tolist() == [pytest.approx([0.25, 0.75], abs=1e-2)]


MEASURE = """
import torch
from tasks.geolocation import loss
from tasks.nets import NetSpec, build
from tasks.optim import FlatState, LocalOptimizer, finish_gradient
from tasks.rules import RMSprop, Staircase
from tests.memory import peak_kib
net = build(NetSpec("mobilenet", num_classes=26263)).to(memory_format=torch.channels_last)
before = peak_kib()
rule, rate = RMSprop(0.9, 0.9, 1.0), Staircase(0.045, 0.94, 1000, 0)
optimizer = LocalOptimizer(
    net, lambda flat: finish_gradient(flat, 4e-5, 2.0), lambda weights: FlatState(weights, rule, rate, 0.9999)
)
for _ in range(2):
    optimizer.zero_grad()
    loss(net(torch.randn(32, 3, 64, 64)), {"label": torch.arange(32)}).backward()
    optimizer.step()
print((peak_kib() - before) / 1024, 4 * sum(p.numel() for p in net.parameters()) / 2**20)
"""


@pytest.mark.slow
def test_planets_number_of_cells_costs_a_training_step_some_copies_of_the_weights_and_no_more():
    """Gradient, mean square, momentum and average beside the weights, and what a step needs for a while."""
    answer = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=ROOT)
    used, weights = map(float, answer.stdout.split())
    assert 110 < weights < 120  # MiB: 26,263 x 1,024 of 30 million are the last layer
    assert used < 6 * weights
