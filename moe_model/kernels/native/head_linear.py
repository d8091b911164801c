"""A product for each head, over the C kernels. Shapes: T tokens, H heads, I inputs, O outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import NativeMatrix
from moe_model.kernels.native.pack import PANEL
from moe_model.kernels.native.runtime import Runtime, row_bytes


class NativeHeadLinear:
    """As `kernels.base.HeadLinear`, all heads in one call. A row's bits depend on its own values alone."""

    def __init__(self, runtime: Runtime, weight_HOI: Tensor, *, exact_rows: bool = False) -> None:
        self._runtime = runtime
        self.num_heads, self.num_out, self.num_in = weight_HOI.shape
        # Each head begins with a panel of its own.
        in_panels = F.pad(weight_HOI, (0, 0, 0, -weight_HOI.shape[1] % PANEL))
        self.matrix = NativeMatrix(in_panels.flatten(0, 1), exact_rows=exact_rows)

    def __call__(self, x_THI: Tensor) -> Tensor:
        num_heads, num_out, num_in = self.num_heads, self.num_out, self.num_in
        num_tokens = len(x_THI)
        assert x_THI.dtype == torch.float32
        assert x_THI.shape == (num_tokens, num_heads, num_in)
        assert x_THI.stride(2) == 1
        y_THO = torch.empty(num_tokens, num_heads, num_out)
        _kernels.head_linear(
            self._runtime.kernels,
            self.matrix.handle,
            num_heads,
            num_out,
            x_THI.data_ptr(),
            num_tokens,
            x_THI.stride(0),
            x_THI.stride(1),
            y_THO.data_ptr(),
            self._runtime.scratch.address(num_tokens * num_heads * row_bytes(num_in)),
            self._runtime.num_threads,
        )
        return y_THO
