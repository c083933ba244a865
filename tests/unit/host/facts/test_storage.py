"""What lies under a directory: LVM, partitions, RAID, bcache, network file systems."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.host.facts.trees import block_device, mounts, slaves, write

from hearth.host.facts.disks import StorageFacts, read_storage


def names(storage: StorageFacts) -> list[tuple[str, str]]:
    return [(device.name, device.kind) for device in storage.devices.value or ()]


def test_lvm_on_a_partition_of_an_nvme_disk_leads_to_the_disk(tmp_path: Path) -> None:
    queue = {
        "queue__rotational": "0",
        "queue__scheduler": "[none] mq-deadline",
        "queue__read_ahead_kb": "128",
        "device__model": "Samsung SSD 990 PRO 2TB",
    }
    block_device(tmp_path, "nvme0n1", "259:0", **queue)
    block_device(tmp_path, "nvme0n1p3", "259:3", "nvme0n1")
    block_device(
        tmp_path,
        "dm-1",
        "253:1",
        dm__name="vg-models",
        dm__uuid="LVM-x",
        queue__read_ahead_kb="256",
    )
    slaves(tmp_path, "dm-1", "nvme0n1p3")
    write(tmp_path, mounts("0:1 / overlay overlay", "253:1 /models ext4 /dev/mapper/vg-models"))
    storage = read_storage(Path("/models/org/name"), tmp_path)
    assert storage.mount_point.value == "/models"
    assert storage.file_system.value == "ext4"
    assert names(storage) == [("dm-1", "lvm"), ("nvme0n1p3", "partition"), ("nvme0n1", "nvme")]
    (disk,) = storage.disks()
    assert disk.model.value == "Samsung SSD 990 PRO 2TB"
    assert disk.rotational.value is False
    assert disk.scheduler.value == "none"
    assert disk.readahead_bytes.value == 128 << 10
    assert disk.size_bytes.value == 1 << 20
    assert storage.devices.value is not None
    assert storage.devices.value[0].readahead_bytes.value == 256 << 10


def test_an_nfs_directory_is_on_the_network_and_has_no_device(tmp_path: Path) -> None:
    write(tmp_path, mounts("8:1 / ext4 /dev/sda1", "0:50 /models nfs4 nas:/export/models"))
    storage = read_storage(Path("/models"), tmp_path)
    assert storage.is_network.value is True
    assert storage.mount_source.value == "nas:/export/models"
    assert storage.devices.value is None
    assert storage.devices.why == "nas:/export/models is no device seen from here"


def test_bcache_has_both_disks_and_its_settings(tmp_path: Path) -> None:
    block_device(tmp_path, "sda", "8:0", queue__rotational="1")
    block_device(tmp_path, "nvme0n1", "259:0", queue__rotational="0")
    block_device(
        tmp_path,
        "bcache0",
        "252:0",
        bcache__cache_mode="writethrough [writeback] writearound none",
        bcache__state="dirty",
        bcache__sequential_cutoff="4.0M",
    )
    slaves(tmp_path, "bcache0", "nvme0n1", "sda")
    write(tmp_path, mounts("252:0 /models xfs /dev/bcache0"))
    storage = read_storage(Path("/models"), tmp_path)
    assert names(storage) == [("bcache0", "bcache"), ("nvme0n1", "nvme"), ("sda", "disk")]
    assert storage.devices.value is not None
    bcache = storage.devices.value[0].bcache
    assert bcache is not None
    assert (bcache.mode.value, bcache.state.value) == ("writeback", "dirty")
    assert bcache.sequential_cutoff_bytes.value == 4 << 20
    assert [disk.rotational.value for disk in storage.disks()] == [False, True]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512k", 1 << 19), ("1.5M", 3 << 19), ("1.0T", 1 << 40), ("1.0X", None)],
)
def test_sizes_of_bcache(tmp_path: Path, text: str, size: int | None) -> None:
    block_device(tmp_path, "bcache0", "252:0", bcache__sequential_cutoff=text)
    write(tmp_path, mounts("252:0 / xfs /dev/bcache0"))
    (device,) = read_storage(Path("/"), tmp_path).devices.value or ()
    assert device.bcache is not None
    assert device.bcache.sequential_cutoff_bytes.value == size


def test_a_raid_on_encrypted_disks_leads_to_every_disk(tmp_path: Path) -> None:
    for number, name in enumerate(("sda", "sdb")):
        block_device(tmp_path, name, f"8:{number}", queue__rotational="1")
        block_device(tmp_path, f"dm-{number}", f"253:{number}", dm__uuid="CRYPT-LUKS2-x")
        slaves(tmp_path, f"dm-{number}", name)
    block_device(tmp_path, "md0", "9:0", md__level="raid0")
    slaves(tmp_path, "md0", "dm-0", "dm-1")
    write(tmp_path, mounts("9:0 / ext4 /dev/md0"))
    storage = read_storage(Path("/anywhere"), tmp_path)
    assert [kind for _, kind in names(storage)] == ["md", "crypt", "crypt", "disk", "disk"]
    assert [disk.name for disk in storage.disks()] == ["sda", "sdb"]


def test_a_file_system_with_numbers_of_its_own_is_found_by_its_device(tmp_path: Path) -> None:
    block_device(tmp_path, "sda", "8:0", queue__rotational="0")
    block_device(tmp_path, "sda2", "8:2", "sda")
    write(tmp_path, mounts("0:31 / btrfs /dev/sda2"))
    assert names(read_storage(Path("/home"), tmp_path)) == [("sda2", "partition"), ("sda", "disk")]


def test_a_virtual_disk_is_not_called_rotational(tmp_path: Path) -> None:
    block_device(tmp_path, "vda", "254:0", queue__rotational="1")
    write(tmp_path, mounts("254:0 / ext4 /dev/root"))
    (disk,) = read_storage(Path("/"), tmp_path).disks()
    assert disk.kind == "virtual disk"
    assert disk.rotational.value is None
    assert "virtual" in disk.rotational.why


def test_devices_that_lie_on_each_other_in_a_circle_are_read_once(tmp_path: Path) -> None:
    block_device(tmp_path, "dm-0", "253:0", dm__uuid="x")
    block_device(tmp_path, "dm-1", "253:1", dm__uuid="y")
    slaves(tmp_path, "dm-0", "dm-1")
    slaves(tmp_path, "dm-1", "dm-0")
    write(tmp_path, mounts("253:0 / ext4 /dev/dm-0"))
    assert len(names(read_storage(Path("/"), tmp_path))) == 2


def test_tmpfs_is_memory_and_without_mounts_nothing_is_known(tmp_path: Path) -> None:
    assert read_storage(Path("/x"), tmp_path).file_system.why == "no such file"
    write(tmp_path, mounts("0:5 / tmpfs tmpfs"))
    assert read_storage(Path("/x"), tmp_path).is_in_memory.value is True


def test_a_directory_that_does_not_exist_has_the_space_of_the_one_above(tmp_path: Path) -> None:
    storage = read_storage(tmp_path / "not" / "yet")
    assert storage.free_bytes.value
    assert storage.mount_point.value


def test_links_in_a_circle_are_said(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    read_storage(tmp_path / "a")  # whatever it says, it raises nothing
    assert read_storage(Path("x" * 5000)).directory
