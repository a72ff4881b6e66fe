"""Names that lead elsewhere, and links and other things in place of files: none is followed."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import stat
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning_ckptkd.snapshots import MANIFEST_NAME, SELECTION_NAME
from tests.reliability.audit import Watch
from tests.reliability.forking import main
from tests.reliability.harvests import scratch_folder
from tests.reliability.hostile_manifests import is_accepted, make_selected_harvest


def hostile_names(count: int, seed: int = 0) -> dict[str, Any]:
    """Read ``count`` harvests with names that lead elsewhere, or with links and other things in place of files.

    Raises:
        AssertionError: If one was not refused, or something outside of its folder was opened; names the trial.
    """
    with scratch_folder() as scratch:
        original = make_selected_harvest(Path(scratch) / "original", seed)
        harvest, outside = Path(scratch) / "harvest", Path(scratch) / "outside" / "harvest"
        shutil.copytree(original, outside)
        watch = Watch(partial(_open_outside, harvest.resolve()))
        for trial in range(count):
            shutil.rmtree(harvest, ignore_errors=True)
            shutil.copytree(original, harvest)
            which, kind = divmod(trial, len(_ATTACKS))
            attack, pattern = _ATTACKS[kind]
            rng = random.Random(f"{seed} {trial}")
            attack(rng.choice(sorted(harvest.glob(pattern))), outside, which, rng)
            what = f"seed {seed}, trial {trial}, {attack.__name__} {which} of {pattern}"
            with watch:
                assert not is_accepted(harvest), f"{what} was read"
            assert not watch.noted, f"{what}: {watch.noted}"
        (harvest / "link").symlink_to(outside / MANIFEST_NAME)
        for leads_outside in (harvest / "link", harvest / ".." / "outside" / "harvest" / MANIFEST_NAME):
            with watch:
                leads_outside.read_bytes()
            assert watch.noted, f"the watch does not see that {leads_outside} is opened"
    return {"trials": count, "refused": count}


def _open_outside(folder: Path, event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path of a file that is opened outside of a folder, or through a link."""
    if event != "open" or isinstance(arguments[0], int):
        return None
    path = Path(os.fsdecode(arguments[0]))
    follows = not arguments[2] & os.O_NOFOLLOW and path.is_symlink()
    return None if path.parent.resolve() == folder and not follows else str(path)


def _write_name(path: Path, outside: Path, which: int, rng: random.Random) -> None:
    """Put a name into a manifest or a selection, which then chooses it."""
    document = json.loads(path.read_text())
    entry = rng.choice(document["snapshots"])
    entry["file"] = _bad_name(entry["file"], outside, which, rng)
    if "chosen" in document:
        document["chosen"] = [entry["file"]]
    path.write_text(json.dumps(document))


def _bad_name(file: str, outside: Path, which: int, rng: random.Random) -> str:
    """A name that is no plain one; many lead to a copy of the snapshot outside, whose size and hash would be right."""
    up, twin = "../" * rng.randint(1, 8), "outside/harvest"
    dots = "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}\N{FULLWIDTH SOLIDUS}"
    leads = [f"../{twin}/", f"{outside}/", f"./../{twin}/", f"{file}/../../{twin}/", f"/{outside}/"]
    leads += [f"file://{outside}/", "./", "~/", "..\\outside\\harvest\\", "C:\\", "%2e%2e%2foutside%2fharvest%2f"]
    leads += ["..%c0%af", "../" * 2000, f"\N{TWO DOT LEADER}/{twin}/", dots, "\N{RIGHT-TO-LEFT OVERRIDE}", "\ud800"]
    leads += ["\n", ".", "-"]
    names = [lead + file for lead in leads]
    names += [file + tail for tail in ("\0", "\n", " ", ";true")]
    names += [f"{file[:-12]}\0.safetensors", f"{file[:5]}\r{file[5:]}", f"$({file})"]
    names += ["", ".", "..", ".lock", MANIFEST_NAME, f"{up}etc/passwd", f"{up}dev/zero.safetensors"]
    names += ["a" * rng.randint(190, 5000) + ".safetensors"]
    look_alikes = {"e": "CYRILLIC SMALL LETTER IE", "=": "FULLWIDTH EQUALS SIGN", "0": "ARABIC-INDIC DIGIT ZERO"}
    names += [file.replace(letter, unicodedata.lookup(other), 1) for letter, other in look_alikes.items()]
    return names[which % len(names)]


def _put_thing(path: Path, outside: Path, which: int, _: random.Random) -> None:
    """Put a link or another thing that is no regular file in place of a file."""
    beside = path.with_name("beside")
    path.rename(beside)
    twin = outside / path.name
    targets: list[str | Path] = [twin, os.path.relpath(twin, path.parent), beside.name, outside, path.parent]
    targets += [path.name, "nowhere", "/dev/zero", "/dev/stdin", "/proc/self/environ"]
    things: list[Callable[[], object]] = [partial(path.symlink_to, target) for target in targets]
    things += [path.mkdir, partial(os.mkfifo, path), partial(os.mknod, path, stat.S_IFSOCK | 0o600)]
    things[which % len(things)]()


_ATTACKS = (
    *itertools.product([_write_name], [MANIFEST_NAME, SELECTION_NAME]),
    *itertools.product([_put_thing], [MANIFEST_NAME, SELECTION_NAME, "*.safetensors"]),
)


if __name__ == "__main__":
    main(hostile_names)
