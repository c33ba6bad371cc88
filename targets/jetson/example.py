"""The programs that artifacts for Jetson boards carry along, of one size and of several."""

from __future__ import annotations

from aigcc.targets.examples import READ_INPUTS

_CHECK_MACHINE = """\
def check_machine(path: Path) -> None:
    with open(path, "rb") as library:  # an ELF file, which names its machine
        code = int.from_bytes(library.read(20)[18:], "little")
    machines = {183: ("aarch64", "arm64"), 62: ("x86_64", "AMD64")}.get(code, ())
    if platform.machine() not in machines:
        sys.exit(
            f"model.so runs on {' or '.join(machines) or 'another machine'}, and this is "
            f"{platform.machine()}: copy this folder to the board and run it there"
        )
"""

EXAMPLE = '''\
"""Runs model.so once: python example.py [NAME=FILE.npy ...]

Needs `pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1 numpy`. Inputs that are
not given are zeros. Outputs are printed.
"""

import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count()))
import tvm
from tvm import relax


{read_inputs}

{check_machine}

def main() -> None:
    folder = Path(__file__).parent
    signature = json.loads((folder / "model.json").read_text())
    shapes = {item["name"]: tuple(item["shape"]) for item in signature["inputs"]}
    given = read_inputs({item["name"]: item["dtype"] for item in signature["inputs"]})
    for name, array in given.items():
        if array.shape != shapes[name]:
            sys.exit(f"input {name!r} is {array.shape}, and was compiled for {shapes[name]}")
    check_machine(folder / "model.so")
    weights = tvm.runtime.load_param_dict_from_file(str(folder / "model.params"))
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(folder / "model.so")), tvm.cpu())
    inputs = [
        tvm.runtime.tensor(given.get(item["name"], np.zeros(item["shape"], item["dtype"])))
        for item in signature["inputs"]
    ]
    result = machine["main"](*inputs, *(weights[str(index)] for index in range(len(weights))))
    results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    for name, tensor in zip(signature["outputs"], results):
        print(name, tuple(tensor.shape), tensor.numpy().ravel()[:8])


if __name__ == "__main__":
    main()
'''.replace("{read_inputs}", READ_INPUTS).replace("{check_machine}", _CHECK_MACHINE)

BUCKETS_EXAMPLE = '''\
"""Runs the model once: python example.py NAME=FILE.npy ...

Needs `pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1 numpy`. Takes the smallest
program that holds the inputs, fills them up to its size, and crops the outputs. Inputs that are not
given are zeros. Outputs are printed.
"""

import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count()))
import tvm
from tvm import relax


{read_inputs}

{check_machine}

def find_size(arrays, buckets):
    """The size of the dim that gives the inputs their shapes; if any has, the smallest."""
    known = [
        (table, arrays[name].shape[int(axis)])
        for name, axes in buckets["inputs"].items()
        if name in arrays
        for axis, table in axes.items()
    ]
    for size in range(buckets["sizes"][-1] + 1) if known else buckets["sizes"]:
        if all(table[size] == wanted for table, wanted in known):
            return size
    sys.exit(f"no size of {buckets['dim']!r} up to {buckets['sizes'][-1]} fits the inputs")


def fill(array, axes, bucket, value):
    """An input as long as the program's."""
    ends = [(0, 0)] * array.ndim
    for axis, table in axes.items():
        ends[int(axis)] = (0, table[bucket] - array.shape[int(axis)])
    return np.pad(array, ends, constant_values=np.asarray(value).astype(array.dtype))


def main() -> None:
    folder = Path(__file__).parent
    buckets = json.loads((folder / "buckets.json").read_text())
    smallest = folder / str(buckets["sizes"][0]) / "model.json"
    items = json.loads(smallest.read_text())["inputs"]
    given = read_inputs({item["name"]: item["dtype"] for item in items})
    for item in items:
        array = given.get(item["name"])
        if array is not None and array.ndim != len(item["shape"]):
            sys.exit(f"input {item['name']!r} is {array.shape}, and has {len(item['shape'])} axes")
    size = find_size(given, buckets)
    bucket = next(bucket for bucket in buckets["sizes"] if bucket >= size)
    program = folder / str(bucket)
    signature = json.loads((program / "model.json").read_text())
    arrays = []
    for item in signature["inputs"]:
        name, shape = item["name"], list(item["shape"])
        axes = buckets["inputs"].get(name, {})
        for axis, table in axes.items():
            shape[int(axis)] = table[size]
        array = given.get(name, np.zeros(shape, item["dtype"]))
        if list(array.shape) != shape:
            sys.exit(f"input {name!r} is {array.shape}, and has to be {tuple(shape)} here")
        arrays.append(fill(array, axes, bucket, buckets["pads"].get(name, 0)))
    check_machine(program / "model.so")
    shared = folder / "model.params"
    weights = tvm.runtime.load_param_dict_from_file(
        str(shared if shared.is_file() else program / "model.params")
    )
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(program / "model.so")), tvm.cpu())
    inputs = [tvm.runtime.tensor(array) for array in arrays]
    result = machine["main"](*inputs, *(weights[str(index)] for index in range(len(weights))))
    results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    for name, tensor in zip(signature["outputs"], results):
        array = tensor.numpy()
        for axis, table in buckets["outputs"].get(name, {}).items():
            array = np.take(array, range(table[size]), int(axis))
        print(name, array.shape, array.ravel()[:8])


if __name__ == "__main__":
    main()
'''.replace("{read_inputs}", READ_INPUTS).replace("{check_machine}", _CHECK_MACHINE)
