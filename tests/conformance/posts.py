"""How letters get from rank to rank: by a hall of one process, for ranks that are threads, or by a folder of files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import torch

from devices import Group


class Post(Protocol):
    """One rank's side of the post of its group. A letter is a flat tensor of bytes; its name is unique in its group."""

    def put(self, to: int, name: str, letter: torch.Tensor) -> None: ...

    def has(self, name: str) -> bool: ...

    def take(self, name: str) -> torch.Tensor: ...

    def pause(self) -> None:
        """Let a moment pass, or less if a letter comes."""

    def is_alive(self, rank: int) -> bool:
        """Return whether a rank is neither dead nor through with the group, as far as can be known."""

    def wake(self) -> None:
        """End the pauses of this rank's threads."""

    def close(self) -> None: ...


class _Room:
    """What the ranks of one group share."""

    def __init__(self) -> None:
        self.letters: dict[tuple[int, str], torch.Tensor] = {}
        self.changed = threading.Condition()


_rooms: WeakValueDictionary[str, _Room] = WeakValueDictionary()  # one lasts as long as one of its ranks holds it
_lock = threading.Lock()


class Hall:
    """The post of a group whose ranks are threads of this process."""

    def __init__(self, group: Group) -> None:
        self._rank = group.rank
        if group.rank == 0:
            group.store.set("mail/room", uuid.uuid4().hex)
        key = group.store.get("mail/room")
        with _lock:
            self._room = _rooms.get(key) or _Room()
            _rooms[key] = self._room
        # A letter to a rank that has not come yet would be lost with the room if its sender left first.
        if group.store.add("mail/inside", 1) == group.size:
            group.store.set("mail/complete", True)
        group.store.get("mail/complete")

    def put(self, to: int, name: str, letter: torch.Tensor) -> None:
        room, copy = self._room, letter.clone()
        with room.changed:
            room.letters[to, name] = copy
            room.changed.notify_all()

    def has(self, name: str) -> bool:
        return (self._rank, name) in self._room.letters

    def take(self, name: str) -> torch.Tensor:
        return self._room.letters.pop((self._rank, name))

    def pause(self) -> None:
        with self._room.changed:
            self._room.changed.wait(0.005)

    def is_alive(self, rank: int) -> bool:
        return True

    def wake(self) -> None:
        with self._room.changed:
            self._room.changed.notify_all()

    def close(self) -> None:
        for to, name in list(self._room.letters):
            if to == self._rank:
                self._room.letters.pop((to, name), None)


class Folder:
    """The post of a group whose ranks are processes of one host."""

    def __init__(self, group: Group) -> None:
        if group.rank == 0:
            group.store.set("mail/folder", tempfile.mkdtemp(prefix="devices-mail-", dir=os.environ.get("TMPDIR")))
        self._folder = Path(group.store.get("mail/folder"))
        self._mine = self._folder / str(group.rank)
        self._mine.mkdir()
        # Whoever dies lets go of the lock on its file.
        self._alive = [os.open(self._folder / f"{rank} alive", os.O_RDWR | os.O_CREAT) for rank in range(group.size)]
        self._rank = group.rank
        fcntl.flock(self._alive[group.rank], fcntl.LOCK_EX)
        if group.store.add("mail/inside", 1) == group.size:
            group.store.set("mail/complete", True)
        group.store.get("mail/complete")

    def put(self, to: int, name: str, letter: torch.Tensor) -> None:
        path = self._folder / str(to) / name
        # Whoever has left the group reads nothing any more.
        with contextlib.suppress(FileNotFoundError):
            letter.numpy().tofile(path.with_name(f"{name} on its way"))
            path.with_name(f"{name} on its way").rename(path)  # it appears whole or not at all

    def has(self, name: str) -> bool:
        return (self._mine / name).exists()

    def take(self, name: str) -> torch.Tensor:
        data = bytearray((self._mine / name).read_bytes())
        (self._mine / name).unlink()
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def pause(self) -> None:
        time.sleep(0.0005)

    def is_alive(self, rank: int) -> bool:
        try:
            fcntl.flock(self._alive[rank], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._alive[rank], fcntl.LOCK_UN)
        return False

    def wake(self) -> None:
        """Do nothing: pauses are short."""

    def close(self) -> None:
        for file in self._alive:
            os.close(file)
        shutil.rmtree(self._mine, ignore_errors=True)
        (self._folder / f"{self._rank} alive").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # only the last to leave can
