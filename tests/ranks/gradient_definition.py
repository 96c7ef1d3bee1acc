"""Of test_gradients: the gradients by their definition, plain PyTorch in float64 over the whole batch."""

import math
from dataclasses import replace
from decimal import Decimal

import torch
from torch import Tensor

from megaslm.model.load import build_from_shape, draw_weights
from megaslm.slm.keys import HASH_BITS, hash_of
from tests.ranks.gradient_cases import DOMAIN_RATIOS, EXPECTED_CUT, GLOBAL_ROWS, POLICIES, STEP, Batch, Case, config_of
from tests.toy import EOS_ID, SEQ_LEN, Unsharded


class Definition:
    """The definition, in float64: rank by sorting, sum, divide once by the global count."""

    def __init__(self, case: Case) -> None:
        architecture = config_of(case, 1).model.from_scratch
        assert architecture is not None
        lm = build_from_shape(architecture, eos_id=EOS_ID, dtype=torch.float32)
        lm.config.sliding_window = case.window
        draw_weights(lm, seed=3, standard_deviation=0.3, sharding=Unsharded())
        self.batch = Batch.of(case)
        self.parameters = {f"lm.{name}": parameter for name, parameter in lm.double().named_parameters()}
        measured = [documents_apart(lm, row) for row in self.batch.tokens]
        losses, entropies, logits = (torch.stack(part) for part in zip(*measured, strict=True))
        self.losses, self.entropies, self.logits = losses, entropies.detach(), logits
        self.top_logits = logits.detach().sort(-1, descending=True).values

    def gradients(self, case: Case, world_size: int) -> dict[str, Tensor]:
        selected = self.selected(case, world_size)
        if case.starved_rank:
            assert not selected[GLOBAL_ROWS // 2 :].any()
        denominator = max(1, int(selected.sum()))
        if case.mode == "running":
            denominator = float(case.keep_ratio) * int(self.batch.valid.sum())
        total = (self.mixed(case, selected) * self.weights(case, selected)).sum()
        found = torch.autograd.grad(total / denominator, list(self.parameters.values()), retain_graph=True)
        return dict(zip(self.parameters, found, strict=True))

    def mixed(self, case: Case, selected: Tensor) -> Tensor:
        """(8, L) float64: the cross-entropies, mixed with divergences by the formula of docs/concepts.md."""
        setting = case.slm.distill
        if not setting.weight:
            return self.losses
        of_all = self.logits.softmax(-1)
        top = of_all.gather(-1, self.batch.ref_top_id.long())
        buckets = torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1)
        model, reference = (
            (each ** (1 / setting.temperature)) / (each ** (1 / setting.temperature)).sum(-1, keepdim=True)
            for each in (buckets, self.batch.ref_top_logprob.double().exp())
        )
        divergences = setting.temperature**2 * (reference * (reference / model).log()).sum(-1)
        if setting.on == "selected":
            return (1 - setting.weight) * self.losses + setting.weight * divergences
        return torch.where(selected, self.losses, setting.weight * divergences)

    def weights(self, case: Case, selected: Tensor) -> Tensor:
        """(8, L) float64, by the formulas of docs/concepts.md."""
        losses, batch, setting = self.losses.detach(), self.batch, case.slm.weight
        top = torch.softmax(self.top_logits[..., : setting.top_tokens], -1)
        own = {
            "excess": losses - batch.ref_loss,
            "loss": losses,
            "reference": -batch.ref_loss.double(),
            "entropy": -batch.ref_entropy.double(),
        }.get(case.criterion, losses)
        can_unlearn = losses < (setting.bound_nats or 0.0)
        stored = batch.weight.double()
        of_selected = {
            "hard": torch.ones_like(losses),
            "probability": torch.exp(-losses) ** setting.power,
            "entropy": (-(top * top.log()).sum(-1) / math.log(setting.top_tokens)) ** setting.power,
            "sigmoid": 1 / (1 + torch.exp((setting.center_nats - own) / (setting.temperature or 1.0))),
            "signed": torch.ones_like(losses),
            "column": stored.where((stored >= 0) | can_unlearn, 0.0),
        }[case.weight]
        if case.distill == "unselected":
            return batch.valid.double()
        of_others = -(setting.negative or 0.0) * (batch.valid & can_unlearn).double()
        return of_selected.where(selected, of_others)

    def selected(self, case: Case, world_size: int) -> Tensor:
        batch, losses = self.batch, self.losses.detach()
        eligible = batch.valid & (batch.ref_loss <= (case.max_ref_loss or float("inf")))
        values = {
            "excess": losses - batch.ref_loss,
            "loss": losses,
            "student_entropy": self.entropies,
            "reference": -batch.ref_loss.double(),
            "entropy": -batch.ref_entropy.double(),
            "random": (hash_of(batch.keys, 0, STEP) >> 7).double(),
        }
        if case.span_reach is not None:
            values = {name: self.means_of_spans(own, case.span_reach) for name, own in values.items()}
        if case.criterion == "reference_and_entropy":
            return self.selected(replace(case, criterion="reference"), world_size) & self.selected(
                replace(case, criterion="entropy"), world_size
            )
        if case.mode == "running":
            return eligible & (values[case.criterion] >= EXPECTED_CUT[case.criterion])
        policy, own = POLICIES[case.policy], values[case.criterion]
        if policy.threshold is not None:
            return eligible & (own >= policy.threshold)
        if policy.temperature is not None:
            uniform = (hash_of(batch.keys, 0, STEP).double() + 0.5) / (1 << HASH_BITS)
            own = own / policy.temperature - (-uniform.log()).log()
        return top_of_groups(case, groups(case, world_size), own, batch.valid, eligible)

    def means_of_spans(self, values: Tensor, reach: int) -> Tensor:
        """The means over the valid targets at most `reach` places away in the same document."""
        document = (self.batch.tokens[:, :-1] == EOS_ID).cumsum(1)
        places = torch.arange(SEQ_LEN)
        near = (places[:, None] - places).abs() <= reach
        span = near & (document[:, :, None] == document[:, None]) & self.batch.valid[:, None]
        return torch.where(span, values[:, None].double(), 0.0).sum(2) / span.sum(2).clamp(min=1)


