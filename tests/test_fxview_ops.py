"""Each operator in the FX view gives what ONNX Runtime gives, at more than one shape."""

# ruff: noqa: E501 - the cases are a table, a line for each

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from aigcc.ir.module import Module
from aigcc.runtime import OrtSession

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from aigcc.ir.fxview import to_fx  # noqa: E402

MS = "com.microsoft"
Array = np.ndarray


@dataclass
class Const:
    """An input that is an initializer."""

    array: Array


@dataclass
class Case:
    op: str
    inputs: list[Any]
    attributes: dict[str, Any]
    again: list[Any] | None = None
    opset: int = 20
    domain: str = ""
    outputs: int = 1
    tolerance: float = 1e-5
    out_type: ir.DataType | None = None
    static: tuple[int, ...] = ()
    id: str = field(init=False)

    def __post_init__(self) -> None:
        texts = [f"{k}={v}" for k, v in self.attributes.items() if not isinstance(v, ir.Tensor)]
        kinds = ["-" if x is None else "c" if isinstance(x, Const) else "x" for x in self.inputs]
        self.id = f"{self.op}-{self.opset}-{''.join(kinds)}-{','.join(texts)}"


CASES: list[Case] = []


def case(op: str, *inputs: Any, **more: Any) -> None:
    names = ("again", "opset", "domain", "outputs", "tolerance", "out_type", "static")
    options = {name: more.pop(name) for name in names if name in more}
    CASES.append(Case(op, list(inputs), more, **options))


def r(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def u(*shape: int) -> Array:
    return np.random.default_rng([1, *shape]).uniform(0.1, 0.9, shape).astype(np.float32)


def ints(*numbers: Any) -> Array:
    return np.array(numbers, np.int64)


def c(*numbers: Any, dtype: Any = np.int64) -> Const:
    return Const(np.array(numbers, dtype))


def whole(low: int, high: int, *shape: int, dtype: Any = np.int64) -> Array:
    return np.random.default_rng([2, *shape]).integers(low, high, shape).astype(dtype)


def scalar(number: Any, dtype: Any = np.float32) -> Const:
    return Const(np.array(number, dtype))


def build(case: Case) -> tuple[Module, dict[str, Array]]:
    """A module of one node whose inputs have symbolic dims, and its feeds."""
    values: list[ir.Value | None] = []
    graph = ir.Graph([], [], nodes=[], opset_imports={"": case.opset, MS: 1}, name="one")
    feeds: dict[str, Array] = {}
    for index, item in enumerate(case.inputs):
        if item is None:
            values.append(None)
            continue
        array = item.array if isinstance(item, Const) else item
        value = ir.Value(name=f"in{index}")
        dtype = ir.DataType.from_numpy(array.dtype)
        value.type = ir.TensorType(dtype)
        if isinstance(item, Const):
            value.const_value = ir.Tensor(array, dtype=dtype, name=value.name)
            value.shape = ir.Shape(array.shape)
            graph.register_initializer(value)
        else:
            names = [f"d{index}_{axis}" for axis in range(array.ndim)]
            value.shape = ir.Shape(array.shape if index in case.static else names)
            graph.inputs.append(value)
            feeds[value.name or ""] = array
        values.append(value)
    node = ir.node(
        case.op, values, case.attributes, domain=case.domain, num_outputs=case.outputs, name="n"
    )
    graph.append(node)
    for index, output in enumerate(node.outputs):
        output.name = f"out{index}"
        if case.out_type is not None and index == 0:
            output.type = ir.TensorType(case.out_type)
        graph.outputs.append(output)
    module = Module(ir.Model(graph, ir_version=10))
    from aigcc.ir.shapes.inference import infer_shapes

    infer_shapes(module.model)
    return module, feeds


def to_torch(array: Array) -> Any:
    if array.dtype.kind in "biufc" and array.dtype.name not in ("uint16", "uint32", "uint64"):
        return torch.from_numpy(array.copy())
    from aigcc.ir.fxview.dtypes import TORCH

    dtype = ir.DataType.from_numpy(array.dtype)
    if dtype.bitwidth < 8:
        return torch.from_numpy(array.astype(np.int8)).to(TORCH[dtype])
    return torch.frombuffer(bytearray(array.tobytes()), dtype=TORCH[dtype]).view(array.shape)


def to_double(thing: Any) -> Array:
    if isinstance(thing, np.ndarray):
        return thing.astype(np.float64)
    return thing.detach().to(torch.float64).numpy()


def compare(module: Module, graph: Any, feeds: dict[str, Array], tolerance: float) -> None:
    wanted = OrtSession(module, optimise=False, threads=1).run(feeds)
    with torch.no_grad():
        made = graph(*[to_torch(array) for array in feeds.values()])
    made = [made] if isinstance(made, torch.Tensor) else list(made)
    assert len(made) == len(wanted)
    for (name, right), mine in zip(wanted.items(), made, strict=True):
        assert tuple(mine.shape) == right.shape, name
        if right.dtype.kind in "biuf":
            assert str(mine.dtype) == f"torch.{right.dtype.name}", name
        right = to_double(right)
        finite = np.abs(right[np.isfinite(right)])
        largest = float(finite.max(initial=0.0))
        np.testing.assert_allclose(to_double(mine), right, tolerance, tolerance * largest, name)


# fmt: off
X = r(2, 3, 4)
for op in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Reciprocal", "Round", "Sign", "Sin",
           "Sigmoid", "Tan", "Tanh", "Relu", "Softplus", "Softsign", "HardSwish", "Mish", "Atan",
           "Sinh", "Cosh", "Asinh", "Identity", "IsNaN", "IsInf"):
    case(op, X, again=[r(5, 1, 2)])
