"""Rebuild attune-tiny from nothing: data, codec, judge, decoder, CLAP, card. Resumable; hours on two cores.

python -m scripts.tiny.build          # or `make tiny`
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.tiny.common import BUILD

TARGET = Path(__file__).resolve().parents[2] / "alignment" / "music" / "tiny"


def install(target: Path = TARGET) -> None:
    """Copy the finished model and CLAP beside the code that loads them."""
    for name in ("", "clap"):
        for path in (BUILD / "model" / name).iterdir():
            if path.is_file():
                (target / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec-minutes", default="27")
    parser.add_argument("--polish-minutes", default="14")
    parser.add_argument("--decoder-minutes", default="86")
    parser.add_argument("--clap-minutes", default="11")
    args = parser.parse_args()

    def run(module: str, *arguments: str) -> None:
        print(f"== {module} {' '.join(arguments)}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"scripts.tiny.{module}", *arguments], check=False)
        if done.returncode:  # it has said why: the judge's gate, for one, refuses a codec that it cannot read
            sys.exit(done.returncode)

    if not (BUILD / "data" / "test.jsonl").exists():
        run("render")
    run("train_codec", "--minutes", args.codec_minutes)
    run("train_codec", "--polish", args.polish_minutes)
    run("train_judge")  # the gate: read its accuracy on reconstructions before going on
    run("train_decoder", "--minutes", args.decoder_minutes)
    run("train_clap", "--minutes", args.clap_minutes)
    install()
    run("write_card")


if __name__ == "__main__":
    main()
