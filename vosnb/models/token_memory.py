"""XMem's working and long-term memory as values: tokens of (key, shrinkage, selection) with each group of objects' values, a sparse
read, and the consolidation of old frames into prototypes (Cheng & Schwing 2022, sections 3.2 and 3.3).

Objects that begin on the same frame are a **group** and share one affinity. Keys are everybody's; every group has its values at the
tokens that it holds, a list of its own, and the frame where it begins is never consolidated. Nothing changes in place: a memory is a
value, and reading or adding gives a new one, which shares what is the same. Dimensions: N tokens, Q queries, Ck channels of a key,
C = objects of the group × Cv channels of values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F

SCRATCH = 1 << 21  # similarities that are held at once on a CPU; a GPU is given more, to be busy
NEW = 1e-7  # the age of a token that has not been read


class Rules(Protocol):
    """What the memory is told; the fields of `strategies.xmem.XMem`, see there."""

    top_k: int
    enable_long_term: bool
    min_mid_term_frames: int
    max_mid_term_frames: int
    num_prototypes: int
    max_long_term_elements: int
    compat: str | None


@dataclass(frozen=True, eq=False)
class Held:
    """A group's `values` (M, C) at the tokens `rows` (M,) of a block, in ascending order; None: at all of them."""

    values: torch.Tensor
    rows: torch.Tensor | None = None

    def at(self, count: int) -> torch.Tensor:
        return torch.arange(count, device=self.values.device) if self.rows is None else self.rows


@dataclass(frozen=True, eq=False)
class Tokens:
    """A block of tokens, a frame's or the long-term memory's.

    `folded` (N, 2 Ck + 1) is [k², −2k, 1] · −s/√Ck, so that its product with [e, e·q, Σ e·q²] is the similarity; `held` by group;
    `use` and `life` (N,) float32: the weight the first group's reads gave to each token, and how many reads it has seen; `source`:
    key (N, Ck), shrinkage (N, 1) and selection (N, Ck) of a frame. A `permanent` frame is never consolidated.
    """

    folded: torch.Tensor
    held: Mapping[int, Held]
    use: torch.Tensor
    life: torch.Tensor
    source: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    permanent: bool = False

    @classmethod
    def new(cls, key: torch.Tensor, shrinkage: torch.Tensor, held: Mapping[int, Held], **more) -> Tokens:
        folded = _folded(key, shrinkage)
        use = torch.zeros(len(key), device=key.device)
        return cls(folded, held, use, torch.full_like(use, NEW), **more)

    def __len__(self) -> int:
        return len(self.folded)

    @property
    def usage(self) -> torch.Tensor:
        return self.use / self.life

    def read(self, weight: torch.Tensor) -> Tokens:
        return replace(self, use=(self.use + weight).float(), life=self.life + 1)


