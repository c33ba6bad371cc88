"""The catalogue of passes."""

from __future__ import annotations

from aigcc.passes.assign_precision import AssignPrecision
from aigcc.passes.canonicalize import Canonicalize
from aigcc.passes.convert_opset import ConvertOpset
from aigcc.passes.eliminate_dead import EliminateDead
from aigcc.passes.fold_constants import FoldConstants
from aigcc.passes.fold_shapes import FoldShapes
from aigcc.passes.fuse import Fuse
from aigcc.passes.fuse_activation import FuseActivation
from aigcc.passes.fuse_affine import FuseAffine
from aigcc.passes.fuse_attention import FuseAttention
from aigcc.passes.fuse_linear import FuseLinear
from aigcc.passes.fuse_norm import FuseNorm
from aigcc.passes.fuse_rotary import FuseRotary
from aigcc.passes.infer_shapes import InferShapes
from aigcc.passes.insert_qdq import InsertQdq
from aigcc.passes.legalize import Legalize
from aigcc.passes.lift_constants import LiftConstants
from aigcc.passes.merge_initializers import MergeInitializers
from aigcc.passes.merge_qkv import MergeQkv
from aigcc.passes.merge_subexpressions import MergeSubexpressions
from aigcc.passes.simplify import Simplify
from aigcc.passes.to_fp16 import ToFp16
from aigcc.passes.unpack_sequences import UnpackSequences
from aigcc.passes.weights_fp16 import WeightsFp16
from aigcc.pipeline.manager import Pass

PASSES: dict[str, type[Pass]] = {
    made.name: made
    for made in (
        AssignPrecision,
        Canonicalize,
        ConvertOpset,
        EliminateDead,
        FoldConstants,
        FoldShapes,
        Fuse,
        FuseActivation,
        FuseAffine,
        FuseAttention,
        FuseLinear,
        FuseNorm,
        FuseRotary,
        InferShapes,
        InsertQdq,
        Legalize,
        LiftConstants,
        MergeInitializers,
        MergeQkv,
        MergeSubexpressions,
        Simplify,
        ToFp16,
        UnpackSequences,
        WeightsFp16,
    )
}