for op in ("Acos", "Asin", "Atanh", "Log", "Sqrt"):
    case(op, u(2, 3))
case("Acosh", u(2, 3) + 1)
case("IsInf", np.array([np.inf, -np.inf, np.nan, 1], np.float32), detect_negative=0)
case("IsInf", np.array([np.inf, -np.inf, np.nan, 1], np.float32), detect_positive=0)
case("Round", np.array([0.5, 1.5, -0.5, 2.5], np.float32))
for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"):
    case(op, X, r(3, 1, seed=1), again=[r(7, 3, 2), r(3, 1, seed=1)])
    case(op, X, Const(r(4, seed=1)))
    if op != "PRelu":
        case(op, X, scalar(0.7))
        case(op, whole(-9, 9, 2, 3), whole(1, 4, 3))
        case(op, whole(-9, 9, 2, 3), scalar(-4, np.int64))
        case(op, scalar(9, np.int64), whole(1, 4, 3))
        case(op, r(1), c(0.5, dtype=np.float32))
        case(op, r(), c(0.5, dtype=np.float32))
case("Max", X)
case("Min", X, r(4, seed=1), r(1, 3, 1, seed=2))
case("Sum", X, r(4, seed=1), r(1, 3, 1, seed=2))
case("Mean", X, r(4, seed=1), r(1, 3, 1, seed=2))
for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
    case(op, whole(0, 3, 4, 5), whole(0, 3, 5))
    case(op, whole(0, 3, 4, 5).astype(np.float32), scalar(1.0))
for op in ("And", "Or", "Xor"):
    case(op, whole(0, 2, 4, 5, dtype=bool), whole(0, 2, 5, dtype=bool))
case("Not", whole(0, 2, 4, 5, dtype=bool))
for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    case(op, whole(0, 99, 4, 5, dtype=np.int32), whole(0, 99, 5, dtype=np.int32))
case("BitwiseNot", whole(0, 99, 4, dtype=np.int32))
case("BitShift", whole(0, 99, 4, dtype=np.uint8), whole(0, 3, 4, dtype=np.uint8), direction="LEFT")
case("BitShift", whole(0, 99, 4, dtype=np.uint8), whole(0, 3, 4, dtype=np.uint8), direction="RIGHT")
case("Mod", whole(-9, 9, 2, 3), whole(1, 4, 3))
case("Mod", whole(-9, 9, 2, 3), whole(1, 4, 3), fmod=1)
case("Mod", r(2, 3), u(3), fmod=1)
case("Pow", u(2, 3), scalar(2.0))
case("Pow", u(2, 3), r(3))
case("Pow", whole(1, 5, 2, 3), scalar(2.0))
case("Pow", u(2, 3), scalar(3, np.int64))
case("Clip", X, scalar(-0.5), scalar(0.5))
case("Clip", X, None, scalar(0.5))
case("Clip", X, scalar(-0.5))
case("Clip", X)
case("Clip", X, np.array(-0.5, np.float32), scalar(0.5))
case("Clip", X, min=-0.3, max=0.2, opset=8)
case("Where", whole(0, 2, 4, 5, dtype=bool), r(4, 5), r(5))
case("Where", whole(0, 2, 4, 5, dtype=bool), r(4, 5), scalar(-np.inf))
case("Where", whole(0, 2, 4, 5, dtype=bool), scalar(0.0, np.float64), scalar(1.0, np.float64))
case("Dropout", X)
for to in ("DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "INT16", "INT32", "INT64", "BOOL", "UINT8",
           "UINT16", "UINT32", "UINT64", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ",
           "FLOAT8E5M2FNUZ", "INT4", "UINT4"):
    source = u(3, 4) * 7 if to.startswith("U") else r(3, 4) * 2
    case("Cast", source, to=int(ir.DataType[to]), opset=21)
