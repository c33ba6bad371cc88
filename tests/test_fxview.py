"""The FX view: models, control flow, weights there and back, gradients, and what it refuses."""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from aigcc.errors import ModelError
from aigcc.ir.module import Module
from aigcc.ir.trace import from_torch
from aigcc.passes import PASSES
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.synthetic import synthetic_feeds

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from aigcc.ir.fxview import to_fx, update_weights, weight_names  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from random_graphs import feeds, modules  # noqa: E402

HEAD = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1, "own": 1]>\n'


def run(graph: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        made = graph(*[torch.from_numpy(np.array(array)) for array in feeds.values()])
    return [x.detach().numpy() for x in ([made] if isinstance(made, torch.Tensor) else made)]


def check(module: Module, graph: Any, feeds: dict[str, np.ndarray]) -> None:
    """The graph gives what ONNX Runtime gives."""
    wanted = OrtSession(module, optimise=False, threads=1).run(feeds)
    for (name, right), mine in zip(wanted.items(), run(graph, feeds), strict=True):
        assert (mine.shape, mine.dtype) == (right.shape, right.dtype), name
        largest = float(np.abs(right[np.isfinite(right)]).max(initial=0.0))
        np.testing.assert_allclose(mine, right, 1e-5, 1e-5 * largest, err_msg=name)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def saved(module: Module, path: Path) -> Module:
    """The module, loaded from a file whose weights lie beside it."""
    module.save(path, external=True)
    return Module.load(path)


@functools.cache
def traced(file: str) -> Module:
    """The tiny model of a file of factories; not to be changed."""
    pytest.importorskip({"gpt2": "transformers", "vae": "diffusers"}.get(file, "torch"))
    return from_torch(*importlib.import_module(f"aigcc.models.{file}").tiny())


@pytest.mark.parametrize("file", ["gpt2", "srvgg", "stylegan2", "vae"])
def test_models_equal_onnx_runtime(file: str) -> None:
    module = traced(file).clone()
    check(module, to_fx(module), next(synthetic_feeds(module)))
    PassManager(parse("canonicalize,fuse,legalize,canonicalize", PASSES)).run(module)
    graph = to_fx(module)
    graph.graph.lint()
    check(module, graph, next(synthetic_feeds(module)))


def test_shapes_stay_numbers_and_symbolic() -> None:
    module = traced("gpt2")
    graph = to_fx(module)
    assert "tensor_of" not in graph.code and "whole_numbers" not in graph.code
    for shape in ((1, 3), (2, 9)):
        ids = np.random.default_rng(0).integers(0, 256, shape)
        check(module, graph, {"input_ids": ids})


def test_nodes_are_named_and_know_where_they_come_from() -> None:
    from aigcc.models import srvgg

    example = srvgg.tiny()
    graph = to_fx(traced("srvgg"))
    facts = [node.meta for node in graph.graph.nodes if node.meta.get("onnx_op") == "Conv"]
    assert facts and all(fact["source"].startswith("srvgg.py:") for fact in facts)
    assert facts[-1]["module_path"].startswith("body")
    names = {node.meta.get("onnx_value"): node.name for node in graph.graph.nodes}
    assert names["conv2d_1"] == "conv2d_1"
    assert set(example.module.state_dict()) <= {*weight_names(traced("srvgg"))}
    torch.testing.assert_close(graph(**example.inputs), example.module(**example.inputs))


def test_the_graph_can_be_copied_and_pickled() -> None:
    from aigcc.models import srvgg

    example = srvgg.tiny()
    graph = to_fx(traced("srvgg"))
    wanted = graph(**example.inputs)
    for again in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        torch.testing.assert_close(again(**example.inputs), wanted)


CONTROL = {
    "if": """g (float[N,3] x, bool flag) => (float[N,3] y, float[M,3] z)
    <float[3] w = {1.0, 2.0, 3.0}>
    {
      n = Shape <start = 0, end = 1> (x)
      y, z = If (flag) <
        then_branch = then () => (float[N,3] a, float[M,3] b)
          <float[1,3] v = {0.5, 0.5, 0.5}>
          { a = Mul (x, w)  b = Add (a, v) },
        else_branch = other () => (float[N,3] c, float[M,3] d)
          { three = Constant <value_ints = [3]> ()  goal = Concat <axis = 0> (n, three)
            c = Neg (x)  d = Expand (w, goal) }
      >
    }""",
    "nested": """g (float[N] x, bool flag) => (float[N] y)
    <float[1] w = {3.0}>
    {
      y = If (flag) <
        then_branch = then () => (float[N] a) {
          m = ReduceMax <keepdims = 0> (x)
          zero = Constant <value_float = 0.0> ()
          up = Greater (m, zero)
          a = If (up) <
            then_branch = t2 () => (float[N] b) { b = Mul (x, w) },
            else_branch = e2 () => (float[N] c) { c = Sub (x, m) }
          >
        },
        else_branch = other () => (float[N] d) { d = Identity (x) }
      >
    }""",
    "loop": """g (float[N] x, int64 count) => (float[N] last, float[T,N] all)
    <float[1] w = {0.5}, bool go = {1}>
    {
      last, all = Loop (count, go, x) <
        body = step (int64 i, bool keep, float[N] s) => (bool on, float[N] t, float[N] out) {
          f = Cast <to = 1> (i)
          u = Mul (s, w)
          t = Add (u, f)
          out = Neg (t)
          most = ReduceMax <keepdims = 0> (t)
          limit = Constant <value_float = 3.0> ()
          on = Less (most, limit)
        }
      >
    }""",
    "scan": """g (float[N] x, float[T,N] xs) => (float[N] last, float[N,T] all)
    <float[1] w = {0.5}>
    {
      last, all = Scan <num_scan_inputs = 1, scan_output_axes = [1], scan_input_directions = [1],
        body = step (float[N] s, float[N] e) => (float[N] t, float[N] out) {
          t = Add (s, e)
          out = Mul (t, w)
        }
      > (x, xs)
    }""",
    "sequence": """g (float[6] x) => (float[M] y, int64 n)
    {
      two = Constant <value_int = 2> ()
      one = Constant <value_int = 1> ()
      parts = SplitToSequence <axis = 0> (x, two)
      a = SequenceAt (parts, one)
      more = SequenceInsert (parts, a)
      n = SequenceLength (more)
      fewer = SequenceErase (more, one)
      y = ConcatFromSequence <axis = 0> (fewer)
    }""",
    "list": """g (float[6] x) => (float[M,6] y)
    {
      none = SequenceEmpty ()
      one = SequenceInsert (none, x)
      z = Neg (x)
      two = SequenceConstruct (x, z)
      zero = Constant <value_int = 0> ()
      first = SequenceAt (one, zero)
      all = SequenceInsert (two, first, zero)
      y = ConcatFromSequence <axis = 0, new_axis = 1> (all)
    }""",
}


@pytest.mark.parametrize("name", CONTROL)
def test_control_flow(name: str) -> None:
    module = Module.parse(HEAD + CONTROL[name])
    graph = to_fx(module)
    shared = {"x": floats(6 if name in ("sequence", "list") else 4)}
    if name in ("if", "nested"):
        x = floats(2, 3) if name == "if" else floats(5)
        for flag in (True, False):
            check(module, graph, {"x": x, "flag": np.array(flag)})
            check(module, graph, {"x": -np.abs(x), "flag": np.array(flag)})
    elif name == "loop":
        for count in (1, 4, 20):
            check(module, graph, {**shared, "count": np.array(count)})
        empty = run(graph, {**shared, "count": np.array(0)})[1]
        assert empty.shape[0] == 0 and empty.dtype == np.float32
    elif name == "scan":
        check(module, graph, {**shared, "xs": floats(3, 4)})
    else:
        check(module, graph, shared)


def test_names_that_python_has_not() -> None:
    text = """g (float[N] 'a.b', float[N] a_b, float[N] self, bool lambda) => (float[N] 'out 1')
    {
      '1' = Add ('a.b', a_b)
      'out 1' = If (lambda) <
        then_branch = then () => (float[N] 'c/d') { 'c/d' = Sub ('1', self) },
        else_branch = other () => (float[N] 'e/f') { 'e/f' = Identity ('1') }
      >
    }""".replace("'", '"')
    module = Module.parse(HEAD + text)
    feeds = {name: floats(3, seed=seed) for seed, name in enumerate(("a.b", "a_b", "self"))}
    for flag in (True, False):
        check(module, to_fx(module), {**feeds, "lambda": np.array(flag)})


def test_random_numbers_are_drawn() -> None:
    module = Module.parse(
        HEAD
        + """g (float[N] x) => (float[N] y, float[500] z) {
          y = RandomNormalLike <mean = 5.0, scale = 0.1> (x)
          z = RandomUniform <shape = [500], low = 2.0, high = 3.0> ()
        }"""
    )
    graph = to_fx(module)
    y, z = graph(torch.zeros(400))
    assert abs(float(y.mean()) - 5) < 0.05 and 0.05 < float(y.std()) < 0.2
    assert 2 <= float(z.min()) < 2.1 and 2.9 < float(z.max()) <= 3
    assert not torch.equal(y, graph(torch.zeros(400))[0])


def test_functions_run_where_they_are_called() -> None:
    module = Module.parse(
        HEAD
        + """g (float[N] x) => (float[N] y)
        { h = own.scaled <factor = 3.0> (x)  y = own.scaled (h) }
        <domain: "own", opset_import: ["": 20]>
        scaled <factor: float = 2.0> (a) => (b)
        { f = Constant <value_float: float = @factor> ()  w = Constant <value_floats = [5.0]> ()
          c = Mul (a, f)  b = Add (c, w) }"""
    )
    graph = to_fx(module)
    check(module, graph, {"x": floats(3)})
    assert [name for name, _ in graph.named_parameters()] == []  # one element: numbers


QUANTISED = """g (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {1.0, -2.0, 0.5, 0.3, 1.5, -0.7, 0.2, 0.1, 0.9, -1.1, 0.6, 0.4},
 float sx = {0.05}, int8 zx = {3}, float[3] sw = {0.02, 0.01, 0.015}, int8[3] zw = {0, 0, 0}>
{
  qx = QuantizeLinear (x, sx, zx)
  dx = DequantizeLinear (qx, sx, zx)
  qw = QuantizeLinear <axis = 1> (w, sw, zw)
  t = Transpose (qw)
  dw = DequantizeLinear <axis = 0> (t, sw, zw)
  wt = Transpose (dw)
  y = MatMul (dx, wt)
}"""


@pytest.mark.parametrize("straight_through", [False, True])
def test_gradients_through_quantisation(straight_through: bool) -> None:
    module = Module.parse(HEAD + QUANTISED)
    graph = to_fx(module, straight_through=straight_through)
    check(module, graph, {"x": floats(5, 4)})
    x = torch.from_numpy(floats(5, 4)).requires_grad_()
    graph(x).square().sum().backward()
    gradients = {name: p.grad for name, p in graph.named_parameters()}
    assert set(gradients) == {"w", "sx", "sw"}
    if not straight_through:
        assert gradients["w"] is None or not gradients["w"].any()
        return
    assert gradients["w"].abs().sum() > 0 and gradients["sx"] != 0
    y = torch.matmul(x.detach(), graph.w.detach())
    assert torch.nn.functional.cosine_similarity(x.grad, (2 * y @ graph.w.detach().T)).min() > 0.9


def test_gradients_through_dynamic_quantisation() -> None:
    module = Module.parse(
        HEAD
        + """g (float[N,4] x) => (float[N,2] y)
        <int8[4,2] w = {1, 2, -3, 4, 5, -6, 7, 8}, float sw = {0.1}> {
          q, s, z = DynamicQuantizeLinear (x)
          p = MatMulInteger (q, w, z)
          f = Cast <to = 1> (p)
          scale = Mul (s, sw)
          y = Mul (f, scale)
        }"""
    )
    check(module, to_fx(module), {"x": floats(5, 4)})
    graph = to_fx(module, straight_through=True)
    check(module, graph, {"x": floats(5, 4)})
    x = torch.from_numpy(floats(5, 4)).requires_grad_()
    graph(x).sum().backward()
    weight = torch.tensor([3.0, 1.0, -1.0, 15.0]) * 0.1
    inner = (x > x.min()) & (x < x.max())
    torch.testing.assert_close(x.grad[inner], weight.expand(5, 4)[inner])


LAYERS = {
    "Conv": "(float[1,2,5,5] x, float[3,2,3,3] w, float[3] b) => (float[A,B,C,D] y)"
    "{ y = Conv <pads = [0, 1, 1, 0]> (x, w, b) }",
    "ConvTranspose": "(float[1,2,5,5] x, float[2,3,3,3] w, float[3] b) => (float[A,B,C,D] y)"
    "{ y = ConvTranspose <strides = [2, 2]> (x, w, b) }",
    "Gemm": "(float[3,4] x, float[5,4] w, float[5] b) => (float[A,B] y)"
    "{ y = Gemm <transB = 1, alpha = 0.5> (x, w, b) }",
    "LayerNormalization": "(float[3,4] x, float[4] w, float[4] b) => (float[A,B] y)"
    "{ y = LayerNormalization (x, w, b) }",
    "InstanceNormalization": "(float[2,3,4] x, float[3] w, float[3] b) => (float[A,B,C] y)"
    "{ y = InstanceNormalization (x, w, b) }",
    "BatchNormalization": "(float[2,3,4] x, float[3] w, float[3] b, float[3] m, float[3] v)"
    "=> (float[A,B,C] y) { y = BatchNormalization (x, w, b, m, v) }",
    "PRelu": "(float[2,3,4] x, float[3,1] w) => (float[A,B,C] y) { y = PRelu (x, w) }",
    "Gather": "(float[2,3] x, float[5,3] w) => (float[A,B] y) <int64[2] i = {1, -2}>"
    "{ r = Gather (w, i)  y = Mul (r, x) }",
    "MatMul": "(float[2,3] x, float[3,5] w, float[5] b) => (float[A,B] y)"
    "{ h = MatMul (x, w)  y = Add (h, b) }",
}


def with_weights(module: Module) -> Module:
    """The module, with random positive weights in place of all inputs but `x`."""
    for seed, value in enumerate(module.inputs):
        if value.name != "x":
            array = np.abs(floats(*value.shape.numpy(), seed=seed)) + np.float32(0.5)
            module.graph.inputs.remove(value)
            value.const_value = ir.Tensor(array, name=value.name)
            module.graph.register_initializer(value)
    return module


@pytest.mark.parametrize("op", LAYERS)
def test_gradients_equal_finite_differences(op: str) -> None:
    module = with_weights(Module.parse(HEAD + f"g {LAYERS[op]}"))
    graph = to_fx(module).double()
    trained = dict(graph.named_parameters())
    assert set(trained) == {"w", "b"} & set(module.graph.initializers)
    x = torch.from_numpy(floats(*module.inputs[0].shape.numpy())).double().requires_grad_()

    def compute(x: Any, *weights: Any) -> Any:
        return torch.func.functional_call(graph, dict(zip(trained, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(compute, (x, *trained.values()))


def small() -> Module:
    text = """g (float[N,64] x, float[64,64] 'block.0.weight', float[64] 'block.0.bias',
        float[64] block, float[64] forward) => (float[N,64] y)
        <int64[1] place = {3}, float gain = {0.5}>
        {
          a = MatMul (x, 'block.0.weight')
          b = Add (a, 'block.0.bias')
          c = Mul (b, block)
          d = Add (c, forward)
          row = Gather ('block.0.weight', place)
          e = Add (d, row)
          y = Mul (e, gain)
        }"""
    return with_weights(Module.parse(HEAD + text.replace("'", '"')))


def test_names_are_legal_and_lead_back() -> None:
    module = small()
    names = weight_names(module)
    assert {path: value.name for path, value in names.items()} == {
        "place": "place",
        "gain": "gain",
        "block.0.weight": "block.0.weight",
        "block.0.bias": "block.0.bias",
        "block_": "block",
        "forward_": "forward",
    }
    parameters = dict(to_fx(module).named_parameters())
    assert set(parameters) == {"block.0.weight", "block.0.bias", "block_", "forward_"}


def mapped_files(address: int) -> str:
    """What is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            return line.split()[-1]
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_weights_share_the_memory_of_the_file(tmp_path: Path) -> None:
    module = saved(small(), tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = to_fx(module)
    data = sorted(tmp_path.glob("model.onnx*"))[-1]
    before = data.read_bytes()
    weight = graph.get_parameter("block.0.weight")
    assert mapped_files(weight.data_ptr()) == str(data)
    with torch.no_grad():
        weight.add_(1.0)  # copies the pages that it writes to
    assert data.read_bytes() == before
    stored = module.graph.initializers["block.0.weight"].const_value
    np.testing.assert_allclose(weight.detach().numpy(), stored.numpy() + 1, rtol=1e-6)


def test_trained_weights_come_home(tmp_path: Path) -> None:
    module = saved(small(), tmp_path / "model.onnx")
    unchanged = {name: v.const_value for name, v in module.graph.initializers.items()}
    graph = to_fx(module)
    assert update_weights(module, graph) == []
    optimizer = torch.optim.AdamW([graph.get_parameter("block.0.weight"), graph.forward_], 0.1)
    x = torch.from_numpy(floats(3, 64))
    for _ in range(3):
        optimizer.zero_grad()
        loss = (graph(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
    assert sorted(update_weights(module, graph)) == ["block.0.weight", "forward"]
    check(module, graph, {"x": floats(3, 64)})
    for name in ("block", "block.0.bias", "place", "gain"):
        assert module.graph.initializers[name].const_value is unchanged[name]
    with torch.no_grad():
        graph.forward_.zero_()  # the module has its own copy
    assert module.graph.initializers["forward"].const_value.numpy().any()


def test_weights_in_constant_nodes_and_halves_come_home() -> None:
    module = Module.parse(
        HEAD
        + """g (float16[2] x) => (float16[2] y) <float16[2] w = {1.0, 2.0}>
        { c = Constant <value = float16[2] {3.0, 4.0}> ()  d = Mul (x, w)  y = Add (d, c) }"""
    )
    graph = to_fx(module).float()
    with torch.no_grad():
        graph.c.add_(0.1)
    assert update_weights(module, graph) == ["c"]
    (constant,) = [node for node in module.graph if node.op_type == "Constant"]
    assert constant.attributes["value"].value.dtype == ir.DataType.FLOAT16
    check(module, to_fx(module), {"x": np.ones(2, np.float16)})


def test_weights_of_another_model_are_refused() -> None:
    graph = to_fx(small())
    with pytest.raises(ModelError, match="no weight"):
        update_weights(Module.parse(HEAD + "g (float[2] x) => (float[2] y) { y = Neg (x) }"), graph)
    graph.forward_ = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelError, match=r"has shape \[3\] and had \[64\]"):
        update_weights(small(), graph)


def test_every_unknown_operator_is_listed() -> None:
    module = Module.parse(
        HEAD
        + """g (float[2] x, bool flag) => (float[2] y) {
          a = com.microsoft.Unheard (x)
          b = com.microsoft.Unheard (a)
          y = If (flag) <
            then_branch = then () => (float[2] c) { c = Unknown (b) },
            else_branch = other () => (float[2] d) { d = Neg (b) }
          >
        }"""
    )
    node = next(iter(module.graph))
    node.name, node.metadata_props["aigcc.source"] = "first", "model.py:12"
    with pytest.raises(ModelError) as caught:
        to_fx(module)
    assert "ai.onnx::Unknown has no torch form, 1 of them" in caught.value.what
    assert "Unheard has no torch form, 2 of them, such as node 'first', from model.py:12" in str(
        caught.value
    )


REFUSED = {
    "Dropout cannot become torch: it is in training mode": "g (float[4] x) => (float[4] y)"
    "<float r = {0.5}, bool t = {1}> { y = Dropout (x, r, t) }",
    "ai.onnx::LayerNormalization with stash_type=10, which": "g (float[2,4] x, float[4] w) =>"
    "(float[2,4] y) { y = LayerNormalization <stash_type = 10> (x, w) }",
    "GroupQueryAttention with local_window_size=4, which": "g (float[1,1,8] q, float[1,1,8] k,"
    "int32[1,1] n, int32 t) => (float[1,1,8] y) { y = com.microsoft.GroupQueryAttention"
    "<num_heads = 1, kv_num_heads = 1, local_window_size = 4> (q, k, k, , , n, t) }",
    "ai.onnx::Relu with novelty=1, which": "g (float[4] x) => (float[4] y)"
    "{ y = Relu <novelty = 1> (x) }",
    "ai.onnx::Equal of strings": "g (string[4] x) => (bool[4] y) { y = Equal (x, x) }",
    "ai.onnx::Relu with 2 inputs, of which 1 are known": "g (float[4] x) => (float[4] y)"
    "{ y = Relu (x, x) }",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_torch_cannot_follow_is_refused_by_name(reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        to_fx(Module.parse(HEAD + REFUSED[reason]))


def test_operators_of_newer_opsets_are_refused() -> None:
    text = "g (float[4] x) => (float[4] y) { y = Relu (x)  }"
    module = Module.parse(HEAD.replace('"": 20', '"": 29') + text)
    with pytest.raises(ModelError, match="Relu of opset 29 is not known, only those up to opset"):
        to_fx(module)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(module=modules())
def test_random_graphs_equal_onnx_runtime(module: Module) -> None:
    check(module, to_fx(module), feeds(module))
