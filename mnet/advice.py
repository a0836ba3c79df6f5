"""What a user can do about an operator that mnet does not read."""

from collections.abc import Mapping

_OWN_CODE = "End the model before it, and do the rest in your application"
_STATE = "It keeps state: use a Conv1D over a window of time instead, or unroll it (`unroll=True`)"
_FLOW = "Generated programs are one straight line: unroll loops and take branches before converting"
_CHOICE = "It chooses by comparing values: use ReLU, Maximum or Minimum, or end the model before it"
_FEATURES = "Compute features in your application, and begin the model behind it"
_NORMALIZATION = "Normalizing by statistics of the input is not int8 arithmetic: use BatchNormalization"
_INDICES = "It moves values by indices that the input gives: end the model before it, or begin it behind"
_CONSTANT = "Give the result as a constant, or reshape in the network"
_FLOAT = "It has no int8 form: use another activation (ReLU, HardSwish, Sigmoid, Tanh)"

ADVICE: Mapping[str, str] = {
    "ARG_MIN": _OWN_CODE,
    "BATCH_MATMUL": "A product of two activations: where one of them is constant use Dense or Conv2D",
    "BIDIRECTIONAL_SEQUENCE_LSTM": _STATE,
    "BIDIRECTIONAL_SEQUENCE_RNN": _STATE,
    "BROADCAST_ARGS": _CONSTANT,
    "BROADCAST_TO": _CONSTANT,
    "BUCKETIZE": _OWN_CODE,
    "CALL": _FLOW,
    "CALL_ONCE": _FLOW,
    "CAST": "Quantize the whole model to int8, so that nothing has to be cast",
    "CEIL": _FLOAT,
    "CONV_3D": "Use Conv2D, with the frames as channels",
    "CONV_3D_TRANSPOSE": "Use UpSampling2D and Conv2D, with the frames as channels",
    "COS": _FLOAT,
    "CUMSUM": "Use a Conv1D or Dense with weights of one",
    "DIV": "Multiply by the reciprocal where the divisor is constant; else end the model before it",
    "DYNAMIC_UPDATE_SLICE": _INDICES,
    "EMBEDDING_LOOKUP": "Look embeddings up in your application, and begin the model behind it",
    "EMBEDDING_LOOKUP_SPARSE": "Look embeddings up in your application, and begin the model behind it",
    "EQUAL": _CHOICE,
    "FAKE_QUANT": "Convert the model with quantization, so that it becomes scales",
    "FILL": _CONSTANT,
    "FLOOR": _FLOAT,
    "FLOOR_DIV": _FLOAT,
    "FLOOR_MOD": _FLOAT,
    "GATHER_ND": _INDICES,
    "GREATER": _CHOICE,
    "GREATER_EQUAL": _CHOICE,
    "HASHTABLE": "Look words up in your application, and begin the model behind it",
    "HASHTABLE_LOOKUP": "Look words up in your application, and begin the model behind it",
    "IF": _FLOW,
    "L2_POOL_2D": "Use average or maximum pooling",
    "LESS": _CHOICE,
    "LESS_EQUAL": _CHOICE,
    "LOCAL_RESPONSE_NORMALIZATION": "Use BatchNormalization, which is folded into the convolution before it",
    "LOGICAL_AND": _CHOICE,
    "LOGICAL_NOT": _CHOICE,
    "LOGICAL_OR": _CHOICE,
    "LOG_SOFTMAX": "End the model before it: the largest is the same, or use Softmax",
    "LSH_PROJECTION": _FEATURES,
    "LSTM": _STATE,
    "MATRIX_DIAG": _CONSTANT,
    "MATRIX_SET_DIAG": _CONSTANT,
    "MULTINOMIAL": "Draw random numbers in your application",
    "NON_MAX_SUPPRESSION_V4": _OWN_CODE,
    "NON_MAX_SUPPRESSION_V5": _OWN_CODE,
    "NOT_EQUAL": _CHOICE,
    "ONE_HOT": _OWN_CODE,
    "POW": "Multiply the value by itself",
    "RANDOM_STANDARD_NORMAL": "Draw random numbers in your application",
    "RANDOM_UNIFORM": "Draw random numbers in your application",
    "RANGE": _CONSTANT,
    "RANK": _CONSTANT,
    "REAL": _FEATURES,
    "REDUCE_ALL": _CHOICE,
    "REDUCE_ANY": _CHOICE,
    "REDUCE_PROD": _OWN_CODE,
    "REVERSE_SEQUENCE": _INDICES,
    "RFFT2D": _FEATURES,
    "RNN": _STATE,
    "ROUND": _FLOAT,
    "RSQRT": _NORMALIZATION,
    "SCATTER_ND": _INDICES,
    "SEGMENT_SUM": _INDICES,
    "SELECT": _CHOICE,
    "SELECT_V2": _CHOICE,
    "SIGN": _FLOAT,
    "SIN": _FLOAT,
    "SKIP_GRAM": _FEATURES,
    "SPARSE_TO_DENSE": _CONSTANT,
    "SQRT": _NORMALIZATION,
    "SQUARE": _NORMALIZATION,
    "SVDF": _STATE,
    "TOPK_V2": _OWN_CODE,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _STATE,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _STATE,
    "UNIQUE": _OWN_CODE,
    "VAR_HANDLE": _STATE,
    "READ_VARIABLE": _STATE,
    "ASSIGN_VARIABLE": _STATE,
    "WHERE": _OWN_CODE,
    "WHILE": _FLOW,
    "ZEROS_LIKE": _CONSTANT,
}


def advice_on(kind: str) -> str:
    """Return what to do about an operator of a kind that is not read, a sentence without its full stop."""
    if kind == "CUSTOM TFLite_Detection_PostProcess":
        return "End the model before it, and choose among the boxes in your application"
    if kind.startswith("CUSTOM"):
        return "It is no operator of TensorFlow Lite: convert the model without custom operators, or end it before it"
    if kind.startswith("STABLEHLO_"):
        return "Convert the model to operators of TensorFlow Lite, not to StableHLO"
    return ADVICE.get(kind, "End the model before it, or replace it; `mnet ops` lists what is supported")