case("Cast", r(3, 4) * 1000, to=int(ir.DataType.FLOAT8E4M3FN))
case("Cast", r(3, 4) * 1000, to=int(ir.DataType.FLOAT8E4M3FN), saturate=0)
case("Cast", r(3, 4) * 1e6, to=int(ir.DataType.FLOAT8E5M2), saturate=0)
case("Cast", r(3, 4) * 1e5, to=int(ir.DataType.FLOAT8E5M2))
case("Cast", whole(-8, 8, 3, 4).astype(ml_dtypes.int4), to=1, opset=21)
case("Cast", r(3, 4).astype(ml_dtypes.bfloat16), to=1)
case("Cast", r(3, 4).astype(ml_dtypes.float8_e4m3fn), to=1)
case("Cast", whole(-300, 300, 3, 4), to=int(ir.DataType.INT8))
case("BitCast", r(3, 4), to=int(ir.DataType.INT32), opset=26)
case("CastLike", X, whole(0, 3, 2))
case("LeakyRelu", X, alpha=0.3)
case("LeakyRelu", X)
case("Elu", X, alpha=0.7)
case("Celu", X, alpha=0.7)
case("Selu", X)
case("Selu", X, alpha=2.0, gamma=1.5)
case("HardSigmoid", X)
case("HardSigmoid", X, alpha=0.5, beta=0.3)
case("ThresholdedRelu", X, alpha=0.3)
case("Shrink", X, lambd=0.4, bias=0.1)
case("Swish", X, alpha=1.7, opset=24)
case("Swish", X, opset=24)
case("Gelu", X)
case("Gelu", X, approximate="tanh")
case("Gelu", X, domain=MS)
case("QuickGelu", X, domain=MS, alpha=1.5)
case("FastGelu", X, r(4, seed=1), domain=MS)
case("BiasGelu", X, r(4, seed=1), domain=MS)
for op in ("Softmax", "LogSoftmax", "Hardmax"):
    case(op, X, again=[r(5, 2, 4)])
    case(op, X, axis=1)
    case(op, X, opset=11)
    case(op, X, axis=2, opset=11)
    case(op, X, axis=0, opset=11)

for op in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
           "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"):
    data, other = (u(2, 3, 4), u(5, 3, 2)) if op == "ReduceLogSum" else (X, r(5, 3, 2))
    case(op, data, c(1), again=[other])
    case(op, data, c(-1, 0), keepdims=0)
    case(op, data, keepdims=0)
    case(op, data, noop_with_empty_axes=1, tolerance=1e-4)
    case(op, data, ints(1, 2))
    case(op, data, axes=[1, 2], opset=11)
    case(op, whole(1, 5, 2, 3, dtype=np.int32), c(1))
for op in ("ArgMax", "ArgMin"):
    case(op, X, axis=1)
    case(op, whole(0, 2, 3, 9).astype(np.float32), axis=1, keepdims=0, select_last_index=1)
    case(op, whole(0, 2, 3, 9).astype(np.float32), axis=-1)
for attributes in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
    case("CumSum", X, scalar(1, np.int64), again=[r(2, 6, 1)], **attributes)
    case("CumSum", whole(0, 9, 3, 4, dtype=np.int32), scalar(-1, np.int64), **attributes)
case("CumSum", X, np.array(1))

case("Shape", X, again=[r(1, 1, 9)])
case("Shape", X, start=1, end=-1)
case("Size", X)
case("Reshape", X, c(0, -1), again=[r(4, 2, 1)])
case("Reshape", X, c(4, 1, 6))
case("Reshape", X, ints(4, 6), again=[X, ints(2, -1)])
case("Reshape", r(0, 3), c(3, 0), allowzero=1)
case("Reshape", X, ints(0, 12))
for axis in (0, 1, 2, 3, -1):
    case("Flatten", X, axis=axis)
