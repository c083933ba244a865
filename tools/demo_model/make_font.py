"""Cuts the demo phone's font out of WenQuanYi Micro Hei: `python -m tools.demo_model.make_font`.

Needs fonttools and the Debian package fonts-wqy-microhei. The font is licensed under the Apache
License 2.0 (or the GPL 3 with font exception); its subset ships under the former.
"""

import argparse
from pathlib import Path

from hearth.demo_phone.drawing import FONT_PATH, all_characters

SOURCE = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--output", type=Path, default=FONT_PATH)
    given = parser.parse_args()
    # Only this tool needs fonttools.
    from fontTools import subset

    options = subset.Options(
        font_number=0, hinting=False, desubroutinize=True, layout_features=[], name_IDs=["*"]
    )
    font = subset.load_font(str(given.source), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=all_characters())
    subsetter.subset(font)
    subset.save_font(font, str(given.output), options)
    print(f"{given.output}: {given.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
