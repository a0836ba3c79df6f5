"""One function for each kind of operator: read, check, return the ops that it becomes. A file for each family."""

from collections.abc import Mapping

from mnet.readers import elementwise, movement, pooling, reductions, slices, transposed, weighted
from mnet.readers.reader import Reader

READERS: Mapping[str, Reader] = {
    **weighted.READERS,
    **transposed.READERS,
    **pooling.READERS,
    **reductions.READERS,
    **elementwise.READERS,
    **movement.READERS,
    **slices.READERS,
}
