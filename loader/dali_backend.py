"""The DALI backend: one graph without any state in it, on the CPU or on a GPU.

    encoded bytes → decode → the window → resize → slice (where shifted) → flip → operations

On the CPU only the window is decoded, by `decoders.image_slice`. On a GPU all of the image is, and the window cut out.

Settings that make it agree with Pillow and torchvision: EXIF orientation is not applied, chroma is
upsampled smoothly (libjpeg-turbo's default), and resizing is triangular or cubic with antialiasing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.dlpack
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def

from loader import narrow
from loader.affinity import Cores, pinned
from loader.backend import Decoded, Pending
from loader.dali_fork import leave_to_parent
from loader.dali_ops import apply_layers
from loader.params import Params
from loader.reader import Encoded
from loader.tune import Found

_log = logging.getLogger("feedline.loader")
_LOADS, _RUNS, _DEFAULT_LOAD = (0.0, 0.5, 0.65, 0.8, 0.95), 3, 0.65
_INTERPOLATIONS = {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}


class _Kind(NamedTuple):
    """What a graph is built for; all else are its inputs."""

    shifted: bool
    interpolation: str
    choices: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Params) -> _Kind:
        return cls(params.shifted, params.interpolation, params.ops.choices if params.ops else ())


@dataclass(slots=True)
class _Work:
    """A submitted batch. DALI borrows the bytes (no_copy), so they are kept until their output is taken."""

    encoded: list[Encoded]
    params: Params
    rows: int
    bad: dict[int, str]  # reason by row, of images for which the graph is given others


class DaliBackend:
    """See `loader.backend.Backend`.

    A graph is built at the first batch, for its kind of parameters. The output size is an input of the graph, so
    that a change of resolution needs no rebuild.
    """

    def __init__(
        self,
        device: torch.device,
        threads: int,
        batch_size: int,
        cores: Cores | None = None,
        found: Found | None = None,
    ) -> None:
        self._device = device
        self._threads = threads
        self._batch_size = batch_size
        self._cores, self._found = cores, found or Found()
        self._inputs: deque[tuple[Any, ...]] = deque()
        self._in_flight: deque[_Work] = deque()
        self._pipe: Any = None
        self._kind: _Kind | None = None

    def submit(self, encoded: list[Encoded], params: Params, rows: int) -> Pending:
        """See `Backend.submit`."""
        if not encoded:
            return lambda: Decoded(self._black(params, rows))
        encoded, params, bad = narrow.cut_beforehand(encoded, params)
        self._start(_Work(encoded, params, rows, bad))
        return self._take

    def close(self) -> None:
        """See `Backend.close`."""
        self._pipe = None
        self._in_flight.clear()
        self._inputs.clear()

    def _start(self, work: _Work) -> None:
        kind = _Kind.of(work.params)
        if self._pipe is None or self._kind != kind:
            if self._in_flight:
                raise RuntimeError("the kind of transform changed while batches were in flight")
            if self._device.type == "cuda" and self._found.hw_decoder_load is None:
                self._found.hw_decoder_load = self._fastest_load(kind, work)
            load = self._found.hw_decoder_load
            self._pipe, self._kind = self._build(kind, _DEFAULT_LOAD if load is None else load), kind
        self._inputs.append(_inputs(work))
        self._in_flight.append(work)
        self._pipe.schedule_run()

    def _take(self) -> Decoded:
        work = self._in_flight[0]
        try:
            batch = self._outputs()
        except RuntimeError as error:
            return self._retry_without_bad(error)
        self._in_flight.popleft()
        if work.params.erase is not None:
            work.params.erase.apply(batch)
        if work.bad:
            batch[list(work.bad)] = 0
        if len(batch) == work.rows:
            return Decoded(batch, work.bad)
        padding = batch.new_zeros((work.rows - len(batch), *batch.shape[1:]))
        return Decoded(torch.cat([batch, padding]), work.bad)

    def _outputs(self) -> torch.Tensor:
        # On a GPU the outputs are ordered on torch's stream; the host does not wait for them.
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device) if on_gpu else None
        (images,) = self._pipe.outputs(cuda_stream=stream)
        return torch.utils.dlpack.from_dlpack(images.as_tensor())

    def _retry_without_bad(self, error: RuntimeError) -> Decoded:
        """Do the oldest batch again, bad images replaced by a good one of it and painted black afterwards.

        After a failure DALI's pipeline is not valid any more, and it does not say which image failed. So a new one
        takes over all that is in flight, and the images are tried one by one.
        """
        in_flight = list(self._in_flight)
        self.close()
        work = in_flight[0]
        bad = self._find_bad(work)
        if not bad:
            raise error
        rows = np.arange(len(work.encoded))
        good = np.setdiff1d(rows, list(bad))
        rows[list(bad)] = good[0] if len(good) else 0
        if len(good):
            encoded = [work.encoded[i] for i in rows]
            in_flight[0] = replace(work, encoded=encoded, params=work.params.take(rows), bad=work.bad | bad)
        else:
            in_flight.pop(0)
        for again in in_flight:
            self._start(again)
        return self._take() if len(good) else Decoded(self._black(work.params, work.rows), work.bad | bad)

    def _black(self, params: Params, rows: int) -> torch.Tensor:
        return torch.zeros((rows, params.size, params.size, 3), dtype=torch.uint8, device=self._device)

    def _find_bad(self, work: _Work) -> dict[int, str]:
        """Reasons by row, of the images that fail alone; without the operations, as a graph is built after each."""
        bad: dict[int, str] = {}
        params = replace(work.params, ops=None, erase=None)
        # Not to be found out with one image: it would hold for all.
        load = self._found.hw_decoder_load
        alone = DaliBackend(self._device, 1, 1, self._cores, Found(_DEFAULT_LOAD if load is None else load))
        for row in range(len(work.encoded)):
            alone._start(_Work([work.encoded[row]], params.take(np.array([row])), 1, {}))
            try:
                alone._outputs()
                alone._in_flight.clear()
            except RuntimeError as error:
                bad[row] = _brief(error)
                alone.close()
        return bad

    def _fastest_load(self, kind: _Kind, work: _Work) -> float | None:
        """Try shares of the hardware decoder on a batch; None if it does not decode, which is not the place to say.

        Which is best differs between GPUs, and with the CPUs beside them. Without a decoding engine all are alike.
        """
        took_s: dict[float, float] = {}
        for load in _LOADS:
            pipe = self._build(kind, load)
            try:
                self._run(pipe, work)  # allocates
                began = time.perf_counter()
                self._run(pipe, work)
                took_s[load] = time.perf_counter() - began
            except RuntimeError as error:
                _log.info("hw_decoder_load is not tried out on a batch with a bad image: %s", _brief(error))
                self._inputs.clear()
                return None
        rates = ", ".join(f"{load:g}: {_RUNS * len(work.encoded) / s:.0f}" for load, s in took_s.items())
        best = min(took_s, key=lambda load: took_s[load])
        _log.info("chose hw_decoder_load %g (images/s at each: %s)", best, rates)
        return best

    def _run(self, pipe: Any, work: _Work) -> None:
        """Have a graph do a batch several times, in a queue as in training, and wait for the GPU."""
        for _ in range(_RUNS):
            self._inputs.append(_inputs(work))
            pipe.schedule_run()
        for _ in range(_RUNS):
            pipe.outputs(cuda_stream=torch.cuda.current_stream(self._device))
        torch.cuda.synchronize(self._device)

    def _build(self, kind: _Kind, hw_decoder_load: float) -> Any:
        on_gpu = self._device.type == "cuda"
        with pinned(self._cores):
            pipe = _graph(
                self._inputs,
                kind,
                hw_decoder_load if on_gpu else None,
                batch_size=self._batch_size,
                num_threads=self._threads,
                device_id=self._device.index if on_gpu else None,
                # With a deeper queue DALI runs ahead at the first call and asks for inputs that are not there
                # yet. The dynamic executor takes any number of scheduled runs all the same.
                prefetch_queue_depth=1,
                exec_dynamic=True,
            )
            pipe.build()
        leave_to_parent(pipe)
        return pipe


def _inputs(work: _Work) -> tuple[Any, ...]:
    """What the graph's external source gives for a batch."""
    params = work.params
    inputs: list[Any] = [
        work.encoded,
        np.ascontiguousarray(params.window[:, :2]),
        np.ascontiguousarray(params.window[:, 2:]),
        params.resized.astype(np.float32),
        params.flip.astype(np.int32),
    ]
    if params.shifted:
        inputs += [params.offset, np.full((len(work.encoded), 2), params.size, np.int32)]
    if params.ops is not None:
        for k in range(len(params.ops.choices)):
            inputs += [
                np.ascontiguousarray(params.ops.op[:, k]),
                np.ascontiguousarray(params.ops.arg[:, k]),
            ]
    return tuple(inputs)


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _graph(inputs: deque[tuple[Any, ...]], kind: _Kind, hw_decoder_load: float | None) -> Any:
    """Describe the graph; `inputs` alone is captured, the pipeline must not keep the backend alive."""
    i32, f32 = types.INT32, types.FLOAT
    dtypes, ndims = [types.UINT8, i32, i32, f32, i32], [1, 1, 1, 1, 0]
    if kind.shifted:
        dtypes, ndims = [*dtypes, i32, i32], [*ndims, 1, 1]
    layers = len(kind.choices)
    jpeg, start, shape, resized, flip, *rest = fn.external_source(
        source=lambda: inputs.popleft(),
        num_outputs=len(dtypes) + 2 * layers,
        batch=True,
        no_copy=True,
        dtype=[*dtypes, *[i32, f32] * layers],
        ndim=[*ndims, *[0, 1] * layers],
    )
    images = _window(jpeg, start, shape, hw_decoder_load)
    images = fn.resize(images, size=resized, interp_type=_INTERPOLATIONS[kind.interpolation], antialias=True)
    if kind.shifted:
        images = fn.slice(images, *rest[:2], axis_names="HW", out_of_bounds_policy="pad", fill_values=0)
        rest = rest[2:]
    images = fn.flip(images, horizontal=flip)
    return apply_layers(images, rest, kind.choices, gpu=hw_decoder_load is not None)


def _window(jpeg: Any, start: Any, shape: Any, hw_decoder_load: float | None) -> Any:
    decoding = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
    where = {"start": start, "shape": shape, "axis_names": "HW"}
    if hw_decoder_load is None:
        return fn.decoders.image_slice(jpeg, **where, **decoding)
    # Not image_slice: nvJPEG before 13.2, and no wheel for CUDA 12 has that, does not decode windows of images with
    # subsampled chroma that is upsampled smoothly. nvImageCodec 0.9 then has the CPU decode them, without a word, and
    # of the others it is said to crash on H100 (github.com/NVIDIA/nvImageCodec/issues/55).
    # Not affine: its threads stay on the cores of this rank, which were chosen for it.
    images = fn.decoders.image(
        jpeg, device="mixed", hw_decoder_load=hw_decoder_load, affine=False, **decoding
    )
    return fn.slice(images, **where)


def _brief(error: RuntimeError) -> str:
    """What DALI met, out of its message of a dozen lines."""
    met = str(error).partition("encountered:")[2].strip() or str(error).strip()
    return f"DALI: {met.splitlines()[0].rstrip(' :')[:300]}"
