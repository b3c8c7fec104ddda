"""Makes kjv.txt: Genesis to 2 Samuel in the King James Version, from the Debian packages bible-kjv and bible-kjv-text.

    apt-get install bible-kjv
    python data/text/make_text.py            # writes kjv.txt beside this program
    python data/text/make_text.py --check    # writes nothing; says whether kjv.txt is what would be written

README.md here says where the text comes from.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

PASSAGE = "Gen1:1-2Sm24:25"
VERSES = 8718
REFERENCE = re.compile(r"^\d?[A-Za-z]+\d+:\d+ ")
HERE = Path(__file__).resolve().parent


def printed_verses(program: str, folder: str | None) -> list[str]:
    """The lines that the `bible` program prints: one verse a line, its reference in front."""
    # -f switches the pretty-printing (chapter headings, broken lines) off.
    command = [program, "-f", *(["-p", folder] if folder else []), PASSAGE]
    try:
        done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit(f"no program '{program}': install it (Debian: apt-get install bible-kjv), or name it with --bible")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(command)} failed: {error.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode("ascii").splitlines()


def running_text(lines: list[str]) -> str:
    """The verses alone, one a line: references removed, runs of white space made one space."""
    verses = []
    for line in lines:
        verse, found = REFERENCE.subn("", line)
        if not found:
            sys.exit(f"expected a verse with its reference in front, got {line!r}")
        verses.append(" ".join(verse.split()))
    if len(verses) != VERSES:
        sys.exit(f"expected {VERSES} verses, got {len(verses)}: is this bible-kjv-text 4.38?")
    return "\n".join(verses) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bible", default="bible", help="the bible program (default: %(default)s, on the path)")
    parser.add_argument("--folder", help="where bible.data lies, if not where the package puts it")
    parser.add_argument("--out", type=Path, default=HERE / "kjv.txt", help="the file to write (default: kjv.txt here)")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()
    text = running_text(printed_verses(args.bible, args.folder))
    if args.check:
        same = args.out.is_file() and args.out.read_bytes() == text.encode("ascii")
        sys.exit(0 if same else f"{args.out} is not what this program would write")
    args.out.write_bytes(text.encode("ascii"))
    print(f"{args.out}: {len(text):,} characters, {len(set(text))} different ones")


if __name__ == "__main__":
    main()
