"""Surgery: onnx-graphsurgeon may cut where it likes, and nothing else changes."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import aigcc
from aigcc.errors import ModelError
from aigcc.ir.storage.loading import load_model
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.storage.saving import save_model
from aigcc.ir.surgeon import surgery
from aigcc.ir.verify import verify

BIG = np.arange(600, dtype=np.float32).reshape(20, 30)
TEXT = """
<ir_version: 10, opset_import: ["": 21, "my": 1], producer_name: "p", doc_string: "why",
 metadata_props: ["license": "MIT"]>
g (float[20,n] x, bool c, float[20,30] overridable) => (float[20,30] y, seq(float) s)
<float[20,30] a, bfloat16[3] half>
{
  [mul] a = Mul (x, w)
  [gelu] h = Gelu <approximate = "tanh"> (a)
  [if] b = If (c) <
    then_branch = yes () => (float[20,30] ty) { [deep] ty = Add (h, tw) },
    else_branch = no () => (float[20,30] ey) { ey = Add (h, w) }
  >
  [call] d = my.f <alpha: float = 2.0> (b)
  [id] i = Identity (d)
  [sum] y = Add (i, overridable)
  [seq] s = SequenceConstruct (x, x)
  [custom] half, = my.Custom <empty: floats = []> (bf, , f8, i4)
}
<opset_import: ["": 21], domain: "my">
f <alpha> (p) => (r) { [elu] r = Elu <alpha: float = @alpha> (p) }
"""


@dataclass
class Module:
    """What `surgery` needs of a module."""

    model: ir.Model
    stale: bool = False

    def invalidate(self) -> None:
        self.stale = True


@pytest.fixture
def module(tmp_path: Path) -> Module:
    model = onnx.parser.parse_model(TEXT.replace("half, =", "half ="))
    graph = model.graph
    arrays = {
        "w": BIG,
        "bf": np.arange(3).astype(ml_dtypes.bfloat16),
        "f8": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
        "i4": np.array([[-8, 7, 1]], ml_dtypes.int4),
        "overridable": BIG + 1,
        "unused": BIG + 2,
    }
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    graph.node[2].attribute[0].g.initializer.append(numpy_helper.from_array(BIG, "tw"))
    tensors = [numpy_helper.from_array(BIG, "t")]
    graph.node[-1].attribute.append(helper.make_attribute("tensors", tensors))
    graph.node[-1].attribute.append(helper.make_attribute("tensor", tensors[0]))
    type_proto = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, "n"])
    graph.node[-1].attribute.append(helper.make_attribute("type", type_proto))
    graph.node[0].doc_string = "scale"
    graph.node[0].metadata_props.add(key="namespace", value="model/layer")
    graph.value_info[0].metadata_props.add(key="aigcc.range", value="0..1")
    graph.value_info.add(name="w").metadata_props.add(key="aigcc.group", value="7")
    graph.value_info[-1].metadata_props.add(key="origin", value="torch")
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return Module(load_model(path))


def written(module: Module, tmp_path: Path) -> bytes:
    save_model(module.model, tmp_path / "written.onnx")
    return (tmp_path / "written.onnx").read_bytes()


def named(graph: gs.Graph, name: str) -> gs.Node:
    return next(node for node in graph.nodes if node.name == name)


def home(module: Module, name: str) -> ir.Node:
    return next(node for node in module.model.graph.all_nodes() if node.name == name)


# Nothing is lost


def test_identity(module: Module, tmp_path: Path) -> None:
    before = written(module, tmp_path)
    with surgery(module) as graph:
        assert [node.op for node in graph.nodes][:2] == ["Mul", "Gelu"]
    assert written(module, tmp_path) == before
    assert module.stale


def test_cleaning_and_looking_change_nothing(module: Module, tmp_path: Path) -> None:
    module.model.graph.outputs.append(home(module, "custom").outputs[0])  # or cleanup takes it
    before = written(module, tmp_path)
    with surgery(module) as graph:
        graph.cleanup()
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                assert tensor.values.size
        assert str(graph.tensors()["i4"].values.tolist()) == "[[-8, 7, 1]]"
    assert written(module, tmp_path) == before


def test_a_plain_model_will_do(module: Module, tmp_path: Path) -> None:
    before = written(module, tmp_path)
    with surgery(module.model):
        pass
    assert written(module, tmp_path) == before


def test_weights_are_still_mapped(module: Module) -> None:
    before = {v.name: v.const_value for v in module.model.graph.initializers.values()}
    with surgery(module) as graph:
        graph.tensors()["w"].name = "scale"
        assert graph.tensors()["bf"].values.dtype == ml_dtypes.bfloat16
    after = {v.name: v.const_value for v in module.model.graph.initializers.values()}
    assert after.pop("scale") is before.pop("w")
    assert all(after[name] is before[name] for name in before)


def test_an_exception_changes_nothing(module: Module, tmp_path: Path) -> None:
    before, graph_before = written(module, tmp_path), module.model.graph
    with pytest.raises(RuntimeError), surgery(module) as graph:
        graph.nodes.clear()
        graph.tensors()
        raise RuntimeError
    assert module.model.graph is graph_before
    assert not module.stale
    assert written(module, tmp_path) == before


def test_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    # Forty weights of 64 MiB, all of them holes in a sparse file.
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float x) => (float y) { y = Neg (x) }'
    )
    for index in range(40):
        weight = model.graph.initializer.add(name=f"w{index}", data_type=1, dims=[1 << 24])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "w.data", "offset": index << 26}.items():
            weight.external_data.add(key=key, value=str(value))
        model.graph.node.append(helper.make_node("Add", ["x", f"w{index}"], [f"y{index}"]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(40 << 26)
    module = Module(load_model(tmp_path / "model.onnx"))
    before = anonymous_mb()
    with surgery(module) as graph:
        assert len(graph.tensors()) == 82
    assert anonymous_mb() - before < 20
    weights = [v.const_value for v in module.model.graph.initializers.values()]
    assert all(isinstance(weight, MappedTensor) for weight in weights)


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


# What is done stays done


def test_a_plugin_takes_the_place_of_a_node(module: Module) -> None:
    with surgery(module) as graph:
        gelu = named(graph, "gelu")
        plugin = gs.Node(
            "GeluPlugin",
            name="plugin",
            domain="vendor",
            attrs={"variant": "tanh", "scale": 0.5, "sizes": [1, 2]},
            inputs=[*gelu.inputs, gs.Constant("table", np.arange(4, dtype=np.float16))],
            outputs=list(gelu.outputs),
        )
        gelu.outputs.clear()
        graph.nodes.append(plugin)
        graph.cleanup()
    node = home(module, "plugin")
    assert [value.name for value in node.inputs if value] == ["a", "table"]
    assert {a.name: a.value for a in node.attributes.values()} == {
        "variant": "tanh",
        "scale": 0.5,
        "sizes": (1, 2),
    }
    assert node.metadata_props == {"aigcc.made_by": "surgery"}
    assert module.model.opset_imports == {"": 21, "my": 1, "vendor": 1}
    table = module.model.graph.initializers["table"].const_value
    assert table is not None
    assert table.numpy().tolist() == [0, 1, 2, 3]
    order = [node.name for node in module.model.graph]
    assert order.index("mul") < order.index("plugin") < order.index("if")
    assert home(module, "mul").metadata_props == {"namespace": "model/layer"}


def test_a_node_becomes_a_plugin(module: Module) -> None:
    with surgery(module) as graph:
        mul = named(graph, "mul")
        mul.op, mul.domain = "Scale", "vendor"
    node = home(module, "mul")
    assert (node.domain, node.op_type, node.doc_string) == ("vendor", "Scale", "scale")
    assert node.metadata_props == {"namespace": "model/layer", "aigcc.made_by": "surgery"}
    assert node.outputs[0].metadata_props == {"aigcc.range": "0..1"}


def test_a_node_is_deleted(module: Module) -> None:
    with surgery(module) as graph:
        identity = named(graph, "id")
        named(graph, "sum").inputs[0] = identity.inputs[0]
        identity.outputs.clear()
        graph.outputs = graph.outputs[:1]
        graph.cleanup()
    assert [node.name for node in module.model.graph] == ["mul", "gelu", "if", "call", "sum"]
    initializers = module.model.graph.initializers
    assert list(initializers) == ["w", "overridable", "unused"]  # the inputs of `custom` are gone
    assert [value.name for value in module.model.graph.inputs] == ["x", "c", "overridable"]


def test_new_numbers_are_kept_and_facts_about_the_old_ones_are_not(module: Module) -> None:
    with surgery(module) as graph:
        graph.tensors()["w"].values *= 2
        graph.tensors()["f8"].values = np.ones(2, ml_dtypes.float8_e5m2)
    w, f8 = (module.model.graph.initializers[name] for name in ("w", "f8"))
    assert w.const_value is not None
    assert np.array_equal(w.const_value.numpy(), BIG * 2)
    assert w.metadata_props == {"origin": "torch"}
    assert f8.const_value is not None
    assert (f8.dtype, f8.const_value.shape) == (ir.DataType.FLOAT8E5M2, ir.Shape([2]))


def test_a_new_constant_under_an_old_name(module: Module) -> None:
    with surgery(module) as graph:
        for node in [named(graph, "mul"), named(graph, "if").attrs["else_branch"].nodes[0]]:
            node.inputs[1] = gs.Constant("w", -BIG)
    with (
        pytest.raises(ModelError, match="two constants with different values"),
        surgery(module) as graph,
    ):
        named(graph, "sum").inputs[0] = gs.Constant("w", BIG)
    values = [v for graph in module.model.graphs() for v in graph.initializers.values()]
    (w,) = [v.const_value for v in values if v.name == "w"]
    assert w is not None
    assert np.array_equal(w.numpy(), -BIG)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.int4, np.bool_]
)
def test_new_constants_of_every_dtype(module: Module, dtype: type, tmp_path: Path) -> None:
    array = np.array([1, 0, 1], dtype)
    with surgery(module) as graph:
        graph.nodes.append(gs.Node("New", "new", inputs=[gs.Constant("k", array)], outputs=[]))
        named(graph, "custom").attrs["k"] = gs.Constant("", array)
    (value,) = home(module, "new").inputs
    assert value is not None
    for tensor in (value.const_value, home(module, "custom").attributes["k"].value):
        assert tensor.dtype == ir.DataType.from_numpy(array.dtype)
        assert tensor.numpy().tolist() == array.tolist()
    written(module, tmp_path)


def test_attributes_keep_their_type(module: Module) -> None:
    with surgery(module) as graph:
        custom = named(graph, "custom")
        custom.attrs["empty"] = [1, 2]
        custom.attrs["shape"] = np.array([3, 4])
        custom.attrs["to"] = np.float16
        del custom.attrs["tensor"]
    attributes = home(module, "custom").attributes
    assert attributes["empty"].type == ir.AttributeType.FLOATS
    assert attributes["shape"].value == (3, 4)
    assert attributes["to"].value == ir.DataType.FLOAT16
    assert list(attributes) == ["empty", "tensors", "type", "shape", "to"]


def test_a_sub_graph_is_cut(module: Module) -> None:
    with surgery(module) as graph:
        branch = named(graph, "if").attrs["then_branch"]
        (deep,) = branch.nodes
        middle = gs.Variable("middle", np.float32, [20, 30])
        branch.nodes.append(gs.Node("Neg", "neg", inputs=[middle], outputs=list(deep.outputs)))
        deep.outputs = [middle]
    branch = home(module, "if").attributes["then_branch"].value
    assert [node.op_type for node in branch] == ["Add", "Neg"]
    assert list(branch.initializers) == ["tw"]
    assert branch[0].inputs[0].producer() is home(module, "gelu")


def test_a_function_is_cut(module: Module, tmp_path: Path) -> None:
    with surgery(module) as graph:
        (function,) = graph.functions
        middle = gs.Variable("middle")
        (elu,) = function.nodes
        addition = gs.Node(
            "Add", "add", inputs=[elu.inputs[0], gs.Constant("one", BIG)], outputs=[middle]
        )
        elu.inputs[0] = middle
        function.nodes.append(addition)
        p, r = gs.Variable("p"), gs.Variable("r")
        scale = gs.Node("Scale", domain="vendor", inputs=[p], outputs=[r])
        attributes = {"needed": None, "optional": 1}
        new = gs.Function("new", "my", [scale], [p], [r], opset=21, attrs=attributes)
        graph.functions.append(new)
    (key, function), (new_key, new_function) = module.model.functions.items()
    assert (key, new_key) == (("my", "f", ""), ("my", "new", ""))
    assert new_function.opset_imports == {"": 21, "vendor": 1}
    assert {a.name: a.value for a in new_function.attributes.values()} == attributes
    assert [node.op_type for node in function] == ["Constant", "Add", "Elu"]
    assert function[2].attributes["alpha"].ref_attr_name == "alpha"
    assert list(function.attributes) == ["alpha"]
    written(module, tmp_path)


def test_constants_are_folded(module: Module) -> None:
    with surgery(module) as graph:
        doubled = gs.Variable("doubled", np.float32, [20, 30])
        w = graph.tensors()["w"]
        graph.nodes.insert(0, gs.Node("Add", "add", inputs=[w, w], outputs=[doubled]))
        named(graph, "mul").inputs[1] = doubled
        # onnx-graphsurgeon runs the graph in ONNX Runtime, which must know its nodes
        graph.nodes.remove(named(graph, "custom"))
        graph.fold_constants().cleanup()
    value = home(module, "mul").inputs[1]
    assert value is not None
    assert value.const_value is not None
    assert np.array_equal(value.const_value.numpy(), BIG + BIG)
    assert "add" not in [node.name for node in module.model.graph]


# What cannot be


def test_what_is_no_graph(module: Module, tmp_path: Path) -> None:
    before = written(module, tmp_path)
    unmade = gs.Variable("unmade", np.float32)
    with pytest.raises(ModelError, match="nothing produces 'unmade'"), surgery(module) as graph:
        named(graph, "gelu").inputs[0] = unmade
    with (
        pytest.raises(ModelError, match="output 'unmade' is produced by no"),
        surgery(module) as graph,
    ):
        graph.outputs.append(unmade)
    with pytest.raises(ModelError, match="two values are called 'a'"), surgery(module) as graph:
        graph.tensors()["h"].name = "a"
    with pytest.raises(ModelError, match="has a cycle"), surgery(module) as graph:
        named(graph, "mul").inputs[0] = graph.tensors()["h"]
    with (
        pytest.raises(ModelError, match="attribute 'new' cannot be") as caught,
        surgery(module) as graph,
    ):
        named(graph, "gelu").attrs["new"] = [1, "two"]
    assert caught.value.at == "node 'gelu' (Gelu)"
    assert written(module, tmp_path) == before


# Rare ways to hold graphs

SCAN_8 = """<ir_version: 3, opset_import: ["" : 8]>
g (float[2,3] first, float[2,5,3] xs, float[3] w) => (float[2,3] last, float[2,5,3] all)
{
  [outer] k = Neg (w)
  last, all = Scan ("", first, xs) <
    num_scan_inputs: int = 1,
    body: graph = step (float[3] s, float[3] x) => (float[3] t, float[3] o)
    { a = Add (s, x) t = Mul (a, k) o = Identity (t) }
  >
}"""
SEQUENCE_MAP = """<ir_version: 8, opset_import: ["" : 18]>
g (seq(float[N]) xs, float[3] w) => (seq(float) ys)
{
  [outer] k = Neg (w)
  ys = SequenceMap (xs) <
    body: graph = f (float[N] x) => (float[M] y) { y = Concat <axis: int = 0> (x, k) }
  >
}"""
LIST = """<ir_version: 8, opset_import: ["" : 18, "my" : 1]>
g (float[3] x, float[3] w) => (float[3] y)
{
  [outer] k = Neg (w)
  [switch] y = my.Switch (x) <
    none: graphs = [],
    cases: graphs = [
      a () => (float[3] ay) { [first] ay = Add (x, k) }, b () => (float[3] by) { by = Sub (x, k) }
    ]
  >
}"""


@pytest.mark.parametrize("text", [SCAN_8, SEQUENCE_MAP, LIST])
@pytest.mark.parametrize("clean", [False, True])
def test_graphs_that_read_outer_values_survive(text: str, clean: bool) -> None:
    made = aigcc.Module.parse(text)
    before = made.text()
    with surgery(made) as graph:
        if clean:
            graph.cleanup().toposort()
    assert made.text() == before
    verify(made.model)


def test_a_list_of_graphs_is_cut_and_grows() -> None:
    made = aigcc.Module.parse(LIST)
    with surgery(made) as graph:
        switch = named(graph, "switch")
        switch.attrs["cases[0]"].nodes[0].op = "Mul"
        switch.attrs["cases[2]"] = switch.attrs.pop("cases[1]")
        graph.nodes.append(
            gs.Node("Switch", domain="my", attrs={"only[0]": gs.Graph(name="empty")})
        )
    switch, new = home(Module(made.model), "switch"), made.model.graph[-1]
    assert [g.name for g in switch.attributes["cases"].as_graphs()] == ["a", "b"]
    assert home(Module(made.model), "first").op_type == "Mul"
    assert [g.name for g in new.attributes["only"].as_graphs()] == ["empty"]
    with surgery(made) as graph:
        del named(graph, "switch").attrs["cases[0]"]
        del named(graph, "switch").attrs["cases[1]"]
    assert home(Module(made.model), "switch").attributes["cases"].as_graphs() == ()
