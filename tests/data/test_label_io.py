"""Tests of label files: gray of any depth, palettes against colors, orientation."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from encnet_jax.data.dataset_info import IGNORE_LABEL, DatasetInfo
from encnet_jax.data.label_io import LabelColors, color_table, decode_labels
from encnet_jax.errors import UserError
from encnet_jax.visualize.overlay import palette_image
from tests.data.png_files import GRAY_ALPHA, PALETTE, RGB, RGB_ALPHA, chunk, make_png

RNG = np.random.default_rng(0)
ROAD, CAR, TREE, VOID = (128, 64, 128), (0, 0, 142), (107, 142, 35), (0, 0, 0)
# Labels 1, 2 and 4 are the classes; 0 and 255 are ignored, and so is black.
COLORS = LabelColors.of(
    DatasetInfo(
        "painted",
        ("road", "car", "tree"),
        (ROAD, CAR, TREE),
        {},
        label_map={0: IGNORE_LABEL, 1: 0, 2: 1, 4: 2},
        label_colors={ROAD: 1, CAR: 2, TREE: 4, VOID: IGNORE_LABEL},
    )
)


def stored(image, kind="PNG", **settings):
    """Returns an image, or the array of one, as the bytes of a file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def tiff_of_bits(values, bits, photometric):
    """Returns a gray TIFF, of which 0 is black if `photometric` is 1."""
    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += int(text, 2).to_bytes(len(text) // 8, "big")
    shape = len(values), len(values[0])
    tags = [(256, shape[1]), (257, shape[0]), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 8), (277, 1), (278, shape[0]), (279, len(rows))]
    place = 8 + len(rows) + len(rows) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return (
        b"II*\0" + struct.pack("<I", place) + rows.ljust(place - 8, b"\0") + directory
    )


def indexed(indices, palette, **settings):
    """Returns a palette file."""
    image = Image.fromarray(np.asarray(indices, np.uint8))
    image.putpalette([value for color in palette for value in color])
    return stored(image, **settings)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_are_gray_values_or_palette_indices(mode):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(RNG.permutation(256).astype(np.uint8).repeat(3).tolist())
    data = stored(image)
    assert Image.open(io.BytesIO(data)).mode == mode
    np.testing.assert_array_equal(decode_labels(data, "name"), labels)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_gray_of_any_depth_holds_the_stored_values(depth):
    labels = RNG.integers(0, min(2**depth, 256), (5, 7))
    labels[0, :2] = 0, min(2**depth, 256) - 1
    result = decode_labels(make_png(labels, depth), "name")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, labels)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_palettes_of_few_bits_hold_the_stored_values(depth):
    labels = RNG.integers(0, 2**depth, (5, 7))
    palette = chunk(b"PLTE", RNG.integers(0, 256, 3 * 2**depth, np.uint8).tobytes())
    data = make_png(labels, depth, PALETTE, palette)
    np.testing.assert_array_equal(decode_labels(data, "name"), labels)


def test_16_bit_labels_above_255_are_named():
    data = make_png([[1, 2, 255], [3, 256, 300]], 16)
    with pytest.raises(UserError, match="mask: label 256 at x=1, y=1; allowed are 0"):
        decode_labels(data, "mask")


@pytest.mark.parametrize("kind, channels", [(GRAY_ALPHA, 2), (RGB, 3), (RGB_ALPHA, 4)])
def test_colors_of_16_bits_are_not_cut_to_black(kind, channels):
    # Pillow reads 0, the upper byte: black, which is ignored in this data set.
    data = make_png(np.full((2, 2, channels), 1), 16, kind)
    with pytest.raises(UserError, match="mask: a label image of 16 bits per color, wh"):
        decode_labels(data, "mask", COLORS)


@pytest.mark.parametrize("kind, maximum", [("P5", 20), ("P5", 300), ("P6", 65535)])
def test_labels_that_pillow_scales_are_refused(kind, maximum):
    data = f"{kind}\n3 1\n{maximum}\n".encode() + bytes(18)
    with pytest.raises(UserError, match=f"mask: .* a maximum of {maximum}, which is "):
        decode_labels(data, "mask", COLORS)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("white", [0, 1])
def test_tiff_holds_the_stored_values_or_is_refused(bits, white):
    data = tiff_of_bits([[0, 1], [1, 0]], bits, white)
    if white == 1 and bits in (1, 8):  # 1: the greatest value
        np.testing.assert_array_equal(decode_labels(data, "mask"), [[0, 1], [1, 0]])
        return
    with pytest.raises(UserError, match="mask: a label image of TIFF .* not read"):
        decode_labels(data, "mask")


