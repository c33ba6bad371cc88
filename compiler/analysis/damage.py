"""What quantisation did to the outputs, against the bounds of a budget."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.budget import QUALITY, Budget, Limit
from aigcc.analysis.metrics import Agreement
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.ir.weights import is_float

Array = npt.NDArray[Any]

_PEAK_OVER_RMS = 4.0  # of an error that is about normal
_ROWS = 256
_TOKENS = ("decoder_input_ids", "input_ids", "token_ids", "tokens", "ids")  # the likeliest first
_NO_TOKENS = re.compile("mask|position|token_type|segment")


@dataclasses.dataclass
class Likelihood:
    """Sums over tokens for a language model's logits, in nats.

    Attributes:
        divergence: KL(softmax(reference) || softmax(other)).
        surprise: -log of the probability that the other gives the next token of the input.
        reference: The same of the reference.
        rows: Rows of logits.
        tokens: Rows whose next token is known.
    """

    divergence: float = 0.0
    surprise: float = 0.0
    reference: float = 0.0
    rows: int = 0
    tokens: int = 0

    def add(self, reference: Array, other: Array, tokens: Array) -> None:
        """Take in logits of one sample, [..., tokens, vocabulary], and the tokens [..., tokens]."""
        count = reference.shape[-1]
        a, b = reference.reshape(-1, count), other.reshape(-1, count)
        following = np.concatenate(
            [tokens[..., 1:], np.full_like(tokens[..., :1], -1)], axis=-1
        ).reshape(-1)
        for start in range(0, a.shape[0], _ROWS):
            part = slice(start, start + _ROWS)
            p, q, then = _log_softmax(a[part]), _log_softmax(b[part]), following[part]
            self.divergence += float((np.exp(p) * (p - q)).sum())
            known = np.flatnonzero((then >= 0) & (then < count))
            self.surprise -= float(q[known, then[known]].sum())
            self.reference -= float(p[known, then[known]].sum())
            self.tokens += known.size
        self.rows += a.shape[0]


def check_outputs(budget: Budget, module: Module) -> None:
    """Do nothing if a model has outputs that a budget's bounds on quality can be measured on.

    Raises:
        CompileError: quality has a bound, and no output is a float.
    """
    dtypes = [value.dtype for value in module.outputs]
    bounds = budget.of(QUALITY)
    if bounds and all(dtype is not None and not dtype.is_floating_point() for dtype in dtypes):
        raise CompileError(
            f"{bounds[0].metric} cannot be measured: no output of the model is a float",
            at=bounds[0].text,
            hint="take the numbers before the last operators as outputs, or bound size and latency",
        )


class Damage:
    """What was done to the outputs, by the worst sample; every figure of a budget is read here.

    Perplexity is over all samples together.

    Args:
        budget: Whose bounds on quality are of interest.
    """

    def __init__(self, budget: Budget) -> None:
        self.limits = budget.of(QUALITY)
        self._shares: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._likelihoods: defaultdict[str, Likelihood] = defaultdict(Likelihood)
        self._is_language = any(limit.metric == "perplexity" for limit in self.limits)
        self._is_logits: dict[str, bool] = {}

    def add(
        self, feeds: Mapping[str, Array], reference: Mapping[str, Array], other: Mapping[str, Array]
    ) -> None:
        """Take in the float outputs of one sample.

        Raises:
            CompileError: perplexity has a bound, and no output has logits for an input's tokens.
        """
        for name, expected in reference.items():
            if not is_float(expected):
                continue
            sums = Agreement()
            sums.add(expected, other[name])
            self._keep(name, sums)
            if self._is_language and expected.ndim > 1:
                tokens = _tokens(feeds, expected)
                self._is_logits[name] = self._is_logits.get(name, True) and tokens is not None
                if tokens is not None:
                    self._likelihoods[name].add(expected, other[name], tokens)
        if self._is_language and not any(self._is_logits.values()):
            raise CompileError(
                "perplexity has no meaning here: no output has logits over a vocabulary for each "
                "token of an input",
                hint="bound sqnr, psnr or cosine instead",
            )

    def used(self) -> dict[str, float]:
        """By bound and output, how much of what is allowed is used up; 1 is just kept.

        It is proportional to the power of the error, so that independent errors add up. An output
        that is no logits uses up nothing of a perplexity.
        """
        shares = dict(self._shares)
        for limit in self.limits:
            if limit.metric == "perplexity":
                allowed = math.log(limit.bound) if limit.relative and limit.bound > 1 else 1e-3
                for name, is_logits in self._is_logits.items():
                    row = self._likelihoods[name] if is_logits else Likelihood()
                    share = row.divergence / max(row.rows, 1) / allowed
                    shares[f"{limit.text} of {name}"] = share
        return shares

    def figures(self) -> dict[str, float]:
        """The worst figure over samples and outputs, by metric."""
        found = dict(self._figures)
        if self._is_language:
            spoken = [row.surprise / row.tokens for row in self._spoken()]
            found["perplexity"] = math.exp(min(max(spoken), 700)) if spoken else math.nan
        return found

    def original(self) -> dict[str, float]:
        """The figures that the original has itself."""
        spoken = [row.reference / row.tokens for row in self._spoken()]
        return {"perplexity": math.exp(min(max(spoken), 700))} if spoken else {}

    def bounds(self) -> list[dict[str, Any]]:
        """For each bound: how it was written, the figure, in words too, and whether it is kept."""
        figures, original = self.figures(), self.original()
        return [
            limit.verdict(figures.get(limit.metric, math.nan), original.get(limit.metric, 0.0))
            for limit in self.limits
        ]

    def _keep(self, name: str, sums: Agreement) -> None:
        for limit in self.limits:
            if limit.metric != "perplexity":
                bound = f"{limit.text} of {name}"
                share = math.inf if sums.broken else sums.noise / max(_allowed(limit, sums), 1e-300)
                self._shares[bound] = max(self._shares.get(bound, 0.0), share)
        for metric, number in (("sqnr", sums.sqnr), ("psnr", sums.psnr()), ("cosine", sums.cosine)):
            self._figures[metric] = min(self._figures.get(metric, math.inf), number)
        for metric, number in (("relative", sums.relative), ("max_abs", sums.max_abs)):
            self._figures[metric] = max(self._figures.get(metric, 0.0), number)

    def _spoken(self) -> list[Likelihood]:
        return [
            row for name, row in self._likelihoods.items() if self._is_logits[name] and row.tokens
        ]


def _allowed(limit: Limit, sums: Agreement) -> float:
    """The power of an error that a bound allows."""
    if limit.metric == "sqnr":
        return sums.signal / 10 ** (limit.bound / 10)
    if limit.metric == "psnr":
        return float(sums.peak**2 * sums.elements / 10 ** (limit.bound / 10))
    if limit.metric == "cosine":
        return 2 * (1 - limit.bound) * sums.signal
    reach = sums.largest if limit.metric == "relative" else 1.0
    return float(sums.elements * (limit.bound * reach / _PEAK_OVER_RMS) ** 2)


def _tokens(feeds: Mapping[str, Array], output: Array) -> Array | None:
    """The input whose tokens an output has logits for: one a row, all of them in the vocabulary.

    Of several, the one with a usual name is taken, or one that is neither a mask nor positions; the
    order of the feeds decides nothing.
    """
    found = {
        name: array
        for name, array in feeds.items()
        if array.shape == output.shape[:-1]
        and np.issubdtype(array.dtype, np.integer)
        and not _NO_TOKENS.search(name.lower())
    }
    if not found:
        return None
    tokens = found[min(found, key=lambda name: _oddity(name, found[name]))]
    return tokens.astype(np.int64) if tokens.max(initial=0) < output.shape[-1] else None


def _oddity(name: str, array: Array) -> tuple[int, bool, str]:
    """Orders inputs by how much they look like token ids: the likeliest first."""
    last = re.split("[./:]", name.lower())[-1]
    usual = _TOKENS.index(last) if last in _TOKENS else len(_TOKENS)
    is_mask = bool(((array == 0) | (array == 1)).all())
    is_positions = bool((np.diff(array, axis=-1) == 1).all())
    return usual, is_mask or is_positions, name


def _log_softmax(array: Array) -> Array:
    shifted = array.astype(np.float64) - array.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
