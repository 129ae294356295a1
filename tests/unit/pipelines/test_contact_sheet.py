"""The contact sheet shows the stored pictures with what their JSON says."""

import json

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipelines.contact_sheet import COLUMNS, SIDE, caption, inspect
from pipelines.shards import Index, Split, Stored, write_shard

CLASSES = tuple(f"n{number:08d} thing {number}" for number in range(91))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label": 7}, ["7: n00000007", "thing 7"]),
        ({"identity": "Ada Aardvark"}, ["Ada Aardvark"]),
        ({"attributes": [0, 1, *[0] * 89]}, ["n00000001"]),
        ({"latitude": 35.65857, "longitude": 139.745432}, ["35.659, 139.745"]),
        ({"objects": []}, ["0 objects"]),
    ],
)
def test_captions_say_what_is_known(fields, words):
    said = caption({"name": "a/b.jpg", **fields}, CLASSES)
    assert said.startswith("b.jpg")
    for word in words:
        assert word in said


def test_boxes_lie_where_the_fields_say(tmp_path):
    things = [{"category": 1, "box": [20.0, 10.0, 40.0, 30.0], "area": 1.0, "crowd": False}]
    fields = json.dumps({"name": "x.jpg", "objects": things}).encode()
    jpeg = simplejpeg.encode_jpeg(np.full((100, 200, 3), 128, np.uint8), 95)
    shard = write_shard(tmp_path, "test-000000", (Stored(key, jpeg, fields, 100, 200) for key in range(9)))
    (tmp_path / "index.json").write_bytes(Index("toy", CLASSES, {"test": Split(9, (shard,))}, {}, {}).to_json())
    inspect(tmp_path, tmp_path / "sheets" / "toy.png")
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "toy.png"), dtype=int)
    assert sheet.shape[1] > COLUMNS * SIDE
    blue = np.argwhere((sheet[:, :, 2] > 220) & (sheet[:, :, 0] < 40))  # the colour of category 1
    first = blue[(blue[:, 1] < SIDE) & (blue[:, 0] < SIDE + 40)]
    tall, wide = np.ptp(first, axis=0)
    assert (abs(tall - 30), abs(wide - 40)) <= (2, 2)  # 200 pixels of the picture are 200 of the sheet
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["toy.png"]
