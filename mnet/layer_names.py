"""Names for C: of each op the layer that it came from, found in the tensor names that converters chain together."""

import re
from collections.abc import Iterable

_LAYER = {  # which part of a tensor's name names the layer: the component before this one
    "CONV_2D": r"(?:Conv2D|convolution)\d*",
    "DEPTHWISE_CONV_2D": r"depthwise\d*",
    "FULLY_CONNECTED": r"(?:MatMul|BiasAdd|Add)\d*",
    "AVERAGE_POOL_2D": r"AvgPool\d*",
    "MAX_POOL_2D": r"MaxPool\d*",
    "LOGISTIC": r"Sigmoid\d*",
    "CONCATENATION": r"concat\d*",
    "RESIZE_BILINEAR": r"ResizeBilinear\d*",
    "RESIZE_NEAREST_NEIGHBOR": r"ResizeNearestNeighbor\d*",
    "SQUEEZE": r"(?:Squeeze|Reshape)\d*",
    "EXPAND_DIMS": r"(?:ExpandDims|Reshape)\d*",
}
_NO_NAME = re.compile(r"(?:Stateful)?PartitionedCall.*|Identity.*|\d*")


def identifier(text: str, otherwise: str) -> str:
    """Return `text` as a C identifier of at most 48 characters.

    >>> identifier("conv 1/x", "op"), identifier("96_int8", "model"), identifier("++", "op")
    ('conv_1_x', 'model_96_int8', 'op')
    """
    text = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:48]
    if not text:
        return otherwise
    return f"{otherwise}_{text}" if text[0].isdigit() else text


def unique(name: str, used: set[str]) -> str:
    """Return `name`, numbered if it is in `used`, and note it there.

    >>> unique("conv", {"conv", "conv_2"})
    'conv_3'
    """
    candidate, number = name, 2
    while candidate in used:
        candidate, number = f"{name}_{number}", number + 1
    used.add(candidate)
    return candidate


def _layer_name(kind: str, tensor_name: str) -> str:
    """Return the layer that a tensor's name tells of; converters chain the names of all that they fused.

    >>> _layer_name("CONV_2D", "m/conv_pw_3_relu/Relu6;m/conv_pw_3_bn/FusedBatchNormV3;m/conv_pw_3/Conv2D1")
    'conv_pw_3'
    >>> _layer_name("SOFTMAX", "StatefulPartitionedCall_1:0")
    'softmax'
    """
    component = _LAYER.get(kind, rf"(?i:{kind.replace('_', '')})(?:_?\d+)?")  # LEAKY_RELU: LeakyRelu
    layers: list[str] = re.findall(rf"([^/;]+)/{component}(?=;|$)", tensor_name)
    if layers:  # a fused depthwise is named first, a fused convolution last
        return layers[0 if kind == "DEPTHWISE_CONV_2D" else -1]
    pieces = tensor_name.split(";")[0].split("/")
    name = pieces[-2] if len(pieces) > 1 and re.fullmatch(r"[A-Z][A-Za-z0-9]*", pieces[-1]) else pieces[-1]
    return kind.lower() if _NO_NAME.fullmatch(name) else name


def op_names(operators: Iterable[tuple[str, str]]) -> list[str]:
    """Return unique identifiers for (kind, name of the output tensor) of each operator."""
    pairs = [(kind, _layer_name(kind, name)) for kind, name in operators]
    scoped = [name for kind, name in pairs if name != kind.lower()]
    if len(scoped) > 1 and all(name.endswith("_1") for name in scoped):  # Keras 3 exports every layer as LAYER_1
        pairs = [(kind, name.removesuffix("_1")) for kind, name in pairs]
    used: set[str] = set()
    return [unique(identifier(name, kind.lower()), used) for kind, name in pairs]
