"""Names of the package's common types and of the axes in its shape comments.

Shape vocabulary: ``time`` steps of a sequence, ``batch`` examples, ``features`` of a state or an
input, ``units`` of a pre-activation, ``classes`` of a classifier. Arrays inside the numerics are
time-major, ``[time, batch, features]``; batches from the data pipeline are batch-major.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

Array = jax.Array
Dtype = DTypeLike
PRNGKey = jax.Array
Params = Mapping[str, Any]
Carry = Any
Batch = Mapping[str, Any]
Metrics = Mapping[str, Any]
