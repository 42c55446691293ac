"""How much the held-out numbers depend on which objects are held out.

    python recipes/default_embedder/cross_validate.py

leaves the recipe's own held-out objects aside, splits the remaining stamps again and again, each
time holding out 200 of them by object, trains the regression and measures it. The columns are
means over the splits, and below them their standard deviations.

Two protocols. "strict": no picture of any source that names a held-out object is trained on.
"stamps only": the stamps of the held-out objects are kept out, while emoji and clip art of such
objects are trained on, unless they are near-duplicates of a held-out stamp.
"""

from __future__ import annotations

import argparse

import numpy as np
import recipe
import torch
import torch.nn.functional as F
from evaluate import DEPTHS, Recall, own, ranks, same_object
from pictures import is_near, split
from train import TRAINING_PARTS, fit, load_cache

PROTOCOLS = ["strict", "stamps only"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS, choices=PROTOCOLS)
    arguments = parser.parse_args()
    settings = recipe.load()
    cache = load_cache(settings)
    place = {picture.path: i for i, picture in enumerate(cache.pictures)}
    print(f"Mean and deviation over {arguments.splits} splits of 200 stamps each.\n")
    heads = " | ".join(f"R@{depth}" for depth in DEPTHS)
    print(f"| protocol | pictures | {heads} | any of the object: {heads} |")
    print("|---|---|" + "---|" * 2 * len(DEPTHS))
    for protocol in arguments.protocols:
        rows, sizes = [], []
        for number in range(arguments.splits):
            pool = [
                picture
                for picture in cache.pictures
                if picture.part in TRAINING_PARTS
                or (protocol == "stamps only" and picture.source != "stamp")
            ]
            found = split(pool, salt=f"cross-validation {number}", held_out=200, validation=0)
            aside = [p for p in found if p.source == "stamp" and p.part == "held out"]
            hashes = [picture.hash for picture in aside]
            chosen = [
                place[picture.path]
                for picture in found
                if picture.part in TRAINING_PARTS
                or (
                    protocol == "stamps only"
                    and picture.source != "stamp"
                    and not is_near(picture.hash, hashes)
                )
            ]
            asked = [picture for picture in aside if not picture.glyph]
            image_head, text_head, _ = fit(cache, chosen, settings["heads"])
            with torch.no_grad():
                summaries = cache.plain[[place[p.path] for p in asked]].float()
                images = F.normalize(image_head(summaries, cache.logits(summaries)), dim=-1)
                texts = F.normalize(text_head(cache.text([p.caption for p in asked])), dim=-1)
            similarity = texts @ images.T
            rows.append(
                [
                    hits / len(asked)
                    for right in (own(len(asked)), same_object(asked))
                    for hits in Recall.of(ranks(similarity, right)).hits
                ]
            )
            sizes.append(len(chosen))
        for name, values in (("", np.mean(rows, axis=0)), (" ±", np.std(rows, axis=0, ddof=1))):
            cells = " | ".join(f"{value:.3f}" for value in values)
            print(f"| {protocol}{name} | {np.mean(sizes):.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
