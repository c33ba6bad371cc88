"""The FX view: a module as a differentiable `torch.fx.GraphModule`, and its weights back."""

from aigcc.ir.fxview.convert import to_fx
from aigcc.ir.fxview.weights import update_weights, weight_names

__all__ = ["to_fx", "update_weights", "weight_names"]
