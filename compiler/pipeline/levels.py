"""Which of ONNX Runtime's own rewrites breaks a module that is right without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

from aigcc.runtime import LEVELS, Level

Judge = Callable[[Level, Collection[str]], bool]
"""Whether a module is right at a level of optimisation, with some optimisers switched off."""

_FEW = 3

# What ONNX Runtime lets one switch off, as of 1.31; it passes over names that it does not know.
OPTIMISERS = (
    "AttentionFusion",
    "Avx2WeightS8ToU8Transformer",
    "BiasDropoutFusion",
    "BiasGeluFusion",
    "BiasSkipLayerNormFusion",
    "BiasSoftmaxFusion",
    "CastChainElimination",
    "CastElimination",
    "CastFloat16Transformer",
    "ClipQuantRewrite",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "ConstantSharing",
    "ConvActivationFusion",
    "ConvAddActivationFusion",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "DivMulFusion",
    "DoubleQDQPairsRemover",
    "DQMatMulNBitsFusion",
    "DynamicQuantizeMatMulFusion",
    "EliminateDropout",
    "EliminateIdentity",
    "EliminateSlice",
    "EmbedLayerNormFusion",
    "EnsureUniqueDQForNodeUnit",
    "ExpandElimination",
    "FastGeluFusion",
    "FuseReluClip",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "GatherToSplitFusion",
    "GeluFusionL1",
    "GeluFusionL2",
    "GemmActivationFusion",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "GroupQueryAttentionFusion",
    "GroupQueryAttentionPreNormFusion",
    "IsInfReduceSumFusion",
    "LabelEncoderFusion",
    "LayerNormFusionL1",
    "LayerNormFusionL2",
    "MatMulActivationFusion",
    "MatMulAddFusion",
    "MatMulIntegerToFloatFusion",
    "MatMulNBitsMlpFusion",
    "MatMulNBitsQkvFusion",
    "MatMulScaleFusion",
    "MatMul_BatchNormalization_Fusion",
    "MatmulTransposeFusion",
    "NchwcTransformer",
    "NhwcTransformer",
    "NoopElimination",
    "NotWhereFusion",
    "Pad_Fusion",
    "PreShapeNodeElimination",
    "PropagateCastOps",
    "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "QuickGeluFusion",
    "ReluQuantRewrite",
    "ReshapeFusion",
    "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
    "SliceConcatToSpaceToDepthFusion",
    "TransposeOptimizer",
    "UnsqueezeElimination",
    "WeightBiasQuantization",
)


@dataclasses.dataclass(frozen=True)
class Blame:
    """What of ONNX Runtime breaks a module.

    Attributes:
        level: The lowest level of optimisation at which it does.
        optimisers: Without which the module is right at that level; none where that is not known.
    """

    level: Level
    optimisers: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.level == "none":
            return "it is no rewrite of ONNX Runtime's: its kernels for packed weights do that"
        text = f"ONNX Runtime's own rewrites break it, from its level {self.level!r} on"
        names = " and ".join(self.optimisers)
        return f"{text}; without its {names} it is right" if names else text


def blame(is_right: Judge) -> Blame | None:
    """Find what breaks a module; None where it is right at every level."""
    level = next((level for level in LEVELS if not is_right(level, ())), None)
    if level is None:
        return None
    names: Sequence[str] = OPTIMISERS
    if level == "none" or not is_right(level, names):
        return Blame(level)
    while len(names) > 1:
        middle = len(names) // 2
        halves = (names[:middle], names[middle:])
        smaller = next((half for half in halves if is_right(level, half)), None)
        if smaller is None:
            break
        names = smaller
    return Blame(level, tuple(names) if len(names) <= _FEW else ())