case("Flatten", r(5))
case("Squeeze", r(1, 3, 1), again=[r(1, 1, 2)])
case("Squeeze", r(1, 3, 1), c(0, -1))
case("Squeeze", r(1, 3, 1), axes=[2], opset=11)
case("Unsqueeze", X, c(0, 2))
case("Unsqueeze", X, c(-1, -3))
case("Unsqueeze", X, c(-1, 0))
case("Unsqueeze", X, axes=[1, 3], opset=11)
case("Transpose", X)
case("Transpose", X, perm=[0, 2, 1])
case("Transpose", X, perm=[1, 2, 0])
case("Concat", X, r(2, 1, 4), axis=1, again=[r(3, 2, 1), r(3, 5, 1)])
case("Concat", X, Const(r(2, 1, 4)), axis=-2)
case("Split", r(2, 7), c(3, 4), axis=1, outputs=2)
case("Split", r(2, 7), axis=1, num_outputs=3, outputs=3, again=[r(1, 8)])
case("Split", r(2, 7), ints(3, 4), axis=-1, outputs=2)
case("Split", r(6, 2), outputs=3, opset=11)
case("Split", r(6, 2), outputs=2, split=[2, 4], opset=11)
case("Slice", X, c(1), c(3), c(2), again=[r(1, 1, 2)])
case("Slice", X, c(-2, 0), c(2**63 - 1, -1), c(2, 1))
case("Slice", r(5, 6), c(-(2**63), 5), c(2, -(2**63)), c(0, 1), c(1, -2))
case("Slice", r(5, 6), c(1, 0), c(5, 6), None, c(2, 3))
case("Slice", r(5, 6), c(9), c(-9), c(0), c(-1))
case("Slice", r(5, 6), ints(1), ints(4), ints(-1), ints(2), again=[r(5, 6), *map(ints, (4, 0, 0, -1))])
case("Slice", r(5, 6), starts=[1, -3], ends=[3, -1], axes=[0, 1], opset=9)
case("Expand", r(3, 1), c(2, 1, 4))
case("Expand", r(3, 1), ints(2, 3, 4), again=[r(3, 1), ints(1, 1, 1)])
case("Tile", r(2, 3), c(2, 1))
case("Tile", r(2, 3), ints(1, 3))
P = r(1, 2, 4, 5)
case("Pad", P, c(0, 0, 1, 2, 0, 0, 3, 1))
case("Pad", P, c(0, 0, 1, -2, 0, 0, -1, 1), scalar(1.5))
case("Pad", P, c(0, 1, 1, 2, 0, 0, 3, 1), np.array(2.5, np.float32))
case("Pad", P, c(1, 2, 3, 1), None, c(-1, 1))
case("Pad", P, ints(0, 0, 1, 2, 0, 0, 3, 1), mode="reflect", again=[r(1, 2, 5, 3), ints(0, 0, 1, 2, 0, 0, 3, 1)])
for mode in ("reflect", "edge", "wrap"):
    case("Pad", P, c(0, 0, 1, 2, 0, 0, 3, 1), mode=mode)
case("Pad", whole(0, 9, 3, 4), c(1, 0, 1, 2), scalar(7, np.int64))
case("Pad", P, pads=[0, 0, 1, 2, 0, 0, 3, 1], value=0.5, opset=10)
for mode in ("DCR", "CRD"):
    case("DepthToSpace", r(2, 8, 3, 2), blocksize=2, mode=mode, again=[r(1, 4, 1, 5)])
case("SpaceToDepth", r(2, 3, 4, 6), blocksize=2, again=[r(1, 1, 2, 2)])
case("Range", scalar(1, np.int64), np.array(7), scalar(2, np.int64), again=[None, np.array(1), None])
case("Range", scalar(1.0), scalar(0.1), scalar(-0.25))
case("Range", scalar(0, np.int32), scalar(5, np.int32), scalar(1, np.int32))
case("ConstantOfShape", ints(2, 3))
case("ConstantOfShape", c(2, 3), value=ir.tensor([7], dtype=ir.DataType.INT64))
case("EyeLike", r(3, 4), k=1)
case("EyeLike", r(3, 4), k=-1, dtype=7)
case("Trilu", r(4, 5))
case("Trilu", r(4, 5), scalar(1, np.int64), upper=0)
case("Trilu", r(4, 5), np.array(-1))
case("GatherElements", r(3, 4), whole(-3, 3, 2, 4), axis=0)
case("GatherElements", r(3, 4), Const(whole(0, 4, 3, 2)), axis=-1)
case("Gather", r(5, 4), whole(-5, 5, 2, 3, dtype=np.int32), again=[r(7, 1), whole(0, 5, 1, 1, dtype=np.int32)])
case("Gather", r(5, 4), np.array(2), axis=1)
case("Gather", r(5, 4, 3), scalar(-1, np.int64), axis=-2)
case("Gather", r(5, 4, 3), c(0, 2), axis=-1)
case("Gather", Const(r(5, 4)), whole(0, 5, 2, 3))
case("GatherND", r(3, 4, 5), whole(-3, 3, 2, 2))
case("GatherND", r(3, 4, 5), whole(0, 4, 3, 2, 1), batch_dims=1)
case("ScatterElements", r(3, 4), whole(-3, 3, 2, 4), r(2, 4, seed=1), axis=0)
for how in ("add", "mul", "max", "min"):
    case("ScatterElements", r(3, 4), c([0, 1, 1]), r(1, 3, seed=1), axis=1, reduction=how)
    case("ScatterND", r(4, 3, 2), c([0, 1], [0, 1], [-1, 2]), r(3, 2, seed=1), reduction=how)
