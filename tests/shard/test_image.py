"""Every odd file has its expected fate, and nothing gets through that a decoder refuses."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from shard.errors import FeedlineError
from shard.image import (
    BadImageError,
    Checked,
    Exif,
    NotAnImageError,
    Policy,
    TooManyPixelsError,
    check,
    size_of,
)
from tests.shard.fuzz import Decoders, fuzz
from tests.shard.hostile import Odd, corpus, encoded, exif, picture

CORPUS = corpus()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 80


@pytest.mark.parametrize(("name", "odd"), CORPUS.items(), ids=CORPUS)
def test_odd_files_meet_their_fate(name: str, odd: Odd) -> None:
    try:
        found: Checked | str = check(odd.data)
    except BadImageError as error:
        found = f"rejected: {error}"
    if isinstance(found, str):
        assert odd.fate.startswith("rejected"), found
        assert found.startswith(odd.fate)
        return
    assert ",".join(found.changes) == ("" if odd.fate == "kept" else odd.fate)
    if odd.fate == "kept":
        assert found.data == odd.data
    image = Image.open(io.BytesIO(found.data))
    assert (image.format, image.size) == ("JPEG", (found.width, found.height))
    assert "progressive" not in image.info
    assert Decoders().refusals(found.data) == []


@pytest.mark.parametrize("kind", ["format", "progressive", "trailing", "unterminated", "exif", "markers"])
def test_mended_images_look_as_before(kind: str) -> None:
    for name, odd in CORPUS.items():
        # Pillow's own reading of 16 bits as RGB clips, and of MPO and APNG is of the first picture
        if odd.fate != kind or name.startswith("deep"):
            continue
        before, after = pixels(odd.data), pixels(check(odd.data).data)
        limit = 0 if kind in ("trailing", "unterminated", "exif", "markers") else 3
        if name != "jpeg-inside.tiff" and kind != "markers":
            assert np.abs(before - after).mean() <= limit, name


@pytest.mark.parametrize("junk", [b"", b"\xff\x00\x01"], ids=["sound", "markers-broken"])
def test_thousands_of_scans_are_not_decoded(junk: bytes) -> None:
    """Each takes a full pass over the pixels, and 14 bytes of the file."""
    data = encoded(picture(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2][:14]
    assert check(data[:-2] + junk + scan * 100 + b"\xff\xd9").width == 130
    with pytest.raises(BadImageError, match="scans, more than 200"):
        check(data[:-2] + junk + scan * 300 + b"\xff\xd9")


def test_size_by_the_header() -> None:
    for name in ("baseline.jpg", "progressive.jpg", "png-in-disguise.JPEG", "damaged.jpg"):
        assert size_of(CORPUS[name].data) == (130, 100)
    with pytest.raises(NotAnImageError, match="not an image"):
        size_of(b"text")
    huge = bytearray(encoded(picture(), "BMP"))
    huge[18:26] = struct.pack("<II", 60_000, 60_000)
    for judge in (size_of, check):
        with pytest.raises(TooManyPixelsError):
            judge(bytes(huge))


def test_sixteen_bits_become_eight() -> None:
    data = CORPUS["deep.png"].data
    before = np.asarray(Image.open(io.BytesIO(data))).astype(int) // 257
    assert np.abs(pixels(check(data).data)[..., 0] - before).mean() < 2


@pytest.mark.parametrize("value", [-1, 65_536])
def test_bits_whose_range_is_not_known_are_no_picture(value: int) -> None:
    """They would be clipped: white, all of it, in a scan of 32 bits."""
    levels = np.full((8, 8), 30_000, np.int32)
    assert abs(int(pixels(check(encoded(Image.fromarray(levels), "TIFF")).data).mean()) - 30_000 // 257) <= 1
    levels[0, 0] = value
    with pytest.raises(BadImageError, match="32 bits, whose range is not known"):
        check(encoded(Image.fromarray(levels), "TIFF"))


def test_orientation_is_removed_applied_or_kept() -> None:
    data = encoded(picture(), "JPEG", exif=exif(6), quality=95, subsampling=0)
    plain = pixels(data)
    stripped, applied, kept = (check(data, Policy(exif=how)) for how in ("strip", "apply", "keep"))
    assert kept.data == data
    assert (pixels(stripped.data) == plain).all()
    assert not Image.open(io.BytesIO(stripped.data)).getexif()
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    assert (applied.width, applied.height) == (100, 130)
    assert np.abs(pixels(applied.data) - upright).mean() < 3
    assert Image.open(io.BytesIO(applied.data)).getexif().get(0x0112, 1) == 1
    assert [list(one.changes) for one in (stripped, applied, kept)] == [["exif"], ["exif"], []]


@pytest.mark.parametrize("how", ["strip", "apply"])
@pytest.mark.parametrize(
    ("kind", "note", "unread"),
    [
        (b"eXIf", b"garbage, no TIFF", True),
        (b"eXIf", b"II*\0", True),
        (b"eXIf", exif(None)[6:] + b"\xff", False),
        (b"tEXt", b"Raw profile type exif\0\nexif\n4\nno digits", True),
        (b"tEXt", b"xmp\0tiff:Orientation=", True),
        (b"iTXt", b"exif\0\0\0\0\0text", True),
    ],
)
def test_a_broken_note_of_the_camera_is_none(kind: bytes, note: bytes, unread: bool, how: Exif) -> None:
    """The pixels are sound; that it could not be read is told."""
    plain = encoded(picture(), "PNG")
    chunk = struct.pack(">I", len(note)) + kind + note + struct.pack(">I", zlib.crc32(kind + note))
    found = check(plain[:33] + chunk + plain[33:], Policy(exif=how))  # behind the header's chunk
    assert found.data == check(plain).data
    assert list(found.changes) == ["format", *(["note"] if unread else [])]


def test_orientation_is_applied_whatever_else_is_noted() -> None:
    note = Image.Exif()
    note[0x0112], note[0x010F] = 6, "a camera by fractions"
    data = bytearray(encoded(picture(), "PNG", exif=note.tobytes()))
    at = data.index(struct.pack(">HH", 0x010F, 2))
    data[at + 2 : at + 8] = struct.pack(">HI", 5, 2)  # which Pillow reads, and cannot write again
    at = data.index(b"eXIf")
    (size,) = struct.unpack(">I", data[at - 4 : at])
    data[at + 4 + size : at + 8 + size] = struct.pack(">I", zlib.crc32(data[at : at + 4 + size]))
    found = check(bytes(data), Policy(exif="apply"))
    assert found.changes["exif"] == "orientation applied"
    assert (found.width, found.height) == picture().size[::-1]


def test_a_long_comment_is_left_out() -> None:
    data = encoded(picture().convert("P"), "GIF", comment=b"c" * 70_000)
    assert check(data).data == check(encoded(picture().convert("P"), "GIF")).data


def tiled(side: int) -> bytes:
    """TIFF of 130 x 100 grey pixels in one deflated tile that is said to be of `side` x `side`."""
    tile = zlib.compress(bytes(64 * 64 * 6))
    tags = {256: 130, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(tile))
        + tile
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize("judge", [size_of, check])
def test_a_tile_much_larger_than_its_image(judge: Callable[[bytes], object]) -> None:
    """All of it would be decoded: gigabytes, from a file of a few."""
    assert size_of(tiled(144)) == (130, 100)
    with pytest.raises(BadImageError, match="tiles of 40000 x 40000 pixels, for an image of 130 x 100"):
        judge(tiled(40_000))


def test_what_a_policy_keeps_is_stored_as_it_is() -> None:
    for name, kind in [("progressive.jpg", "progressive"), ("trailing-text.jpg", "trailing")]:
        kept = check(CORPUS[name].data, Policy(keep=(kind,)))
        assert (kept.data, kept.changes) == (CORPUS[name].data, {})


def test_skip_and_fail_reject_what_repair_would_mend() -> None:
    for how in ("skip", "fail"):
        with pytest.raises(BadImageError, match=r"needs repair: PNG, mode RGB, format, to baseline JPEG"):
            check(CORPUS["png-in-disguise.JPEG"].data, Policy(on_bad=how))
        assert "exif" in check(CORPUS["exif-rotated.jpg"].data, Policy(on_bad=how)).changes
        assert check(CORPUS["baseline.jpg"].data, Policy(on_bad=how)).changes == {}


@pytest.mark.parametrize(
    ("limits", "size"),
    [({"max_side": 65}, (65, 50)), ({"short_side": 50}, (65, 50)), ({"max_side": 500}, (130, 100))],
)
def test_reduced_images_have_the_asked_size(limits: dict[str, int], size: tuple[int, int]) -> None:
    data = CORPUS["baseline.jpg"].data
    found = check(data, Policy(**limits, quality=80))
    assert (found.width, found.height) == Image.open(io.BytesIO(found.data)).size == size
    assert (found.data == data) == (size == (130, 100))


def test_header_checking_trusts_coded_data_and_nothing_else() -> None:
    policy = Policy(check="header")
    assert check(CORPUS["damaged.jpg"].data, policy).changes == {}
    inside = ("two-in-one.jpg", "several-pictures.mpo")  # these end as a good file does
    for name, odd in CORPUS.items():
        if not odd.fate.startswith(("rejected", "warning")) and name not in inside:
            assert ",".join(check(odd.data, policy).changes) == ("" if odd.fate == "kept" else odd.fate), name


@pytest.mark.parametrize(
    "values", [{"quality": 0}, {"max_side": 0}, {"short_side": -1}, {"keep": ("color",)}]
)
def test_policies_out_of_range(values: dict[str, object]) -> None:
    with pytest.raises(FeedlineError, match=next(iter(values))):
        Policy(**values)  # type: ignore[arg-type]


def test_no_mutant_gets_through_that_a_decoder_refuses() -> None:
    seeds = [
        encoded(picture(), "JPEG"),
        encoded(picture(), "JPEG", progressive=True),
        encoded(picture(), "JPEG", restart_marker_blocks=4, exif=exif(6)),
    ]
    outcomes, failures = fuzz(seeds, 600)
    assert failures == []
    assert outcomes["rejected"] > 100
    assert outcomes["kept"] > 20
