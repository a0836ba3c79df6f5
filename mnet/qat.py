from mnet.calibration import Grid
from mnet.architecture import import_keras
def quantizer(grids):
    import tensorflow as tf
    keras = import_keras()
    class FakeQuantization(keras.layers.Layer):
        def __init__(self, grid, name):
            super().__init__(name=name); self._grid=grid
        def call(self, x):
            return tf.quantization.fake_quant_with_min_max_args(x, self._grid.low, self._grid.high)
    return lambda name: FakeQuantization(grids[name], f"{name}_grid")
