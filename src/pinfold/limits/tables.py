"""Limits that are tables: io.max by device, hugetlb by page size. Kept as sorted tuples of pairs, which hash."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pinfold import units
from pinfold.errors import UsageError
from pinfold.limits.values import Amount, short
from pinfold.units import INFINITY

Rates = tuple[tuple[str, Amount], ...]
IoMax = tuple[tuple[str, Rates], ...]
Hugetlb = tuple[tuple[str, Amount], ...]

RATES: Final = ("rbps", "wbps", "riops", "wiops")  # in io.max's order
_SYSFS: Final = "/sys/dev/block"
_RATE: Final = re.compile(r"\s+(rbps|wbps|riops|wiops)=(\S+)$")
_NUMBER: Final = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")
_NODE: Final = re.compile(r"/dev/block/([0-9]{1,9}:[0-9]{1,9})")
# mem_fmt() of mm/hugetlb_cgroup.c: a power of two, then one of these.
_PAGE_SIZE: Final = re.compile(r"([0-9]{1,9})(KB|MB|GB)")


def io_max(value: object, what: str) -> IoMax | None:
    """Rates by whole-disk device number, from a mapping, from text of the kernel's own form, or from several texts.

    The text is a line of io.max: "DEVICE KEY=VALUE KEY=VALUE", as in "/dev/sda rbps=1M wiops=100". DEVICE is a number
    or a path, which may contain blanks; KEY is rbps or wbps (bytes per second), riops or wiops (operations per
    second). Suffixes are powers of 1024. Lines about the same device add up; the last of a key wins.
    """
    table: dict[str, dict[str, Amount]] = {}
    for device, rates in _pairs(value, what, _io_line):
        pairs = dict(_pairs(rates, f"{what} of {short(device)}", _rate_text))
        if not pairs:
            raise UsageError(f"{what} of {short(device)}: says no rate; known are {', '.join(RATES)}")
        if unknown := [key for key in pairs if key not in RATES]:
            raise UsageError(f"{what} of {short(device)}: {short(unknown[0])} is unknown; known are {', '.join(RATES)}")
        number = device_number(device, what)
        table.setdefault(number, {}).update(
            {key: _rate(rate, f"{what} of {short(device)}: {key}") for key, rate in pairs.items()}
        )
    if not table:
        return None
    return tuple(
        (number, tuple((key, table[number][key]) for key in RATES if key in table[number]))
        for number in sorted(table, key=lambda text: [int(part) for part in text.split(":")])
    )


def _pairs(value: Any, what: str, parse: Any) -> Iterable[tuple[Any, Any]]:
    """The pairs of a mapping, of texts, or of pairs (which is what a Limits keeps)."""
    if isinstance(value, Mapping):
        return list(value.items())
    each = [value] if isinstance(value, str) else value
    if not isinstance(each, Sequence) or isinstance(each, (bytes, bytearray)):
        raise UsageError(f"{what} {short(value)}: must be a mapping, or text as in the kernel's file")
    found = []
    for one in each:
        if isinstance(one, str):
            found.append(parse(one, what))
        elif isinstance(one, tuple) and len(one) == 2:
            found.append(one)
        else:
            raise UsageError(f"{what} {short(one)}: must be a mapping, or text as in the kernel's file")
    return found


def _io_line(text: str, what: str) -> tuple[str, dict[str, str]]:
    rates: dict[str, str] = {}
    rest = text.strip()
    while match := _RATE.search(rest):  # from the right: a path may contain blanks
        rates.setdefault(match[1], match[2])
        rest = rest[: match.start()]
    if not rates or not rest:
        raise UsageError(f"{what} {short(text)}: expected a device and its rates, such as '/dev/sda rbps=1M wiops=100'")
    return rest, rates


def _rate_text(text: str, what: str) -> tuple[str, str]:
    key, equals, rate = text.partition("=")
    if not equals:
        raise UsageError(f"{what}: {short(text)}: expected KEY=VALUE, such as rbps=1M")
    return key, rate


def _rate(value: object, what: str) -> Amount:
    if value in ("max", "infinity", INFINITY):
        return INFINITY
    number = units.size(value, what)
    if number == 0:  # tg_set_limit() of block/blk-throttle.c answers ERANGE
        raise UsageError(f"{what} {short(value)}: the kernel takes no rate of 0; say at least 1, or 'max'")
    return number


def device_number(device: object, what: str, sysfs: str = _SYSFS) -> str:
    """The "MAJOR:MINOR" of a whole disk.

    From such a number, from the path of a block device, or from any other path, whose file system's device it is. The
    kernel takes whole disks only (ENODEV for a partition, blkcg_conf_open_bdev() of block/blk-cgroup.c).
    """
    if not isinstance(device, str):
        raise UsageError(f"{what}: device {short(device)}: must be text, as '8:0' or a path")
    match = _NUMBER.fullmatch(device) or _NODE.fullmatch(device)
    number = match[0].removeprefix("/dev/block/") if match else _device_of_path(device, what)
    major, minor = (int(part) for part in number.split(":"))
    return _whole_disk(f"{major}:{minor}", what, sysfs)


def _device_of_path(path: str, what: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: device {path!r}: cannot be looked up: {error}") from error
    if stat.S_ISCHR(found.st_mode):
        raise UsageError(f"{what}: device {path!r}: is a character device; name a block device, or a file on one")
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    if os.major(number) == 0:  # an anonymous device: tmpfs, overlayfs, btrfs, NFS
        raise UsageError(f"{what}: device {path!r}: its file system has no block device of its own; name the device")
    return f"{os.major(number)}:{os.minor(number)}"


def _whole_disk(number: str, what: str, sysfs: str) -> str:
    """A partition's directory in sysfs is inside that of its disk."""
    directory = os.path.join(sysfs, number)
    if not os.path.exists(os.path.join(directory, "partition")):
        return number
    try:
        with open(os.path.join(os.path.realpath(directory), os.pardir, "dev"), encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise UsageError(f"{what}: device {number}: is a partition without a disk: {error}") from error


def hugetlb(value: object, what: str) -> Hugetlb | None:
    """Bytes by the size of the huge pages, from a mapping, from text such as "2MB=64M", or from several texts.

    The names are those of the files (2MB for hugetlb.2MB.max), where KB, MB and GB are powers of 1024.
    """
    table: dict[str, Amount] = {}
    for size, limit in _pairs(value, what, _hugetlb_text):
        huge_page(size, what)
        table[size] = (
            INFINITY if limit in ("max", "infinity", INFINITY) else units.size(limit, f"{what} of {size} pages")
        )
    return tuple((size, table[size]) for size in sorted(table, key=lambda size: huge_page(size, what))) or None


def _hugetlb_text(text: str, what: str) -> tuple[str, str]:
    size, equals, limit = text.partition("=")
    if not equals:
        raise UsageError(f"{what} {short(text)}: expected a page size and its limit, such as '2MB=64M'")
    return size.strip(), limit.strip()


def huge_page(size: object, what: str = "hugetlb") -> int:
    """Bytes of a huge page from its name in the kernel's files: 2097152 for "2MB"."""
    match = _PAGE_SIZE.fullmatch(size) if isinstance(size, str) else None
    if not match or int(match[1]) == 0:
        raise UsageError(f"{what} {short(size)}: is no size of huge pages as in the files' names, such as 2MB or 1GB")
    return int(match[1]) << {"KB": 10, "MB": 20, "GB": 30}[match[2]]
