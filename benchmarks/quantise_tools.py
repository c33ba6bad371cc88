"""What `quantise.py` compares: how each tool is run, and how its program is opened."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
import venv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from quantise_kernels import slowest_of_onnxruntime, slowest_of_openvino
from quantise_models import Feeds, Model, Prepared

from aigcc.artifact import Artifact
from aigcc.errors import CompileError
from aigcc.runtime import OrtSession
from aigcc.target import Session
from aigcc.targets import make_target
from aigcc.targets.cpu.session import OpenVinoSession

HERE = Path(__file__).parent
MODEL = "model.onnx"
NETWORK = "model.xml"


@dataclasses.dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes:
        name: Of the row.
        command: What builds the program, with `{out}` for the folder to write and `{scratch}` for
            an empty one; rows with the same command share one program. Empty: the model itself.
        target: The aigcc target whose artifact the folder is, if it is one.
        hint: OpenVINO's INFERENCE_PRECISION_HINT, if OpenVINO runs the program.
        is_static: Whether OpenVINO compiles for the shapes of the samples alone, as aigcc's target
            does, and not for all that the model takes.
        quality_only: Whether the program says nothing about latency and size.
    """

    name: str
    command: tuple[str, ...] = ()
    target: str = ""
    hint: str = ""
    is_static: bool = False
    quality_only: bool = False

    @property
    def runtime(self) -> str:
        """What runs the program: programs of one runtime disturb each other least."""
        return "openvino" if self.hint or self.target.startswith("cpu") else "onnxruntime"

    def open(self, folder: Path) -> Session:
        """The program in `folder`, ready to run.

        Raises:
            CompileError: its runtime refuses it.
        """
        if self.target:
            artifact = Artifact.load(folder)
            session = make_target(artifact.manifest["target"]).session(folder, artifact.entry)
            assert session is not None
            return session
        if self.hint:
            return OpenVinoSession(folder / NETWORK, self._hints, specialise=self.is_static)
        return OrtSession(folder / MODEL)

    @property
    def _hints(self) -> dict[str, str]:
        return {"INFERENCE_PRECISION_HINT": self.hint, "PERFORMANCE_HINT": "LATENCY"}

    def slowest(self, folder: Path, feeds: Feeds) -> str:
        """The kinds of kernels that take most of the program's time."""
        if self.runtime == "onnxruntime":
            return slowest_of_onnxruntime(folder / MODEL, feeds)
        facts = Artifact.load(folder).manifest["facts"] if self.target else {}
        properties = facts.get("properties", self._hints)
        is_static = self.is_static or bool(self.target)
        return slowest_of_openvino(folder / NETWORK, properties, feeds, is_static)

    def size(self, folder: Path) -> int:
        """Bytes of the program: graph and weights."""
        names = Artifact.load(folder).manifest["device_files"] if self.target else None
        files = [folder / name for name in names] if names else list(folder.glob("model.*"))
        return sum(file.stat().st_size for file in files if file.suffix != ".json")

    def fault(self, folder: Path) -> str:
        """What ONNX's checker says against the program; nothing if it is valid."""
        if not (folder / MODEL).exists():
            return ""
        try:
            onnx.checker.check_model(str(folder / MODEL), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return str(error).strip().splitlines()[0]
        return ""


def precisions(folder: Path) -> str:
    """How many nodes of an artifact run in which scheme, as its recipe says."""
    recipe = folder / "recipe.toml"
    if not recipe.exists():
        return ""
    counts = Counter(tomllib.loads(recipe.read_text("utf-8")).get("precision", {}).values())
    return ", ".join(f"{count} {scheme}" for scheme, count in counts.most_common())


def tools_for(model: Model, prepared: Prepared, cache: Path) -> Iterator[Tool]:
    """Every row of a model's table; the first is what latencies are compared with."""
    yield Tool("ONNX Runtime fp32")
    yield from _onnxruntime(model, prepared, cache)
    yield from _aigcc("mobile", model, prepared, model.mobile, model.schemes)
    yield from _openvino(model, prepared, cache)
    yield from _aigcc("cpu", model, prepared, model.cpu, model.cpu_schemes)


def _onnxruntime(model: Model, prepared: Prepared, cache: Path) -> Iterator[Tool]:
    def command(script: str, *arguments: Any) -> tuple[str, ...]:
        python = cache / "peers-onnxruntime" / "bin" / "python"
        return tuple(map(str, (python, HERE / "peers" / script, *arguments, f"{{out}}/{MODEL}")))

    rows = {
        "quantize_dynamic": "dynamic",
        "static, all": "all",
        "static, products": "products",
        "static, products of weights": "weights",
    }
    for name, method in rows.items():
        run = command("run_ort_quantise.py", method, prepared.path, prepared.calibration)
        yield Tool(f"ONNX Runtime {name}", run)
    if model.metric is not None:
        for name, bits, block in (("int8 per channel", 8, 0), ("int4 blocks of 32", 4, 32)):
            run = command("run_naive.py", bits, block, prepared.path)
            yield Tool(f"naive {name}", run, quality_only=True)


def _openvino(model: Model, prepared: Prepared, cache: Path) -> Iterator[Tool]:
    def command(script: str, *arguments: Any) -> tuple[str, ...]:
        python = cache / "peers-openvino" / "bin" / "python"
        return tuple(map(str, (python, HERE / "peers" / script, *arguments, f"{{out}}/{NETWORK}")))

    converted = command("run_openvino.py", prepared.path)
    yield Tool("OpenVINO fp32", converted, hint="f32")
    yield Tool("OpenVINO bf16 hint", converted, hint="bf16")
    yield Tool("OpenVINO bf16 hint, static shapes", converted, hint="bf16", is_static=True)
    kinds = {"": "performance", " mixed": "mixed"}
    for name, kind in ({"": "transformer"} if model.is_transformer else kinds).items():
        quantised = command("run_nncf.py", kind, prepared.path, prepared.calibration)
        yield Tool(f"NNCF int8{name}, rest fp32", quantised, hint="f32")
        yield Tool(f"NNCF int8{name}, rest bf16", quantised, hint="bf16")
        static = f"NNCF int8{name}, rest bf16, static shapes"
        yield Tool(static, quantised, hint="bf16", is_static=True)


def _aigcc(
    target: str,
    model: Model,
    prepared: Prepared,
    budgets: tuple[str, ...],
    schemes: tuple[str, ...],
) -> Iterator[Tool]:
    def tool(name: str, *options: str, on: str = target) -> Tool:
        command = ("build", str(prepared.path), "-t", on, "-s", str(prepared.calibration))
        cold = ("env", "AIGCC_CACHE={scratch}", sys.executable, "-m", "aigcc")
        more = ("--no-latency", "--overwrite", "-o", "{out}")
        return Tool(f"aigcc {name}", (*cold, *command, *options, *more), on)

    yield tool(f"{target} fp32")
    if target == "cpu":
        yield tool("cpu bf16", on="cpu(precision=bf16)")
    for scheme in schemes:
        options, _, rest = scheme.partition(", rest ")
        options, _, recipe = options.partition(" + ")
        passes = [make_target(target).pipeline(), f"insert-qdq(scheme={options})"]
        if recipe:
            passes.insert(1, f'assign-precision(budget="psnr>=20",recipe="{HERE / recipe}")')
        on = f"{target}(precision={rest})" if rest else target
        yield tool(f"{target}, all {scheme}", "-p", ",".join(passes), on=on)
    for budget in budgets:
        yield tool(f"{target} {budget}", "--budget", budget)


def make_venv(name: str, cache: Path) -> None:
    """The venv `peers-<name>` with what `requirements-<name>.txt` lists, made on first use."""
    requirements = HERE / "peers" / f"requirements-{name}.txt"
    folder = cache / f"peers-{name}"
    made_of = folder / requirements.name
    if made_of.exists() and made_of.read_text() == requirements.read_text():
        return
    venv.create(folder, with_pip=True, clear=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", requirements]
    if subprocess.run(pip, check=False).returncode:
        raise CompileError(f"pip could not install what {requirements} lists")
    made_of.write_text(requirements.read_text())
