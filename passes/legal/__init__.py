"""What legalize replaces operators with that a target lacks, or runs slower than their parts."""

from __future__ import annotations

from aigcc.passes.legal.activations import (
    BiasGelu,
    Celu,
    FastGelu,
    Gelu,
    HardSwish,
    Mish,
    QuickGelu,
    Square,
    Swish,
    ThresholdedRelu,
)
from aigcc.passes.legal.attention import Cache, Decompose, MultiHead
from aigcc.passes.legal.centred import CentredNorm, MeanVarianceNorm, NamedAxes
from aigcc.passes.legal.contrib import FusedMatMul, SkipLayerNorm, SkipRmsNorm
from aigcc.passes.legal.convolutions import UpsampledConv
from aigcc.passes.legal.integers import (
    BoolExtremes,
    ConvZeroPoints,
    RowZeroPoints,
    WideIntegers,
)
from aigcc.passes.legal.movement import SlicedSplit, SpreadTile
from aigcc.passes.legal.norms import (
    BatchScaledGroupNorm,
    GroupNorm,
    LayerNorm,
    LpNorm,
    RmsNorm,
    SummedLayerNorm,
)
from aigcc.passes.legal.padding import PaddedAverage, PaddedTranspose
from aigcc.passes.legal.products import VectorMatMul
from aigcc.passes.legal.quantising import DynamicQuantize, Quantize
from aigcc.passes.legal.recurrent import Unrolled
from aigcc.passes.legal.resize import SpelledResize
from aigcc.passes.legal.rotary import Rotary
from aigcc.passes.legal.sequences import MaskedLengths, TimeMajor
from aigcc.passes.legal.spectral import Dft, Stft
from aigcc.passes.legal.windows import CausalCache, PaddedMask, Window
from aigcc.pipeline.rules import Rule

DECOMPOSITIONS: tuple[Rule, ...] = (
    BiasGelu(),
    PaddedMask(),
    Window(),
    CausalCache(),
    Cache(),
    Celu(),
    Decompose(),
    FastGelu(),
    FusedMatMul(),
    Gelu(),
    GroupNorm(),
    HardSwish(),
    LayerNorm(),
    Mish(),
    PaddedAverage(),
    PaddedTranspose(),
    QuickGelu(),
    RmsNorm(),
    Rotary(),
    SkipLayerNorm(),
    SkipRmsNorm(),
    Swish(),
    LpNorm(),
    CentredNorm(),
    NamedAxes(),
    MeanVarianceNorm(),
    SpelledResize(),
    ThresholdedRelu(),
    TimeMajor(),
    Unrolled(),
    Stft(),
    Dft(),
    VectorMatMul(),
    SlicedSplit(),
    SpreadTile(),
    WideIntegers(),
    ConvZeroPoints(),
    RowZeroPoints(),
    BoolExtremes(),
    DynamicQuantize(),
    Quantize(),
)
"""Tried in this order on what a target refuses."""

PREFERENCES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        BatchScaledGroupNorm,
        CentredNorm,
        MaskedLengths,
        MultiHead,
        Square,
        SummedLayerNorm,
        Swish,
        TimeMajor,
        UpsampledConv,
    )
}
"""By name; used where the `prefer` table of a target has them, with their options."""
