"""Products of float16 numbers, made from products of float32 ones that were rounded to float16."""

from __future__ import annotations

from typing import Any

_MATMUL = "relax.matmul"
_CONVOLUTIONS = "relax.nn.conv"
_MOVES = ("relax.permute_dims", "relax.reshape")
_FIELDS = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")


def multiply_in_half(program: Any) -> Any:
    """Let products whose two factors come from float16 numbers take those; sums are float32.

    A product of two float16 numbers is exact in float32, so the results are the same.
    """
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Narrow(PyExprMutator):  # type: ignore[misc]
        """Puts the float16 numbers behind a cast in the place of the float32 ones."""

        def visit_call_(self, call: Any) -> Any:
            call = super().visit_call_(call)
            name = getattr(call.op, "name", "")
            if name != _MATMUL and not name.startswith(_CONVOLUTIONS):
                return call
            factors = [self.half(factor) for factor in call.args]
            if None in factors:
                return call
            if name == _MATMUL:
                return relax.op.matmul(*factors, out_dtype="float32")
            fields = (*_FIELDS, "output_padding") if name.endswith("_transpose") else _FIELDS
            kept = {field: getattr(call.attrs, field) for field in fields}
            make = getattr(relax.op.nn, name.rpartition(".")[2])
            return make(*factors, **kept, out_dtype="float32")

        def half(self, value: Any) -> Any:
            """The float16 number that a float32 one comes from, or None."""
            made = self.lookup_binding(value) if isinstance(value, relax.Var) else value
            name = getattr(made.op, "name", "") if isinstance(made, relax.Call) else ""
            if name == "relax.astype":
                return made.args[0] if made.args[0].ty.dtype == "float16" else None
            if name not in _MOVES:
                return None
            source = self.half(made.args[0])
            if source is None:
                return None
            return self.builder_.emit(relax.Call(made.op, [source, *made.args[1:]], made.attrs))

    narrow = Narrow(program)
    for name, function in program.functions.items():
        if isinstance(function, relax.Function):
            narrow.builder_.update_func(name, narrow.visit_expr(function))
    return relax.transform.DeadCodeElimination()(narrow.builder_.get())
