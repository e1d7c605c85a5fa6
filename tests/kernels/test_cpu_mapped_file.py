"""How a file of weights comes into memory: in large pages where the system has them, whatever was cached before."""

import mmap
import os
import re

import pytest

from shoal.kernels.cpu import _cpu

MIB = 1 << 20
SIZE = 96 * MIB


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "weights"
    with path.open("wb") as file:
        for number in range(SIZE // MIB):
            file.write(bytes([number]) * MIB)
        file.flush()
        os.fsync(file.fileno())
    yield path
    path.unlink()


def evict(path):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def cache_in_small_pages(path):
    """As someone reads who announces no order: page by page."""
    evict(path)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    while os.read(fd, 4096):
        pass
    os.close(fd)


def seen_through_large_pages(path):
    """Bytes of a mapping of the whole file that asks for large pages."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, SIZE, 4096):
            mapped[at]
        with open("/proc/self/smaps") as maps:
            found = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?FilePmdMapped: +(\d+) kB", maps.read())
        return 0 if found is None else int(found[1]) * 1024


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="not Linux")
def test_a_file_cached_in_small_pages_is_cached_in_large_ones(path):
    evict(path)
    if seen_through_large_pages(path) < SIZE // 2:
        pytest.skip("this file system caches nothing in large pages")
    evict(path)
    if _cpu.large_page_bytes(str(path)) == 0:
        pytest.skip("this system does not say which pages are large")
    cache_in_small_pages(path)
    assert seen_through_large_pages(path) < SIZE // 2
    assert _cpu.large_page_bytes(str(path)) >= SIZE * 3 // 4
    assert path.read_bytes()[:: MIB // 2] == bytes(number for number in range(SIZE // MIB) for _ in range(2))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="not Linux")
def test_a_part_that_is_cached_in_small_pages_alone_is_read_again(path):
    evict(path)
    if _cpu.large_page_bytes(str(path)) < SIZE * 3 // 4:
        pytest.skip("this system caches nothing in large pages, or does not say so")
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 40 * MIB, 8 * MIB, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for at in range(40 * MIB, 48 * MIB, 4096):
        os.pread(fd, 4096, at)
    os.close(fd)
    assert seen_through_large_pages(path) <= SIZE - 8 * MIB
    assert _cpu.large_page_bytes(str(path)) >= SIZE - 4 * MIB


def test_a_file_that_another_process_sees_stays_as_it_is(path):
    cache_in_small_pages(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[at] for at in range(0, SIZE, MIB)) == sum(range(SIZE // MIB))
        assert _cpu.large_page_bytes(str(path)) < SIZE // 2
        assert mapped[:: MIB // 2] == bytes(number for number in range(SIZE // MIB) for _ in range(2))


def test_small_and_empty_files_are_left_alone(tmp_path):
    for content in (b"", b"x", bytes(MIB)):
        small = tmp_path / str(len(content))
        small.write_bytes(content)
        assert _cpu.large_page_bytes(str(small)) == 0


def test_a_missing_file_is_named_in_an_os_error(tmp_path):
    with pytest.raises(OSError) as caught:
        _cpu.large_page_bytes(str(tmp_path / "none"))
    assert caught.value.errno == 2
