"""The process in which TFLM runs: it imports nothing of mnet, and may die without harm to anybody.

tflite-micro stops the program, or reads where it must not, on a model that it does not like. So `mnet.tflm_runtime`
starts this file by its path, with a folder that holds `model.tflite` and `request.npz`; it leaves `tensors.npz` there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def run(
    model: bytes, inputs: Sequence[npt.NDArray[Any]], tensors: list[int], arena_bytes: int
) -> dict[str, npt.NDArray[Any]]:
    """Return what TFLM leaves in the `tensors` of a model for some runs of it.

    Args:
        model: a .tflite file.
        inputs: of the model, in order: [n, ...], for n runs, of the type of the model's and as many values.
        tensors: numbers of tensors in the file.
        arena_bytes: of TFLM; every tensor needs a place of its own.

    Returns:
        For each tensor, by its number as text: [n, values], of its own type.

    Raises:
        RuntimeError, ValueError: TFLM refuses the model or the input.
    """
    from tflite_micro import runtime

    # The misspelling is the package's. Only this configuration keeps tensors until they are read.
    interpreter = runtime.Interpreter.from_bytes(
        model, arena_size=arena_bytes, intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors
    )
    shapes = [interpreter.get_input_details(number)["shape"] for number in range(len(inputs))]
    found: dict[str, list[npt.NDArray[Any]]] = {str(tensor): [] for tensor in tensors}
    for ones in zip(*inputs, strict=True):
        for number, (one, shape) in enumerate(zip(ones, shapes, strict=True)):
            interpreter.set_input(one.reshape(shape), number)
        interpreter.invoke()
        for tensor in tensors:
            made: dict[str, Any] = interpreter.GetTensor(tensor, 0)
            found[str(tensor)].append(made["tensor_data"].reshape(-1))
    return {name: np.array(values, values[0].dtype if values else np.int8) for name, values in found.items()}


def main(folder: Path) -> None:
    """Answer the request in `folder`; on a refusal say why on stderr and exit with 1."""
    with np.load(folder / "request.npz") as request:
        inputs = [request[f"input_{number}"] for number in range(len(request.files) - 2)]
        tensors, arena_bytes = request["tensors"].tolist(), int(request["arena_bytes"])
    try:
        found = run((folder / "model.tflite").read_bytes(), inputs, tensors, arena_bytes)
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    np.savez(folder / "tensors.npz", **found)  # type: ignore[arg-type]  # its stub takes the names for options


if __name__ == "__main__":
    main(Path(sys.argv[1]))