case("ScatterND", r(4, 3, 2), ints([0], [2]), r(2, 3, 2, seed=1))
case("NonZero", whole(0, 2, 3, 4).astype(np.float32))
case("OneHot", whole(-3, 3, 2, 3), scalar(3, np.int64), c(0.5, 2.0, dtype=np.float32))
case("OneHot", whole(0, 3, 2, 3), ints(4), c(0, 1), axis=1)
case("Compress", r(3, 4), np.array([True, False, True]), axis=0)
case("Compress", r(3, 4), np.array([True, False, True]))
case("TopK", r(3, 6), c(2), outputs=2)
case("TopK", whole(0, 3, 3, 6).astype(np.float32), ints(4), outputs=2, largest=0, axis=1)
case("ReverseSequence", r(4, 3, 2), c(4, 1, 2))
case("ReverseSequence", r(4, 3), c(3, 1, 2, 2), time_axis=1, batch_axis=0)

case("MatMul", r(2, 3, 4), r(4, 5), again=[r(1, 1, 2), r(2, 7)])
case("MatMul", r(4), r(4, 5))
case("MatMul", r(2, 3, 4), Const(r(4)))
case("Gemm", r(3, 4), Const(r(5, 4)), Const(r(5)), transB=1, again=[r(1, 4)])
case("Gemm", r(3, 4), Const(r(4, 5)), Const(r(5)))
case("Gemm", r(4, 3), r(4, 5), r(3, 1), transA=1, alpha=0.5, beta=2.0)
case("Gemm", r(3, 4), r(4, 5))
case("Gemm", r(3, 4), Const(r(4, 5)), Const(r(1)))
case("Einsum", r(2, 3, 4), r(2, 4, 5), equation="bij, bjk -> bik")
case("Einsum", r(2, 3, 4), equation="...ij->...ji")
for attributes in ({}, {"transA": 1, "alpha": 0.3}, {"transB": 1}):
    a = r(2, 4, 3) if attributes.get("transA") else r(2, 3, 4)
    case("FusedMatMul", a, r(2, 5, 4) if attributes.get("transB") else r(2, 4, 5), domain=MS, **attributes)
case("FusedMatMul", r(3, 2, 4), r(2, 4, 5), domain=MS, transBatchA=1)
case("FusedGemm", r(3, 4), Const(r(4, 5)), Const(r(5)), domain=MS, activation="LeakyRelu", activation_alpha=0.3)
W = Const(r(6, 3, 3, 3, seed=1))
for more in ({}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 1], "strides": [2, 1]},
             {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER"},
             {"auto_pad": "VALID", "dilations": [2, 1]}):
    case("Conv", r(2, 3, 8, 7), W, Const(r(6, seed=2)), again=[r(1, 3, 9, 9)], **more)
case("Conv", r(2, 6, 8), Const(r(6, 1, 3, seed=1)), group=6)
case("Conv", r(1, 2, 4, 4, 4), Const(r(3, 2, 2, 2, 2, seed=1)))
case("Conv", r(2, 3, 8, 7), r(4, 3, 1, 1), kernel_shape=[1, 1])
case("FusedConv", r(2, 3, 8, 7), W, Const(r(6, seed=2)), domain=MS, activation="Relu")
T = Const(r(3, 4, 3, 3, seed=1))
for more in ({}, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
             {"strides": [2, 2], "pads": [0, 1, 1, 0]}, {"dilations": [2, 1]},
             {"strides": [2, 2], "output_shape": [10, 9]},
             {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}):
    case("ConvTranspose", r(2, 3, 5, 4), T, Const(r(4, seed=2)), **more)
