"""Image files of any kind: which are found, under what numbers, and their pixels against PIL's own reading."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from pipelines import image_folder
from pipelines.image_folder import find_pictures, numbers, read_pixels


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_images_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path):
    put(tmp_path, "b.JPG", "a/z.png", "a/y/c.webp", "a.bmp", "d.Jpeg", "e.gif", "notes.txt", "jpg", "f.jpg.part")
    put(tmp_path, ".hidden.jpg", ".cache/g.jpg", "a/._z.png")
    (tmp_path / "folder.jpg").mkdir()
    found = find_pictures(tmp_path)
    assert [picture.name for picture in found] == ["a.bmp", "a/y/c.webp", "a/z.png", "b.JPG", "d.Jpeg"]
    assert [picture.drawn for picture in found] == ["a.jpg", "a/y/c.jpg", "a/z.jpg", "b.jpg", "d.jpg"]
    assert [picture.number for picture in found] == [1, 2, 3, 4, 5]
    assert all(picture.path == tmp_path / picture.name for picture in found)


def test_two_formats_of_one_name_are_drawn_apart(tmp_path):
    put(tmp_path, "a.jpg", "a.png", "b.png")
    assert [picture.drawn for picture in find_pictures(tmp_path)] == ["a.jpg.jpg", "a.png.jpg", "b.jpg"]
    put(tmp_path, "a.png.webp")
    with pytest.raises(ValueError, match=r"2 images would be drawn as a\.png\.jpg"):
        find_pictures(tmp_path)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["COCO_val2014_000000000042.jpg", "x/000000000009.jpg"], [42, 9]),
        (["img7.png"], [7]),
        (["1.jpg", "2.jpg", "cat.jpg"], [1, 2, 3]),
        (["a/12.jpg", "b/12.jpg"], [1, 2]),
        (["a1.jpg", "a01.jpg"], [1, 2]),
        (["7 b.jpg", "8.jpg"], [1, 2]),
        (["9223372036854775807.jpg"], [2**63 - 1]),
        (["9223372036854775808.jpg"], [1]),
        (["photo²3.jpg", "x٣.jpg"], [1, 2]),
    ],
)
def test_numbers_are_those_of_the_names_if_all_have_their_own(names, wanted):
    assert numbers(names) == wanted


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent does not exist"):
        find_pictures(tmp_path / "absent")
    put(tmp_path, "notes.txt", ".hidden.jpg")
    with pytest.raises(ValueError, match=r"notes\.txt is not a folder"):
        find_pictures(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"holds no image: no file in it ends in \.jpg, \.jpeg, \.png, \.bmp, \.webp"):
        find_pictures(tmp_path)


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 50, 3), dtype=np.uint8)


def saved(path, pixels=PIXELS, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_lossless_formats_give_their_pixels(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    np.testing.assert_array_equal(read_pixels(saved(tmp_path / f"a{suffix}", **options)), PIXELS)


def test_grey_is_three_equal_channels(tmp_path):
    grey = PIXELS[..., 0]
    wanted = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_pixels(saved(tmp_path / "a.png", grey)), wanted)
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_pixels(saved(tmp_path / "deep.png", deep)), wanted)
    jpeg = read_pixels(saved(tmp_path / "a.jpg", np.full((16, 16), 77, np.uint8)))
    assert (jpeg == 77).all()
    assert jpeg.shape == (16, 16, 3)


def test_what_is_transparent_is_white(tmp_path):
    alpha = RNG.integers(0, 256, (30, 50, 1), dtype=np.uint8)
    alpha[:5], alpha[5:10] = 0, 255
    found = read_pixels(saved(tmp_path / "a.png", np.concatenate([PIXELS, alpha], axis=2)))
    share = alpha / 255
    assert np.abs(found - (share * PIXELS + (1 - share) * 255)).max() <= 1.5
    assert (found[:5] == 255).all()
    np.testing.assert_array_equal(found[5:10], PIXELS[5:10])
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "solid.png")
    palette.save(tmp_path / "clear.png", transparency=1)
    assert (read_pixels(tmp_path / "solid.png") == [10, 20, 30]).all()
    assert (read_pixels(tmp_path / "clear.png") == 255).all()


def test_an_exif_orientation_is_not_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in (".jpg", ".png"):
        path = saved(tmp_path / f"a{suffix}", exif=exif)
        assert read_pixels(path).shape == (30, 50, 3)
        assert Image.open(path).getexif()[0x0112] == 6


def test_jpegs_are_the_shards_decoders(tmp_path):
    path = saved(tmp_path / "a.jpg", quality=90)
    assert np.abs(read_pixels(path).astype(int) - np.asarray(Image.open(path))).max() <= 1
    np.testing.assert_array_equal(read_pixels(path.rename(tmp_path / "misnamed.png")).shape, (30, 50, 3))
    Image.fromarray(np.full((20, 30, 4), (0, 255, 255, 0), np.uint8), "CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_pixels(tmp_path / "cmyk.jpg").reshape(-1, 3).mean(axis=0) - [255, 0, 0]).max() < 5


def encoded(suffix, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, suffix, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (encoded("GIF"), "not an image"),
        (encoded("JPEG")[:1200], "truncated"),
        (encoded("JPEG")[:10], "broken header"),
        (encoded("PNG")[:500], "truncated"),
        (encoded("BMP")[:500], "truncated"),
        (encoded("WEBP", lossless=True)[:500], "corrupt"),
        (encoded("PNG").replace(b"IDAT", b"IDAX"), "not an image"),
    ],
)
def test_a_file_that_is_no_whole_image_is_named(tmp_path, content, cause):
    path = tmp_path / "some.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError) as raised, warnings.catch_warnings(action="error"):
        read_pixels(path)
    assert str(raised.value) == f"{path}: {cause}"


def test_images_that_are_too_large_are_refused_by_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "MAX_PIXELS", 30 * 50 - 1)
    for suffix in (".jpg", ".png"):
        with pytest.raises(ValueError, match=r"too many pixels"):
            read_pixels(saved(tmp_path / f"a{suffix}"))
    with pytest.raises(ValueError, match=r"too long a side"):
        monkeypatch.setattr(image_folder, "MAX_PIXELS", 10**6)
        read_pixels(saved(tmp_path / "long.png", np.zeros((1, 65_501, 3), np.uint8)))
