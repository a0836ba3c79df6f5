"""The process in which TFLM runs: it imports nothing of mnet, and may die without harm to anybody.

tflite-micro stops the program, or reads where it must not, on a model that it does not like. So `mnet.tflm_runtime`
starts this file by its path, with a folder that holds `model.tflite` and `request.npz`; it leaves `tensors.npz` there.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def run(
    model: bytes, inputs: npt.NDArray[np.int8], tensors: list[int], arena_bytes: int
) -> dict[str, npt.NDArray[np.int8]]:
    """Return what TFLM leaves in the `tensors` of a model for each of its inputs.

    Args:
        model: a .tflite file.
        inputs: int8 [n, ...], n inputs of as many bytes as the model's.
        tensors: numbers of tensors in the file, all of them int8.
        arena_bytes: of TFLM; every tensor needs a place of its own.

    Returns:
        For each tensor, by its number as text: int8 [n, bytes].

    Raises:
        RuntimeError, ValueError: TFLM refuses the model or the input.
    """
    from tflite_micro import runtime

    # The misspelling is the package's. Only this configuration keeps tensors until they are read.
    interpreter = runtime.Interpreter.from_bytes(
        model, arena_size=arena_bytes, intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors
    )
    shape = interpreter.get_input_details(0)["shape"]
    found: dict[str, list[npt.NDArray[np.int8]]] = {str(tensor): [] for tensor in tensors}
    for one in inputs:
        interpreter.set_input(one.reshape(shape), 0)
        interpreter.invoke()
        for tensor in tensors:
            made: dict[str, Any] = interpreter.GetTensor(tensor, 0)
            found[str(tensor)].append(made["tensor_data"].reshape(-1))
    return {name: np.array(values, np.int8) for name, values in found.items()}


def main(folder: Path) -> None:
    """Answer the request in `folder`; on a refusal say why on stderr and exit with 1."""
    with np.load(folder / "request.npz") as request:
        inputs, tensors, arena_bytes = request["inputs"], request["tensors"].tolist(), int(request["arena_bytes"])
    try:
        found = run((folder / "model.tflite").read_bytes(), inputs, tensors, arena_bytes)
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    np.savez(folder / "tensors.npz", **found)  # type: ignore[arg-type]  # its stub takes the names for options


if __name__ == "__main__":
    main(Path(sys.argv[1]))