case("ConvTranspose", r(2, 4, 5), Const(r(4, 2, 3, seed=1)), group=2)
for op in ("MaxPool", "AveragePool"):
    for more in ({}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 1, 0]},
                 {"strides": [2, 2], "ceil_mode": 1}, {"strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
                 {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER"},
                 {"dilations": [2, 2]}):
        case(op, r(2, 3, 8, 7), kernel_shape=[3, 2], again=[r(1, 1, 6, 9)], **more)
    case(op, r(2, 3, 8), kernel_shape=[3])
for more in ({"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 1, 0]}, {"strides": [2, 2], "ceil_mode": 1, "pads": [1, 0, 1, 0]},
             {"strides": [2, 2], "ceil_mode": 1}):
    case("AveragePool", r(2, 3, 8, 7), kernel_shape=[3, 2], count_include_pad=1, **more)
case("LpPool", r(2, 3, 8, 7), kernel_shape=[3, 2], p=2)
for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    case(op, r(2, 3, 4, 5), again=[r(1, 1, 2, 2)])

case("BatchNormalization", r(2, 3, 4), *[Const(u(3) + i) for i in range(4)])
case("InstanceNormalization", r(2, 3, 4, 5), Const(r(3)), Const(r(3, seed=1)), epsilon=1e-3)
case("LayerNormalization", X, Const(r(4)), Const(r(4, seed=1)), opset=17, again=[r(1, 5, 4)])
case("LayerNormalization", X, r(3, 4), axis=1, opset=17)
case("LayerNormalization", X, Const(r(1)), Const(r(4)), opset=17)
case("LayerNormalization", X, Const(r(4)), outputs=3, opset=17)
case("GroupNormalization", r(2, 4, 5), Const(r(4)), Const(r(4, seed=1)), num_groups=2, opset=21)
case("GroupNormalization", r(2, 4, 5), Const(r(2)), Const(r(2, seed=1)), num_groups=2, opset=18)
case("RMSNormalization", X, Const(r(4)), opset=23, epsilon=1e-3)
case("RMSNormalization", X, Const(r(3, 4)), axis=1, opset=23)
case("SimplifiedLayerNormalization", X, Const(r(4)), epsilon=1e-3, out_type=ir.DataType.FLOAT)
case("SkipLayerNormalization", X, r(2, 3, 4, seed=1), Const(r(4)), Const(r(4, seed=1)), Const(r(4, seed=2)), domain=MS)
case("SkipSimplifiedLayerNormalization", X, r(2, 3, 4, seed=1), Const(r(4)), domain=MS)
for p in (1, 2):
    case("LpNormalization", X, p=p, axis=1)
case("MeanVarianceNormalization", r(2, 3, 4, 5))
case("LRN", r(2, 5, 4, 5), size=3, alpha=0.1, beta=0.5, bias=2.0)

Q, K, V = r(2, 5, 16), r(2, 7, 16, seed=1), r(2, 7, 16, seed=2)
for more in ({}, {"is_causal": 1}, {"scale": 0.3}, {"softcap": 0.5}, {"softcap": 0.5, "is_causal": 1}):
    case("Attention", Q, K, V, q_num_heads=4, kv_num_heads=4, opset=23, again=[r(1, 3, 16), r(1, 3, 16), r(1, 3, 16)], **more)
    case("Attention", Q, K, V, r(5, 7), q_num_heads=4, kv_num_heads=4, opset=23, **more)
    case("Attention", Q, K, V, Const(whole(0, 2, 2, 1, 5, 7, dtype=bool) | np.eye(5, 7, dtype=bool)), q_num_heads=4, kv_num_heads=4, opset=23, **more)
    case("Attention", Q, r(2, 7, 8), r(2, 7, 8), q_num_heads=4, kv_num_heads=2, opset=23, **more)
    H = [r(2, 4, 5, 8), r(2, 2, 5, 8), r(2, 2, 5, 6), None, r(2, 2, 3, 8), r(2, 2, 3, 6)]
    case("Attention", *H, opset=23, outputs=3, again=[*[h[:1] if h is not None else None for h in H[:4]], r(1, 2, 0, 8), r(1, 2, 0, 6)], **more)
for mode in range(4):
    case("Attention", Q, K, V, r(5, 7), q_num_heads=4, kv_num_heads=4, opset=24, outputs=4, qk_matmul_output_mode=mode, softcap=0.7)
case("Attention", r(2, 4, 3, 8), r(2, 4, 7, 8), r(2, 4, 7, 8, seed=3), None, None, None, ints(4, 7), opset=24)
M = [r(2, 5, 16), r(2, 7, 16, seed=1), r(2, 7, 16, seed=2)]
case("MultiHeadAttention", *M, domain=MS, num_heads=4, again=[r(1, 2, 16), r(1, 3, 16), r(1, 3, 16)])
case("MultiHeadAttention", *M, Const(r(48)), domain=MS, num_heads=4, scale=0.2)
case("MultiHeadAttention", *M, None, whole(0, 2, 2, 7, dtype=np.int32) | np.eye(2, 7, dtype=np.int32), domain=MS, num_heads=4)
case("MultiHeadAttention", *M, None, None, r(1, 4, 5, 7), domain=MS, num_heads=4)
case("MultiHeadAttention", r(2, 5, 16), r(2, 5, 16, seed=1), r(2, 5, 16, seed=2), domain=MS, num_heads=4, unidirectional=1)
case("MultiHeadAttention", r(2, 5, 16), r(2, 5, 16, seed=1), r(2, 5, 16, seed=2), None, None, None, r(2, 4, 3, 4), r(2, 4, 3, 4, seed=5), domain=MS, num_heads=4, outputs=3)
case("MultiHeadAttention", r(2, 5, 16), r(2, 4, 7, 4), r(2, 4, 7, 4, seed=1), domain=MS, num_heads=4)
for flag in (0, 1):
    case("RotaryEmbedding", r(2, 3, 4, 8), Const(r(9, 4)), Const(r(9, 4, seed=1)), whole(0, 9, 2, 4), opset=23, interleaved=flag)
    case("RotaryEmbedding", r(2, 4, 24), r(2, 4, 4), r(2, 4, 4, seed=1), opset=23, interleaved=flag, num_heads=3)
    case("RotaryEmbedding", r(2, 3, 4, 8), Const(r(9, 2)), Const(r(9, 2, seed=1)), whole(0, 9, 2, 4), opset=23, interleaved=flag, rotary_embedding_dim=4)
    case("RotaryEmbedding", r(2, 4, 24), whole(0, 9, 2, 4), Const(r(9, 4)), Const(r(9, 4, seed=1)), domain=MS, interleaved=flag)
    case("RotaryEmbedding", r(2, 3, 4, 8), ints(2), Const(r(9, 4)), Const(r(9, 4, seed=1)), domain=MS, interleaved=flag)
    G = [r(1, 1, 64), r(1, 1, 32), r(1, 1, 32), r(1, 2, 5, 16), r(1, 2, 5, 16), np.array([[5]], np.int32), scalar(6, np.int32), Const(r(9, 8)), Const(r(9, 8, seed=1))]
    case("GroupQueryAttention", *G, domain=MS, num_heads=4, kv_num_heads=2, do_rotary=1, rotary_interleaved=flag, outputs=3)
case("GroupQueryAttention", r(2, 4, 32), r(2, 4, 16), r(2, 4, 16), None, None, np.array([[3], [3]], np.int32), scalar(4, np.int32), domain=MS, num_heads=4, kv_num_heads=2, outputs=3)

I8, U8 = np.int8, np.uint8
for dtype in (np.int8, np.uint8, np.int16, np.uint16, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn):
    zero = 0 if dtype == ml_dtypes.float8_e4m3fn else 3
    q = whole(0, 7, 4, 6).astype(dtype)
    case("QuantizeLinear", r(4, 6) * 3, scalar(0.1), scalar(zero, dtype), opset=21, again=[r(1, 2)])
    case("QuantizeLinear", r(4, 6) * 3, Const(u(6)), Const(np.full(6, zero, dtype)), opset=21)
    case("QuantizeLinear", r(4, 6) * 3, Const(u(4)), Const(np.full(4, zero, dtype)), axis=0, opset=21)
    case("QuantizeLinear", r(4, 6) * 3, Const(u(4, 3)), Const(np.full((4, 3), zero, dtype)), axis=1, block_size=2, opset=21)
    case("DequantizeLinear", q, scalar(0.1), scalar(zero, dtype), opset=21)
    case("DequantizeLinear", Const(q), Const(u(6)), Const(np.full(6, zero, dtype)), opset=21)
    case("DequantizeLinear", q, Const(u(4)), None, axis=0, opset=21)
    case("DequantizeLinear", q, Const(u(4, 3)), Const(np.full((4, 3), zero, dtype)), axis=-1, block_size=2, opset=21)
case("QuantizeLinear", r(4, 6), scalar(0.1), opset=13)
case("QuantizeLinear", r(4, 6), scalar(0.1), opset=21, output_dtype=int(ir.DataType.INT8))
case("DequantizeLinear", whole(-99, 99, 3, dtype=np.int32), scalar(0.1), opset=13)
case("QuantizeLinear", r(4, 6), scalar(0.1), scalar(3, U8), domain=MS)
case("DynamicQuantizeLinear", r(4, 6), outputs=3, again=[r(2, 3)])
case("DynamicQuantizeLinear", np.zeros((2, 3), np.float32), outputs=3)
A8, B8 = whole(0, 255, 2, 3, 4, dtype=U8), whole(-99, 99, 4, 5, dtype=I8)
case("MatMulInteger", A8, B8)
case("MatMulInteger", A8, Const(B8), scalar(120, U8), Const(whole(-5, 5, 5, dtype=I8)))
case("ConvInteger", whole(0, 255, 1, 2, 5, 5, dtype=U8), Const(whole(0, 255, 3, 2, 3, 3, dtype=U8)), scalar(100, U8), scalar(128, U8), pads=[1, 1, 1, 1])
case("QLinearMatMul", A8[0], scalar(0.1), scalar(120, U8), Const(B8.astype(U8)), scalar(0.02), scalar(100, U8), scalar(0.5), scalar(110, U8))
case("QLinearConv", whole(0, 255, 1, 2, 5, 5, dtype=U8), scalar(0.1), scalar(120, U8), Const(whole(-99, 99, 3, 2, 3, 3, dtype=I8)), Const(u(3)), Const(np.zeros(3, I8)), scalar(5.0), scalar(110, U8), c(1, -20, 300, dtype=np.int32))
for bits, size in ((2, 16), (4, 16), (8, 32)):
    packed = Const(whole(0, 256, 6, 3, size * bits // 8, dtype=U8))
    columns = 3 * size - 4
    case("MatMulNBits", r(2, 3, columns), packed, Const(u(18)), domain=MS, K=columns, N=6, bits=bits, block_size=size, again=[r(1, 1, columns)])
    zeros = Const(whole(0, 256, 6 * (-(-3 * bits // 8)), dtype=U8))
    case("MatMulNBits", r(2, columns), packed, Const(u(18)), zeros, domain=MS, K=columns, N=6, bits=bits, block_size=size)

IMAGE = r(1, 2, 4, 5)
HOW = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
for how in HOW:
    for scale in (2.0, 0.55 if how == "half_pixel_symmetric" else 0.6, 1.7):
        scales = c(1, 1, scale, scale, dtype=np.float32)
        for nearest in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
            case("Resize", IMAGE, None, scales, mode="nearest", nearest_mode=nearest, coordinate_transformation_mode=how)
        for mode in ("linear", "cubic"):
            case("Resize", IMAGE, None, scales, mode=mode, coordinate_transformation_mode=how, again=[r(1, 2, 3, 3)])
case("Resize", IMAGE, None, c(1, 1, 2, 2, dtype=np.float32), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)
for mode in ("nearest", "linear", "cubic"):
    case("Resize", IMAGE, None, None, c(1, 2, 7, 3), mode=mode)
    case("Resize", IMAGE, None, None, ints(1, 2, 7, 8), mode=mode, static=(3,), again=[IMAGE, None, None, ints(1, 2, 9, 5)])
case("Resize", IMAGE, None, None, c(7, 9), mode="linear", axes=[2, 3])
case("Resize", IMAGE, None, None, c(7, 9), mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger")
case("Resize", r(1, 2, 9, 12), None, c(1, 1, 0.5, 0.4, dtype=np.float32), mode="linear", antialias=1)
case("Resize", r(1, 2, 9, 12), None, c(1, 1, 0.5, 0.4, dtype=np.float32), mode="cubic", antialias=1, tolerance=1e-4)
case("Resize", IMAGE, c(1, 1, 2, 2, dtype=np.float32), mode="nearest", opset=10)
case("Resize", IMAGE, c(0, 0, 0.2, 0.1, 1, 1, 0.8, 1.2, dtype=np.float32), None, c(1, 2, 3, 4), mode="linear", coordinate_transformation_mode="tf_crop_and_resize")
case("Upsample", IMAGE, c(1, 1, 2, 3, dtype=np.float32), opset=9)
case("Upsample", IMAGE, scales=[1.0, 1.0, 2.0, 2.0], mode="linear", opset=7)
for mode in ("linear", "nearest", "cubic"):
    for padding in ("zeros", "border", "reflection"):
        case("GridSample", IMAGE, u(1, 3, 3, 2) * 2 - 0.7, mode=mode, padding_mode=padding, opset=20)
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_equals_onnx_runtime(case: Case) -> None:
    module, feeds = build(case)
    graph = to_fx(module)
    graph.graph.lint()
    compare(module, graph, feeds, case.tolerance)
    if case.again is not None:
        shapes = [x for x in case.again if x is not None]
        compare(module, graph, dict(zip(feeds, shapes, strict=True)), case.tolerance)
