"""The catalogue of passes."""

from __future__ import annotations

from aigcc.passes.canonicalize import Canonicalize
from aigcc.passes.eliminate_dead import EliminateDead
from aigcc.passes.fold_constants import FoldConstants
from aigcc.passes.fold_shapes import FoldShapes
from aigcc.passes.fuse import Fuse
from aigcc.passes.fuse_activation import FuseActivation
from aigcc.passes.fuse_affine import FuseAffine
from aigcc.passes.fuse_linear import FuseLinear
from aigcc.passes.fuse_norm import FuseNorm
from aigcc.passes.infer_shapes import InferShapes
from aigcc.passes.lift_constants import LiftConstants
from aigcc.passes.merge_initializers import MergeInitializers
from aigcc.passes.merge_subexpressions import MergeSubexpressions
from aigcc.passes.simplify import Simplify
from aigcc.passes.unpack_sequences import UnpackSequences
from aigcc.pipeline.manager import Pass

PASSES: dict[str, type[Pass]] = {
    made.name: made
    for made in (
        Canonicalize,
        EliminateDead,
        FoldConstants,
        FoldShapes,
        Fuse,
        FuseActivation,
        FuseAffine,
        FuseLinear,
        FuseNorm,
        InferShapes,
        LiftConstants,
        MergeInitializers,
        MergeSubexpressions,
        Simplify,
        UnpackSequences,
    )
}
