"""Rotary positions over the C kernels. Shapes: T tokens, H heads, d head size, P pairs of values."""

import torch
from torch import Tensor

from moe_model.kernels.native import _kernels
from moe_model.kernels.native.runtime import Runtime
from moe_model.layers.rotary import attention_factor, rotary_rates
from moe_model.layers.specs import RotarySpec


class NativeRotary:
    """As `kernels.base.Rotary`, in place. The bits of a row depend on its own values and position alone."""

    def __init__(self, runtime: Runtime, spec: RotarySpec) -> None:
        self._runtime = runtime
        self._rates_P = rotary_rates(spec).contiguous()
        is_interleaved = spec.pairing == "interleaved"
        # What C calls a rotation.
        self.in_c = self._rates_P.data_ptr(), attention_factor(spec), spec.dim, is_interleaved

    def __call__(self, x_THd: Tensor, positions_T: Tensor) -> Tensor:
        num_rows, num_heads, head_dim = x_THd.shape
        assert x_THd.dtype == torch.float32
        assert positions_T.dtype == torch.int64
        assert positions_T.shape == (num_rows,)
        assert positions_T.is_contiguous()
        assert x_THd.stride()[1:] == (head_dim, 1), "a row's heads in one piece"
        _kernels.rotate(
            self._runtime.kernels,
            *self.in_c,
            x_THd.data_ptr(),
            num_rows,
            x_THd.stride(0),
            num_heads,
            head_dim,
            positions_T.data_ptr(),
            self._runtime.num_threads,
        )
        return x_THd
