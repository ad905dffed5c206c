"""XMem's working and long-term memory written down plainly: one array per quantity, dense affinities, values paired with the last keys.

It follows sections 3.2 and 3.3 of the paper and, where these leave it open, what the original does; slow and with no care for memory. The
tests hold `vosnb.models.token_memory` under `compat="xmem"` against it.
"""

import numpy as np


def similarity(key, shrinkage, query, selection):
    """(N, Q): −s/√C Σ e (k − q)²."""
    difference = (key[:, None] - query[None]) ** 2
    return -shrinkage[:, None] / np.sqrt(key.shape[1]) * (difference * selection[None]).sum(-1)


def softmax(x):
    """Over the first axis; −inf has no weight."""
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def top(x, k):
    """x (N, Q) with −inf everywhere but at the k highest of each column."""
    out = np.full_like(x, -np.inf)
    rows = np.argsort(-x, axis=0)[:k]
    np.put_along_axis(out, rows, np.take_along_axis(x, rows, 0), 0)
    return out


class Store:
    def __init__(self, channels):
        self.k, self.s, self.e = np.zeros((0, channels)), np.zeros(0), np.zeros((0, channels))
        self.use, self.life = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self.v = []

    def keep(self, mask):
        self.k, self.s, self.use, self.life = (a[mask] for a in (self.k, self.s, self.use, self.life))
        if len(self.e) == len(mask):
            self.e = self.e[mask]

    def append(self, k, s, e=None):
        n = len(k)
        self.k, self.s = np.concatenate([self.k, k]), np.concatenate([self.s, s])
        if e is not None:
            self.e = np.concatenate([self.e, e])
        self.use = np.concatenate([self.use, np.zeros(n, np.float32)])
        self.life = np.concatenate([self.life, np.full(n, 1e-7, np.float32)])


class Oracle:
    def __init__(self, rules, channels, tokens):
        self.rules, self.n = rules, tokens
        self.work, self.long = Store(channels), Store(channels)

    def read(self, query, selection):
        work, long, said = self.work, self.long, []
        everything = similarity(np.concatenate([long.k, work.k]), np.concatenate([long.s, work.s]), query, selection)
        for g, values in enumerate(work.v):
            old = long.v[g] if g < len(long.v) else values[:0]
            columns = np.r_[
                len(long.k) - len(old) : len(long.k), len(long.k) + len(work.k) - len(values) : len(long.k) + len(work.k)
            ]
            weight = softmax(top(everything[columns], self.rules.top_k))
            said.append(weight.T @ np.concatenate([old, values]))
            if g == 0:
                usage = weight.sum(1)
                long.use, work.use = (
                    (long.use + usage[: len(long.k)]).astype(np.float32),
                    (work.use + usage[len(long.k) :]).astype(np.float32),
                )
        work.life, long.life = work.life + np.float32(1), long.life + np.float32(1)
        return np.concatenate(said, 1)

    def add(self, k, s, e, parts):
        """`parts`: per group (N, C)."""
        work, n = self.work, self.n
        work.append(k, s, e)
        work.v = [np.concatenate([old, new]) for old, new in zip(work.v, parts, strict=False)] + list(parts[len(work.v) :])
        if self.rules.enable_long_term and len(work.k) >= self.rules.max_mid_term_frames * n:
            room = self.rules.max_long_term_elements - self.rules.num_prototypes
            if len(self.long.k) > room:
                self.forget(room)
            self.consolidate()

    def forget(self, room):
        long = self.long
        assert len(long.v) == 1, "the original stops here"
        usage = long.use / long.life
        mask = usage > np.sort(usage)[len(usage) - room - 1]
        long.keep(mask)
        long.v = [long.v[0][mask]]

    def consolidate(self):
        work, long, n = self.work, self.long, self.n
        total, least = len(work.k), self.rules.min_mid_term_frames * n
        a, b = n, total - least + n
        k, s, e, usage = work.k[a:b], work.s[a:b], work.e[a:b], (work.use / work.life)[a:b]
        chosen = np.argsort(-usage, kind="stable")[: self.rules.num_prototypes]
        weights = similarity(k, s, k[chosen], e[chosen])
        for g, values in enumerate(work.v):
            m = len(values)
            if m != total and m <= least + n:
                continue
            own = values[n : m - least + n]
            known = chosen >= len(k) - len(own)
            if known.any():
                made = softmax(weights[len(k) - len(own) :, known]).T @ own
                if g < len(long.v):
                    long.v[g] = np.concatenate([long.v[g], made])
                else:
                    long.v.append(made)
        work.v = [np.delete(v, np.s_[n : len(v) - least + n], 0) if len(v) >= least + n else v for v in work.v]
        long.append(k[chosen], softmax(weights).T @ s)
        work.keep(np.r_[np.ones(n, bool), np.zeros(b - a, bool), np.ones(least - n, bool)])
