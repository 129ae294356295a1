"""The net of a run as it is before the first step."""

from __future__ import annotations

import torch
from torch import nn

from pipelines.training.job import Job, untrained_net
from pipelines.training.origins import initialise


def first_net(job: Job) -> nn.Module:
    """The same in all processes of a run: by its seed, with the weights that it starts from, and without gradients for
    what is frozen.
    """
    run = job.run
    torch.manual_seed(run.seed)
    net = untrained_net(run, job.num_outputs).to(memory_format=torch.channels_last)
    if job.initial is not None:
        initialise(net, job.initial)
    settle = getattr(net, "settle", None)
    if settle and (job.initial is None or job.initial.into):  # layers that another detector has trained are settled
        settle(run.input_size)
    return net