def top_of_groups(
    case: Case, row_groups: list[tuple[list[int], Decimal]], values: Tensor, valid: Tensor, eligible: Tensor
) -> Tensor:
    selected = torch.zeros_like(valid)
    for group, ratio in row_groups:
        places = [(row, place) for row in group for place in range(SEQ_LEN)]
        count, half = sum(bool(valid[place]) for place in places), Decimal("0.5")
        skip = int(POLICIES[case.policy].skip_ratio * count + half)
        candidates = sorted((-float(values[place]), *place) for place in places if eligible[place])
        for _, row, place in candidates[skip : skip + int(ratio * count + half)]:
            selected[row, place] = True
    return selected


def groups(case: Case, world_size: int) -> list[tuple[list[int], Decimal]]:
    """The rows among which a target must rank, as the definition of the scope has them, with k of each group."""
    rows = list(range(GLOBAL_ROWS))
    if case.apart:
        return [(rows[number::2], ratio or case.keep_ratio) for number, ratio in enumerate(DOMAIN_RATIOS)]
    if case.scope == "batch":
        return [(rows, case.keep_ratio)]
    size = 1 if case.scope == "sequence" else GLOBAL_ROWS // world_size // case.micro_steps
    return [(rows[start : start + size], case.keep_ratio) for start in range(0, GLOBAL_ROWS, size)]


def documents_apart(lm: torch.nn.Module, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A row's losses, the entropies of its predictions, and the logits. Each document is run by itself."""
    starts = [0, *(place + 1 for place in range(SEQ_LEN) if row[place] == EOS_ID)]
    ends = [*starts[1:], SEQ_LEN]
    losses, entropies, all_logits = [], [], []
    for start, end in zip(starts, ends, strict=True):
        if start < end:
            logits = lm(row[None, start:end]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, row[start + 1 : end + 1], reduction="none"))
            entropies.append(torch.distributions.Categorical(logits=logits).entropy())
            all_logits.append(logits)
    return torch.cat(losses), torch.cat(entropies), torch.cat(all_logits)
