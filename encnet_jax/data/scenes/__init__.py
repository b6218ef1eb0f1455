"""`scenes`, a synthetic data set in which only context determines the classes."""

from encnet_jax.data.scenes.scene import AMBIGUOUS as AMBIGUOUS
from encnet_jax.data.scenes.scene import AMBIGUOUS_ROW as AMBIGUOUS_ROW
from encnet_jax.data.scenes.scene import CLASS_NAMES as CLASS_NAMES
from encnet_jax.data.scenes.scene import COLORS as COLORS
from encnet_jax.data.scenes.scene import CUE_ROWS as CUE_ROWS
from encnet_jax.data.scenes.scene import IGNORE_LABEL as IGNORE_LABEL
from encnet_jax.data.scenes.scene import IMAGE_SIZE as IMAGE_SIZE
from encnet_jax.data.scenes.scene import KINDS as KINDS
from encnet_jax.data.scenes.scene import SHAPES as SHAPES
from encnet_jax.data.scenes.scene import SMALL_SIZE as SMALL_SIZE
from encnet_jax.data.scenes.scene import Scene as Scene
from encnet_jax.data.scenes.scene import draw as draw
