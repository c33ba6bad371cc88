"""Where float16 puts the outputs too far off, the part that does it stays in float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import PassManager
from aigcc.pipeline.text import parse
from aigcc.runtime import OrtSession
from aigcc.samples import load_samples
from aigcc.targets import make_target

SIZE, LAYERS = 16, 7


def network(sensitive: int) -> tuple[Module, dict[str, npt.NDArray[np.float32]]]:
    """Layers in a row, after one of which nearly all is taken away and the rest made large."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, SIZE)).astype(np.float32)
    lines, constants, last, state = [], [], "x", x.astype(np.float64)

    def constant(name: str, array: npt.NDArray[np.float64]) -> str:
        items = ", ".join(repr(float(n)) for n in array.ravel())
        constants.append(f"float[{','.join(map(str, array.shape))}] {name} = {{{items}}}")
        return name

    for layer in range(LAYERS):
        weight = (random.standard_normal((SIZE, SIZE)) / 4).astype(np.float32).astype(np.float64)
        lines.append(f"m{layer} = MatMul ({last}, {constant(f'w{layer}', weight)})")
        state = state @ weight
        last = f"m{layer}"
        if layer == sensitive:
            rest = 1e-3 * random.standard_normal((1, SIZE))
            lines.append(f"d{layer} = Sub ({last}, {constant('most', state - rest)})")
            grown = constant("grown", np.full((1,), 1e3))
            last = f"g{layer}"
            lines.append(f"{last} = Mul (d{layer}, {grown})")
            state = 1e3 * rest
    module = Module.parse(
        f'<ir_version: 10, opset_import: ["" : 20]>\ndeep (float[1,{SIZE}] x) => (y)\n'
        f"<{', '.join(constants)}>\n{{ {'  '.join(lines)}  y = Identity ({last}) }}"
    )
    infer_shapes(module.model)
    return module, {"x": x}


@pytest.mark.parametrize("sensitive", [0, 3, 6])
@pytest.mark.parametrize(
    ("target", "pipeline"),
    [("mobile(weights=fp16)", "weights-fp16(smallest=0)"), ("gpu", "to-fp16")],
)
def test_the_sensitive_layers_stay_float32(target: str, pipeline: str, sensitive: int) -> None:
    module, feeds = network(sensitive)
    wanted = OrtSession(module, optimise=False).run(feeds)["y"]
    ctx = Context(target=make_target(target), samples=load_samples(lambda: [feeds], module))
    plain = module.clone()
    PassManager(parse(pipeline)).run(plain, Context())
    PassManager(parse(pipeline)).run(module, ctx)
    off = [
        float(np.abs(OrtSession(each, optimise=False).run(feeds)["y"] - wanted).max())
        / float(np.abs(wanted).max())
        for each in (plain, module)
    ]
    allowed = make_target(target).tolerance
    assert off[1] <= allowed < off[0]
    declined = [r for r in ctx.remarks if r.kind == "declined" and "where 0.0" in r.message]
    # All layers before the difference, and what is taken away, and no more.
    assert sensitive + 1 <= len(declined) <= sensitive + 2


def test_nothing_is_searched_where_the_outputs_are_right() -> None:
    module, feeds = network(-1)
    ctx = Context(target=make_target("gpu"), samples=load_samples(lambda: [feeds], module))
    PassManager(parse("to-fp16")).run(module, ctx)
    assert [remark for remark in ctx.remarks if remark.kind == "declined"] == []
