"""A process that is meant to be killed: it adds a folder's pictures and says what is safe.

    python killed_writer.py DATA_DIR FOLDER

Prints `source<TAB>id<TAB>digest` for each picture, once its commit was acknowledged.
"""

from __future__ import annotations

import sys
from pathlib import Path

from colours import ColourEmbedder

from chiasm.retrieval.collection import Collection
from chiasm.retrieval.indexing import index_folder
from chiasm.retrieval.library import Library
from chiasm.settings import IndexingSettings, Settings


def main() -> None:
    collection = Library(Path(sys.argv[1]), ColourEmbedder()).create("photos", exist_ok=True)
    commit = Collection.commit

    def acknowledged(self, prepared, vectors, **options):
        added = commit(self, prepared, vectors, **options)
        for one, result in zip(prepared, added, strict=True):
            sys.stdout.write(f"{one.new.file.path}\t{result.id}\t{one.digest}\n")
        sys.stdout.flush()
        return added

    Collection.commit = acknowledged
    settings = Settings(indexing=IndexingSettings(batch_size=5, decode_threads=2))
    folder = Path(sys.argv[2])
    index_folder(folder, collection, settings=settings, metadata=folder / "table.jsonl")
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
