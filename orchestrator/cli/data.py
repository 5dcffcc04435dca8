"""`orch data`: show data versions, and manage those on this node.

Experiments name versions; `status`, `gc` and `verify` act on the versions in this node's scratch folder.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator import api
from orchestrator.cli.arguments import add_json, project_of
from orchestrator.cli.text import print_json, print_lines, say, table
from orchestrator.data import Manifest, Progress, Staging, Store, Version, fetcher_of, scratch_dir
from orchestrator.data.store.holder import Holder
from orchestrator.data.store.space import disk_of
from orchestrator.errors import RequestError, nearest
from orchestrator.system.units import size

_DIGEST = 12


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=tuple(WHAT),
        help="resolve: list the files that an experiment would pin; stage: copy them to this node; status: list the "
        "versions on this node; gc: remove those that no run needs; verify: read all of them",
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="Hydra overrides; for verify: digests")
    parser.add_argument("--scratch", metavar="DIR", help="the site's scratch folder, as cluster.scratch")
    parser.add_argument("--all", action="store_true", help="gc: every version that no run is using")
    parser.add_argument("--max-gb", type=float, metavar="N", help="gc: remove the oldest until at most N are left")
    parser.add_argument("--keep-free-gb", type=float, metavar="N", help="gc: remove the oldest until N are free")
    add_json(parser)


def handle(arguments: Namespace) -> int:
    """Run `orch data WHAT`."""
    return WHAT[arguments.what](arguments)


def _resolve(arguments: Namespace) -> int:
    manifest = _manifest(arguments)
    if arguments.json:
        print_json(manifest.to_json() if manifest else None)
    elif manifest is None:
        say("no data version is chosen: orch data resolve data=NAME")
    else:
        print_lines([f"{manifest.digest}  {manifest.files} files, {manifest.bytes} bytes"])
        for line in _origin(manifest):
            print_lines([line])
        rows = [[entry.hash, str(entry.size), entry.path] for entry in manifest.entries]
        print_lines(["\n".join(table(["HASH", "BYTES", "PATH"], rows))])
    return 0


def _origin(manifest: Manifest) -> Iterator[str]:
    """Yield lines on a version's origin, and on the files that nodes fetch."""
    for key, value in manifest.origin.items():
        if key != "remotes" and value not in (None, ""):
            yield f"{key}: {value}"
    if loose := sum(entry.algorithm == "md5-dos2unix" for entry in manifest.entries):
        yield f"line endings are not pinned: {loose} files have a hash of DVC 2's; dvc cache migrate --dvc-files"
    afar = [entry for entry in manifest.entries if not entry.sources]
    if (fetcher := fetcher_of(manifest)) and afar:
        count = f"{len(afar)} files, {sum(entry.size for entry in afar)} bytes"
        yield f"fetched on the node: {count} from {fetcher.name}"


def _stage(arguments: Namespace) -> int:
    """Copy the version to this node for later runs, without holding it afterwards."""
    manifest = _manifest(arguments)
    if manifest is None:
        raise RequestError("no data version is chosen", fix="orch data stage data=NAME")
    staged = _store(arguments).stage(manifest, report=_say_progress, fetcher=fetcher_of(manifest))
    staged.release()
    how = "was here" if staged.hit else f"{staged.copied_files} files, {size(staged.copied_bytes)} copied"
    if arguments.json:
        print_json({"digest": manifest.digest, "view": str(staged.view), "hit": staged.hit})
    else:
        print_lines([str(staged.view)])
        say(f"{manifest.digest[:_DIGEST]}: {how} in {staged.seconds:.1f} s")
    return 0


def _status(arguments: Namespace) -> int:
    store = _store(arguments)
    found = [_described(version) for version in store.versions()]
    free = disk_of(store.root).bytes
    if arguments.json:
        print_json({"scratch": str(store.root), "free_bytes": free, "versions": found})
        return 0
    print_lines([f"{store.root}: {len(found)} versions, {size(free)} of the disk are free"])
    rows = [
        [
            each["digest"][:_DIGEST],
            each["state"],
            str(each["files"]),
            size(each["bytes"]),
            each["used"],
            ", ".join(each["held_by"]),
            each["origin"],
        ]
        for each in found
    ]
    if rows:
        print_lines(["\n".join(table(["VERSION", "STATE", "FILES", "SIZE", "USED", "HELD BY", "ORIGIN"], rows))])
    return 0


def _gc(arguments: Namespace) -> int:
    store = _store(arguments, max_gb=arguments.max_gb, keep_free_gb=arguments.keep_free_gb)
    before = disk_of(store.root).bytes
    gone = store.collect(all_idle=arguments.all)
    freed = max(0, disk_of(store.root).bytes - before)
    if arguments.json:
        print_json({"removed": [version.digest for version in gone]})
        return 0
    for version in gone:
        print_lines([f"{version.digest[:_DIGEST]}  removed"])
    say(f"{len(gone)} versions removed, {size(freed)} freed; {len(store.versions())} are left")
    return 0


def _verify(arguments: Namespace) -> int:
    store = _store(arguments)
    problems = {}
    for version in _chosen(store, arguments.words):
        with version.held(Holder.current()) as held:  # reading takes long, and another process may need space
            if held:
                problems[version.digest] = store.verify(version)
    if arguments.json:
        print_json(problems)
    else:
        for digest, found in problems.items():
            print_lines([f"{digest[:_DIGEST]}  {'damaged' if found else 'ok'}"])
            for problem in found:
                print_lines([f"    {problem}"])
        if any(problems.values()):
            say("the next run that needs a damaged version copies it again")
    return 1 if any(problems.values()) else 0


WHAT: Mapping[str, Callable[[Namespace], int]] = {
    "resolve": _resolve,
    "stage": _stage,
    "status": _status,
    "gc": _gc,
    "verify": _verify,
}


def _manifest(arguments: Namespace) -> Manifest | None:
    return api.resolve_data(project_of(arguments), arguments.words)


def _store(arguments: Namespace, **limits: float | None) -> Store:
    given = {key: value for key, value in limits.items() if value is not None}
    return Store(scratch_dir(arguments.scratch, os.environ), Staging.parse(given))


def _chosen(store: Store, words: list[str]) -> list[Version]:
    """Return the versions whose digests begin with one of the words, or all without words."""
    there = [version for version in store.versions() if version.facts()]
    for word in words:
        if not any(version.digest.startswith(word) for version in there):
            known = [version.digest[:_DIGEST] for version in there]
            raise RequestError(
                f"no version {word} on this node{nearest(word, known)}",
                why=f"in {store.root} are {', '.join(known) or 'none'}",
                fix="orch data status lists them",
            )
    return [version for version in there if not words or version.digest.startswith(tuple(words))]


def _described(version: Version) -> dict[str, Any]:
    facts, holders = version.facts(), version.holders()
    held = [f"{holder}{' (gone)' if holder.alive() is False else ''}" for holder in holders]
    origin = facts.origin if facts else {}
    return {
        "digest": version.digest,
        "state": "complete" if facts else "being removed",
        "view": str(version.view),
        "files": facts.files if facts else 0,
        "bytes": facts.bytes if facts else 0,
        "held_by": held,
        "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(version.used_ns / 1e9)) if version.used_ns else "",
        "origin": " ".join(str(origin[key]) for key in ("source", "url", "path", "rev") if origin.get(key)),
    }


def _say_progress(progress: Progress) -> None:
    if progress.seconds > 1:
        say(str(progress))
