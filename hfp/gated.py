"""The gated network: a model, a gate for each of its channels, and the budget that comes down while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfp import gates
from hfp.budget import Budget
from hfp.channels import ChannelTable
from hfp.cutting import carry, surgery
from hfp.cutting.places import places_of
from hfp.kept import Kept
from hfp.methods.method import Method
from hfp.model import inputs
from hfp.model.ambient import plainly
from hfp.model.turns import in_turn
from hfp.proof.verify import Proof
from hfp.recompute import by_itself, in_backward, transformed
from hfp.threshold import smallest, threshold

STOPPED = 2**62  # `step` once stopped; so large that an average of it with a real count still reads as stopped
SURELY_TRAINED = 32  # steps after which gates that an optimizer has should have changed


class GatedModel(nn.Module):
    """A model whose channels have gates; same forward as the model, which stays as it is. Made by `wrap`.

    Everything that training changes is in `state_dict()`: the model's tensors under `model.`, the gates, which of them
    are open, and how many steps have been taken. What a method does at its own moments is asked of `method`.
    """

    gates: nn.Parameter
    live: Tensor
    step: Tensor

    def __init__(
        self,
        model: nn.Module,
        table: ChannelTable,
        arguments: inputs.Arguments,
        budgets: Iterable[Budget],
        *,
        method: Method,
        counter: str,
        steps: int,
        round_to: int,
        targets: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.table = table
        self.method = method
        self.budgets = tuple(budgets)
        self.steps = steps
        self.round_to = round_to
        self.targets = targets
        self.counter = counter
        self._costs = table.costs(counter)
        self._arguments = arguments
        device = next(model.parameters()).device
        self._readers = gates.Readers(model, table)
        one_each = torch.ones(table.channels, dtype=torch.float32, device=device)  # in whatever precision the model is
        self.gates = nn.Parameter(torch.zeros_like(one_each), requires_grad=method.learns)
        self.register_buffer("live", one_each)
        self.register_buffer("step", torch.zeros((), dtype=torch.long, device=device))
        for name, buffer in method.buffers(table).items():
            self.register_buffer(name, buffer.to(device))
        self._reckoned = Kept[tuple[Tensor, Tensor]]()
        self._counted = Kept[int]()
        self._last: tuple[Tensor, Tensor] | None = None  # `live` and `step` in the last forward
        self._warned = False
        self._untaken, self._versions = 0, -1  # calls in evaluation mode, and of what weights the last was
        self._dtype = inputs.home(model)[1]  # that the example inputs suit
        self.training = model.training  # alone: parts of the model may be in another mode, such as frozen norms

    @property
    def keep(self) -> Tensor:
        """(channels,) bool: which channels are live; in a running average of networks, those that mostly were.

        Its buffer is `live`, in floating point, because what averages buffers knows nothing else.
        """
        return self.live > 0.5

    @keep.setter
    def keep(self, keep: Tensor) -> None:
        # A new tensor, not an in-place change: the graph of this step's forward still holds the old one.
        self.live = keep.to(self.live)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name == "model" or not hasattr(self.model, name):
                raise
            raise AttributeError(
                f"{error}; the model has: net.model.{name}. What is called there has no gates, only net(...) has them; "
                f"to train through it, wrap a module whose forward calls model.{name}"
            ) from None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if in_backward():
            return self._again(args, kwargs)
        if not transformed():
            self._last = self.live, self.step.clone()
        return self._forward(args, kwargs)

    @in_turn
    def _again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The last forward as it was, whatever has been cut since: a checkpoint around the net computes it anew."""
        now = self.live, self.step
        self.live, self.step = self._last or now
        try:
            return self._forward(args, kwargs)
        finally:
            self.live, self.step = now

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.method.forward is not None:
            return self.method.forward(self, args, kwargs)
        if self.method.gate is not None and torch.is_grad_enabled():
            return self.gated(self.method.gate(self), args, kwargs)
        return self.gated(self.keep.to(self.gates.dtype), args, kwargs)

    def gated(self, phi: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, frozen: bool = False) -> Any:
        """The model's output with each channel multiplied by its phi (channels,).

        `frozen`: nothing but phi learns, neither the model's weights nor the statistics of its norms.
        """
        self._check("gates", phi, self.live.shape)
        try:
            return gates.gated_forward(self.model, self._readers, phi, args, kwargs, frozen=frozen)
        except (KeyError, AttributeError, RuntimeError) as error:
            self._check_unchanged()
            if (shard := surgery.sharded(self.model)) is not None:
                raise ValueError(
                    f"{shard} is spread over processes by itself; shard the gated network as a whole: fully_shard(net)"
                ) from error
            raise

    @in_turn
    def complexity_loss(self) -> Tensor:
        """How far live counts are above their targets, relative to dense, summed: add it to the task loss.

        In training each call is one step of the pruning schedule. When the schedule is done the target is met, the
        live channels stay as they are, and the loss is 0. Some methods add a penalty of theirs.
        """
        if self.progress < 1.0 and not in_backward():
            self._advance() if self.training else self._warn_of_evaluation()
        if self.method.penalty is not None and torch.is_grad_enabled():
            penalty = self.method.penalty(self)
            self._check("penalties", penalty, torch.Size())
            return penalty.float()
        return self.live_gap()

    def _advance(self) -> None:
        """One step of the pruning schedule; not taken if its cut cannot be made."""
        self._untaken = 0
        step = self._taken() + 1
        if step.bit_count() == 1:  # a power of two: soon after a change, and hardly ever
            self._check_unchanged()
        before, share = (self.method.share(taken, self.steps) for taken in (step - 1, step))
        if share != before:
            self._warn_of_idle_gates(step)
            self.keep = self._chosen(share)
        self.step += 1
        self._counted.put(self.step, step)

    def gap(self, phi: Tensor) -> Tensor:
        """How far the counts for gates phi (channels,) are above their targets; 0 once the net is stopped.

        Reckoned in float64, which there are devices without, so on the CPU; given as float32 where the gates are.
        """
        phi = phi.cpu().double()
        gaps = [0.0 * phi.sum()] if self.stopped else [budget.gap(phi) for budget in self.budgets]
        return torch.stack(gaps).sum().float().to(self.gates.device)

    def stop(self) -> None:
        """End pruning here: the live channels stay as they are, short of the target, and `compact` cuts to them."""
        self.step.fill_(STOPPED)

    @property
    def stopped(self) -> bool:
        return self._taken() > 2**40

    @torch.compiler.disable
    def _taken(self) -> int:
        """`step` as a number. The device is waited for only if somebody else has written it, as loading does."""
        taken = self._counted.get(self.step)
        if taken is None:
            taken = int(self.step)
            self._counted.put(self.step, taken)
        return taken

    def live_gap(self) -> Tensor:
        """`gap` of the live channels, without a gradient."""
        return self._reckon()[0].clone()  # somebody may add to it in place

    def price(self) -> Tensor:
        """(channels,) by how much `gap` falls with each of the live channels; float32, where the gates are."""
        return self._reckon()[1]

    @torch.compiler.disable
    @plainly
    def _reckon(self) -> tuple[Tensor, Tensor]:
        """`live_gap` and `price`, reckoned anew when others are live."""
        if torch._C._functorch.is_functorch_wrapped_tensor(self.live):
            raise ValueError(
                "torch.func transforms the buffers of a gated network, which has to know its live channels; let it "
                "transform parameters and inputs alone"
            )
        reckoned = self._reckoned.get(self.live, self.stopped)
        if reckoned is None:
            with by_itself():
                live = self.keep.cpu().double().requires_grad_()
                gap = self.gap(live)
                (price,) = torch.autograd.grad(gap, live)
                reckoned = gap.detach(), price.float().to(gap.device)
            self._reckoned.put(self.live, reckoned, self.stopped)
        return reckoned

    def param_groups(self, lr: float, **options: Any) -> list[dict[str, Any]]:
        """Groups for an optimizer: the model's parameters with `lr` and `options`, the gates with their own.

        >>> import hfp
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> net = hfp.wrap(model, torch.zeros(1, 3, 8, 8), target_macs=0.5)
        >>> optimizer = torch.optim.SGD(net.param_groups(lr=0.1, weight_decay=5e-4), momentum=0.9)
        """
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [
            {"params": weights, "lr": lr, **options},
            {"params": [self.gates], "lr": self.method.gate_lr, "weight_decay": 0.0},
        ]

    @property
    def progress(self) -> float:
        """The share of the pruning schedule that is done, in [0, 1]; 1 once it is stopped."""
        return 1.0 if self.stopped else min(self._taken() / self.steps, 1.0)

    @plainly
    def macs(self) -> int:
        """Multiply-adds of one pass of the example inputs, with the channels that are live now, as `counter` counts."""
        return self._costs["macs"].count(self.keep.cpu())

    @plainly
    def params(self) -> int:
        """Parameters with the channels that are live now."""
        return self._costs["params"].count(self.keep.cpu())

    @property
    @plainly
    def dense_macs(self) -> int:
        return self._costs["macs"].dense()

    @property
    @plainly
    def dense_params(self) -> int:
        return self._costs["params"].dense()

    @property
    @plainly
    def least_macs(self) -> int:
        """The smallest `target_macs` that can be reached."""
        return smallest(self.table, self._costs["macs"], self.round_to)

    @in_turn
    @plainly
    def compact(
        self,
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        scheduler: Any = None,
        ema: nn.Module | Sequence[nn.Module] | None = None,
    ) -> nn.Module:
        """A dense network of the model's own class, within the budget, that computes what this one does.

        Before the end of the schedule channels are cut to the target with what is known of them by then, unless the
        schedule was stopped. `optimizer`, its `scheduler` and `ema`, such as an AveragedModel, or lists of them, are
        changed in place, to train on with the compact network as if nothing had happened: see `hfp.cutting.carry`.

        `hfp.Disagreement`, a RuntimeError that names the channel groups to blame, if the compact network computes
        something else. ValueError for an optimizer, scheduler or average that cannot be carried over.
        """
        self._check_unchanged()
        keep = self._chosen(1.0)
        small = surgery.compact(self.model, self.table, keep)
        self.proof().check(keep, small)
        counts = {name: cost.count(keep) for name, cost in self._costs.items()}
        small.hfp_record = surgery.Record(  # type: ignore[assignment]
            keep=keep,
            fingerprint=self.table.fingerprint(),
            inputs=self.table.inputs,
            dense_macs=self.dense_macs,
            dense_params=self.dense_params,
            macs=counts["macs"],
            params=counts["params"],
            targets=self.targets,
            places=places_of(self.table, keep),
        )
        carry.carry(self.model, self.table, small, self.gates, optimizer=optimizer, scheduler=scheduler, ema=ema)
        return small

    @plainly
    def _chosen(self, share: float) -> Tensor:
        """(channels,) bool on the CPU: the live channels when the budget has come down by this share of its way."""
        keep, limits = self.keep.cpu(), [(budget.cost, budget.at(share)) for budget in self.budgets]
        fits = all(cost.count(keep) <= most for cost, most in limits)
        if self.stopped or (fits and (self.method.reopens or share < 1.0)):
            return keep
        scores = self._scores()
        if self.method.reopens:
            return threshold(scores, self.table, limits, round_to=self.round_to)
        # What is closed ranks below all that is live. Only at the very end may it come back, to fill the budget.
        scores = torch.where(keep, scores, scores - (scores.max() - scores.min() + 1.0))
        chosen = threshold(scores, self.table, limits, round_to=self.round_to)
        return chosen if share == 1.0 else chosen & keep

    def _check_unchanged(self) -> None:
        """ValueError where the model has other tensors than those that were traced."""
        if found := surgery.misfit(self.model, self.table):
            raise ValueError(
                f"{found} when the model was wrapped: change a model before hfp.wrap, or change the compact one"
            )
        new = [name for name, _ in self.model.named_parameters() if name not in self._readers.aliases]
        if new:
            raise ValueError(
                f"{new[0]} was not there when the model was wrapped: change a model before hfp.wrap, or the compact one"
            )

    def _warn_of_idle_gates(self, step: int) -> None:
        trained = self.method.gate is not None or self.method.forward is not None
        if trained and not self._warned and step >= SURELY_TRAINED and not bool(self.gates.any()):
            self._warned = True
            warnings.warn(
                f"no gate has changed in {step} steps, so channels are judged by the size of their filters; give the "
                "gates to an optimizer: torch.optim.SGD(net.param_groups(lr=0.05), momentum=0.9) (if gradients of as "
                f"many batches are added up, wrap with more than these {self.steps:,} steps, or add up fewer)",
                stacklevel=5,
            )

    def _warn_of_evaluation(self) -> None:
        """Weights that are others with every call are being trained, though no step of the schedule is taken."""
        versions = sum(parameter._version for parameter in self.model.parameters())
        self._untaken += torch.is_grad_enabled() and versions != self._versions
        self._versions = versions
        if self._untaken == SURELY_TRAINED and self.live_gap() > 0:
            warnings.warn(
                f"{SURELY_TRAINED} steps of training in evaluation mode, in which no channel is cut; call net.train() "
                "first (models often come in evaluation mode; norms that are to stand still may be put into it after)",
                stacklevel=4,
            )

    def _check(self, what: str, given: Any, shape: torch.Size) -> None:
        """ValueError where the method gives no tensor of that shape: of all channels, or a scalar."""
        if not isinstance(given, Tensor) or given.shape != shape:
            found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            expected = (
                f"tensor of {self.table.channels} numbers, one for each channel of net.table" if shape else "scalar"
            )
            raise ValueError(f"the {what} of method {self.method.name!r} are {found}; expected a {expected}")

    def _scores(self) -> Tensor:
        """(channels,) float64 on the CPU: what the method says."""
        try:
            scores = self.method.scores(self)
        except (KeyError, AttributeError):
            self._check_unchanged()
            raise
        self._check("scores", scores, self.live.shape)
        return scores.detach().cpu().double()

    def proof(self) -> Proof:
        # The model may have been cast, or moved, since it was wrapped.
        arguments = inputs.placed(self._arguments, self.gates.device, {self._dtype: inputs.home(self.model)[1]})
        ignored = self.targets["ignore"]
        return Proof(self.model, self.table, arguments, readers=self._readers, ignored=ignored)
