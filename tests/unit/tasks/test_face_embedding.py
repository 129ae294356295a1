"""Targets, losses and what evaluation says of embeddings whose quality is known."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from tasks import base
from tasks.face_embedding import FACE_EMBEDDING, FaceVerification, collate


def faces(people, images, noise, seed=0, size=16):
    """(outputs, targets) in which a person's images lie around one direction; lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"person {number % people}" for number in range(people * images)]
    centres = torch.randn(people, size, generator=generator).repeat(images, 1)
    outputs = centres + noise * torch.randn(people * images, size, generator=generator)
    return outputs * torch.arange(1, len(names) + 1)[:, None], collate([{"identity": n} for n in names])


def evaluated(outputs, targets, pairs=None, batch=32):
    evaluator = FACE_EMBEDDING.evaluator(base.TestSet((), pairs))
    for start in range(0, len(outputs), batch):
        rows = slice(start, start + batch)
        evaluator.update(outputs[rows], {name: values[rows] for name, values in targets.items()})
    return evaluator.compute()


def folded_pairs(identities, folds):
    """All pairs of samples, dealt to folds in turn."""
    first, second = np.array(list(itertools.combinations(range(len(identities)), 2))).T
    return base.Pairs(first, second, identities[first] == identities[second], np.arange(len(first)) % folds)


def test_a_person_has_the_same_number_in_every_batch():
    first = collate([{"identity": "George_W_Bush", "name": "a"}, {"identity": "2880"}])["identity"]
    second = collate([{"identity": "2880"}, {"identity": "288"}, {"identity": "Zoë"}])["identity"]
    assert first[0] == 0x34106FC4BCE594CA >> 1  # printf George_W_Bush | b2sum -l 64
    assert first[1] == second[0]
    assert len({*first.tolist(), *second.tolist()}) == 4
    assert first.dtype == torch.int64
    assert (second >= 0).all()


def test_faces_without_identity_have_no_targets_and_are_for_students_only():
    assert collate([{"name": "a"}, {"name": "b"}]) == {}
    with pytest.raises(ValueError, match="1 of 2 samples have one; all must, or none"):
        collate([{"identity": "a"}, {"name": "b"}])
    for asked in (FACE_EMBEDDING.loss, FACE_EMBEDDING.batch_metrics, FaceVerification(base.TestSet(())).update):
        with pytest.raises(ValueError, match="no 'identity'"):
            asked(torch.ones(2, 4), {})


def test_predictions_are_of_unit_length_but_for_those_of_nothing():
    outputs = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], dtype=torch.bfloat16)
    predicted = FACE_EMBEDDING.predict(outputs)
    torch.testing.assert_close(predicted, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))


def test_distillation_is_the_mean_squared_distance_to_the_teacher():
    outputs, taught = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert FACE_EMBEDDING.distill(outputs, taught).item() == pytest.approx((0.4**2 + 0.8**2 + 0) / 2)
    same = torch.randn(5, 8)
    assert FACE_EMBEDDING.distill(7 * same, FACE_EMBEDDING.predict(same)).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"outputs \(2, 2\), its teacher \(2, 1\)"):
        FACE_EMBEDDING.distill(outputs, taught[:, :1])


