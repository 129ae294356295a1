"""Face embeddings: FaceNet (arXiv 1503.03832), and nets that are distilled from it (paper, section 4.7; Table 14)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import verification
from tasks.base import Evaluation, Pairs, Targets, Task, TestSet
from tasks.triplets import positive_pairs, squared_distances, triplet_loss

FAR = 1e-4  # of "1e-4 Accuracy" in Table 14
HIGH_FAR = 1e-3  # at which FaceNet's own paper reports (section 5)


def collate(fields: list[dict[str, Any]]) -> Targets:
    """{"identity": (N,) int64}, 63 bits of a hash of each person's name: the same in every batch.

    Nothing where the faces are not labelled. Raises ValueError where some are and some are not.
    """
    known = [sample["identity"] for sample in fields if "identity" in sample]
    if not known:
        return {}
    if len(known) < len(fields):
        raise ValueError(f"'identity': {len(known)} of {len(fields)} samples have one; all must, or none")
    return {"identity": torch.tensor([_number(name) for name in known], dtype=torch.int64)}


def _number(identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1


def _identities(targets: Targets) -> Tensor:
    if "identity" not in targets:
        raise ValueError("the samples have no 'identity': without it one can only learn from a teacher")
    return targets["identity"]


def embed(outputs: Tensor) -> Tensor:
    """(N, D) float32 of unit length. Outputs shorter than 1e-5 stay shorter than that: their direction is noise."""
    return F.normalize(outputs.float(), dim=1, eps=1e-5)


def squared_difference(outputs: Tensor, taught: Tensor) -> Tensor:
    """Mean over samples of |embed(outputs) - taught|^2; both (N, D), `taught` of unit length.

    The paper minimises the squared differences of the two nets' outputs; that both are of unit length, as FaceNet's
    are, is our reading. Raises ValueError where student and teacher differ in the number of outputs.
    """
    if outputs.shape != taught.shape:
        raise ValueError(f"the net has outputs {tuple(outputs.shape)}, its teacher {tuple(taught.shape)}")
    return (embed(outputs) - taught).square().sum(dim=1).mean()


def _loss(outputs: Tensor, targets: Targets) -> Tensor:
    return triplet_loss(embed(outputs), _identities(targets))


def batch_metrics(outputs: Tensor, targets: Targets) -> Targets:
    """Mean squared distances within and between people, and the share of pairs of one person (anchor, other) whose
    distance is below that of the anchor to everybody else. A mean over no pair is NaN."""
    distances = squared_distances(embed(outputs))
    positive, negative = positive_pairs(_identities(targets))
    nearest = distances.masked_fill(~negative, torch.inf).amin(dim=1, keepdim=True)
    return {
        "positive_distance": distances[positive].mean(),
        "negative_distance": distances[negative].mean(),
        "positive_nearest": (distances < nearest)[positive].float().mean(),
    }


class FaceVerification:
    """Collects embeddings and compares all of them, and the test set's pairs where it has some.

    metrics: "tar", "tar_low", "tar_high" at FAR 1e-4 and "tar_1e3" at 1e-3 over all pairs, with their numbers; of the
        test set's pairs "pair_accuracy" with its "pair_accuracy_std" over folds, "eer" and "auc".
    arrays: "embeddings" (N, D) float32 and "identities" (N,) in the order of evaluation; "roc_far", "roc_tar" of all
        pairs; "pairs_fpr", "pairs_tpr" of the test set's. See `tasks.verification` for what each is.
    """

    def __init__(self, test_set: TestSet) -> None:
        self.pairs = test_set.pairs
        self.embeddings: list[Tensor] = []
        self.identities: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """outputs: (N, D); targets["identity"]: (N,) int64."""
        self.embeddings.append(embed(outputs).cpu())
        self.identities.append(_identities(targets).cpu())

    def compute(self) -> Evaluation:
        """Raises ValueError where the samples make no genuine or no impostor pair."""
        embeddings = torch.cat(self.embeddings).numpy()
        identities = torch.cat(self.identities).numpy()
        everything = verification.compare_all(embeddings, identities, HIGH_FAR)
        found = verification.tar_at_far(everything, FAR)
        low, high = verification.tar_interval(everything, FAR)
        far, tar = verification.far_curve(everything, lowest=1 / found.impostor_pairs)
        metrics = {
            "tar": found.tar,
            "tar_low": low,
            "tar_high": high,
            "tar_1e3": verification.tar_at_far(everything, HIGH_FAR).tar,
            "impostor_pairs": found.impostor_pairs,
            "genuine_pairs": found.genuine_pairs,
            "false_accepts": found.false_accepts,
            "samples": len(identities),
        }
        arrays = {"embeddings": embeddings, "identities": identities, "roc_far": far, "roc_tar": tar}
        if self.pairs is None:
            return Evaluation(metrics, arrays)
        same = identities[self.pairs.first] == identities[self.pairs.second]
        assert (same == self.pairs.same).all(), "the pairs are of other samples"
        of_pairs = _pair_metrics(verification.pair_distances(embeddings, self.pairs), self.pairs)
        return Evaluation({**metrics, **of_pairs.metrics}, {**arrays, **of_pairs.arrays})


def _pair_metrics(distances: verification.Float64s, pairs: Pairs) -> Evaluation:
    mean, deviation = verification.fold_accuracy(distances, pairs.same, pairs.fold)
    curve = verification.roc(distances, pairs.same)
    fpr, tpr = verification.thinned(curve)
    return Evaluation(
        {"pair_accuracy": mean, "pair_accuracy_std": deviation, "eer": curve.eer, "auc": curve.auc},
        {"pairs_fpr": fpr, "pairs_tpr": tpr},
    )


FACE_EMBEDDING = Task(
    name="face_embedding",
    num_outputs=None,
    collator=lambda _: collate,
    loss=_loss,
    distill=squared_difference,
    batch_metrics=batch_metrics,
    evaluator=FaceVerification,
    predict=embed,
    by_identity=True,
)
