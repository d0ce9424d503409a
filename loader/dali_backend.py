"""The DALI backend: one graph without any state in it, on the CPU or on a GPU.

    encoded bytes → decoders.image_slice (only the window) → resize → slice (where shifted) → flip

Settings that make it agree with Pillow and torchvision: EXIF orientation is not applied, chroma is
upsampled smoothly (libjpeg-turbo's default), and resizing is triangular with antialiasing.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from loader.augment import Params
from loader.backend import Pending, UndecodableError
from loader.reader import Encoded

# Share of a GPU batch given to the hardware JPEG engine. DALI's default moved between releases: pinned.
_HW_DECODER_LOAD = 0.65


class DaliBackend:
    """See `loader.backend.Backend`.

    A pipeline is built at the first batch, for its kind of parameters (shifted or not). The output
    size is an input of the graph, so a change of resolution needs no rebuild.
    """

    def __init__(self, device: torch.device, threads: int, batch_size: int) -> None:
        self._device = device
        self._threads = threads
        self._batch_size = batch_size
        self._inputs: deque[tuple[Any, ...]] = deque()
        # DALI borrows the bytes (no_copy), so they are kept until their output has been taken.
        self._in_flight: deque[tuple[list[Encoded], Params]] = deque()
        self._pipe: Any = None
        self._shifted = False

    def submit(self, encoded: list[Encoded], params: Params, rows: int) -> Pending:
        """See `Backend.submit`."""
        if not encoded:
            size = (rows, params.size, params.size, 3)
            return lambda: torch.zeros(size, dtype=torch.uint8, device=self._device)
        if self._pipe is None or self._shifted != params.shifted:
            if self._in_flight:
                raise RuntimeError("the kind of transform changed while batches were in flight")
            self._pipe, self._shifted = self._build(params.shifted), params.shifted
        inputs = [
            encoded,
            np.ascontiguousarray(params.window[:, :2]),
            np.ascontiguousarray(params.window[:, 2:]),
            params.resized.astype(np.float32),
            params.flip.astype(np.int32),
        ]
        if params.shifted:
            inputs += [params.offset, np.full((len(encoded), 2), params.size, np.int32)]
        self._inputs.append(tuple(inputs))
        self._in_flight.append((encoded, params))
        self._pipe.schedule_run()
        return lambda: self._take(rows)

    def close(self) -> None:
        """See `Backend.close`."""
        self._pipe = None
        self._in_flight.clear()
        self._inputs.clear()

    def _take(self, rows: int) -> torch.Tensor:
        encoded, params = self._in_flight.popleft()
        try:
            # On a GPU the outputs are ordered on torch's stream; the host does not wait for them.
            on_gpu = self._device.type == "cuda"
            stream = torch.cuda.current_stream(self._device) if on_gpu else None
            (images,) = self._pipe.outputs(cuda_stream=stream)
        except RuntimeError as error:
            self.close()  # after a failure DALI's pipeline is not valid any more
            row = self._find_bad(encoded, params)
            if row is None:
                raise
            raise UndecodableError(row, " ".join(str(error).split())) from error
        batch = torch.utils.dlpack.from_dlpack(images.as_tensor())
        if batch.shape[0] == rows:
            return batch
        padding = batch.new_zeros((rows - batch.shape[0], *batch.shape[1:]))
        return torch.cat([batch, padding])

    def _find_bad(self, encoded: list[Encoded], params: Params) -> int | None:
        """DALI does not say which image failed: find the first one that fails alone."""
        if len(encoded) == 1:
            return 0
        alone = DaliBackend(self._device, threads=1, batch_size=1)
        for row in range(len(encoded)):
            result = alone.submit([encoded[row]], params.row(row), 1)
            try:
                result()
            except UndecodableError:
                return row
        return None

    def _build(self, shifted: bool) -> Any:
        gpu = self._device.type == "cuda"
        decoder: dict[str, Any] = {"device": "cpu"}
        if gpu:
            decoder = {"device": "mixed", "hw_decoder_load": _HW_DECODER_LOAD}
        pipe = Pipeline(
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=self._device.index if gpu else None,
            # With a deeper queue DALI runs ahead at the first call and asks for inputs that are not there
            # yet. The dynamic executor takes any number of scheduled runs all the same.
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        i32, f32 = types.INT32, types.FLOAT
        dtypes, ndims = [types.UINT8, i32, i32, f32, i32], [1, 1, 1, 1, 0]
        if shifted:
            dtypes, ndims = [*dtypes, i32, i32], [*ndims, 1, 1]
        inputs = self._inputs  # captured alone: the pipeline must not keep this object alive
        with pipe:
            jpeg, start, shape, resized, flip, *crop = fn.external_source(
                source=lambda: inputs.popleft(),
                num_outputs=len(dtypes),
                batch=True,
                no_copy=True,
                dtype=dtypes,
                ndim=ndims,
            )
            images = fn.decoders.image_slice(
                jpeg,
                start=start,
                shape=shape,
                axis_names="HW",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
                **decoder,
            )
            images = fn.resize(images, size=resized, interp_type=types.INTERP_TRIANGULAR, antialias=True)
            if shifted:
                images = fn.slice(images, *crop, axis_names="HW", out_of_bounds_policy="pad", fill_values=0)
            images = fn.flip(images, horizontal=flip)
            pipe.set_outputs(images)
        pipe.build()
        return pipe
