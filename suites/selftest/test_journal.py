"""A journal gives back what was finished, to the bit, however its file ended; nothing of another run."""

from pathlib import Path

import numpy as np
import pytest

from harness.detect.detections import Detections
from harness.detect.journal import Journal

pytestmark = pytest.mark.selftest

WANTED = [[1, 2], [3, 4], [5]]


def part(ids: list[int]) -> Detections:
    rng = np.random.default_rng(ids[0])
    boxes = len(ids) * 3
    return Detections(
        image_id=np.repeat(np.array(ids, np.int64), 3),
        xywh=rng.random((boxes, 4), np.float32),
        score=rng.random(boxes, np.float32),
        category_id=rng.integers(1, 9, boxes),
        images=np.array(ids, np.int64),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal", WANTED)
    for ids in WANTED:
        journal.add(part(ids))
    return tmp_path / "journal"


def kept(path: Path, wanted: list[list[int]] = WANTED) -> list[list[int]]:
    return [found.images.tolist() for found in Journal(path, wanted).parts]


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    assert kept(tmp_path / "journal") == []


def test_parts_come_back_to_the_bit(path: Path) -> None:
    found = Journal(path, WANTED).parts
    assert [one.identical(part(ids)) for one, ids in zip(found, WANTED, strict=True)] == [True, True, True]


def test_however_the_file_was_torn_whole_parts_are_kept_and_it_goes_on(path: Path) -> None:
    content = path.read_bytes()
    ends = [len(content)]
    for count in (2, 1):
        path.write_bytes(content)
        shorter = Journal(path, WANTED[:count])
        assert len(shorter.parts) == count
        ends.append(path.stat().st_size)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        journal = Journal(path, WANTED)
        whole = sum(length >= end for end in ends)
        assert [one.images.tolist() for one in journal.parts] == WANTED[:whole]
        for ids in WANTED[whole:]:
            journal.add(part(ids))
        assert path.read_bytes() == content


def test_a_damaged_part_and_all_behind_it_are_dropped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert kept(path) == WANTED[:1]


def test_a_sound_frame_of_something_else_is_dropped(path: Path) -> None:
    import struct
    import zlib

    path.write_bytes(struct.pack("<QI", 5, zlib.crc32(b"hello")) + b"hello")
    assert kept(path) == []
    assert path.stat().st_size == 0


@pytest.mark.parametrize("wanted", [[[1, 2], [3, 5], [5]], [[1, 2], [3], [4, 5]], [[1, 2], [4, 3], [5]]])
def test_parts_of_other_images_are_dropped(path: Path, wanted: list[list[int]]) -> None:
    assert kept(path, wanted) == WANTED[:1]


def test_where_nothing_can_be_written_the_run_goes_on_and_says_so_once(path: Path) -> None:
    journal = Journal(path, WANTED[:2])
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="Is a directory; if this run is killed, it is taken up again at image 5"):
        journal.add(part(WANTED[2]))
    journal.add(part([6]))
    assert [one.images.tolist() for one in journal.parts] == [*WANTED, [6]]
