"""The ranks of a run under ``torchrun``: which tasks are whose, and how rank 0 gets all records.

A run alone is rank 0 of 1 and needs nothing of torch.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from tvm_tinytrain.errors import ArchiveError, TransportError
from tvm_tinytrain.fewshot.results import Results

_MEETING = timedelta(minutes=30)
"""How long ranks wait until all have come. Nobody notices one that ended before."""
_PATIENCE = timedelta(days=30)
"""One rank's tasks may take hours longer than another's. A rank that dies closes its connections, so nobody waits for it."""
_Job = TypeVar("_Job")


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Ranks]:
        """The ranks that ``torchrun`` started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); they meet before any work.

        Inside of another such block they have met. Raises TransportError where one of the four is no rank's, and where
        they do not meet.
        """
        found = cls._asked()
        if found.world == 1:
            yield found
            return
        import torch.distributed as dist

        own = not dist.is_initialized()
        if own:
            found._come_together()
        try:
            yield found
        finally:
            if own:
                dist.destroy_process_group()

    @classmethod
    def _asked(cls) -> Ranks:
        """What the environment says; without WORLD_SIZE a run is alone."""
        world = _number("WORLD_SIZE", 1, sys.maxsize) if "WORLD_SIZE" in os.environ else 1
        rank = 0 if world == 1 else _number("RANK", 0, world - 1)
        if world > 1:
            _number("MASTER_PORT", 0, 65535)
            if not os.environ.get("MASTER_ADDR"):
                raise _refused("MASTER_ADDR", "the name or address of rank 0's machine")
        return cls(rank, world)

    def _come_together(self) -> None:
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        with self._talking(f"all {self.world} ranks within {_MEETING}"):
            store, _, _ = next(rendezvous("env://", timeout=_MEETING))
            # torchrun's own store is there before any rank is, and gloo would wait as long as for a task
            store.set(f"tinytrain/{self.rank}", "here")
            store.wait([f"tinytrain/{r}" for r in range(self.world)], _MEETING)
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.world, timeout=_PATIENCE
            )

    @contextmanager
    def _talking(self, allowed: str | None = None) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of torch.distributed
            hint = "start the same command again: with --state it goes on from what is finished"
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            allowed = allowed or f"all {self.world} ranks until the end"
            raise TransportError("evaluate", f"rank {self.rank}", said, allowed, hint) from error

    def share(self, jobs: Sequence[_Job]) -> Sequence[_Job]:
        """This rank's part of all jobs; the same whatever is finished, so that no job is nobody's."""
        return jobs[self.rank :: self.world]

    def own_file(self, path: Path) -> Path:
        """Where this rank keeps what it has finished."""
        return path if self.world == 1 else path.with_name(f"{path.name}.rank{self.rank}")

    def load(self, path: Path | None, options: Mapping[str, Any]) -> Results:
        """What is finished already, by any rank whose file is here, of this run or of one with other ranks."""
        results = Results(options)
        if path is not None:
            for file in (path, *_rank_files(path)):
                found = Results.load(file, options)
                results.add(found.records, found.held_out)
        return results

    def spread(self, results: Results) -> None:
        """Every rank gets what all ranks held out, to choose a domain's rate from. TransportError where a rank is lost."""
        if self.world == 1:
            return
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world
        with self._talking():
            dist.all_gather_object(parts, results.held_out)
        for part in parts:
            results.add((), part)

    def gather(self, results: Results) -> None:
        """Rank 0 gets every rank's records. TransportError where a rank is lost, ArchiveError where one ran something else."""
        if self.world == 1:
            return
        import torch.distributed as dist

        parts: list[Any] | None = [None] * self.world if self.rank == 0 else None
        with self._talking():
            dist.gather_object((dict(results.options), results.records), parts)
        for rank, (options, records) in enumerate(parts or ()):
            if options != results.options:
                differing = ", ".join(
                    sorted(k for k in results.options if options.get(k) != results.options[k])
                )
                hint = "give every rank the same command, data and versions"
                raise ArchiveError("evaluate", f"rank {rank}", f"other {differing}", "rank 0's options", hint)
            results.add(records, ())

    def meet(self) -> None:
        """Wait for all ranks: none writes what another still reads of an earlier run. TransportError where one is lost."""
        if self.world > 1:
            import torch.distributed as dist

            with self._talking():
                dist.barrier()

    def finish(self, path: Path | None) -> None:
        """All records stand in `path` now: the ranks' own files are removed."""
        self.meet()
        for file in _rank_files(path) if path is not None else ():
            with suppress(OSError):  # the records are safe; what stays is read again and finds itself known
                file.unlink()


def _number(name: str, low: int, high: int) -> int:
    """A number of the environment; TransportError where it is none, or lies outside."""
    try:
        value = int(os.environ.get(name, ""))
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise _refused(name, f"{low} or more" if high == sys.maxsize else f"a number, {low} … {high}")
    return value


def _refused(name: str, allowed: str) -> TransportError:
    hint = "start ranks by torchrun, which sets it; unset WORLD_SIZE for a run alone"
    return TransportError("evaluate", name, os.environ.get(name) or "nothing", allowed, hint)


def _rank_files(path: Path) -> list[Path]:
    """Files of any rank; a name may hold what a pattern would take for something else."""
    found = path.parent.glob(f"{glob.escape(path.name)}.rank*")
    return sorted(p for p in found if re.search(r"\.rank\d+$", p.name))
