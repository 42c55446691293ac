"""From a folder or a table to WebDataset shards, with marks on what training should know about.

Each picture is opened once: to see that it can be, to compare it with those before, and with the
pictures of an evaluation set. Its bytes are passed through unless a longest side or a quality is
asked for. Shards depend on the source and the settings alone: a build that was killed and run again
ends with the same bytes as one that was not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chiasm.errors import ConfigurationError, ImageError, UnusableData
from chiasm.media import encode_jpeg, open_image, read_header, thumbnail
from chiasm.media.limits import Limits
from chiasm.training import shard_files
from chiasm.training.damage import reason_of
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.evaluation_pictures import evaluation_pictures
from chiasm.training.near_duplicates import Look, Looks
from chiasm.training.samples import Damage, Sample
from chiasm.training.shard_files import ShardFile
from chiasm.training.shard_report import ShardRecipe, ShardReport
from chiasm.training.sources import Source, open_source

_SUFFIXES = {
    "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif",
    "AVIF": "avif",
}  # fmt: skip
_LOOK_SIDE = 64  # pixels that are enough to see what a picture looks like


def build_shards(
    data: DataRecipe,
    out: Path,
    recipe: ShardRecipe,
    *,
    on_progress: Callable[[int, int | None], None] | None = None,
    stop: threading.Event | None = None,
) -> ShardReport:
    """Write the samples of `data` as shards into the folder `out`. Run again, it goes on.

    on_progress: called with (samples looked at, samples there are, if known). stop: once it is set,
    or at KeyboardInterrupt, finished shards stay, and the report says `interrupted`.

    Raises UnusableData if the source cannot be used or has no sample that can be read,
    ConfigurationError if `out` holds something else, NoSpace if the disk is full.
    """
    started = time.perf_counter()
    source = open_source(data, count=True)
    identity = hashlib.sha256(source.identity.encode()).hexdigest()
    settings = {**asdict(recipe), "source": identity, "columns": asdict(data.columns)}
    with shard_files.disk_errors(out):
        finished = shard_files.finished(out)
        if finished is not None:
            return _already(finished, settings, out)
        records = shard_files.begin(out, settings)
        work = _Building(source, data, out, recipe, records, on_progress, stop)
        work.run()
        report = work.report
        if not report.interrupted:
            if not report.samples:
                why = report.reasons() or "there is none"
                raise UnusableData(
                    f"Not one sample of {data.source} can be used: {why}.", param="source"
                )
            shard_files.end(
                out,
                {
                    "samples": report.samples,
                    "shards": work.entries,
                    "report": report.state(),
                    "settings": settings,
                },
            )
    report.seconds = time.perf_counter() - started
    return report


def _already(finished: dict[str, Any], settings: dict[str, Any], out: Path) -> ShardReport:
    """The report of a build that came to its end before."""
    if finished.get("settings") != json.loads(json.dumps(settings)):
        raise ConfigurationError(
            f"{out} holds shards that were made from other data or with other settings.",
            hint="Name another folder, or delete this one.",
            param="out",
        )
    report = ShardReport.of(finished["report"])
    report.kept_shards = report.shards
    return report


# The work ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    """A picture that was opened. suffix, data: of the file that will be written."""

    suffix: str
    data: bytes
    size: tuple[int, int]
    look: Look | None


class _Building:
    """One run: what was found goes through a pool of threads and comes out in its order."""

    def __init__(
        self,
        source: Source,
        data: DataRecipe,
        out: Path,
        recipe: ShardRecipe,
        records: list[dict[str, Any]],
        on_progress: Callable[[int, int | None], None] | None,
        stop: threading.Event | None,
    ) -> None:
        self.entries = [record["shard"] for record in records]
        self.report = ShardReport.of(records[-1]["report"]) if records else ShardReport()
        self.report.kept_shards = len(records)
        self._saved = self.report.state()
        self._source, self._data, self._out, self._recipe = source, data, out, recipe
        self._on_progress = on_progress
        self._stop = stop or threading.Event()
        self._looks = Looks()
        for record in records:
            for name, number, small in record["looks"]:
                self._looks.add(name, Look(number, base64.b64decode(small)))
        self._evaluation = Looks()
        self._place = tuple(records[-1]["next"]) if records else (0, 0, 0)
        self._shard: ShardFile | None = None
        self._new_looks: list[tuple[str, int, str]] = []

    def run(self) -> None:
        """Until the source ends or a stop is asked for."""
        threads = self._data.threads or os.cpu_count() or 1
        with ThreadPoolExecutor(threads, "chiasm-shards") as pool:
            try:
                if self._recipe.contamination is not None:
                    self._learn_evaluation(pool)
                for place, found, future in self._ahead(pool, 2 * threads + 2):
                    if self._stop.is_set():
                        self.report.interrupted = True
                        break
                    self._take(place, found, future)
                if self._shard is not None and not self.report.interrupted:
                    self._close()
            except KeyboardInterrupt:
                self.report.interrupted = True
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if self._shard is not None:
                    self._shard.discard()
        if self.report.interrupted:
            self._forget_unfinished()

    def _forget_unfinished(self) -> None:
        """Report what is in finished shards; the rest is counted when it is done again."""
        kept = self.report.kept_shards
        self.report = ShardReport.of(self._saved)
        self.report.kept_shards, self.report.interrupted = kept, True

    def _ahead(self, pool: ThreadPoolExecutor, window: int) -> Iterator[_InHand]:
        waiting: deque[_InHand] = deque()
        for place, found in self._found():
            future = None
            if isinstance(found, Sample):
                future = pool.submit(prepare, found, self._recipe, self._data.limits)
            waiting.append((place, found, future))
            if len(waiting) > window:
                yield waiting.popleft()
        yield from waiting

    def _found(self) -> Iterator[tuple[_Place, Sample | Damage]]:
        """What the source holds from `_place` on, each with its number."""
        first, start, number = self._place
        for unit in range(first, self._source.units):
            for found in self._source.read(unit, start):
                yield (unit, found.position, number), found
                number += found.count if isinstance(found, Damage) else 1
            start = 0

    def _learn_evaluation(self, pool: ThreadPoolExecutor) -> None:
        """What the pictures of the evaluation set look like."""
        assert self._recipe.contamination is not None
        failures = 0
        pictures = evaluation_pictures(self._recipe.contamination, self._data)
        for name, look in pool.map(lambda each: _look_at(each, self._data.limits), pictures):
            if look is None:
                failures += 1
            else:
                self._evaluation.add(name, look)
        if not self._evaluation.names:
            raise UnusableData(
                f"No picture of {self._recipe.contamination} can be opened.",
                param="contamination",
            )
        if failures and not self.entries:  # or the records say so already
            self.report.skip(
                str(self._recipe.contamination), "evaluation picture cannot be opened", failures
            )

    def _take(
        self, place: _Place, found: Sample | Damage, future: Future[_Prepared] | None
    ) -> None:
        unit, position, number = place
        if isinstance(found, Sample):
            assert future is not None
            try:
                self._write(f"{number:09d}", found, future.result())
            except ImageError as error:
                self.report.skip(found.key, reason_of(error))
            number += 1
        else:
            self.report.skip(found.name, found.reason, found.count)
            number += found.count
        self._place = (unit, position + 1, number)
        if self._on_progress is not None:
            self._on_progress(number, self._source.samples)
        if self._shard is not None and self._full(self._shard):
            self._close()

    def _write(self, key: str, sample: Sample, prepared: _Prepared) -> None:
        duplicate_of, contaminated_by = sample.duplicate_of, sample.contaminated_by
        if prepared.look is not None:
            contaminated_by = self._evaluation.first_like(prepared.look) or contaminated_by
        self.report.contaminated += contaminated_by is not None
        if contaminated_by is not None and self._recipe.drop_contaminated:
            return
        if prepared.look is not None and self._recipe.near_duplicates != "keep":
            duplicate_of = self._looks.first_like(prepared.look)
            if duplicate_of is None:
                self._remember(key, prepared.look)
        self.report.near_duplicates += duplicate_of is not None
        if duplicate_of is not None and self._recipe.near_duplicates == "skip":
            return
        values = {
            "key": key,
            "source": sample.key,
            "caption": sample.captions[0] if len(sample.captions) == 1 else sample.captions,
            "group": sample.group,
            "label": sample.label,
            "hard_negatives": sample.hard_negatives or None,
            "width": prepared.size[0],
            "height": prepared.size[1],
            "duplicate_of": duplicate_of,
            "contaminated_by": contaminated_by,
        }
        given = {name: value for name, value in values.items() if value is not None}
        if self._shard is None:
            self._shard = ShardFile(self._out, len(self.entries))
        self._shard.add(
            key,
            {
                prepared.suffix: prepared.data,
                "json": json.dumps(given, ensure_ascii=False).encode(),
                "txt": sample.captions[0].encode(),
            },
        )
        self.report.samples += 1

    def _remember(self, key: str, look: Look) -> None:
        self._looks.add(key, look)
        self._new_looks.append((key, look.hash, base64.b64encode(look.small).decode()))

    def _full(self, shard: ShardFile) -> bool:
        most = self._recipe.shard_bytes
        enough = most is not None and shard.nbytes >= most
        return enough or shard.samples >= self._recipe.samples_per_shard

    def _close(self) -> None:
        assert self._shard is not None
        self.report.shards += 1
        self.report.bytes += self._shard.closed_size
        self._saved = self.report.state()
        record = {"next": self._place, "looks": self._new_looks, "report": self._saved}
        self.entries.append(self._shard.finish(record))
        self._shard, self._new_looks = None, []


_Place = tuple[int, int, int]
_InHand = tuple[_Place, Sample | Damage, Future[_Prepared] | None]


# Pictures ---------------------------------------------------------------------------------------


def prepare(sample: Sample, recipe: ShardRecipe, limits: Limits) -> _Prepared:
    """Open a picture, and make of it what is written. Raises ImageError."""
    data = _bytes(sample, limits)
    header = read_header(data, limits=limits, name=sample.key)
    if recipe.longest_side is None and recipe.quality is None:
        image = open_image(data, limits=limits, shortest_side=_LOOK_SIDE, name=sample.key)
        suffix = _SUFFIXES[header.format]
    else:
        longest = recipe.longest_side or max(header.size)
        scale = longest / max(header.size)
        # Twice the pixels that are kept, so that the scale of decoding cannot be seen.
        side = max(1, round(2 * min(header.size) * scale)) if scale < 1 else None
        image = thumbnail(
            open_image(data, limits=limits, shortest_side=side, name=sample.key), longest
        )
        data, suffix = encode_jpeg(image, quality=recipe.quality or 90), "jpg"
    wanted = recipe.near_duplicates != "keep" or recipe.contamination is not None
    size = image.original_size if suffix != "jpg" or recipe.longest_side is None else image.size
    return _Prepared(suffix, data, size, Look.of(image) if wanted else None)


def _look_at(found: tuple[str, bytes | Path], limits: Limits) -> tuple[str, Look | None]:
    name, picture = found
    try:
        image = open_image(picture, limits=limits, shortest_side=_LOOK_SIDE, name=name)
    except ImageError:
        return name, None
    return name, Look.of(image)


def _bytes(sample: Sample, limits: Limits) -> bytes:
    if isinstance(sample.picture, bytes):
        return sample.picture
    read_header(sample.picture, limits=limits, name=sample.key)  # refuses what is too large
    try:
        return sample.picture.read_bytes()
    except OSError:
        raise ImageError(sample.key, "the file could not be read to its end.") from None
