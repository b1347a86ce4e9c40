"""Hardware: what an accelerator can do, as its maker says. Owns: the table. Must not know: models, prices, engines.

What an accelerator may run (which generation has FP8 or FP4 units) is in `cluster.presets`.
"""

from cluster.hardware.accelerators import (
    ACCELERATORS,
    Accelerator,
    NumberFormat,
    UnknownAcceleratorError,
    accelerator,
)

__all__ = ["ACCELERATORS", "Accelerator", "NumberFormat", "UnknownAcceleratorError", "accelerator"]
