"""Which of the pictures on their way in are there already.

Exact: the same decoded pixels, or a file with the same bytes. Nothing is written for those.
Near: a perceptual hash within a few bits finds candidates cheaply, whatever the size of the
collection; the embedding decides. The hash alone confuses pictures that are mostly one colour, the
embedding alone confuses two pictures of the same thing; together they mean the same picture in
another size, another compression, a little brighter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chiasm.media.perceptual_hash import hamming_distance
from chiasm.retrieval.store import Store, Vectors

NearDuplicates = Literal["keep", "skip"]

MAX_DISTANCE = 6  # of 64 bits
MIN_COSINE = 0.95


@dataclass(frozen=True)
class Candidate:
    """What is compared of a picture on its way in. replaces: the id of the item it succeeds."""

    id: str
    digest: str
    file_digest: str
    perceptual_hash: int
    vector: Vectors
    replaces: str | None = None


@dataclass(frozen=True)
class Verdict:
    """kind: "new", or how it relates to the item `of`."""

    kind: Literal["new", "duplicate", "near_duplicate"]
    of: str | None = None


def examine(
    store: Store, candidates: Sequence[Candidate], *, near_duplicates: NearDuplicates
) -> list[Verdict]:
    """Compare each candidate with the store and with those before it in the same batch.

    With "skip" a near duplicate is not itself something that later ones are compared with.
    """
    verdicts: list[Verdict] = []
    digests: dict[str, str] = {}
    batch: list[Candidate] = []
    for candidate in candidates:
        verdict = _exact(store, candidate, digests) or _near(store, candidate, batch)
        verdicts.append(verdict)
        if verdict.kind == "duplicate":
            continue
        if verdict.kind == "near_duplicate" and near_duplicates == "skip":
            continue
        batch.append(candidate)
        for digest in (candidate.digest, candidate.file_digest):
            if digest:
                digests[digest] = candidate.id
    return verdicts


def _exact(store: Store, candidate: Candidate, batch: dict[str, str]) -> Verdict | None:
    of = (
        batch.get(candidate.digest)
        or batch.get(candidate.file_digest)
        or store.with_digest(candidate.digest, candidate.file_digest)
    )
    if of is None or of == candidate.replaces:
        return None
    return Verdict("duplicate", of)


def _near(store: Store, candidate: Candidate, batch: Sequence[Candidate]) -> Verdict:
    ids = [
        id
        for id in store.alike(candidate.perceptual_hash, MAX_DISTANCE)
        if id != candidate.replaces
    ]
    vectors = [store.vectors(ids)] if ids else []
    for other in batch:
        distance = hamming_distance(candidate.perceptual_hash, other.perceptual_hash)
        if distance <= MAX_DISTANCE:
            ids.append(other.id)
            vectors.append(other.vector[None])
    if not ids:
        return Verdict("new")
    cosines = np.concatenate(vectors) @ candidate.vector  # [ids]
    best = int(np.argmax(cosines))
    if cosines[best] < MIN_COSINE:
        return Verdict("new")
    return Verdict("near_duplicate", ids[best])
