"""An accuracy floor: pruning ends at the thinnest network that holds it, with the weights that it had then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hfp import checkpoint
from hfp.experiment.restore import put_back
from hfp.gated import GatedModel


@dataclass(frozen=True)
class Floor:
    """Told the validation accuracy after every epoch, it keeps the last state that held; after that it ends pruning.

    floor = Floor(0.92, net, optimizer, Path("held.safetensors"))
    floor.check(0, 0.95)       # holds: written down
    floor.check(1, 0.91)       # does not: net and optimizer are as they were at epoch 0, and net is stopped
    """

    least: float
    net: GatedModel
    optimizer: torch.optim.Optimizer
    held: Path
    """The file of the last state that held. It is written before the checkpoint of its epoch, so one that is killed in
    between runs that epoch again, and writes the same."""

    def check(self, epoch: int, accuracy: float) -> str:
        """What there is to say of it.

        Raises:
            ValueError: the network is below the floor before anything is pruned.
        """
        if self.net.stopped:
            return ""
        if accuracy >= self.least:
            own = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
            checkpoint.save_training(self.held, {"epoch": epoch, **own})
            return ""
        if epoch == 0:
            raise ValueError(
                f"--accuracy-floor {self.least}: the unpruned network has {accuracy:.4f} on the validation images, so "
                "there is nothing to hold; give a lower floor, or train it for longer (--dense-epochs)."
            )
        state = checkpoint.load_training(self.held)
        put_back(self.net, self.optimizer, state, source=str(self.held))
        self.net.stop()
        return f"below the floor of {self.least}: back to epoch {state.get('epoch')}, and pruning ends there"
