"""Face attributes: many yes-or-no questions at once, learned from a teacher (paper, section 4.5; Table 12).

The paper's attributes and images are its authors' own; CelebA's 40 attributes stand in for them. Table 12 gives the
mean average precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.base import Evaluation, Targets, Task, TestSet
from tasks.losses import attribute_cross_entropy


class MeanAP:
    """The mean over attributes of their average precision, ranked by logits: sure probabilities are all 1 in float32.

    metrics: "mean_ap", over the attributes that some sample has, 0 if there is none; "attributes", how many these are;
    "mean_ap_low" and "mean_ap_high", its 95 % interval; "chance_ap", what equal scores reach: the mean of these
    attributes' prevalence; "attribute_accuracy", the share of all answers that are right at probability 0.5.
    arrays: "ap" (A,), NaN for an attribute that no sample has; "prevalence" (A,); "scores" (N, A) float32, the
    probabilities; "labels" (N, A) uint8.
    """

    def __init__(self, num_attributes: int) -> None:
        self.logits = [torch.empty(0, num_attributes)]
        self.labels = [torch.empty(0, num_attributes, dtype=torch.uint8)]

    def update(self, outputs: Tensor, targets: Targets) -> None:
        """outputs: logits (N, A); targets["attributes"]: (N, A) uint8, 0 or 1."""
        labels = _labels(targets)
        assert outputs.shape == labels.shape, f"{tuple(outputs.shape)} outputs, {tuple(labels.shape)} labels"
        self.logits.append(outputs.float().cpu())
        self.labels.append(labels.cpu())

    def compute(self) -> Evaluation:
        """All that was taken in."""
        # Here, because it needs numba, which a model that only predicts does without.
        from tasks.average_precision import average_precision, mean_ap_interval

        logits, truth = torch.cat(self.logits), torch.cat(self.labels)
        scores, labels = logits.numpy(), truth.numpy()
        ap = average_precision(scores, labels)
        low, high = mean_ap_interval(scores, labels)
        answers = _probabilities(logits)
        prevalence = labels.sum(axis=0) / max(len(labels), 1)
        defined = prevalence > 0
        attributes = int(defined.sum())
        metrics = {
            "mean_ap": float(ap[defined].sum()) / max(attributes, 1),
            "mean_ap_low": low,
            "mean_ap_high": high,
            "chance_ap": float(prevalence[defined].sum()) / max(attributes, 1),
            "attribute_accuracy": float(_share_right(answers, truth, 0.5)),
            "attributes": attributes,
            "samples": len(labels),
        }
        return Evaluation(metrics, {"ap": ap, "prevalence": prevalence, "scores": answers.numpy(), "labels": labels})


def collate(fields: list[dict[str, Any]]) -> Targets:
    """{"attributes": (N, A) uint8}, 0 or 1; nothing where the images are not labelled. All are, or none is.

    Raises ValueError for other numbers, such as CelebA's own -1.
    """
    labelled = [sample["attributes"] for sample in fields if "attributes" in sample]
    if not labelled:
        return {}
    if len(labelled) < len(fields):
        raise ValueError(f"'attributes': {len(labelled)} of {len(fields)} samples have them; all must, or none")
    values = torch.tensor(labelled)
    if ((values != 0) & (values != 1)).any():
        raise ValueError(f"'attributes': {values.unique().tolist()} occur; 0 and 1 are allowed")
    return {"attributes": values.to(torch.uint8)}


def _labels(targets: Targets) -> Tensor:
    if "attributes" not in targets:
        raise ValueError("the samples have no 'attributes': without them one can only learn from a teacher")
    return targets["attributes"]


def _share_right(values: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The share of answers that are right, where above the threshold means yes; what is not a number is not right."""
    right = torch.where(labels != 0, values > threshold, values <= threshold)
    return right.sum() / max(right.numel(), 1)


def _loss(outputs: Tensor, targets: Targets) -> Tensor:
    return attribute_cross_entropy(outputs, _labels(targets))


def _batch_metrics(outputs: Tensor, targets: Targets) -> Targets:
    return {"attribute_accuracy": _share_right(outputs, _labels(targets), 0.0)}


def _evaluator(test_set: TestSet) -> MeanAP:
    return MeanAP(len(test_set.classes))


def _probabilities(outputs: Tensor) -> Tensor:
    return outputs.float().sigmoid()


FACE_ATTRIBUTES = Task(
    name="face_attributes",
    num_outputs=len,
    collator=lambda _: collate,
    loss=_loss,
    distill=attribute_cross_entropy,
    batch_metrics=_batch_metrics,
    evaluator=_evaluator,
    predict=_probabilities,
)
