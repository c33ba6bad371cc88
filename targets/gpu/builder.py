"""Builds a TensorRT-RTX engine from a request; needs `tensorrt_rtx` only, no GPU and no aigcc.

A request is a JSON object: `onnx` and `engine` are paths, `architectures` a list such as
`["sm86", "sm120"]`, `profiles` maps inputs to their `[smallest, best, largest]` shapes, and `tf32`
says whether float32 products may round their factors to TF32. As a program it reads the request
`build.json` beside itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Progress = Callable[[str, float], None]

_SHOWN_ERRORS = 5
_INT64 = "has Int64 binding."


class Refused(Exception):
    """TensorRT-RTX cannot build this model.

    Args:
        what: What it said.
        at: The node that it spoke of.
        hint: What to do about it.
    """

    def __init__(self, what: str, at: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.at = at
        self.hint = hint


def build(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Build the engine and write it.

    Args:
        request: See the module.
        progress: Told what the builder is at.

    Returns:
        `version` of the library; `table`, its list of fused kernels; `warnings`.

    Raises:
        Refused: the parser or the builder said no.
    """
    import tensorrt_rtx as trt

    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    progress("parsing", 0.0)
    _parse(trt, network, logger, request["onnx"])
    _let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    _configure(trt, config, request)
    config.progress_monitor = _make_monitor(trt, progress)
    if request["profiles"]:
        config.add_optimization_profile(_make_profile(builder, request["profiles"]))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Refused(
            "TensorRT-RTX cannot build an engine: " + "; ".join(logger.errors[:_SHOWN_ERRORS])
        )
    with Path(request["engine"]).open("wb") as file:
        file.write(engine)
    return {"version": trt.__version__, "table": logger.table, "warnings": logger.warnings}


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors, warnings and the table of kernels, which is logged as VERBOSE."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.table = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING and not message.endswith(_INT64):
                self.warnings.append(message)
            elif message.startswith("Layers:"):
                self.table = message

    return Logger()


def _make_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes on how many steps of the outermost phase are done."""

        def __init__(self) -> None:
            super().__init__()
            self.outermost = ""
            self.steps = 1
            self.done = 0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.outermost, self.steps, self.done = phase, max(steps, 1), 0
            progress(phase.lower(), self.done / self.steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self.outermost:
                self.done = step + 1
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


def _parse(trt: Any, network: Any, logger: Any, path: str) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(path):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        raise Refused("TensorRT-RTX cannot parse the model: " + "; ".join(logger.errors))
    shown = [f"{_label(error)}: {error.desc().strip()}" for error in errors[:_SHOWN_ERRORS]]
    if len(errors) > len(shown):
        shown.append(f"and {len(errors) - len(shown)} more")
    raise Refused(
        f"TensorRT-RTX cannot parse the model: {errors[0].desc().strip()}",
        at="\n      ".join(shown),
        hint="let the pipeline end with legalize, or change these nodes",
    )


def _label(error: Any) -> str:
    return f"node {error.node_name() or '?'} ({error.node_operator()})"


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Where no fused kernel fits an attention, let it become products and a softmax."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _make_profile(builder: Any, shapes: dict[str, list[list[int]]]) -> Any:
    profile = builder.create_optimization_profile()
    for name, (smallest, best, largest) in shapes.items():
        try:
            profile.set_shape(name, smallest, best, largest)
        except RuntimeError as error:
            raise Refused(
                f"TensorRT-RTX refuses the shapes {smallest}, {best}, {largest}: {error}",
                at=f"input {name!r}",
            ) from error
    return profile


def _configure(trt: Any, config: Any, request: dict[str, Any]) -> None:
    architectures = request["architectures"]
    config.num_compute_capabilities = len(architectures)
    for index, name in enumerate(architectures):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if request["tf32"]:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)


def main() -> None:
    """Build what `build.json` beside this file asks for."""
    folder = Path(__file__).parent
    request = json.loads((folder / "build.json").read_text("utf-8"))
    for key in ("onnx", "engine"):
        request[key] = str(folder / request[key])
    result = build(request, lambda text, fraction: print(f"{fraction:4.0%} {text}"))
    print(f"wrote {request['engine']} with TensorRT-RTX {result['version']}")


if __name__ == "__main__":
    main()
