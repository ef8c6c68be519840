"""What a prompt's sampled rewards say, and what many prompts say together.

Arrays carry their axes: `rewards_P_N_D` holds P prompts x N rollouts x D dimensions, values in [0,
1], NaN where a score is missing. The formulas are those of docs/method.md.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int_]
Bools = NDArray[np.bool_]
