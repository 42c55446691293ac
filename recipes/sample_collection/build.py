"""Make the pictures of the sample collection that `chiasm serve` shows on its first start.

Every picture is CC0, in the public domain or without known restrictions; `pictures.csv`, beside
the pictures, names each one's source, licence and author. The result is committed, so only
someone who changes the choice needs to run this:

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb work
    pip download --no-deps scikit-image==0.26.0 -d work && unzip work/scikit_image*.whl -d work
    python recipes/sample_collection/build.py \\
        --openclipart work/usr/share/openclipart/png --skimage work/skimage/data
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from chiasm.media import encode_webp, open_image
from chiasm.media.transform import thumbnail

SAMPLE = Path(__file__).parents[2] / "src/chiasm/retrieval/sample"
LONGEST_SIDE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--openclipart", type=Path, required=True)
    parser.add_argument("--skimage", type=Path, required=True)
    options = parser.parse_args()
    folders = {"openclipart": options.openclipart, "skimage": options.skimage}

    for stale in SAMPLE.glob("*.webp"):
        stale.unlink()
    sizes = []
    with (SAMPLE / "pictures.csv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            origin, _, relative = row["source"].partition("/")
            picture = thumbnail(open_image(folders[origin] / relative), LONGEST_SIDE)
            data = encode_webp(picture, quality=82)
            (SAMPLE / f"{row['file']}.webp").write_bytes(data)
            sizes.append(len(data))
    print(f"{len(sizes)} pictures, {sum(sizes) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
