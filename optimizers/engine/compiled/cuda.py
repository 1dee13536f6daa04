"""A `Program` written as CUDA C++: three kernels that go over a table of tensors on a device.

Every pass of a step is `prepare_all`, `advance_all` (once per `GRADS` rows) and, where it has terms, `sum_all`, in
this order on one stream. Their arguments, which are the same for every program, are

    prepare_all(const row *table, int64_t rows, float *counts, inputs in, const double *sums, numbers *prepared,
                const float *grad_scale, const float *found_inf)
    advance_all(const row *table, const numbers *prepared, const chunk *chunks, int64_t first, char *scratch,
                double *parts, grads in)
    sum_all(const row *table, const double *parts, double *sums)

`row` has 8 bytes for each of: the address of each of `Program.names` (the parameter, then its state); of each of
`Program.scalars` (float32); the number of elements; the index; the address of its layout (see `layout`); the number
of its first chunk, counted over all rows. The same table serves all passes of a step. In the place of the address
of `WHOLE` stands where it begins, in bytes behind `scratch`, a multiple of 16.

`counts` has a row's count of steps (float32), `sums` its `Program.width` sums, `prepared` `PREPARED` bytes for it.

`inputs` are the numbers of a step, by value: for each of `Program.reals` (at least one) a `real`, 24 bytes: a double, the
address of a float or 0, the address of a double or 0; the first address that is not 0 is read on the device, else the
value holds; then for each of `Program.wholes` (at least one) an int64.

`chunk` is two int32, a row and which `CHUNK` elements of it: a block of `advance_all` (`THREADS` threads) steps
one. A row of no elements has none. `grads` are `GRADS` addresses by value, of the gradients of the rows from `first` on: a launch is given those
chunks that belong to these rows, by the address of the first of them.

`parts` has room for `len(Program.terms)` doubles per chunk, counted over all rows; `sum_all`, a block of `THREADS` per row, adds
those of a row, in an order that is always the same, to `sums[row * width + len(Program.sums)]` and behind.

The grid of `prepare_all` is of any shape in x with at least as many threads as rows, at most `THREADS` to a block.
`grad_scale` and `found_inf` are a GradScaler's, float32, or 0: gradients are divided by the first and written
back in the step's last pass, as torch's fused steps do; where the second is not 0, nothing moves, nor is it counted. Both must be
0 where a stage's `settle` of all tensors, its `matrix` or its `before` looks at gradients between or in front of the passes.
"""

from collections.abc import Sequence

import torch

from .trace import Program

THREADS = 256  # of a block
CHUNK = 1 << 13  # elements to a block
GRADS = 448  # gradients' addresses to a launch: with all else they are less than the 4 KB that any driver takes
PREPARED = 512  # bytes of a row's numbers, at most


def cuda_source(program: Program, stored: Sequence[torch.dtype]) -> str:
    """The CUDA text of a pass.

    Args:
        program: what the pass computes.
        stored: how the parameter, its gradient and then each state tensor is kept in memory.

    Raises:
        Untraceable: the program has an operation for which there is no text here.
    """
    raise NotImplementedError