@pytest.mark.parametrize(
    "data", [b"P5\n2 1\n255\n\1\2", b"P5\n2 1\n65535\n\0\1\0\2", b"P2 2 1 255 1 2"]
)
def test_netpbm_files_hold_the_stored_values(data):
    np.testing.assert_array_equal(decode_labels(data, "mask"), [[1, 2]])


def test_negative_labels_of_32_bits_are_named():
    labels = np.int32([[1, 2], [-1, 3]])
    data = stored(labels, "TIFF")
    with pytest.raises(UserError, match="mask: label -1 at x=0, y=1; allowed are 0 to"):
        decode_labels(data, "mask")
    np.testing.assert_array_equal(
        decode_labels(stored(np.abs(labels), "TIFF"), "mask"), np.abs(labels)
    )


@pytest.mark.parametrize("dtype, shape", [("u1", (2, 2, 3)), ("f4", (2, 2))])
def test_labels_of_other_modes_are_named(dtype, shape):
    image = np.zeros(shape, dtype)
    with pytest.raises(UserError, match="mask: a label image of mode .* allowed are"):
        decode_labels(stored(image, "TIFF"), "mask")


@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: x[::-1].swapaxes(0, 1)),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda x: x[:, ::-1].swapaxes(0, 1)),
    ],
)
@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_exif_orientation_is_undone(orientation, upright, mode):
    labels = RNG.integers(0, 4, (3, 5), np.uint8)
    image = Image.fromarray(labels.astype(np.uint16) if mode == "I;16" else labels)
    if mode == "P":
        image.putpalette([9, 9, 9, 5, 5, 5, 1, 2, 3, 4, 5, 6])
    exif = Image.Exif()
    exif[274] = orientation
    data = stored(image, exif=exif)
    assert Image.open(io.BytesIO(data)).mode == mode
    np.testing.assert_array_equal(decode_labels(data, "name"), upright(labels))


def test_palettes_of_other_orders_are_read_by_color():
    expected = np.array([[1, 2, 4, 255], [4, 4, 1, 1]])
    pixels = {1: ROAD, 2: CAR, 4: TREE, 255: VOID}
    for order in ([255, 4, 2, 1], [1, 255, 2, 4], [4, 2, 255, 1]):
        indices = np.vectorize(order.index)(expected)
        data = indexed(indices, [pixels[label] for label in order])
        np.testing.assert_array_equal(decode_labels(data, "name", COLORS), expected)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"])
def test_transparency_of_a_palette_plays_no_part(transparency):
    data = indexed([[0, 1, 2]], [TREE, ROAD, CAR], transparency=transparency)
    assert decode_labels(data, "name", COLORS).tolist() == [[4, 1, 2]]


def test_palettes_that_agree_are_read_by_index():
    palette = [(9, 9, 9), ROAD, CAR, (7, 7, 7), TREE]  # 0 is ignored, in any color
    data = indexed([[0, 1, 2, 4]], palette)
    assert decode_labels(data, "name", COLORS).tolist() == [[0, 1, 2, 4]]
    # Entries that are not in use do not count, nor does the color of 255.
    palette = [CAR, ROAD, CAR] + [(1, 2, 3)] * 253
    data = indexed([[1, 2, 255]], palette)
    assert decode_labels(data, "name", COLORS).tolist() == [[1, 2, 255]]


def test_palette_filled_up_with_black_keeps_what_is_ignored():
    colors = LabelColors.of(
        DatasetInfo(
            "black",
            ("bg", "car"),
            ((0, 0, 0), CAR),
            {},
            label_map={0: 0, 1: 1, 9: IGNORE_LABEL},
            label_colors={(0, 0, 0): 0, CAR: 1},
        )
    )
    data = indexed([[0, 1, 255, 9]], [(0, 0, 0), CAR] + [(0, 0, 0)] * 254)
    assert decode_labels(data, "name", colors).tolist() == [[0, 1, 255, 9]]
    # In another order, too; 255 is then still no background.
    data = indexed([[0, 1, 255]], [CAR] + [(0, 0, 0)] * 255)
    assert decode_labels(data, "name", colors).tolist() == [[1, 0, 255]]


