"""A reader with faults, on which the fuzzer itself is tested."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

from .targets import Target

KINDS = ("good", "crash", "loop", "sleep", "escape", "write", "memory", "good", "stuck")
KINDS += ("wrong", "error", "bad")


class FaultyTarget(Target):
    """Does what the file says: the cases are `KINDS`, one after the other, over and over."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = {"seed.bin": b"good"}

    def mutate(self, rng: Random) -> tuple[str, bytes]:
        draw = rng.random()
        number = 0
        while Random(f"3 faulty {number}").random() != draw:  # of which case the draw is
            number += 1
        return "case.bin", KINDS[number % len(KINDS)].encode()

    def change(self, rng: Random, name: str, data: bytes) -> bytes:
        return data

    def check(self, path: Path) -> bool:
        kind = path.read_text()
        if kind == "crash":
            os.abort()
        elif kind == "loop":
            while True:
                pass
        elif kind == "sleep":
            time.sleep(60)
        elif kind == "escape":
            os.system("true")
        elif kind == "write":
            path.with_name("other").write_text("changed")
        elif kind == "memory":
            bytes(3 << 30)
        elif kind == "stuck":  # in code that lets no handler run
            sum(range(10**12))
        elif kind == "wrong":
            raise AssertionError("another image")
        elif kind == "error":
            raise KeyError("a")
        return kind == "good"