@dataclass(frozen=True, eq=False)
class Memory:
    """`groups`: how many objects each has, in order; `work`: frames, oldest first; `long`: prototypes, oldest first."""

    rules: Rules
    groups: tuple[int, ...] = ()
    work: tuple[Tokens, ...] = ()
    long: Tokens | None = None
    blocks: tuple[Tokens, ...] = field(init=False)  # all of them, in the order of the tokens

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", (*(() if self.long is None else (self.long,)), *self.work))

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def objects(self) -> int:
        return sum(self.groups)

    def read(self, key: torch.Tensor, selection: torch.Tensor) -> tuple[torch.Tensor, Memory]:
        """What the memory says to Q queries (Q, Ck) each: (Q, objects · Cv); and the memory with this read counted.

        Every query listens to the `top_k` most similar tokens, by group, in proportion to exp(similarity). Queries go in
        portions, so that no array of N × Q is ever held.
        """
        tokens = torch.cat([block.folded for block in self.blocks])
        query = _folded_query(key, selection)
        groups = range(len(self.groups))
        columns = [self._columns(g) for g in groups]
        found = []
        for part in query.split(max(1, SCRATCH * (1 if key.device.type == "cpu" else 32) // len(tokens))):
            similarity = part @ tokens.T
            owned = (similarity if columns[g] is None else similarity[:, columns[g]] for g in groups)
            found.append([choose(own, min(self.rules.top_k, own.shape[1])) for own in owned])
        said, usage = [], torch.zeros(len(tokens), dtype=key.dtype, device=key.device)
        for g in groups:
            best, index = (torch.cat([of_part[g][i] for of_part in found]) for i in (0, 1))
            weight = best.softmax(1)
            if g == 0:  # it holds every token
                usage.index_add_(0, index.flatten(), weight.flatten())
            said.append(_gather([block.held[g].values for block in self.blocks if g in block.held], index, weight))
        weights = usage.split([len(block) for block in self.blocks])
        counted = [block.read(weight) for block, weight in zip(self.blocks, weights, strict=True)]
        long = None if self.long is None else counted.pop(0)
        return torch.cat(said, 1), replace(self, long=long, work=tuple(counted))

    def add(self, key: torch.Tensor, shrinkage: torch.Tensor, selection: torch.Tensor, values: torch.Tensor) -> Memory:
        """With a frame more: key and selection (N, Ck), shrinkage (N, 1), values (N, objects, Cv). Objects beyond the known ones
        become a new group. A memory that has become full is consolidated."""
        new = values.shape[1] - self.objects
        groups = (*self.groups, new) if new else self.groups
        parts = values.split(groups, 1)
        first = not self.work if self.rules.compat else new > 0
        frame = Tokens.new(
            key, shrinkage, {g: Held(part.flatten(1)) for g, part in enumerate(parts)},
            source=(key, shrinkage, selection), permanent=first,
        )  # fmt: skip
        memory = replace(self, groups=groups, work=(*self.work, frame))
        if self.rules.enable_long_term and memory._passing() >= self.rules.max_mid_term_frames - 1:
            return memory._consolidated()
        return memory

    def _passing(self) -> int:
        return sum(not block.permanent for block in self.work)

    def _columns(self, g: int) -> torch.Tensor | None:
        """The tokens that a group holds, (M,); None: all."""
        count = sum(len(block.held[g].values) for block in self.blocks if g in block.held)
        return None if count == len(self) else _rows(self.blocks, g)

    def _consolidated(self) -> Memory:
        """The passing frames but the newest become prototypes: the tokens used most, potentiated by all that resemble them."""
        rules = self.rules
        passing = [block for block in self.work if not block.permanent]
        old = passing[: len(passing) - (rules.min_mid_term_frames - 1)]
        told = {g: _held_together(old, g) for g in range(len(self.groups))}
        work = tuple(block for block in self.work if block not in old)
        if rules.compat:
            told, work = self._as_published(old, told, work)
        long = self.long
        if long is not None and len(long) > (room := rules.max_long_term_elements - rules.num_prototypes):
            long = _without_the_least_used(long, room)
        prototypes = _prototypes(old, told, rules.num_prototypes)
        long = prototypes if long is None else _appended(long, prototypes)
        if rules.compat:
            long = replace(long, held={g: _at_the_end(held, len(long)) for g, held in long.held.items()})
        return replace(self, work=work, long=long)

    def _as_published(
        self, old: Sequence[Tokens], told: dict[int, Held | None], work: tuple[Tokens, ...]
    ) -> tuple[dict[int, Held | None], tuple[Tokens, ...]]:
        """The original's pairing, by position: a group that began late keeps the values of its own first frame, and what it keeps is
        taken for the values of the last so many frames. Its first annotation thus ends at the keys of the clip's first frame."""
        least, told, kept = self.rules.min_mid_term_frames, dict(told), {}
        for g in range(len(self.groups)):
            own = [block for block in self.work if g in block.held]
            if len(own) < len(self.work):
                later = [replace(block, held={}) if block is own[0] else block for block in old]
                told[g] = _held_together(later, g) if len(own) > least + 1 else None
            kept[g] = [block.held[g] for block in (own[0], *own[max(1, len(own) - least + 1) :])]
        places = range(-len(work), 0)
        paired = ({g: held[i] for g, held in kept.items() if len(held) >= -i} for i in places)
        return told, tuple(replace(block, held=held) for block, held in zip(work, paired, strict=True))


def choose(similarity: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest of each row, and where they are: (Q, k) each. Near ties are decided by rounding, so tests replace this."""
    return similarity.topk(k, dim=1, sorted=False)


def similarity(key: torch.Tensor, shrinkage: torch.Tensor, query: torch.Tensor, selection: torch.Tensor) -> torch.Tensor:
    """−s/√Ck · Σ e (k − q)² of N tokens, `key` (…, N, Ck) and `shrinkage` (…, N, 1), to Q queries (…, Q, Ck): (…, Q, N), at most 0."""
    return _folded_query(query, selection) @ _folded(key, shrinkage).mT


def _folded(key: torch.Tensor, shrinkage: torch.Tensor) -> torch.Tensor:
    return torch.cat([key**2, -2 * key, torch.ones_like(shrinkage)], -1) * (-shrinkage / math.sqrt(key.shape[-1]))


def _folded_query(key: torch.Tensor, selection: torch.Tensor) -> torch.Tensor:
    weighted = selection * key
    return torch.cat([selection, weighted, (weighted * key).sum(-1, keepdim=True)], -1)


def _gather(slabs: Sequence[torch.Tensor], index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Σ weight · value over each row's tokens: (Q, C). `index` (Q, k) counts through the slabs (M, C) one after the other, which are
    never joined."""
    if len(slabs) == 1:
        return F.embedding_bag(index, slabs[0], mode="sum", per_sample_weights=weight.to(slabs[0].dtype))
    said, start = None, 0
    for values in slabs:
        inside = (index >= start) & (index < start + len(values))
        count = inside.sum(1)
        part = F.embedding_bag(
            index[inside] - start,
            values,
            count.cumsum(0) - count,
            mode="sum",
            per_sample_weights=weight[inside].to(values.dtype),
        )
        said = part if said is None else said + part
        start += len(values)
    return said


# -- consolidation -------------------------------------------------------------------------------------------------------


def _rows(blocks: Sequence[Tokens], g: int) -> torch.Tensor:
    """The tokens that a group holds, counted through all of the blocks, (M,)."""
    starts = accumulate(map(len, blocks), initial=0)
    return torch.cat([b.held[g].at(len(b)) + start for b, start in zip(blocks, starts, strict=False) if g in b.held])


def _held_together(blocks: Sequence[Tokens], g: int) -> Held | None:
    """What a group holds in several blocks; None where it holds nothing."""
    values = [block.held[g].values for block in blocks if g in block.held]
    return Held(torch.cat(values), _rows(blocks, g)) if values else None


def _prototypes(old: Sequence[Tokens], told: Mapping[int, Held | None], count: int) -> Tokens:
    key, shrinkage, selection = (torch.cat(parts) for parts in zip(*(block.source for block in old), strict=True))
    usage = torch.cat([block.usage for block in old])
    chosen = usage.topk(min(count, len(usage))).indices  # most used first
    similarity = _folded_query(key[chosen], selection[chosen]) @ torch.cat([block.folded for block in old]).T
    held = {}
    for g, own in told.items():
        if own is None:
            continue
        known = torch.isin(chosen, own.rows)
        if known.any():
            held[g] = Held(similarity[known][:, own.rows].softmax(1).to(own.values.dtype) @ own.values, known.nonzero()[:, 0])
    return Tokens.new(key[chosen], similarity.softmax(1) @ shrinkage, held)


def _appended(long: Tokens, more: Tokens) -> Tokens:
    held = dict(long.held)
    for g, own in more.held.items():
        own = Held(own.values, own.at(len(more)) + len(long))
        before = held.get(g)
        held[g] = own if before is None else Held(torch.cat([before.values, own.values]), torch.cat([before.rows, own.rows]))
    folded, use, life = (torch.cat([getattr(long, name), getattr(more, name)]) for name in ("folded", "use", "life"))
    return Tokens(folded, held, use, life)


def _without_the_least_used(long: Tokens, room: int) -> Tokens:
    """At most `room` tokens; all that are used as little as the last one to go, go."""
    usage = long.usage
    keep = usage > usage.kthvalue(len(long) - room).values
    place = keep.cumsum(0) - 1
    held = {}
    for g, own in long.held.items():
        stays = keep[own.rows]
        held[g] = Held(own.values[stays], place[own.rows[stays]])
    return Tokens(long.folded[keep], held, long.use[keep], long.life[keep])


def _at_the_end(held: Held, count: int) -> Held:
    return Held(held.values, torch.arange(count - len(held.values), count, device=held.values.device))