@pytest.mark.parametrize("outputs", [torch.zeros(6, 4), torch.ones(6, 4)])
def test_gradients_are_finite_where_all_outputs_are_equal(outputs):
    outputs.requires_grad_()
    targets = {"identity": torch.arange(6) // 2}
    loss = FACE_EMBEDDING.loss(outputs, targets) + FACE_EMBEDDING.distill(outputs, torch.eye(6)[:, :4])
    loss.backward()
    assert outputs.grad.isfinite().all()


def test_the_loss_is_of_directions_alone():
    outputs, targets = faces(6, 4, noise=0.8)
    torch.testing.assert_close(
        FACE_EMBEDDING.loss(outputs, targets), FACE_EMBEDDING.loss(F.normalize(outputs, dim=1), targets)
    )


def test_batch_metrics_by_hand():
    outputs = torch.tensor([[1.0, 0.0], [0.0, 5.0], [2.0, 0.0], [-1.0, 0.0]])
    metrics = FACE_EMBEDDING.batch_metrics(outputs, {"identity": torch.tensor([0, 0, 1, 1])})
    # Squared distances: 0-1 is 2, 2-3 is 4; 0-2 is 0, 0-3 is 4, 1-2 is 2, 1-3 is 2.
    assert metrics["positive_distance"].item() == pytest.approx(3)
    assert metrics["negative_distance"].item() == pytest.approx(2)
    assert metrics["positive_nearest"].item() == 0
    metrics = FACE_EMBEDDING.batch_metrics(outputs, {"identity": torch.tensor([0, 1, 0, 1])})
    assert metrics["positive_nearest"].item() == 0.75  # 1 is as far from 3 as from 0 and 2
    assert FACE_EMBEDDING.batch_metrics(outputs, {"identity": torch.arange(4)})["positive_distance"].isnan()


def test_evaluation_equals_scikit_learn_on_the_listed_pairs():
    outputs, targets = faces(20, 5, noise=1.0)
    identities = targets["identity"].numpy()
    pairs = folded_pairs(identities, 10)
    found = evaluated(outputs, targets, pairs)
    unit = F.normalize(outputs.double(), dim=1).numpy()
    scores = (unit[pairs.first] * unit[pairs.second]).sum(axis=1)
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(pairs.same, scores), abs=1e-9)
    impostors = np.sort(scores[~pairs.same])[::-1]
    allowed = len(impostors) // 1000
    assert found.metrics["tar_1e3"] == pytest.approx((scores[pairs.same] > impostors[allowed]).mean())
    assert found.metrics["tar"] == pytest.approx((scores[pairs.same] > impostors[0]).mean())
    assert found.metrics["tar_low"] <= found.metrics["tar"] <= found.metrics["tar_high"]
    assert found.metrics["genuine_pairs"] == 20 * 10
    assert found.metrics["genuine_pairs"] + found.metrics["impostor_pairs"] == 100 * 99 / 2
    assert found.metrics["false_accepts"] == 0
    assert found.metrics["samples"] == 100
    assert found.metrics["pair_accuracy"] > 0.9
    assert 0 < found.metrics["pair_accuracy_std"] < 0.1
    np.testing.assert_array_equal(found.arrays["identities"], identities)
    np.testing.assert_allclose(found.arrays["embeddings"], unit, atol=1e-6)
    assert found.arrays["embeddings"].dtype == np.float32


def test_without_listed_pairs_there_are_no_metrics_of_them():
    listed = {"pair_accuracy", "pair_accuracy_std", "eer", "auc", "pairs_fpr", "pairs_tpr"}
    outputs, targets = faces(6, 4, noise=0.5)
    without, with_pairs = (
        {*found.metrics, *found.arrays}
        for found in (
            evaluated(outputs, targets),
            evaluated(outputs, targets, folded_pairs(targets["identity"].numpy(), 2)),
        )
    )
    assert with_pairs - without == listed
    assert without == {
        *("tar", "tar_low", "tar_high", "tar_1e3", "impostor_pairs", "genuine_pairs", "false_accepts", "samples"),
        *("embeddings", "identities", "roc_far", "roc_tar"),
    }


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_net_that_says_nothing_tells_nobody_apart(value):
    outputs, targets = faces(10, 4, noise=0.5)
    found = evaluated(torch.full_like(outputs, value), targets, folded_pairs(targets["identity"].numpy(), 10))
    assert found.metrics["tar"] == found.metrics["tar_1e3"] == found.metrics["tar_high"] == 0
    assert found.metrics["auc"] <= 0.5 <= found.metrics["eer"]


def test_pairs_of_other_samples_are_found_out():
    outputs, targets = faces(6, 4, noise=0.5)
    pairs = folded_pairs(targets["identity"].numpy(), 2)
    with pytest.raises(AssertionError, match="other samples"):
        evaluated(outputs, targets, pairs._replace(first=pairs.first[::-1]))


def test_one_image_of_each_person_cannot_be_evaluated():
    with pytest.raises(ValueError, match="no genuine pair: none of 9 people"):
        evaluated(*faces(9, 1, noise=0.5))


@pytest.mark.parametrize("learn", ["triplets", "teacher"])
def test_learning_tells_people_apart_that_it_has_not_seen(learn):
    """A face is a person's direction under noise, nearly all of it in dimensions that a net can learn to drop."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0] * 8 + [0.0] * 8), torch.tensor([0.1] * 8 + [3.0] * 8)
    mixing = torch.randn(16, 16, generator=generator)
    weights = (torch.randn(16, 8, generator=generator) / 4).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.02)

    def drawn(people, images):
        centres = (torch.randn(people, 16, generator=generator) * spread[0]).repeat(images, 1)
        clean = centres + torch.randn(people * images, 16, generator=generator) * spread[1]
        return clean @ mixing, {"identity": torch.arange(people).repeat(images)}, clean[:, :8]

    inputs, targets, _ = drawn(30, 5)
    before = evaluated((inputs @ weights).detach(), targets).metrics["tar_1e3"]
    for _ in range(150):
        batch, identities, clean = drawn(12, 4)
        outputs = batch @ weights
        taught = FACE_EMBEDDING.predict(clean)
        loss = (
            FACE_EMBEDDING.loss(outputs, identities) if learn == "triplets" else FACE_EMBEDDING.distill(outputs, taught)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = evaluated((inputs @ weights).detach(), targets).metrics["tar_1e3"]
    assert before < 0.1
    assert after > 0.8