def test_entries_in_use_of_one_color_are_named():
    data = indexed([[0, 1, 2]], [ROAD, CAR, ROAD])
    with pytest.raises(UserError, match="name: palette entries in use have one color"):
        decode_labels(data, "name", COLORS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_are_no_labels(kind):
    with pytest.raises(UserError, match=f"mask: a {kind} image, which changes labels"):
        decode_labels(stored(np.zeros((8, 8), np.uint8), kind), "mask")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB"])
def test_pages_of_one_size_are_named(mode):
    """As tools write a mask for each class or slice: the first is not the labels."""
    pages = [Image.new(mode, size) for size in [(7, 5)] * 3 + [(3, 2)]]
    data = stored(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError) as caught:
        decode_labels(data, "a.tif", COLORS)
    gray = "gray " * (mode in ("L", "I;16"))
    assert str(caught.value) == (
        f"a.tif: a TIFF of 3 {gray}pages of 7x5 pixels; must be one page of labels"
    )


def test_smaller_copies_of_labels_play_no_part():
    pages = [Image.new("L", size, 3) for size in [(8, 6), (4, 3), (2, 2)]]
    data = stored(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode_labels(data, "a.tif").tolist() == [[3] * 8] * 6


def test_transparency_of_gray_labels_plays_no_part():
    labels = RNG.integers(0, 256, (5, 7), np.uint8)
    pixels = np.stack([labels, RNG.integers(0, 256, (5, 7), np.uint8)], -1)
    np.testing.assert_array_equal(decode_labels(stored(pixels), "name"), labels)


def test_ignored_index_in_the_color_of_a_class_is_that_class():
    data = indexed([[0, 0]], [ROAD])
    assert decode_labels(data, "name", COLORS).tolist() == [[1, 1]]


@pytest.mark.parametrize("top", [255, 17])
def test_gray_ramps_are_read_by_index(top):
    ramp = [(top * n // 255 if top == 255 else top * n,) * 3 for n in range(15)]
    data = indexed([[0, 1, 2, 4]], ramp)
    assert decode_labels(data, "name", COLORS).tolist() == [[0, 1, 2, 4]]


def test_gray_values_as_a_palette_are_read_by_index_whatever_colors_are_given():
    info = DatasetInfo(
        "gray",
        ("road", "car"),
        (ROAD, CAR),
        {},
        label_map={0: 0, 1: 1},
        label_colors={ROAD: 0, CAR: 1, VOID: IGNORE_LABEL},
    )
    data = indexed([[0, 0, 0]], [(n, n, n) for n in range(256)])  # no 1 to tell it
    decoded = decode_labels(data, "name", LabelColors.of(info))
    assert decoded.tolist() == [[0, 0, 0]]


def test_black_and_white_entries_of_given_colors_are_read_by_color():
    info = DatasetInfo(
        "binary",
        ("leaf", "rest"),
        ((255,) * 3, VOID),
        {},
        label_map={0: 0, 1: 1},
        label_colors={(255,) * 3: 0, VOID: 1},
    )
    data = indexed([[0, 1, 1]], [VOID, (255,) * 3])
    assert decode_labels(data, "name", LabelColors.of(info)).tolist() == [[1, 0, 0]]


def test_palettes_of_unknown_colors_are_named():
    data = indexed([[0, 1], [2, 2]], [TREE, ROAD, (1, 2, 171)])
    with pytest.raises(UserError, match="mask: palette entry 2 has the color #0102ab"):
        decode_labels(data, "mask", COLORS)
    palette = chunk(b"PLTE", bytes([*TREE, *ROAD, *CAR]))
    data = make_png([[0, 1], [2, 7]], 8, PALETTE, palette)
    with pytest.raises(UserError, match="mask: palette entry 7 is in use, beyond .* 3"):
        decode_labels(data, "mask", COLORS)


def test_without_colors_any_palette_is_read_by_index():
    data = indexed([[0, 1], [2, 2]], [TREE, ROAD, (1, 2, 171)])
    assert decode_labels(data, "mask").tolist() == [[0, 1], [2, 2]]


def test_palette_images_of_predictions_are_read_by_index():
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    info = DatasetInfo(
        "painted",
        ("road", "car", "tree"),
        (ROAD, CAR, TREE),
        {},
        label_map={0: 0, 1: 1, 2: 2},
        label_colors={ROAD: 0, CAR: 1, TREE: 2},
    )
    data = stored(palette_image(labels, info.colors))
    decoded = decode_labels(data, "name", LabelColors.of(info))
    np.testing.assert_array_equal(decoded, labels)


def test_color_table_distinguishes_the_channels():
    table = color_table({(1, 2, 3): 0, (3, 2, 1): 254, (2, 1, 3): 255})
    assert table[[0x030201, 0x010203, 0x030102]].tolist() == [1, 255, 256]
    assert np.count_nonzero(table) == 3
