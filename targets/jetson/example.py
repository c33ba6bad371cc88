"""The program that an artifact for Jetson boards carries along."""

from __future__ import annotations

from aigcc.targets.examples import READ_INPUTS

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

def main() -> None:
    folder = Path(__file__).parent
    signature = json.loads((folder / "model.json").read_text())
    shapes = {item["name"]: tuple(item["shape"]) for item in signature["inputs"]}
    given = read_inputs({item["name"]: item["dtype"] for item in signature["inputs"]})
    for name, array in given.items():
        if array.shape != shapes[name]:
            sys.exit(f"input {name!r} is {array.shape}, and was compiled for {shapes[name]}")
    with open(folder / "model.so", "rb") as library:  # an ELF file, which names its machine
        code = int.from_bytes(library.read(20)[18:], "little")
    machines = {183: ("aarch64", "arm64"), 62: ("x86_64", "AMD64")}.get(code, ())
    if platform.machine() not in machines:
        sys.exit(
            f"model.so runs on {' or '.join(machines) or 'another machine'}, and this is "
            f"{platform.machine()}: copy this folder to the board and run it there"
        )
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
'''.replace("{read_inputs}", READ_INPUTS)
