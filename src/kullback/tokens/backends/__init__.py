"""Who computes: one interface, and the backends behind it.

- `choose`: the backend that is named, or the first one that can;
- `interface`: what a backend is asked (`Task`) and what follows from the sums it returns;
- `reference`: exact values, in float64 by autograd; `chunked`: PyTorch, any device and dtype;
  `native`: C++ compiled at first use; `triton_backend`, `triton_kernels`: CUDA.
"""

from .choose import choose, usable

__all__ = ["choose", "usable"]
