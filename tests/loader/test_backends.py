"""Both backends against Pillow, on photo-like images of odd sizes; no dataset involved."""

import io
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from PIL import Image

from loader import PadCrop, Params, RandomResizedCrop, ResizeCenterCrop, Transform, dali_backend
from loader.backend import Backend
from loader.dali_backend import DaliBackend, _graph, _Kind, _Work
from loader.ops import Op
from loader.torch_backend import TorchBackend

CPU = torch.device("cpu")
N = 24


def photo(seed: int, width: int, height: int, mode: str = "RGB", **save: object) -> bytes:
    """A JPEG with smooth and sharp parts."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels[height // 3 : height // 2, :, :] = rng.integers(0, 256, 3)
    pixels += rng.integers(-6, 7, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(
        buffer, "JPEG", quality=90, **save
    )
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    rng = np.random.default_rng(7)
    colour = [photo(i, *rng.integers(120, 500, 2).tolist()) for i in range(N - 4)]
    kinds = [
        photo(90, 333, 251, "L"),
        photo(91, 251, 333, progressive=True),
        photo(92, 200, 200, subsampling=0),
        photo(93, 401, 263, subsampling=1),
    ]
    return colour + kinds


Make = Callable[[], Backend]
BACKENDS: dict[str, Make] = {"torch": lambda: TorchBackend(CPU, 2), "dali": lambda: DaliBackend(CPU, 2, N)}
# mean and 99.9th percentile of the difference in grey levels, per backend; see docs/benchmarks.md
TRANSFORMS = [RandomResizedCrop(size=160), ResizeCenterCrop(size=160, resize=184), PadCrop(size=200, pad=12)]


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = BACKENDS[request.param]()
    yield made
    made.close()


def encode(images: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(image, np.uint8) for image in images]


def params_of(transform: Transform, images: list[bytes], epoch: int = 0) -> Params:
    sizes = np.array([Image.open(io.BytesIO(image)).size for image in images], np.int32)
    return transform.params(0, epoch, np.arange(len(images)), sizes[:, 0], sizes[:, 1])


def pillow(image: bytes, params: Params, i: int) -> np.ndarray:
    top, left, height, width = params.window[i].tolist()
    picture = Image.open(io.BytesIO(image)).convert("RGB").crop((left, top, left + width, top + height))
    picture = picture.resize(params.resized[i].tolist()[::-1], Image.Resampling.BILINEAR)
    y, x = params.offset[i].tolist()
    pixels = np.asarray(picture.crop((x, y, x + params.size, y + params.size)))
    return pixels[:, ::-1] if params.flip[i] else pixels


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_equals_pillow_within_a_grey_level(
    backend: Backend, images: list[bytes], transform: Transform
) -> None:
    params = params_of(transform, images)
    out = backend.submit(encode(images), params, N)().images.numpy().astype(int)
    expected = np.stack([pillow(image, params, i) for i, image in enumerate(images)]).astype(int)
    difference = np.abs(out - expected)
    assert out.shape == (N, transform.size, transform.size, 3)
    assert difference.mean() <= 0.25
    assert np.quantile(difference, 0.999) <= 1


def test_a_note_how_to_turn_an_image_turns_no_pixel(backend: Backend) -> None:
    """Of datasets packed with `--exif keep`, and of shards that somebody else wrote."""
    notes = [Image.Exif() for _ in range(8)]
    for orientation, note in enumerate(notes, start=1):
        note[0x0112] = orientation
    turned = [photo(3, 90, 60, exif=note) for note in notes]
    out = backend.submit(encode(turned), params_of(ResizeCenterCrop(size=32, resize=32), turned), 8)().images
    assert torch.equal(out, out[:1].expand_as(out))


def test_a_batch_is_contiguous_uint8_and_padded_black(backend: Backend, images: list[bytes]) -> None:
    params = params_of(RandomResizedCrop(size=64), images[:5])
    out = backend.submit(encode(images[:5]), params, 8)().images
    assert out.shape == (8, 64, 64, 3)
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    assert out.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)
    assert out[5:].sum() == 0
    assert all(image.sum() > 0 for image in out[:5])


def test_an_empty_share_is_all_padding(backend: Backend, images: list[bytes]) -> None:
    params = params_of(RandomResizedCrop(size=32), images[:1])
    none = Params(
        window=params.window[:0],
        resized=params.resized[:0],
        offset=params.offset[:0],
        flip=params.flip[:0],
        size=32,
        shifted=False,
    )
    assert (
        backend.submit([], none, 3)().images.tolist() == torch.zeros(3, 32, 32, 3, dtype=torch.uint8).tolist()
    )


def test_kept_batches_are_never_overwritten(backend: Backend, images: list[bytes]) -> None:
    kept = []
    for epoch in range(6):
        out = backend.submit(encode(images), params_of(RandomResizedCrop(size=48), images, epoch), N)().images
        kept.append((out[2:5], out[2:5].clone()))  # a view only: its batch must live on
    assert all(torch.equal(view, copy) for view, copy in kept)
    assert not torch.equal(kept[0][0], kept[1][0])


def test_dropped_batches_are_used_again(images: list[bytes]) -> None:
    backend = TorchBackend(CPU, 2)
    params = params_of(RandomResizedCrop(size=48), images)
    addresses = set()
    for _ in range(10):
        out = backend.submit(encode(images), params, N)().images
        addresses.add(out.data_ptr())
    backend.close()
    assert len(addresses) <= 2


def test_several_batches_in_flight_come_in_order(backend: Backend, images: list[bytes]) -> None:
    encoded = encode(images)
    all_params = [params_of(RandomResizedCrop(size=40), images, epoch) for epoch in range(5)]
    alone = [backend.submit(encoded, params, N)().images.clone() for params in all_params]
    pending = [backend.submit(encoded, params, N) for params in all_params]
    assert all(
        torch.equal(result().images, expected) for result, expected in zip(pending, alone, strict=True)
    )


def test_resolution_changes_without_a_new_backend(backend: Backend, images: list[bytes]) -> None:
    for size in (32, 96, 64):
        out = backend.submit(encode(images), params_of(RandomResizedCrop(size=size), images), N)().images
        assert out.shape[1:3] == (size, size)


def test_undecodable_images_are_named_by_their_rows_and_black(backend: Backend, images: list[bytes]) -> None:
    broken = [*images[:3], b"\xff\xd8\xff not a picture", *images[4:7], b"\xff\xd8\xff neither"]
    params = params_of(RandomResizedCrop(size=32), images[:8])
    expected = backend.submit(encode(images[:8]), params, 10)().images.clone()
    pending = [backend.submit(encode(pictures), params, 10) for pictures in (images[:8], broken, images[:8])]
    first, second, third = (result() for result in pending)
    assert sorted(second.bad) == [3, 7]
    assert all(second.bad.values())
    for good in (first, third):  # before and behind the broken batch
        assert not good.bad
        assert torch.equal(good.images, expected)
    expected[[3, 7]] = 0
    assert torch.equal(second.images, expected)


def test_a_batch_of_nothing_decodable_is_black(backend: Backend, images: list[bytes]) -> None:
    params = params_of(RandomResizedCrop(size=32), images[:2])
    decoded = backend.submit(encode([b"no", b"neither"]), params, 2)()
    assert sorted(decoded.bad) == [0, 1]
    assert decoded.images.sum() == 0
    assert backend.submit(encode(images[:2]), params, 2)().images.sum() > 0


def test_threads_change_no_pixel(images: list[bytes]) -> None:
    params = params_of(RandomResizedCrop(size=72), images)
    results = []
    for threads in (1, 2, 5):
        backend = TorchBackend(CPU, threads)
        results.append(backend.submit(encode(images), params, N)().images)
        backend.close()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_decoding_threads_leave_the_callers_intra_op_threads_alone(images: list[bytes]) -> None:
    before = torch.get_num_threads()
    backend = TorchBackend(CPU, 3)
    backend.submit(encode(images), params_of(RandomResizedCrop(size=32), images), N)()
    backend.close()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shifted", [False, True])
def test_dali_takes_the_graph_of_a_gpu(shifted: bool, interpolation: str) -> None:
    """It refuses wrong arguments, and arguments and inputs on the wrong device, before it needs a GPU."""
    every = tuple(map(int, Op))
    kind = _Kind(shifted, interpolation, (every, every))
    made = _graph(deque(), kind, 0.5, batch_size=2, num_threads=1, device_id=0, exec_dynamic=True)
    assert made.device_id == 0


@pytest.mark.parametrize(
    "transform", [RandomResizedCrop(size=64), PadCrop(size=200, pad=12)], ids=["crop", "pad"]
)
def test_the_graph_of_a_gpu_cuts_the_same_windows(
    images: list[bytes], monkeypatch: pytest.MonkeyPatch, transform: Transform
) -> None:
    """From whole images, which here the CPU decodes."""

    def decode() -> torch.Tensor:
        backend = DaliBackend(CPU, 2, N)
        try:
            return backend.submit(encode(images), params_of(transform, images), N)().images
        finally:
            backend.close()

    def on_the_cpu(
        jpeg: object, *, device: str, hw_decoder_load: float, affine: bool, **more: object
    ) -> object:
        assert (device, hw_decoder_load, affine) == ("mixed", 0.5, False)
        return whole(jpeg, **more)

    expected = decode()
    window, whole = dali_backend._window, fn.decoders.image
    monkeypatch.setattr(
        dali_backend, "_window", lambda jpeg, start, shape, load: window(jpeg, start, shape, 0.5)
    )
    monkeypatch.setattr(fn.decoders, "image", on_the_cpu)
    assert torch.equal(decode(), expected)


def test_the_engines_share_is_not_found_out_with_a_single_image(
    images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first batch has a bad one, its images are tried one by one: what one likes would hold for the run."""
    encoded, tried = encode(images), list[int]()
    encoded[1] = encoded[1][:300].copy()

    def on_the_cpu(self: DaliBackend, kind: _Kind, load: float) -> object:
        self._device = CPU  # the choice is made: what follows needs no GPU
        pipe = _graph(
            self._inputs, kind, None, batch_size=self._batch_size, num_threads=1, device_id=None,
            prefetch_queue_depth=1, exec_dynamic=True,
        )  # fmt: skip
        pipe.build()
        return pipe

    monkeypatch.setattr(DaliBackend, "_fastest_load", lambda self, kind, work: tried.append(work.rows))
    monkeypatch.setattr(DaliBackend, "_build", on_the_cpu)
    gpu = DaliBackend(torch.device("cuda", 0), 1, N)
    work = _Work(encoded, params_of(RandomResizedCrop(size=32), images), N, {})
    assert list(gpu._find_bad(work)) == [1]
    assert tried == []
