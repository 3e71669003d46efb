"""A script: train by Lightning on one or two processes, and save what every process has at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import localprop
from localprop.integrations.lightning import LocalDDPStrategy, LocalModule

BATCH, BATCHES = 16, 3


class Gradients(Callback):
    """Keeps what the optimisers are given."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for group in optimizer.param_groups:
            self.seen += [parameter.grad.clone() for parameter in group["params"] if parameter.grad is not None]


def build(method: str, seed: int) -> localprop.Rule:
    torch.manual_seed(seed)
    norm = [nn.BatchNorm1d(16)] if method == "pred" else []
    first = nn.Sequential(nn.Linear(8, 16), *norm, nn.ReLU())
    net = localprop.split(nn.Sequential(first, nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 3)))
    return localprop.methods.build(method, net, num_classes=3, example=torch.zeros(2, 8))


def main(method: str, processes: int, directory: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(BATCH * BATCHES, 8).double(), torch.randint(0, 3, (BATCH * BATCHES,)))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=processes,
        strategy=LocalDDPStrategy(process_group_backend="gloo") if processes > 1 else "auto",
        precision="64-true",
        use_distributed_sampler=False,  # Lightning's shuffles, so that the joint batches would be others
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[gradients := Gradients()],
    )
    rule = build(method, seed=trainer.local_rank)  # the weights of the first process must reach the others
    module = LocalModule(rule, lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), clip_norm=0.5)
    sampler = DistributedSampler(data, num_replicas=processes, rank=trainer.local_rank, shuffle=False)
    loader = DataLoader(data, batch_size=BATCH // processes, sampler=sampler)
    trainer.fit(module, loader, loader)
    found = {
        "state": rule.state_dict(),
        "gradients": gradients.seen,
        "global_step": trainer.global_step,
        "validation_error": trainer.callback_metrics["validation_error"],
    }
    torch.save(found, directory / f"{method}-{processes}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
