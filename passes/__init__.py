"""The catalogue of passes."""

from __future__ import annotations

from aigcc.catalogue import Catalogue
from aigcc.pipeline.manager import Pass

PASSES: Catalogue[Pass] = Catalogue(
    {
        "assign-precision": "aigcc.passes.assign_precision:AssignPrecision",
        "canonicalize": "aigcc.passes.canonicalize:Canonicalize",
        "convert-opset": "aigcc.passes.convert_opset:ConvertOpset",
        "eliminate-dead": "aigcc.passes.eliminate_dead:EliminateDead",
        "fold-constants": "aigcc.passes.fold_constants:FoldConstants",
        "fold-shapes": "aigcc.passes.fold_shapes:FoldShapes",
        "fp16-operands": "aigcc.passes.fp16_operands:Fp16Operands",
        "fuse": "aigcc.passes.fuse:Fuse",
        "fuse-activation": "aigcc.passes.fuse_activation:FuseActivation",
        "fuse-affine": "aigcc.passes.fuse_affine:FuseAffine",
        "fuse-attention": "aigcc.passes.fuse_attention:FuseAttention",
        "fuse-linear": "aigcc.passes.fuse_linear:FuseLinear",
        "fuse-norm": "aigcc.passes.fuse_norm:FuseNorm",
        "fuse-rotary": "aigcc.passes.fuse_rotary:FuseRotary",
        "infer-shapes": "aigcc.passes.infer_shapes:InferShapes",
        "insert-qdq": "aigcc.passes.insert_qdq:InsertQdq",
        "legalize": "aigcc.passes.legalize:Legalize",
        "lift-constants": "aigcc.passes.lift_constants:LiftConstants",
        "merge-initializers": "aigcc.passes.merge_initializers:MergeInitializers",
        "merge-qkv": "aigcc.passes.merge_qkv:MergeQkv",
        "merge-subexpressions": "aigcc.passes.merge_subexpressions:MergeSubexpressions",
        "simplify": "aigcc.passes.simplify:Simplify",
        "take-branches": "aigcc.passes.take_branches:TakeBranches",
        "to-fp16": "aigcc.passes.to_fp16:ToFp16",
        "to-fp32": "aigcc.passes.to_fp32:ToFp32",
        "unpack-sequences": "aigcc.passes.unpack_sequences:UnpackSequences",
        "unroll-loops": "aigcc.passes.unroll_loops:UnrollLoops",
        "weights-fp16": "aigcc.passes.weights_fp16:WeightsFp16",
    }
)
